"""SAP: how far the best code is ahead of the second best in telling each factor by a line.

Shapes: N data, D codes, F factors, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vae.evaluate.disentanglement.resampling import ratio, spread, weights
from ppl_vae.evaluate.disentanglement.table import check_numbers, standardize, tabulate, top_gap
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.held_out import held_out

__all__ = ["SAP", "sap"]

# C. Of b values evenly spaced, M rows to train on, a margin takes b^3 / (6 M) or more.
_SLACK = 100.0


@dataclass(frozen=True)
class SAP:
    """The separated attribute predictability.

    Attributes:
        score: The mean over factors.
        by_factor: The gap of each factor, `[F]`.
        predictability: Balanced accuracy, or R^2 of a continuous factor, of every code and factor,
            `[D, F]`; 0 of a code that is not active.
    """

    score: Estimate
    by_factor: Estimate
    predictability: Tensor


def sap(
    codes: Tensor,
    factors: Tensor,
    *,
    continuous: Sequence[int] = (),
    threshold: float = 0.01,
    num_train: int = 2000,
    num_resamples: int = 100,
    seed: int = 0,
) -> SAP:
    r"""The separated attribute predictability of Kumar et al.

    .. math:: \text{SAP} = \frac1F \sum_{j=1}^F \Big(S_{i(j) j} - \max_{i \ne i(j)} S_{ij}\Big),
        \qquad i(j) = \operatorname{argmax}_i S_{ij}

    For a factor of classes S is the balanced accuracy (mean recall of the values) of a linear
    support vector machine that sees code i alone, on held-out rows of each value. The
    machine is scikit-learn's `SVC`, one value against one other, with C = 100: thresholds on a
    line, as in the paper. (One against all the rest, as `LinearSVC` has it, gets half of the values
    right of a perfect code of eight; and with C = 1 neighbours among 32 are not told apart.) For a
    continuous factor it is :math:`R^2 = \operatorname{Cov}(z_i, v_j)^2 / (\operatorname{Var} z_i
    \operatorname{Var} v_j)`, over all rows. S is 0 for a code that is not active.

    *Ceiling*, of a code that is the factor: 1 - 1/b for b values, since the second-best code gets
    1/b without knowledge; so 2/3 for three. It is 1 where no other code is active, or the factor is
    continuous. *Chance*: 0, but for the distance of the two best of D accuracies in noise, each of
    standard deviation at most :math:`\sqrt{(b - 1) / M} / b` with M rows held out.

    Args:
        codes: `[N, D]`, D >= 2, as `codes_and_factors` gives.
        factors: `[N, F]`, discrete but for those in `continuous`.
        continuous: Columns of factors that are numbers rather than classes.
        threshold: Codes whose variance over the data is above it are active.
        num_train: Rows that machines train on, at most: half, or this many, of each value by its
            share. The others are held out. A machine's cost is about the square of it.
        num_resamples: Of the data, for the standard errors: the standard deviation of the score
            over held-out rows drawn anew with replacement, machines kept; over all rows where
            continuous. 0 for none (nan).
        seed: Of halves and resamples; the global random streams are left alone.

    Raises:
        ValueError: Shapes that do not fit, values that are not finite, fewer than two codes, a
            factor that is constant or not discrete, a number out of range.

    References:
        Kumar, Sattigeri and Balakrishnan (2018), Variational Inference of Disentangled Latent
        Concepts from Unlabeled Observations.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(3), torch.arange(4)).repeat(20, 1)
        >>> found = sap(factors.double(), factors, continuous=[0, 1])
        >>> round(found.score.value, 6)
        1.0
    """
    check_numbers("sap", seed, num_resamples, num_train=num_train)
    table = tabulate(codes, factors, "sap", continuous=continuous)
    generator = np.random.default_rng(seed)
    weight = weights(len(table.codes), num_resamples, generator)
    share = max(0.5, 1 - num_train / len(table.codes))
    active = np.flatnonzero(table.active(threshold))
    scores = np.zeros((len(weight), table.codes.shape[1], len(table.sizes)))
    for f in range(len(table.sizes)):
        if f in continuous:
            found = _squared_correlations(table.standardized, table.values[:, f], weight)
            scores[:, active, f] = found[:, active]
            continue
        held = held_out(table.factors[:, f], share, generator)
        for i in active:
            right = _right(table.codes[:, [i]], table.factors[:, f], held)
            scores[:, i, f] = _balanced(right, table.factors[held, f], weight[:, held])
    gaps = top_gap(scores)
    return SAP(spread(gaps.mean(axis=1)), spread(gaps), torch.from_numpy(scores[0].copy()))


def _right(code: np.ndarray, classes: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Which held-out rows a linear machine tells the class of, from one code `[N, 1]`."""
    from sklearn.svm import SVC

    line = standardize(code, code[~held])
    # Without a state of its own it would draw from numpy's global stream, and use nothing of it.
    machine = SVC(C=_SLACK, kernel="linear", class_weight="balanced", random_state=0)
    return machine.fit(line[~held], classes[~held]).predict(line[held]) == classes[held]


def _balanced(right: np.ndarray, classes: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The mean over classes of the share that is right, `[1 + R]`, of weights `[1 + R, M]`.

    Classes that a resample does not hold are left out of its mean.
    """
    of_class = np.eye(classes.max() + 1)[classes]  # [M, b]
    total = weight @ of_class
    recall = ratio(weight @ (of_class * right[:, None]), total)
    return ratio(recall.sum(axis=1), (total > 0).sum(axis=1))


def _squared_correlations(z: np.ndarray, v: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """R^2 of each column of z `[N, D]` and v `[N]`, `[1 + R, D]`; 0 where either is constant."""
    v = ((v - v.mean()) / v.std())[:, None]
    weight = weight / weight.sum(axis=1, keepdims=True)
    mean_z, mean_v = weight @ z, weight @ v
    covariance = weight @ (z * v) - mean_z * mean_v
    variances = (weight @ z**2 - mean_z**2) * (weight @ v**2 - mean_v**2)
    # Both have variance 1 in the data; what is left of a constant one is rounding.
    return ratio(np.where(variances > 1e-12, covariance**2, 0.0), variances)
