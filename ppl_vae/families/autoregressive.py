"""Affine autoregressive flows, in either direction.

Shapes: `*batch` whatever stands left of an event, D the event's dimension.
"""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.nn import functional as F

from ppl_vae.checks import check_dim, check_dims
from ppl_vae.families.base import MIN_SCALE, Family, Member
from ppl_vae.families.triangular_map import GatedMap, MaskedNets

__all__ = ["InverseAutoregressive", "MaskedAutoregressive", "flow_widths"]


class InverseAutoregressive(Family):
    r"""A diagonal normal, then maps in which each coordinate moves by those before it.

    .. math:: z_0 \sim N(\mu, \operatorname{diag} \sigma^2),\qquad
        z_{t,d} = g\, z_{t-1,d} + (1 - g)\, m,\quad (m, g) = f_t(z_{t-1, <d}, c)

    Drawn, with its density, in one pass of each network; a density at another's sample takes D
    passes. Every other network counts the coordinates from behind. 2 D + C numbers, C of them the
    context c that the networks see; a normal of any covariance is a member.

    Args:
        num_flows: T >= 1, how many networks.
        context_dim: C >= 1.
        hidden: Widths of each network's layers, none below D; one of max(64, 2 D) if not given.

    Raises:
        ValueError: A size below 1, or a layer narrower than D.

    References:
        Kingma et al. (2016), Improving Variational Inference with Inverse Autoregressive Flow.

    Example:
        >>> InverseAutoregressive(context_dim=8).make(3)(torch.zeros(5, 14)).rsample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self, num_flows: int = 2, context_dim: int = 16, hidden: Sequence[int] | None = None
    ) -> None:
        check_dim(num_flows, f"{type(self).__name__}: num_flows")
        check_dim(context_dim, f"{type(self).__name__}: context_dim")
        if hidden is not None:
            check_dims(hidden, f"{type(self).__name__}: hidden")
        self.num_flows, self.context_dim, self.hidden = num_flows, context_dim, hidden

    def make(self, dim: int) -> Member:
        """D locations, D scales and C numbers of context."""
        widths = flow_widths(self, self.hidden, dim)
        return _Affines(dim, self.num_flows, self.context_dim, widths)


class _Affines(Member):
    def __init__(self, dim: int, num_flows: int, num_context: int, hidden: Sequence[int]) -> None:
        super().__init__(2 * dim + num_context)
        self.dim = dim
        self.nets = MaskedNets(num_flows, dim, num_context, hidden, (1, 1))

    def forward(self, values: Tensor) -> Any:
        loc, raw, context = values.split([self.dim, self.dim, self.size - 2 * self.dim], -1)
        base = dist.Normal(loc, F.softplus(raw) + MIN_SCALE).to_event(1)
        return dist.TransformedDistribution(base, self.maps(context))

    def maps(self, context: Tensor) -> list:
        """One for each network."""
        return [GatedMap(net, order) for net, order in self.nets.given(context)]


class MaskedAutoregressive(InverseAutoregressive):
    r"""The same maps, backwards: a density in one pass, a draw in D passes.

    .. math:: z_d = \frac{u_d - (1 - g)\, m}{g},\quad (g, m) = f(z_{<d}, c)

    For priors, whose density is wanted at every step and whose draws are not. As a guide it is the
    dearer of the two.

    Args:
        num_flows: T >= 1, how many networks.
        context_dim: C >= 1.
        hidden: Widths of each network's layers, none below D; one of max(64, 2 D) if not given.

    Raises:
        ValueError: A size below 1, or a layer narrower than D.

    References:
        Papamakarios et al. (2017), Masked Autoregressive Flow for Density Estimation.

    Example:
        >>> MaskedAutoregressive(context_dim=8).make(3)(torch.zeros(5, 14)).log_prob(torch.zeros(3))
        tensor([...
    """

    def make(self, dim: int) -> Member:
        """D locations, D scales and C numbers of context."""
        widths = flow_widths(self, self.hidden, dim)
        return _Backwards(dim, self.num_flows, self.context_dim, widths)


class _Backwards(_Affines):
    def maps(self, context: Tensor) -> list:
        return [m.inv for m in super().maps(context)]


def flow_widths(family: Family, hidden: Sequence[int] | None, dim: int) -> Sequence[int]:
    """Widths of a masked network; a `ValueError` where one is too narrow to mask."""
    if hidden is None:
        return (max(64, 2 * dim),)
    if min(hidden) < dim:
        raise ValueError(
            f"{type(family).__name__}: hidden is {list(hidden)}, and a layer of fewer units than "
            f"the site's {dim} dimensions cuts some of them off; accepted are widths >= {dim}"
        )
    return hidden
