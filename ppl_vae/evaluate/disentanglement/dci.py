"""DCI: what a forest needs of the codes to tell each factor, and how well it tells it.

Shapes: N data, D codes, F factors, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vae.evaluate.disentanglement.resampling import ratio, resampled_rows, spread, weights
from ppl_vae.evaluate.disentanglement.table import Table, check_numbers, tabulate
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.held_out import held_out

__all__ = ["DCI", "dci"]

# Smaller leaves fit noise, and give importance to codes that tell nothing.
_LEAF = 5


@dataclass(frozen=True)
class DCI:
    """Disentanglement, completeness, and the error that informativeness is read from.

    Attributes:
        disentanglement: The mean over codes, each by its share of all importance.
        completeness: The mean over factors.
        error: The mean over factors of the held-out error; small is informative.
        by_code: Disentanglement of each code, `[D]`.
        by_factor: Completeness of each factor, `[F]`.
        errors: The held-out error of each factor, `[F]`.
        importance: Of each code for each factor, `[D, F]`; columns sum to 1.
    """

    disentanglement: Estimate
    completeness: Estimate
    error: Estimate
    by_code: Estimate
    by_factor: Estimate
    errors: Estimate
    importance: Tensor


def dci(
    codes: Tensor,
    factors: Tensor,
    *,
    continuous: Sequence[int] = (),
    num_trees: int = 50,
    num_resamples: int = 10,
    seed: int = 0,
) -> DCI:
    r"""Eastwood and Williams' disentanglement, completeness and informativeness.

    .. math:: D_i = 1 + \sum_j P_{ij} \log_F P_{ij}, \quad P_{ij} = R_{ij} / \textstyle\sum_k R_{ik}
        \qquad C_j = 1 + \sum_i \tilde P_{ij} \log_D \tilde P_{ij}, \quad
        \tilde P_{ij} = R_{ij} / \textstyle\sum_k R_{kj}

    where R is the importance of code i for factor j. The score D is the mean of the codes' by
    :math:`\rho_i = \sum_j R_{ij} / \sum_{ij} R_{ij}`, C the mean over factors. R is the mean
    decrease in impurity of a random forest (scikit-learn's, leaves of 5 rows or more) that sees
    *every* code at each split: one that sees a random few must split on codes that tell nothing.
    Trees of boosting cost ten times as much where a factor has many values. Forests train on a
    random half of the rows of each value; errors are those of the other half.

    A factor of classes has the share of wrong answers as its error, a continuous one the root mean
    squared error by the standard deviation of its held-out values.

    *Ceiling*: D = C = 1 and error 0, of codes that each are one factor. Two equal codes of a factor
    lower C and not D, one code of two factors D and not C. *Chance*: D and C near 0 (below 0.05
    from a thousand rows on), as importance is spread evenly; the error is that of an answer without
    knowledge, 1 - 1/b for b values in equal shares, and a little above 1 where continuous. Codes
    that no forest uses have no weight; where none is used D and C are 0.

    Args:
        codes: `[N, D]`, D >= 2, as `codes_and_factors` gives.
        factors: `[N, F]`, F >= 2, discrete but for those in `continuous`.
        continuous: Columns of factors that are numbers rather than classes.
        num_trees: Of each forest.
        num_resamples: Of the data, for the standard errors: the standard deviation of the score
            over forests anew, from each half drawn anew with replacement. Costs as many times the
            value itself. 0 for none (nan).
        seed: Of halves, forests and resamples; the global random streams are left alone.

    Raises:
        ValueError: Shapes that do not fit, values that are not finite, fewer than two codes or
            factors, a factor that is constant or not discrete, a number out of range.

    References:
        Eastwood and Williams (2018), A Framework for the Quantitative Evaluation of Disentangled
        Representations.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(5)).repeat(20, 1)
        >>> found = dci(factors.double(), factors, num_resamples=0)
        >>> found.disentanglement.value, found.completeness.value, found.error.value
        (1.0, 1.0, 0.0)
    """
    check_numbers("dci", seed, num_resamples, num_trees=num_trees)
    table = tabulate(codes, factors, "dci", min_factors=2, continuous=continuous)
    generator = np.random.default_rng(seed)
    weight = weights(len(table.codes), num_resamples, generator)
    num_codes, num_factors = table.codes.shape[1], len(table.sizes)
    importance = np.empty((len(weight), num_codes, num_factors))
    errors = np.empty((len(weight), num_factors))
    for f in range(num_factors):
        is_number = f in continuous
        classes = np.zeros(len(table.codes)) if is_number else table.factors[:, f]
        held = held_out(classes, 0.5, generator)
        for r, row in enumerate(weight):
            parts = [resampled_rows(np.flatnonzero(side), row) for side in (~held, held)]
            how = {"n_estimators": num_trees, "random_state": int(generator.integers(2**31))}
            importance[r, :, f], errors[r, f] = _forest(table, f, is_number, parts, how)
    by_code, by_factor = _concentration(importance), _concentration(importance.swapaxes(1, 2))
    share = ratio(importance.sum(axis=2), importance.sum(axis=(1, 2))[:, None])  # [1 + R, D]
    return DCI(
        spread((share * by_code).sum(axis=1)),
        spread(by_factor.mean(axis=1)),
        spread(errors.mean(axis=1)),
        spread(by_code),
        spread(by_factor),
        spread(errors),
        torch.from_numpy(importance[0].copy()),
    )


def _forest(
    table: Table, f: int, is_number: bool, parts: list[np.ndarray], how: dict[str, int]
) -> tuple[np.ndarray, float]:
    """The importances of a forest for one factor, `[D]`, and its held-out error."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    train, test = parts
    make = RandomForestRegressor if is_number else RandomForestClassifier
    forest = make(min_samples_leaf=_LEAF, max_features=None, **how)
    target = table.values[:, f] if is_number else table.factors[:, f]
    z = table.standardized  # scikit-learn computes in single precision
    forest.fit(z[train], target[train])
    found = forest.predict(z[test])
    if not is_number:
        return forest.feature_importances_, float((found != target[test]).mean())
    square = ((found - target[test]) ** 2).mean()
    return forest.feature_importances_, float(np.sqrt(ratio(square, target[test].var())))


def _concentration(importance: np.ndarray) -> np.ndarray:
    """1 less the entropy, to the base n, of the shares along the last axis `[..., n]`.

    0 where there is nothing to share.
    """
    total = importance.sum(axis=-1, keepdims=True)
    p = ratio(importance, total)
    logs = np.log(np.where(p > 0, p, 1.0)) / np.log(importance.shape[-1])
    return np.where(total[..., 0] > 0, 1 + (p * logs).sum(axis=-1), 0.0)
