"""The mutual information gap: whether each factor is told by one code alone.

Shapes: N data, D codes, F factors.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vae.evaluate.disentanglement.information import bins, entropies, information
from ppl_vae.evaluate.disentanglement.resampling import ratio, spread, weights
from ppl_vae.evaluate.disentanglement.table import check_numbers, tabulate, top_gap
from ppl_vae.evaluate.estimate import Estimate

__all__ = ["MIG", "mig"]


@dataclass(frozen=True)
class MIG:
    """The mutual information gap.

    Attributes:
        score: The mean over factors.
        by_factor: The gap of each factor, `[F]`.
        information: Mutual information of every code and factor, `[D, F]`, nats.
        entropy: Of each factor, `[F]`, nats.
    """

    score: Estimate
    by_factor: Estimate
    information: Tensor
    entropy: Tensor


def mig(
    codes: Tensor,
    factors: Tensor,
    *,
    num_bins: int = 20,
    num_resamples: int = 100,
    seed: int = 0,
) -> MIG:
    r"""The mutual information gap of Chen et al.

    .. math:: \text{MIG} = \frac1F \sum_{j=1}^F \frac{1}{H(v_j)}
        \Big(I(z_{i(j)}; v_j) - \max_{i \ne i(j)} I(z_i; v_j)\Big), \qquad
        i(j) = \operatorname{argmax}_i I(z_i; v_j)

    Codes are put into bins of equal width from their least to their largest value, and the
    information is that of relative frequencies. (The paper integrates over q(z | x); of posterior
    means there is nothing to integrate.) Between 0 and 1.

    *Ceiling*, of a code that is the factor: 1 less what the second-best code has by chance; but no
    more than log(num_bins) / H(v) for a factor of more values than bins. So with 20 bins a factor
    of 40 values in equal shares gets at most 0.81. *Chance*: 0 but for what relative frequencies
    find in noise, about (num_bins - 1)(b - 1) / (2 N) nats of a factor of b values, of which the
    gap sees differences between codes. A rotation by 45 degrees of two codes of equal shape leaves
    0.

    Args:
        codes: `[N, D]`, D >= 2, as `codes_and_factors` gives.
        factors: `[N, F]`, discrete.
        num_bins: 20 in what is commonly reported.
        num_resamples: Of the data, for the standard errors: the standard deviation of the score
            over data drawn anew with replacement, bins kept. 0 for none (nan).
        seed: Of the resamples; the global random streams are left alone.

    Raises:
        ValueError: Shapes that do not fit, values that are not finite, fewer than two codes, a
            factor that is constant or not discrete, a number out of range.

    References:
        Chen et al. (2018), Isolating Sources of Disentanglement in Variational Autoencoders.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(5)).repeat(20, 1)
        >>> str(mig(factors.double(), factors, num_resamples=0).score)
        '1'
    """
    check_numbers("mig", seed, num_resamples, num_bins=num_bins)
    table = tabulate(codes, factors, "mig")
    binned = bins(table.codes, num_bins)
    found, entropy = [], []
    for weight in weights(len(binned), num_resamples, np.random.default_rng(seed)):
        found.append(information(binned, table.factors, num_bins, table.sizes, weight))
        entropy.append(entropies(table.factors, weight))
    gaps = ratio(top_gap(np.stack(found)), np.stack(entropy))  # [1 + R, F]
    return MIG(
        spread(gaps.mean(axis=1)),
        spread(gaps),
        torch.from_numpy(found[0]),
        torch.from_numpy(entropy[0]),
    )
