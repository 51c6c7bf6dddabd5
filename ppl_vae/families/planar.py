"""Planar flows.

Shapes: `*batch` whatever stands left of an event, D the event's dimension.
"""

from typing import Any

import pyro.distributions as dist
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import Tensor
from torch.nn import functional as F

from ppl_vae.checks import check_dim
from ppl_vae.families.base import MIN_SCALE, Family, Member

__all__ = ["Planar"]


class Planar(Family):
    r"""A diagonal normal, then T maps that stretch space across a hyperplane each.

    .. math:: z_t = z_{t-1} + u_t \tanh(w_t^\top z_{t-1} + b_t)

    2 D + T (2 D + 1) numbers. There is no inverse, hence no density at another's sample: no path
    derivatives (STL, DReG), no estimator that scores given samples, no prior.

    Args:
        num_flows: T >= 1.

    Raises:
        ValueError: `num_flows` is below 1.

    References:
        Rezende and Mohamed (2015), Variational Inference with Normalizing Flows.

    Example:
        >>> Planar(num_flows=4).make(3)(torch.zeros(5, 34)).rsample().shape
        torch.Size([5, 3])
    """

    has_density = False

    def __init__(self, num_flows: int = 8) -> None:
        check_dim(num_flows, "Planar: num_flows")
        self.num_flows = num_flows

    def make(self, dim: int) -> Member:
        """D locations, D scales, and u, w, b of each map."""
        return _Planar(dim, self.num_flows)


class _Planar(Member):
    def __init__(self, dim: int, num_flows: int) -> None:
        super().__init__(2 * dim + num_flows * (2 * dim + 1))
        self.dim = dim

    def forward(self, values: Tensor) -> Any:
        dim = self.dim
        loc, raw, maps = values.split([dim, dim, self.size - 2 * dim], -1)
        base = dist.Normal(loc, F.softplus(raw) + MIN_SCALE).to_event(1)
        flows = []
        for numbers in maps.split(2 * dim + 1, -1):
            u, w, bias = numbers.split([dim, dim, 1], -1)
            flows.append(ConditionedPlanar((bias, u, w)))
        return dist.TransformedDistribution(base, flows)
