"""Whether draws of the aggregate posterior can be told from draws of the prior.

Shapes: M draws of either, U units of the latents, R permutations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.estimators.pair import trace_pair
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.factorization import chosen_sites
from ppl_vae.evaluate.terms import batches
from ppl_vae.evaluate.units import Layout
from ppl_vae.randomness import check_seed, looking, untouched, validation

__all__ = ["AggregateMMD", "aggregate_mmd"]

# Fewer leave nothing to estimate a variance from, and too few permutations.
_LEAST_DRAWS = 4
# Statistics that differ by less, relative to the sum of the kernel, are tied.
_TIED = 1e-10


@dataclass(frozen=True)
class AggregateMMD:
    """A two-sample test of the aggregate posterior and the prior.

    Attributes:
        squared: The squared maximum mean discrepancy; unbiased, so it may be negative. Between 0
            and 2, for any latents; how much is much depends on the bandwidth.
        p_value: Of the hypothesis that both are one distribution, by permutation.
        bandwidth: Of the kernel.
        num_draws: M, of either.
    """

    squared: Estimate
    p_value: float
    bandwidth: float
    num_draws: int


def aggregate_mmd(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *,
    site: str | None = None,
    num_draws: int = 1000,
    bandwidth: float | None = None,
    num_permutations: int = 999,
    batch_size: int = 1000,
    seed: int = 0,
) -> AggregateMMD:
    r"""Kernel two-sample test of draws of q(z), one for each of M data, and as many of p(z).

    .. math:: \text{MMD}^2 = \frac{1}{M (M - 1)} \sum_{i \ne j} \big(k(a_i, a_j) + k(b_i, b_j)\big)
        - \frac{2}{M^2} \sum_{i, j} k(a_i, b_j),\qquad
        k(a, b) = \exp\Big(-\frac{\lVert a - b \rVert^2}{2 \sigma^2}\Big)

    with :math:`a_n \sim q(z | x_n)` and :math:`b \sim p(z)`: an unbiased estimate of the squared
    distance of the two in the kernel's space, 0 if and only if they are one. It asks for draws
    alone, so that it serves every guide, points and flows without inverse included. The units of
    all latents stand side by side as they are, classes and counts as numbers.

    The p-value is the share of permutations of all 2 M draws, with the one that was drawn, in which
    the statistic is as large. It is exact for any M if the data are independent draws of their
    population, whose q(z) it then is; of the given data alone, each drawn for once, it errs to the
    large side. A large one does not say that q(z) is p(z): at the median distance the test sees
    location and scale, and little that is finer. Of 200 draws of four narrow modes at (±1, ±1),
    which have the moments of N(0, I), it sees nothing; at a bandwidth of 0.3 it does. In many
    dimensions no bandwidth sees much.

    The standard error is that of a U-statistic over the pairs :math:`(a_i, b_i)`, of its first and
    its second order. It covers the draws, and the data as draws of their population, not the choice
    of the bandwidth. Where q(z) is p(z) the first order is 0 and its estimate is not, so that the
    error is too large there, by a third in one dimension; ask the p-value. Programs run in the mode
    that they are in. Model, guide and global state are left as they were. Cost: a run of both
    programs, :math:`4 M^2 (U + R)` operations. Memory: some :math:`16 M^2` numbers, and 2 M R.

    Args:
        model: The model; its latents must lie in the data plate.
        guide: The guide.
        x: Data, `[N, *data_shape]`.
        site: The latent to look at; all together, if not given.
        num_draws: M at most, of data chosen at random without repetition; all, if there are fewer.
        bandwidth: :math:`\sigma`; if not given, the median distance between two of the 2 M draws
            (of those that differ, where more than half of the pairs are equal).
        num_permutations: R; the least p-value is 1 / (R + 1).
        batch_size: Data at once in the programs.
        seed: Of draws and permutations.

    Raises:
        ValueError: A number out of range; fewer than 4 data; a site that there is not; a latent
            outside the data plate; the model subsamples the data; draws that are not finite.

    References:
        Gretton, Borgwardt, Rasch, Schoelkopf and Smola (2012), A Kernel Two-Sample Test; Hoeffding
        (1948), A Class of Statistics with Asymptotically Normal Distribution, of the variance.

    Example:
        >>> model = ppl_vae.models.LinearGaussian([[1.0], [2.0]], 0.5)
        >>> guide = ppl_vae.guides.MeanFieldGuide(model)  # untrained
        >>> aggregate_mmd(model, guide, 5 + torch.randn(200, 2)).p_value
        0.001
    """
    counts = {"num_draws": num_draws, "num_permutations": num_permutations,
              "batch_size": batch_size}  # fmt: skip
    for name, value in counts.items():
        check_dim(value, f"aggregate_mmd: {name}")
    check_seed(seed)
    num = min(num_draws, len(x))
    if num < _LEAST_DRAWS:
        raise ValueError(
            f"aggregate_mmd: num_draws is {num_draws}, of {len(x)} data; accepted are both >= "
            f"{_LEAST_DRAWS}"
        )
    is_number = isinstance(bandwidth, int | float) and not isinstance(bandwidth, bool)
    if bandwidth is not None and not (is_number and 0 < bandwidth < math.inf):
        raise ValueError(f"aggregate_mmd: bandwidth is {bandwidth!r}; accepted is a number > 0")
    with looking(model, guide), untouched(seed), torch.no_grad():
        chosen = torch.randperm(len(x), device=x.device)[:num].sort().values
        drawn = [_draws(model, guide, batch, site) for batch in batches(x[chosen], batch_size)]
        z = torch.cat([torch.cat(side) for side in zip(*drawn, strict=True)])  # [2 M, U]
        if not z.isfinite().all():
            raise ValueError("aggregate_mmd: draws of the guide or of the prior are not finite")
        distances = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
        sigma = _median(distances) if bandwidth is None else float(bandwidth)
        kernel = (-0.5 * (distances / sigma).square()).exp().fill_diagonal_(0.0)
        first = torch.arange(2 * num, device=x.device) < num
        squared = _statistic(kernel, first.unsqueeze(0))
        places = torch.rand(num_permutations, 2 * num, device=x.device).argsort(1)
        permuted = _statistic(kernel, places < num)
        beyond = (permuted >= squared - _TIED * kernel.sum() / num**2).sum().item()
    return AggregateMMD(
        Estimate(squared.item(), _standard_error(kernel)),
        (1 + beyond) / (1 + num_permutations),
        sigma,
        num,
    )


def _draws(model: Callable, guide: Callable, x: Tensor, site: str | None) -> tuple[Tensor, Tensor]:
    """The latents of a run of the guide, and of one of the model by itself, `[B, U]` in double."""
    with validation(True):
        pair = trace_pair(model, guide, (x,), {})
    layout = Layout(pair, chosen_sites(pair, x, site, "aggregate_mmd"))

    def units(trace: poutine.Trace) -> Tensor:
        rows = layout.read(trace).values()
        return torch.cat([row.reshape(len(x), -1).double() for row in rows], 1)

    return units(pair.guide_trace), units(poutine.trace(model).get_trace(x))


def _median(distances: Tensor) -> float:
    above = torch.ones_like(distances, dtype=torch.bool).triu_(1)
    found = distances[above]
    if found.median() == 0:
        found = found[found > 0]
    return found.median().item() if len(found) else 1.0


def _statistic(kernel: Tensor, is_first: Tensor) -> Tensor:
    """The squared discrepancy of M draws and the other M, `[R, 2 M]` bool to `[R]`.

    Of a kernel without its diagonal. With signs s of equal numbers, s K s is what lies within the
    two less what lies between them, and the sum of K is both.
    """
    num, signs = len(kernel) // 2, torch.where(is_first, 1.0, -1.0).to(kernel)
    difference, total = ((signs @ kernel) * signs).sum(1), kernel.sum()
    within, between = (total + difference) / 2, (total - difference) / 2  # both directions
    return within / (num * (num - 1)) - between / num**2


def _standard_error(kernel: Tensor) -> float:
    r"""Of the U-statistic of pairs.

    .. math:: h_{ij} = k(a_i, a_j) + k(b_i, b_j) - k(a_i, b_j) - k(a_j, b_i),

    .. math:: \frac{4 (M - 2) \zeta_1 + 2 \zeta_2}{M (M - 1)},\qquad
        \zeta_1 = \operatorname{Var}(E[h_{ij} | i]),\ \zeta_2 = \operatorname{Var}(h_{ij})

    The means over j that the first variance is estimated from have a noise of their own, which is
    taken off it.
    """
    num = len(kernel) // 2
    aa, ab, bb = kernel[:num, :num], kernel[:num, num:], kernel[num:, num:]
    h = (aa + bb - ab - ab.mT).fill_diagonal_(0.0)
    means = h.sum(1) / (num - 1)
    second = (h.square().sum() / (num * (num - 1)) - means.mean().square()).clamp(min=0)
    first = (((num - 1) * means.var() - second) / (num - 2)).clamp(min=0)
    return ((4 * (num - 2) * first + 2 * second) / (num * (num - 1))).sqrt().item()
