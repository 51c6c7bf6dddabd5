"""Explicitness: whether all codes together tell each value of each factor, linearly.

Shapes: N data, D codes, F factors, M held-out rows, R resamples.
"""

import numpy as np
from torch import Tensor

from ppl_vae.evaluate.disentanglement.resampling import ratio, spread, weights
from ppl_vae.evaluate.disentanglement.table import check_numbers, standardize, tabulate
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.held_out import held_out

__all__ = ["explicitness"]


def explicitness(
    codes: Tensor,
    factors: Tensor,
    *,
    num_resamples: int = 100,
    seed: int = 0,
) -> Estimate:
    r"""Ridgeway and Mozer's explicitness: the mean area under the ROC curve.

    .. math:: \frac1F \sum_{j=1}^F \frac1{b_j} \sum_{k=1}^{b_j} \text{AUC}_{jk}, \qquad
        \text{AUC} = P(s^+ > s^-) + \tfrac12 P(s^+ = s^-)

    where s is the score that logistic regression of "factor j has its value k" against the rest
    gives to a held-out row, and + and - are rows with and without that value. The regression is
    scikit-learn's (C = 1) of all codes, standardized; it trains on a random half of the rows of
    each value. Values of a single row are left out.

    *Chance*: 1/2. *Ceiling*: 1, where a hyperplane parts each value from the others, as codes that
    have a dimension for each value. One dimension that is the factor does not: no line parts a
    value that lies between others. With b values in equal shares it has the mean over k of
    max(k - 1, b - k) / (b - 1): 1 for two values, 5/6 for three, towards 3/4 for many.

    Args:
        codes: `[N, D]`, D >= 2, as `codes_and_factors` gives.
        factors: `[N, F]`, discrete.
        num_resamples: Of the data, for the standard error: the standard deviation of the score over
            held-out rows drawn anew with replacement, regressions kept. 0 for none (nan).
        seed: Of halves and resamples; the global random streams are left alone.

    Raises:
        ValueError: Shapes that do not fit, values that are not finite, fewer than two codes, a
            factor that is constant or not discrete, a number out of range.

    References:
        Ridgeway and Mozer (2018), Learning Deep Disentangled Embeddings with the F-Statistic Loss.

    Example:
        >>> labels = torch.arange(3).repeat(20)
        >>> explicitness(torch.nn.functional.one_hot(labels).double(), labels.unsqueeze(1)).value
        1.0
    """
    from sklearn.linear_model import LogisticRegression

    check_numbers("explicitness", seed, num_resamples)
    table = tabulate(codes, factors, "explicitness")
    generator = np.random.default_rng(seed)
    weight = weights(len(table.codes), num_resamples, generator)
    scores = []
    for column in table.factors.T:
        held = held_out(column, 0.5, generator)
        train, test = (standardize(table.codes[side], table.codes[~held]) for side in (~held, held))
        areas = []
        for value in np.flatnonzero(np.bincount(column) >= 2):
            has = column == value
            told = LogisticRegression(max_iter=1000).fit(train, has[~held])
            areas.append(_area(told.decision_function(test), has[held], weight[:, held]))
        scores.append(_mean_of_known(np.stack(areas, axis=1)))
    return spread(np.mean(scores, axis=0))


def _area(score: np.ndarray, has: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The area under the ROC curve, `[1 + R]`, of scores `[M]` under weights `[1 + R, M]`.

    nan where a resample holds rows of one kind only.
    """
    levels, place = np.unique(score, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(levels)))
    of_level = [np.add.reduceat((weight * side)[:, order], starts, axis=1) for side in (has, ~has)]
    plus, minus = of_level  # [1 + R, levels]
    below = minus.cumsum(axis=1) - minus
    pairs = plus.sum(axis=1) * minus.sum(axis=1)
    wins = (plus * (below + 0.5 * minus)).sum(axis=1)
    return np.where(pairs > 0, ratio(wins, pairs), np.nan)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """The mean along the last axis of what is not nan."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))
