"""Neural spline flows.

Shapes: `*batch` whatever stands left of an event, D the event's dimension, K bins.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.transforms import AffineTransform
from torch.nn import functional as F

from ppl_vae.checks import check_dim, check_dims
from ppl_vae.families.autoregressive import flow_widths
from ppl_vae.families.base import MIN_SCALE, Family, Member
from ppl_vae.families.rational_quadratic import rational_quadratic, rational_quadratic_inverse
from ppl_vae.families.triangular_map import GatedMap, MaskedNets, Parameters

__all__ = ["NeuralSpline"]


class _Spline(GatedMap):
    """A gated map behind a spline of each coordinate."""

    def __init__(
        self, net: Callable[[Tensor], Parameters], order: Sequence[int], bound: float
    ) -> None:
        super().__init__(net, order)
        self._bound = bound

    def _move(self, x: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        shift, gate, *spline = _unpack(parameters)
        bent, log_slope = rational_quadratic(x, *spline, self._bound)
        y, log_gate = super()._move(bent, (shift, gate))
        return y, log_slope + log_gate

    def _move_back(self, y: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        shift, gate, *spline = _unpack(parameters)
        bent, log_gate = super()._move_back(y, (shift, gate))
        x, log_slope = rational_quadratic_inverse(bent, *spline, self._bound)
        return x, log_slope + log_gate


class NeuralSpline(Family):
    r"""Standard normals through autoregressive rational-quadratic splines, then moved and scaled.

    .. math:: u_0 \sim N(0, I),\qquad u_{t,d} = g \operatorname{spline}(u_{t-1,d}) + (1 - g)\, m,
        \quad (m, g, \text{knots}) = f_t(u_{t-1, <d}, c),\qquad z = \mu + \sigma u_T

    Drawn, with its density, in one pass of each network; a density at another's sample takes D
    passes. Every other network counts the coordinates from behind. 2 D + C numbers, C of them the
    context c that the networks see. With g = 1 it is the paper's layer; with it a normal of any
    covariance is a member.

    Where its networks are steep the density at given values, which goes through the inverse, loses
    digits in float32: at D = 20 the 99th percentile of its error can come to nats. That matters
    under STL, DReG and score functions; take float64 there, or `Trace_ELBO`, which has the density
    of its own draws.

    Args:
        num_flows: T >= 1, how many networks.
        num_bins: K >= 2.
        bound: Where the splines end, in standard deviations; > 0.
        context_dim: C >= 1.
        hidden: Widths of each network's layers, none below D; one of max(64, 2 D) if not given.

    Raises:
        ValueError: A size out of range, or a layer narrower than D.

    References:
        Durkan et al. (2019), Neural Spline Flows.

    Example:
        >>> NeuralSpline(context_dim=8).make(3)(torch.zeros(5, 14)).rsample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        num_flows: int = 2,
        num_bins: int = 8,
        bound: float = 5.0,
        context_dim: int = 16,
        hidden: Sequence[int] | None = None,
    ) -> None:
        check_dim(num_flows, "NeuralSpline: num_flows")
        check_dim(context_dim, "NeuralSpline: context_dim")
        check_dim(num_bins, "NeuralSpline: num_bins")
        if num_bins < 2:
            raise ValueError("NeuralSpline: num_bins is 1; accepted is an integer >= 2")
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 < bound < 1e6:
            raise ValueError(f"NeuralSpline: bound is {bound!r}; accepted is a number > 0")
        if hidden is not None:
            check_dims(hidden, "NeuralSpline: hidden")
        self.num_flows, self.num_bins, self.bound = num_flows, num_bins, float(bound)
        self.context_dim, self.hidden = context_dim, hidden

    def make(self, dim: int) -> Member:
        """D locations, D scales and C numbers of context."""
        widths = flow_widths(self, self.hidden, dim)
        return _Splines(dim, self, widths)


class _Splines(Member):
    def __init__(self, dim: int, family: NeuralSpline, hidden: Sequence[int]) -> None:
        super().__init__(2 * dim + family.context_dim)
        self.dim, self.bound, bins = dim, family.bound, family.num_bins
        self.nets = MaskedNets(
            family.num_flows, dim, family.context_dim, hidden, (1, 1, bins, bins, bins - 1)
        )

    def forward(self, values: Tensor) -> Any:
        loc, raw, context = values.split([self.dim, self.dim, self.size - 2 * self.dim], -1)
        base = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        splines = [_Spline(*net, self.bound) for net in self.nets.given(context)]
        place = AffineTransform(loc, F.softplus(raw) + MIN_SCALE, event_dim=1, cache_size=1)
        return dist.TransformedDistribution(base, [*splines, place])


def _unpack(parameters: Parameters) -> tuple[Tensor, ...]:
    shift, gate, *spline = parameters
    # The network puts coordinates last, the spline its bins.
    return shift.squeeze(-2), gate.squeeze(-2), *(v.mT for v in spline)
