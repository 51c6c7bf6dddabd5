"""Whether importance sampling from the guide can be trusted.

Shapes: K particles, N data, B data at once.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.pareto import Tail, reliable_below
from ppl_vae.evaluate.terms import batches
from ppl_vae.evaluate.weights import Weights, WeightSums, data_at_once
from ppl_vae.randomness import untouched

__all__ = ["LEAST_PARTICLES", "ImportanceDiagnostics", "diagnose", "importance_diagnostics"]

# A tail of five weights is the least that a shape is fitted to.
LEAST_PARTICLES = 25


@dataclass(frozen=True)
class ImportanceDiagnostics:
    r"""log p(x) by K particles of each datum, and what its weights are like.

    Attributes:
        log_marginal: The estimate of log p(x), value and standard error `[N]`, in nats; that of
            `evaluate.log_marginal`.
        effective_size: :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, `[N]`, from 1 to K: how many draws of
            the posterior the particles are worth, were the weights to be believed.
        pareto_k: k-hat, `[N]`: as many moments of the weights are finite as 1 / k. Where the tail
            is too heavy for the particles that there are, everything else here, the standard error
            and the effective size above all, looks better than it is.
        bounds: The lower bounds of log p(x) by k particles, for k = 1, 2, 5, 10, ... and K: each
            `[N]`, a mean over as many blocks of k as the K particles make.
        num_particles: K.
    """

    log_marginal: Estimate
    effective_size: Tensor
    pareto_k: Tensor
    bounds: dict[int, Tensor]
    num_particles: int

    @property
    def threshold(self) -> float:
        r"""The k-hat up to which K particles do, :math:`\min(1 - 1 / \log_{10} K,\ 0.7)`."""
        return reliable_below(self.num_particles)

    @property
    def is_reliable(self) -> Tensor:
        """Whether k-hat is no larger than the threshold, `[N]`; not where there is none (nan)."""
        return self.pareto_k <= self.threshold

    @property
    def share_unreliable(self) -> float:
        """Of the data, those whose k-hat is above the threshold."""
        return (~self.is_reliable).double().mean().item()

    def curve(self) -> dict[int, Estimate]:
        """The bounds as means over data, by k, with standard errors over data.

        The bounds share their particles, so they move together; where the last ones still rise by
        more than is tolerable, K is too small.
        """
        return {k: Estimate.of_mean(bound) for k, bound in self.bounds.items()}


def importance_diagnostics(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *,
    num_particles: int = 5000,
    seed: int = 0,
    chunk_size: int = 5000,
    compile: bool | Literal["auto"] = "auto",
) -> ImportanceDiagnostics:
    r"""Estimates log p(x) as `log_marginal` does, and asks whether the estimate can be trusted.

    The bound rises with k to log p(x), and one K does not tell how far there is to go: the curve
    over k does, as far as it reaches. The weights' tail tells more. k-hat is the shape of a
    generalized Pareto distribution fitted to the M largest weights, :math:`M = \min(K / 5, 3
    \sqrt K)`; above the threshold (0.7 for K from 2155 on) the mean of the weights is carried by
    few of them or by none that was drawn, and the estimate is too low by more than its standard
    error says. A warning then tells how many data that is. k-hat of one datum is itself uncertain,
    by some :math:`(1 + k) / \sqrt M`, and lowest for those whose draws missed most: among many that
    are unreliable the others are not cleared.

    The draws are those of `log_marginal` with the same arguments. Of the weights sums and the
    M + 1 largest of each datum are kept. Leaves the global random stream alone.

    Args:
        model: The model; its latents must all lie in the data plate.
        guide: The guide; it must have a density.
        x: Data, `[N, *data_shape]`.
        num_particles: K, at least 25.
        seed: Of the draws.
        chunk_size: How many particles times data are held at once: the bound on memory.
        compile: As in `log_marginal`.

    Warns:
        UserWarning: k-hat is above the threshold for some of the data.

    Raises:
        ValueError: K is below 25; the guide has no density; a latent lies outside the data plate;
            `compile` is true, and the programs cannot be compiled.

    References:
        Burda et al. (2016), Importance Weighted Autoencoders; Vehtari, Simpson, Gelman, Yao and
        Gabry (2024), Pareto Smoothed Importance Sampling.

    Example:
        >>> model = ppl_vae.models.LinearGaussian([[1.0], [2.0]], 0.5)
        >>> guide = ppl_vae.guides.MeanFieldGuide(model)
        >>> found = importance_diagnostics(model, guide, torch.zeros(5, 2), num_particles=1000)
        >>> list(found.bounds)
        [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
        >>> found.is_reliable.tolist()
        [True, True, True, True, True]
    """
    result = diagnose(model, guide, x, num_particles, seed, chunk_size, compile)
    if bad := int((~result.is_reliable).sum()):
        warnings.warn(
            f"importance_diagnostics: k-hat is above {result.threshold:.2g} for {bad} of {len(x)} "
            f"data ({bad / len(x):.0%}), where {num_particles} particles of this guide do not "
            "measure log p(x), and what they give is too low",
            stacklevel=2,
        )
    return result


def diagnose(
    model: Callable,
    guide: Callable,
    x: Tensor,
    num_particles: int,
    seed: int,
    chunk_size: int = 5000,
    compile: bool | Literal["auto"] = "auto",
) -> ImportanceDiagnostics:
    """`importance_diagnostics`, without a warning: for those who say it in their own words."""
    if num_particles < LEAST_PARTICLES:
        raise ValueError(
            f"importance_diagnostics: num_particles is {num_particles}; accepted is >= "
            f"{LEAST_PARTICLES}, of which a fifth is the tail that k-hat is fitted to"
        )
    weights = Weights(model, guide, compile, len(x) * num_particles)
    found = []
    with untouched(seed), torch.no_grad():
        for batch in batches(x, data_at_once(len(x), num_particles, chunk_size)):
            found.append(_one_batch(weights, batch, num_particles, chunk_size))
    value, error, size, shape, *bounds = (torch.cat(parts) for parts in zip(*found, strict=True))
    return ImportanceDiagnostics(
        Estimate(value, error), size, shape,
        dict(zip(_counts(num_particles), bounds, strict=True)), num_particles,
    )  # fmt: skip


def _one_batch(
    weights: Weights, x: Tensor, num_particles: int, chunk_size: int
) -> tuple[Tensor, ...]:
    sums, tail = WeightSums(len(x), x.device), Tail(num_particles)
    blocks = [_Blocks(count, len(x), x.device) for count in _counts(num_particles)]
    for log_w in weights.chunks(x, num_particles, chunk_size):
        sums.add(log_w)
        tail.add(log_w)
        for block in blocks:
            block.add(log_w.double())
    found = (sums.log_mean, sums.standard_error, sums.effective_size, tail.shape())
    return tuple(each.to(sums.dtype) for each in (*found, *(block.mean for block in blocks)))


def _counts(num_particles: int) -> list[int]:
    """1, 2, 5, 10, ..., up to K, and K."""
    decades = range(math.floor(math.log10(num_particles)) + 1)
    steps: Iterator[int] = (step * 10**decade for decade in decades for step in (1, 2, 5))
    return sorted({step for step in steps if step < num_particles} | {num_particles})


class _Blocks:
    """The mean, over blocks of so many particles, of the bound that each block gives."""

    def __init__(self, size: int, num_data: int, device: torch.device) -> None:
        self._size, self._in_part, self._num = size, 0, 0
        self._sum = torch.zeros(num_data, dtype=torch.float64, device=device)
        self._part = torch.full_like(self._sum, -math.inf)

    def add(self, log_w: Tensor) -> None:
        """Goes on with so many particles, `[k, B]`: chunks need not end where blocks do."""
        if self._in_part:
            first = self._size - self._in_part
            self._extend(log_w[:first])
            log_w = log_w[first:]
        whole = len(log_w) // self._size
        blocks = log_w[: whole * self._size].reshape(whole, self._size, log_w.shape[1])
        self._sum = self._sum + blocks.logsumexp(1).sum(0)
        self._num += whole
        self._extend(log_w[whole * self._size :])

    def _extend(self, log_w: Tensor) -> None:
        if len(log_w) == 0:
            return
        self._part = torch.logaddexp(self._part, log_w.logsumexp(0))
        self._in_part += len(log_w)
        if self._in_part == self._size:
            self._sum = self._sum + self._part
            self._num += 1
            self._in_part, self._part = 0, torch.full_like(self._part, -math.inf)

    @property
    def mean(self) -> Tensor:
        return self._sum / self._num - math.log(self._size)
