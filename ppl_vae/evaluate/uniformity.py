"""The band that the whole distribution function of uniform ranks stays in.

Shapes: N ranks, from 0 to L.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["EcdfBand", "ecdf_difference", "uniform_band"]

# Halvings of the ratio between the widest and the narrowest band that come into question.
_HALVINGS = 20


@dataclass(frozen=True)
class EcdfBand:
    r"""Between what all L differences of N uniform ranks lie at once, ends included.

    Attributes:
        lower: The least differences :math:`F_i - i / (L + 1)`, `[L]`, double.
        upper: The largest.
        coverage: The probability that uniform ranks leave the band nowhere: :math:`1 - \alpha` or
            a little more, since ranks are counted.
    """

    lower: Tensor
    upper: Tensor
    coverage: float


def ecdf_difference(ranks: Tensor, num_draws: int) -> Tensor:
    r"""How far the distribution function of ranks is from that of uniform ones.

    .. math:: F_i - \frac{i}{L + 1},\qquad F_i = \frac1N \sum_n [r_n < i],\qquad i = 1, \dots, L

    Args:
        ranks: From 0 to L, `[N]`.
        num_draws: L.

    Returns:
        `[L]`, double, on the CPU.
    """
    counts = torch.bincount(ranks.cpu(), minlength=num_draws + 1).cumsum(0)[:-1]
    return torch.from_numpy(_difference(counts.numpy(), len(ranks)))


@cache
def uniform_band(num_data: int, num_draws: int, alpha: float) -> EcdfBand:
    r"""The simultaneous band of the ECDF difference of uniform ranks.

    .. math:: B_i = \Big[Q_i\big(\tfrac\gamma2\big), Q_i\big(1 - \tfrac\gamma2\big)\Big],\qquad
        Q_i \text{ the quantile of } N F_i \sim \mathrm{Bin}\big(N, \tfrac{i}{L + 1}\big)

    with the largest gamma, one for all i, for which :math:`P(N F_i \in B_i \text{ for all } i) \ge
    1 - \alpha`. That probability is exact, by a recursion over i and not by simulation: the counts
    of ranks are independent Poisson numbers given that they add up to N.

    Cost: 20 times L convolutions of two vectors, each of some :math:`4 \sqrt N` numbers.

    Args:
        num_data: N.
        num_draws: L.
        alpha: How often uniform ranks may leave the band.

    Raises:
        ValueError: `alpha` is no number in (0, 1).

    References:
        Säilynoja, Bürkner and Vehtari (2022), Graphical Test for Discrete Uniformity and its
        Applications in Goodness-of-Fit Evaluation and Multiple Sample Comparison.
    """
    if not isinstance(alpha, float) or not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha!r}; accepted is a number in (0, 1)")
    # By Bonferroni's inequality the first is wide enough; one point alone needs the second.
    low, high = math.log(alpha / num_draws), math.log(alpha)
    best, coverage = _counts(num_data, num_draws, math.exp(low)), 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        band = _counts(num_data, num_draws, math.exp(middle))
        found = _coverage(*band, num_data, num_draws)
        if found >= 1 - alpha:
            low, best, coverage = middle, band, found
        else:
            high = middle
    coverage = coverage or _coverage(*best, num_data, num_draws)
    lower, upper = (torch.from_numpy(_difference(side, num_data)) for side in best)
    return EcdfBand(lower, upper, coverage)


def _counts(num_data: int, num_draws: int, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest number of ranks below i that gamma allows, `[L]` each."""
    from scipy import stats

    share = np.arange(1, num_draws + 1) / (num_draws + 1)
    lower = stats.binom.ppf(gamma / 2, num_data, share)
    return lower.astype(int), stats.binom.isf(gamma / 2, num_data, share).astype(int)


def _coverage(lower: np.ndarray, upper: np.ndarray, num_data: int, num_draws: int) -> float:
    """How often the counts of uniform ranks stay between the two everywhere.

    From i to i + 1 the count below grows by a Poisson number; what is outside the band is left out.
    """
    from scipy import stats

    steps = np.append(upper, num_data) - np.append(0, lower)
    rate = num_data / (num_draws + 1)
    poisson = stats.poisson.pmf(np.arange(steps.max() + 1), rate)
    inside, start = np.ones(1), 0  # of counts from `start` on
    for least, most in zip(lower, upper, strict=True):
        inside = np.convolve(inside, poisson)[least - start : most - start + 1]
        start = least
    rest = num_data - start - np.arange(len(inside))
    return float(inside @ poisson[rest] / stats.poisson.pmf(num_data, num_data))


def _difference(counts: np.ndarray, num_data: int) -> np.ndarray:
    num_draws = len(counts)
    return counts / num_data - np.arange(1, num_draws + 1) / (num_draws + 1)
