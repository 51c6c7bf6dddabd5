"""Guides that spread each site by a family of distributions.

Shapes: B data, F features, D dimension of a site before `biject_to(support)`, P numbers that choose
a member of the family.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import biject_to
from torch import Tensor, nn
from torch.distributions.transforms import ReshapeTransform

from ppl_vae.guides.amortized import AmortizedGuide
from ppl_vae.guides.families import Family, Member
from ppl_vae.guides.mean_field import is_real
from ppl_vae.guides.sites import LatentSite
from ppl_vae.models.nn import Activation

__all__ = ["FamilyGuide", "FamilyHead"]


class FamilyGuide(AmortizedGuide):
    """Every site a member of one family, independent of each other given x.

    A site of any event shape is drawn as a vector, reshaped, and pushed through
    `biject_to(support)`. In nested plates each cell has a distribution of its own.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        family: The family.
        activation: Of the dense layers, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder, as in `AmortizedGuide`.

    Raises:
        ValueError: The model has no latent site, no plate over the data, or a discrete site.
    """

    def __init__(
        self,
        model: Callable,
        hidden: Sequence[int],
        family: Family,
        *,
        activation: Activation = "relu",
        encoder: nn.Module | Callable[[Sequence[int]], nn.Module] | None = None,
    ) -> None:
        # Before `nn.Module` is: the networks may be made by the constructor that comes next.
        self.__dict__["family"] = family
        super().__init__(model, hidden, activation=activation, encoder=encoder)

    def _make_head(self, site: LatentSite, num_features: int) -> nn.Module:
        shape = self._unconstrained_shape(site)
        depth = len(site.batch_shape)
        member = self.family.make(math.prod(shape[depth:]))
        return FamilyHead(member, nn.Linear(num_features, math.prod(shape[:depth]) * member.size))

    def _sample(self, site: LatentSite, parameters: Tensor) -> Tensor:
        head = self.heads[site.name]
        member = getattr(head, "head", head).member
        fn = member(self._spread(parameters, site, torch.Size([member.size])))
        return pyro.sample(site.name, _as_event(fn, site))  # type: ignore[return-value]


class FamilyHead(nn.Module):
    """A network that gives the numbers, and the family that reads them.

    Args:
        member: The family at the site's dimension.
        network: `[B, F] -> [B, P]`, times the cells of a datum.
    """

    def __init__(self, member: Member, network: nn.Module) -> None:
        super().__init__()
        self.member, self.network = member, network

    def forward(self, *inputs: Tensor) -> Tensor:
        """The numbers."""
        return self.network(*inputs)


def _as_event(fn: Any, site: LatentSite) -> Any:
    """A distribution over `[D]` as one over the site's events."""
    bijection = biject_to(site.support)
    event = bijection.inverse_shape(site.event_shape)
    parts = [] if event == fn.event_shape else [ReshapeTransform(fn.event_shape, event)]
    if not is_real(site.support):
        parts.append(bijection)
    return dist.TransformedDistribution(fn, parts) if parts else fn
