"""Modularity: whether each code tells about one factor alone.

Shapes: N data, D codes, F factors.
"""

import math

import numpy as np
from torch import Tensor

from ppl_vae.evaluate.disentanglement.information import bins, information
from ppl_vae.evaluate.disentanglement.resampling import ratio, spread, weights
from ppl_vae.evaluate.disentanglement.table import check_numbers, tabulate
from ppl_vae.evaluate.estimate import Estimate

__all__ = ["modularity"]


def modularity(
    codes: Tensor,
    factors: Tensor,
    *,
    num_bins: int = 20,
    num_resamples: int = 100,
    seed: int = 0,
) -> Estimate:
    r"""Ridgeway and Mozer's modularity, in the mean over codes.

    .. math:: 1 - \delta_i, \qquad \delta_i = \frac{\sum_f (m_{if} - t_{if})^2}
        {\theta_i^2 (F - 1)}, \qquad \theta_i = \max_f m_{if}

    with m the mutual information of code i and factor f (as `mig` finds it), and t the template
    that is theta at the best factor and 0 at the others. Between 0 and 1. Constant codes tell of
    nothing and are left out; with no other code the result is nan.

    *Ceiling*: 1, where every code is a function of one factor and the data hold every combination;
    two codes of one factor cost nothing, nor does a factor without a code. *Chance is not 0*: the
    information that relative frequencies find in noise differs between factors, by chance and with
    the number of their values. Of F factors of b values each, delta is that of m distributed as
    chi-squared with (num_bins - 1)(b - 1) degrees of freedom: with 20 bins the score is 0.32 for
    two factors of four values, 0.20 for two of ten. Of factors with unlike numbers of values noise
    looks modular: 0.98 for two and eight. Read it beside `mig`.

    Args:
        codes: `[N, D]`, D >= 2, as `codes_and_factors` gives.
        factors: `[N, F]`, discrete, F >= 2.
        num_bins: Of equal width, for each code.
        num_resamples: Of the data, for the standard error: the standard deviation of the score over
            data drawn anew with replacement, bins kept. 0 for none (nan).
        seed: Of the resamples; the global random streams are left alone.

    Raises:
        ValueError: Shapes that do not fit, values that are not finite, fewer than two codes or
            factors, a factor that is constant or not discrete, a number out of range.

    References:
        Ridgeway and Mozer (2018), Learning Deep Disentangled Embeddings with the F-Statistic Loss.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(5)).repeat(20, 1)
        >>> modularity(factors.double(), factors).value
        1.0
    """
    check_numbers("modularity", seed, num_resamples, num_bins=num_bins)
    table = tabulate(codes, factors, "modularity", min_factors=2)
    binned = bins(table.codes, num_bins)[:, table.active(0.0)]
    if binned.shape[1] == 0:
        return Estimate(math.nan, math.nan)
    scores = [
        _modularity(information(binned, table.factors, num_bins, table.sizes, weight))
        for weight in weights(len(binned), num_resamples, np.random.default_rng(seed))
    ]
    return spread(np.array(scores))


def _modularity(m: np.ndarray) -> float:
    """The mean over codes of 1 - delta, of information `[D, F]`."""
    square = m**2
    best = square.max(axis=1)
    delta = ratio(square.sum(axis=1) - best, best * (m.shape[1] - 1))
    return float((1 - delta).mean())
