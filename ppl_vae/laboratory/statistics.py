"""Means over repeats, and differences between what was repeated alike.

Shapes: n repeats.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ppl_vae.evaluate import Estimate

__all__ = ["Paired", "holm", "mean_of", "paired"]


@dataclass(frozen=True)
class Paired:
    r"""The mean difference between two ways, repeated alike n times.

    Attributes:
        difference: :math:`\bar d = \frac1n \sum_i (a_i - b_i)` and its standard error
            :math:`\operatorname{sd}(d) / \sqrt n`, in the unit of the values.
        p_value: Of Student's t-test that the mean difference is 0, two-sided, n - 1 degrees of
            freedom; nan with fewer than two repeats.
        num: n.
    """

    difference: Estimate
    p_value: float
    num: int


def mean_of(values: Sequence[float]) -> Estimate:
    r"""Mean and standard error :math:`\operatorname{sd} / \sqrt n` of those that are numbers.

    Args:
        values: One for each repeat; nan where there is none.
    """
    found = np.array([value for value in values if not math.isnan(value)], dtype=float)
    if len(found) == 0:
        return Estimate(math.nan, math.nan)
    error = found.std(ddof=1) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return Estimate(float(found.mean()), float(error))


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Paired:
    """Compares what both have, by the name of the repeat.

    The repeats of two ways must have as much in common as can be (a seed gives the same initial
    parameters, permutations and noise where the ways allow it): what they share cancels.

    Args:
        ours: The metric of each repeat, by its name.
        theirs: That of the baseline.
    """
    common = [name for name in ours if name in theirs]
    found = np.array([ours[name] - theirs[name] for name in common], dtype=float)
    found = found[np.isfinite(found)]
    difference = mean_of(found.tolist())
    if len(found) < 2:
        return Paired(difference, math.nan, len(found))
    if difference.standard_error == 0:
        return Paired(difference, 1.0 if difference.value == 0 else 0.0, len(found))
    t = abs(difference.value) / difference.standard_error
    return Paired(difference, float(2 * stats.t.sf(t, len(found) - 1)), len(found))


def holm(p_values: Sequence[float]) -> list[float]:
    r"""P-values of several tests, raised so that the chance of any false alarm stays below theirs.

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1)\, p_{(j)})

    of m tests in rising order; nan stays nan, and does not count.

    Args:
        p_values: One for each test.

    References:
        Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    raised, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        raised[index] = largest
    return raised
