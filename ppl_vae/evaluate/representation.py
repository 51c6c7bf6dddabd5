"""What a simple classifier makes of the codes: accuracies of a linear probe and of neighbours.

Shapes: N data, D code dimensions, M held-out data.
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.held_out import held_out
from ppl_vae.randomness import check_seed

__all__ = ["knn_accuracy", "linear_probe"]


def linear_probe(
    codes: Tensor,
    labels: Tensor,
    *,
    test: tuple[Tensor, Tensor] | None = None,
    test_share: float = 0.5,
    inverse_penalty: float = 1.0,
    seed: int = 0,
) -> Estimate:
    r"""The held-out accuracy of logistic regression from the codes.

    .. math:: a = \frac1M \sum_{m=1}^M \big[\operatorname{argmax}_c (w_c \cdot z_m + b_c) = y_m
        \big], \qquad \text{standard error} \sqrt{a (1 - a) / M}

    The regression is scikit-learn's, multinomial, of codes standardized by the training rows. The
    standard error is the binomial one: of other held-out data for the same classifier; it is 0
    where all answers are right, or all wrong. *Ceiling*: 1, of classes that hyperplanes part; a
    rotation of the codes changes nothing. *Chance*: the share of the most frequent class.

    Args:
        codes: `[N, D]`, floating.
        labels: Classes `[N]`, integers.
        test: Codes `[M, D]` and labels `[M]` to test on; `codes` are then all trained on.
        test_share: Without `test`, the share of each class that is held out, in (0, 1).
        inverse_penalty: C of scikit-learn, > 0; the smaller, the closer to 0 are the weights.
        seed: Of what is held out; the global random streams are left alone.

    Raises:
        ValueError: Shapes that do not fit, values that are not finite, labels that are no integers
            or of one class in training, a number out of range.

    References:
        Alain and Bengio (2017), Understanding Intermediate Layers Using Linear Classifier Probes.

    Example:
        >>> labels = torch.arange(3).repeat(20)
        >>> linear_probe(torch.nn.functional.one_hot(labels).double(), labels).value
        1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not _is_number(inverse_penalty) or not 0 < inverse_penalty < math.inf:
        raise ValueError(
            f"linear_probe: inverse_penalty is {inverse_penalty!r}; accepted is a number > 0"
        )
    parts = _parts("linear_probe", codes, labels, test, test_share, seed)
    told = LogisticRegression(C=inverse_penalty, max_iter=10_000)
    return _accuracy(make_pipeline(StandardScaler(), told), parts)


def knn_accuracy(
    codes: Tensor,
    labels: Tensor,
    *,
    num_neighbors: int = 5,
    test: tuple[Tensor, Tensor] | None = None,
    test_share: float = 0.5,
    seed: int = 0,
) -> Estimate:
    r"""The held-out accuracy of the majority among the nearest codes.

    .. math:: a = \frac1M \sum_{m=1}^M \big[\operatorname{mode}\{y_n : z_n \text{ among the } k
        \text{ nearest to } z_m\} = y_m\big], \qquad \text{standard error} \sqrt{a (1 - a) / M}

    Distances are Euclidean in the codes as they are: neither a rotation nor one scale for all
    dimensions changes them, a scale for each does. Of classes with equally many neighbours the
    first wins. The standard error is the binomial one: of other held-out data for the same
    classifier; it is 0 where all answers are right, or all wrong. *Ceiling*: 1, of classes that lie
    apart. *Chance*: 1/C for C classes in equal shares; less than the share of the most frequent one
    else.

    Args:
        codes: `[N, D]`, floating.
        labels: Classes `[N]`, integers.
        num_neighbors: k, no more than there are training rows.
        test: Codes `[M, D]` and labels `[M]` to test on; `codes` are then all neighbours.
        test_share: Without `test`, the share of each class that is held out, in (0, 1).
        seed: Of what is held out; the global random streams are left alone.

    Raises:
        ValueError: Shapes that do not fit, values that are not finite, labels that are no integers
            or of one class in training, a number out of range.

    References:
        Cover and Hart (1967), Nearest Neighbor Pattern Classification.

    Example:
        >>> labels = torch.arange(3).repeat(20)
        >>> knn_accuracy(torch.nn.functional.one_hot(labels).double(), labels).value
        1.0
    """
    from sklearn.neighbors import KNeighborsClassifier

    check_dim(num_neighbors, "knn_accuracy: num_neighbors")
    parts = _parts("knn_accuracy", codes, labels, test, test_share, seed)
    if num_neighbors > len(parts[0]):
        raise ValueError(
            f"knn_accuracy: num_neighbors is {num_neighbors} of {len(parts[0])} training rows; "
            "accepted are no more than these"
        )
    return _accuracy(KNeighborsClassifier(num_neighbors), parts)


def _accuracy(classifier: Any, parts: list[np.ndarray]) -> Estimate:
    """Trains on the first two of the parts, and answers for the others."""
    codes, labels, test_codes, test_labels = parts
    classifier.fit(codes, labels)
    accuracy = float((classifier.predict(test_codes) == test_labels).mean())
    return Estimate(accuracy, math.sqrt(accuracy * (1 - accuracy) / len(test_labels)))


def _parts(
    name: str,
    codes: Tensor,
    labels: Tensor,
    test: tuple[Tensor, Tensor] | None,
    test_share: float,
    seed: int,
) -> list[np.ndarray]:
    """Codes and labels to train on, codes and labels to test on."""
    check_seed(seed)
    if not _is_number(test_share) or not 0 < test_share < 1:
        raise ValueError(f"{name}: test_share is {test_share!r}; accepted is a number in (0, 1)")
    _check(name, "", codes, labels, None)
    z, y = codes.detach().cpu().double().numpy(), labels.detach().cpu().numpy()
    if test is None:
        held = held_out(y, test_share, np.random.default_rng(seed))
        parts = [z[~held], y[~held], z[held], y[held]]
        if not held.any():
            raise ValueError(
                f"{name}: each of the {len(y)} labels is a class of its own; accepted are classes "
                "of two rows or more, or test="
            )
    else:
        _check(name, "test ", *test, codes.shape[1])
        parts = [z, y, *(part.detach().cpu().numpy() for part in (test[0].double(), test[1]))]
    if len(np.unique(parts[1])) < 2:
        raise ValueError(f"{name}: all labels are {parts[1][0]}; accepted are two classes or more")
    return parts


def _check(name: str, which: str, codes: Tensor, labels: Tensor, dim: int | None) -> None:
    if not isinstance(codes, Tensor) or not codes.is_floating_point():
        kind = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
        raise ValueError(f"{name}: {which}codes is of {kind}; accepted is a Tensor of floats")
    fits = codes.dim() == 2 and codes.shape[1] == (dim or codes.shape[1]) and codes.numel() > 0
    if not fits:
        accepted = "[N, D], N >= 1, D >= 1" if dim is None else f"[M, {dim}], M >= 1"
        raise ValueError(
            f"{name}: {which}codes has the shape {list(codes.shape)}; accepted is {accepted}"
        )
    if num_bad := int((~codes.isfinite()).sum()):
        raise ValueError(
            f"{name}: {which}codes holds {num_bad} values that are NaN or infinite; accepted are "
            "finite values"
        )
    is_tensor = isinstance(labels, Tensor)
    integers = is_tensor and not (labels.is_floating_point() or labels.is_complex())
    if not integers or labels.shape != codes.shape[:1]:
        given = f"{labels.dtype} {list(labels.shape)}" if is_tensor else type(labels).__name__
        raise ValueError(
            f"{name}: {which}labels is {given}; accepted are integers [{len(codes)}], a class for "
            "each code"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
