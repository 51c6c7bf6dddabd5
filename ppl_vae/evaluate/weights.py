r"""The log weights of many particles, so many at a time, and the sums that are made of them.

.. math:: w_k = \frac{p(x, z_k)}{q(z_k | x)},\quad z_k \sim q(z | x)

Shapes: K particles, B data.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import pyro
import torch
from torch import Tensor

from ppl_vae.estimators.pair import Pair, trace_pair
from ppl_vae.estimators.particles import Particles
from ppl_vae.estimators.sites import PARTICLES

__all__ = ["WeightSums", "Weights", "data_at_once", "plate_depth"]

# Below, compiling takes longer than it saves.
_MANY_DRAWS = 5_000_000
# Data go by batches that leave room for so many particles of each.
_PARTICLES_AT_ONCE = 50


class Weights:
    """Log weights of a pair, by the programs or by a graph of them for each shape.

    Args:
        model: The model.
        guide: The guide.
        compile: Whether to compile; `"auto"` does so where there are many draws.
        num_draws: How many particles there will be, of all data together.
    """

    def __init__(
        self, model: Callable, guide: Callable, compile: bool | Literal["auto"], num_draws: int
    ) -> None:
        self._pair, self._asked_for = (model, guide), compile is True
        self._compiles = compile is True or (compile == "auto" and num_draws >= _MANY_DRAWS)
        self._made: dict[tuple[int, int], Callable] = {}

    def chunks(self, x: Tensor, num_particles: int, chunk_size: int) -> Iterator[Tensor]:
        """Draws K particles of each datum, at most `chunk_size` particles times data at once.

        Args:
            x: Data, `[B, *data_shape]`.
            num_particles: K.
            chunk_size: The bound on memory.

        Yields:
            log w, `[k, B]`, the k of all chunks K together.

        Raises:
            ValueError: The guide has no density, or a latent lies outside the data plate.
        """
        depth = _checked_depth(trace_pair(*self._pair, (x,), {}))
        at_once = max(1, chunk_size // len(x))
        left = num_particles
        while left > 0:
            size = min(at_once, left)
            yield self._draw(x, size, depth)
            left -= size

    def _draw(self, x: Tensor, size: int, depth: int) -> Tensor:
        if not self._compiles:
            return _log_weights(*self._pair, x, size, depth)
        key = len(x), size
        if key not in self._made:
            from ppl_vae.compiled.function import compiled_function

            self._made[key] = compiled_function(
                lambda x: _log_weights(*self._pair, x, size, depth), x, asked_for=self._asked_for
            )
        return self._made[key](x)


class WeightSums:
    """Running sums of w and w^2 of each datum, in double: thousands of chunks would be rounded off.

    Args:
        num_data: B.
        device: Where the weights are.

    Attributes:
        dtype: Of the weights that were added last.
    """

    def __init__(self, num_data: int, device: torch.device) -> None:
        self._num, self.dtype = 0, torch.float64
        self._log_sum = torch.full((num_data,), -math.inf, dtype=torch.float64, device=device)
        self._log_sum_square = self._log_sum

    def add(self, log_w: Tensor) -> None:
        """Adds the weights of so many particles, given as log w, `[k, B]`."""
        self.dtype, log_w = log_w.dtype, log_w.double()
        self._num += len(log_w)
        self._log_sum = torch.logaddexp(self._log_sum, log_w.logsumexp(0))
        self._log_sum_square = torch.logaddexp(self._log_sum_square, (2 * log_w).logsumexp(0))

    @property
    def log_mean(self) -> Tensor:
        r""":math:`\log \frac1K \sum_k w_k`, `[B]`."""
        return self._log_sum - math.log(self._num)

    @property
    def standard_error(self) -> Tensor:
        r"""Of `log_mean`, :math:`\operatorname{sd}(w) / (\bar w \sqrt K)`, `[B]`: the delta method.

        nan with one particle.
        """
        if self._num == 1:
            return torch.full_like(self._log_sum, math.nan)
        # Var(w) / mean(w)^2 = K sum(w^2) / sum(w)^2 - 1
        relative = (math.log(self._num) + self._log_sum_square - 2 * self._log_sum).exp() - 1
        return (relative.clamp(min=0) / (self._num - 1)).sqrt()

    @property
    def effective_size(self) -> Tensor:
        r""":math:`(\sum_k w_k)^2 / \sum_k w_k^2`, `[B]`, from 1 to K (Kong, 1992)."""
        return (2 * self._log_sum - self._log_sum_square).exp()


def data_at_once(num_data: int, num_particles: int, chunk_size: int) -> int:
    """How many data to go through together, so that each has room for some particles."""
    return max(1, min(num_data, chunk_size // min(num_particles, _PARTICLES_AT_ONCE)))


def plate_depth(pair: Pair) -> int:
    """How many plate dimensions a pair uses."""
    traces = (pair.model_trace, pair.guide_trace)
    frames = [f for t in traces for s in t.nodes.values() for f in s.get("cond_indep_stack", ())]
    return -min((frame.dim for frame in frames if frame.vectorized), default=0)


def _log_weights(model: Callable, guide: Callable, x: Tensor, size: int, depth: int) -> Tensor:
    plate = pyro.plate(PARTICLES, size, dim=-depth - 1)
    pair = trace_pair(plate(model), plate(guide), (x,), {})
    return Particles([pair], 1, size).log_weights.squeeze(0)


def _checked_depth(pair: Pair) -> int:
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
    return plate_depth(pair)
