"""The marginal likelihood log p(x), by importance sampling from the guide.

Shapes: K particles, B data.
"""

import math
from collections.abc import Callable
from typing import Literal

import pyro
import torch
from torch import Tensor

from ppl_vae.estimators.pair import Pair, trace_pair
from ppl_vae.estimators.particles import Particles
from ppl_vae.estimators.sites import PARTICLES
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.terms import batches
from ppl_vae.randomness import untouched

__all__ = ["log_marginal"]

# Below, compiling takes longer than it saves.
_MANY_DRAWS = 5_000_000


def log_marginal(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *,
    num_particles: int = 5000,
    seed: int = 0,
    chunk_size: int = 5000,
    compile: bool | Literal["auto"] = "auto",
) -> Estimate:
    r"""An importance-weighted estimate of log p(x), for each datum.

    .. math:: \log p(x) \approx \log \frac1K \sum_k w_k, \qquad
        w_k = \frac{p(x, z_k)}{q(z_k | x)},\quad z_k \sim q(z | x)

    A lower bound in expectation, which rises to log p(x) with K (Burda et al., 2016). The standard
    error is the delta method's, :math:`\operatorname{sd}(w) / (\bar w \sqrt K)`; it says how far
    another run would fall, not how far the bound is from log p(x), and misleads where few weights
    carry the sum. Leaves the global random stream alone.

    Args:
        model: The model; its latents must all lie in the data plate.
        guide: The guide; it must have a density.
        x: Data, `[B, *data_shape]`.
        num_particles: K.
        seed: Of the draws.
        chunk_size: How many particles times data are held at once: the bound on memory. Of a
            decoder from 20 to 784 by way of 400, 5000 take some 50 MB.
        compile: Make one graph of both programs, and machine code of it: the same draws, and the
            same values up to rounding. `"auto"` does so where there are many draws, and stays with
            the programs where they cannot be compiled.

    Returns:
        Value and standard error, each `[B]`, nats per datum.

    Raises:
        ValueError: K is below 1; the guide has no density; a latent lies outside the data plate;
            `compile` is true, and the programs cannot be compiled.

    References:
        Burda et al. (2016), Importance Weighted Autoencoders.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles is {num_particles}; accepted is >= 1")
    weigh = _Weights(model, guide, compile, len(x) * num_particles)
    values, errors = [], []
    with untouched(seed), torch.no_grad():
        size = max(1, min(len(x), chunk_size // min(num_particles, 50)))
        for batch in batches(x, size):
            value, error = _one_batch(weigh, batch, num_particles, chunk_size)
            values.append(value)
            errors.append(error)
    return Estimate(torch.cat(values), torch.cat(errors))


class _Weights:
    """Log weights of a pair, by the programs or by a graph of them for each shape.

    Args:
        model: The model.
        guide: The guide.
        compile: Whether to compile.
        num_draws: How many particles there will be, of all data together.
    """

    def __init__(
        self, model: Callable, guide: Callable, compile: bool | Literal["auto"], num_draws: int
    ) -> None:
        self._pair, self._asked_for = (model, guide), compile is True
        self._compiles = compile is True or (compile == "auto" and num_draws >= _MANY_DRAWS)
        self._made: dict[tuple[int, int], Callable] = {}

    def depth(self, x: Tensor) -> int:
        """How many plate dimensions the pair uses."""
        return _depth(trace_pair(*self._pair, (x,), {}))

    def __call__(self, x: Tensor, size: int, depth: int) -> Tensor:
        """log w, `[K, B]`, of so many particles."""
        if not self._compiles:
            return _log_weights(*self._pair, x, size, depth)
        key = len(x), size
        if key not in self._made:
            from ppl_vae.compiled.function import compiled_function

            self._made[key] = compiled_function(
                lambda x: _log_weights(*self._pair, x, size, depth), x, asked_for=self._asked_for
            )
        return self._made[key](x)


def _one_batch(
    weigh: _Weights, x: Tensor, num_particles: int, chunk_size: int
) -> tuple[Tensor, Tensor]:
    depth = weigh.depth(x)
    at_once = max(1, chunk_size // len(x))
    # Running sums of w and w^2, in double: thousands of chunks would drown in rounding.
    log_sum = log_sum_square = x.new_full((len(x),), -math.inf, dtype=torch.float64)
    left = num_particles
    while left > 0:
        size = min(at_once, left)
        log_w = weigh(x, size, depth).double()  # [K, B]
        log_sum = torch.logaddexp(log_sum, log_w.logsumexp(0))
        log_sum_square = torch.logaddexp(log_sum_square, (2 * log_w).logsumexp(0))
        left -= size
    log_k = math.log(num_particles)
    # Var(w) / mean(w)^2 = K sum(w^2) / sum(w)^2 - 1
    relative = (log_k + log_sum_square - 2 * log_sum).exp() - 1
    if num_particles == 1:
        error = torch.full_like(relative, math.nan)
    else:
        error = (relative.clamp(min=0) / (num_particles - 1)).sqrt()
    return (log_sum - log_k).to(x.dtype), error.to(x.dtype)


def _log_weights(model: Callable, guide: Callable, x: Tensor, size: int, depth: int) -> Tensor:
    plate = pyro.plate(PARTICLES, size, dim=-depth - 1)
    pair = trace_pair(plate(model), plate(guide), (x,), {})
    return Particles([pair], 1, size).log_weights.squeeze(0)


def _depth(pair: Pair) -> int:
    """How many plate dimensions the pair uses; refuses pairs that have no weights per datum."""
    if not pair.has_density:
        raise ValueError(
            "log p(x) by importance sampling needs the density of the guide, and a point mass "
            "(DeltaGuide) has none; use MeanFieldGuide or another guide with a density"
        )
    plate = pair.data_plate
    for name, site, _ in pair.latents:
        if not any(frame.name == plate.name for frame in site["cond_indep_stack"]):
            raise ValueError(
                f"log p(x) of each datum needs latents that are a datum's own, and '{name}' lies "
                f"outside the plate '{plate.name}'"
            )
    frames = [f for s in pair.model_trace.nodes.values() for f in s.get("cond_indep_stack", ())]
    return -min(frame.dim for frame in frames)
