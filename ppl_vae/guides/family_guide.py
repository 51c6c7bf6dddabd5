"""Guides that spread each site by a family of distributions.

Shapes: B data, F features, P numbers that choose a member of the family.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_vae.families import DiagonalNormal, Family
from ppl_vae.guides.amortized import AmortizedGuide
from ppl_vae.guides.codings import Coding, coding_of
from ppl_vae.guides.sites import LatentSite
from ppl_vae.models.nn import Activation

__all__ = ["FamilyGuide", "FamilyHead"]


class FamilyGuide(AmortizedGuide):
    r"""Every site a member of one family, independent of each other given x.

    .. math:: q(z | x) = \prod_s q_s(z_s; \lambda_s(x))

    A continuous site of any event shape is drawn as a vector, reshaped, and pushed through
    `biject_to(support)`; one on a sphere is a projected normal; a discrete one has a probability
    for each of its values, whatever the family. In nested plates each cell has a distribution of
    its own. A site outside the data plate is global: its numbers do not depend on x.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        family: Of the continuous sites; `DiagonalNormal()` if not given.
        activation: Of the dense layers, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder, as in `AmortizedGuide`.

    Raises:
        ValueError: The model has no latent site, no plate over the data, or a site that is discrete
            without end or whose support nothing reaches.

    Example:
        >>> model = ppl_vae.models.VAE((784,), latent_dim=20)
        >>> guide = FamilyGuide(model, (400,), ppl_vae.families.NeuralSpline())
        >>> guide(torch.zeros(5, 784))["z"].shape
        torch.Size([5, 20])
    """

    def __init__(
        self,
        model: Callable,
        hidden: Sequence[int] = (400,),
        family: Family | None = None,
        *,
        activation: Activation = "relu",
        encoder: nn.Module | Callable[[Sequence[int]], nn.Module] | None = None,
    ) -> None:
        # Before `nn.Module` is: the networks may be made by the constructor that comes next.
        family = DiagonalNormal() if family is None else family
        self.__dict__.update(family=family, _codings={})
        super().__init__(model, hidden, activation=activation, encoder=encoder)

    def _check_site(self, site: LatentSite) -> None:
        self._codings[site.name] = coding_of(site, self.family, type(self).__name__)

    def _make_head(self, site: LatentSite, num_features: int) -> nn.Module:
        coding = self._codings[site.name]
        size = math.prod(self._cells(site)) * coding.size
        return FamilyHead(coding, nn.Linear(num_features, size))

    def _sample(self, site: LatentSite, parameters: Tensor) -> Tensor:
        head = self.heads[site.name]
        coding = getattr(head, "head", head).coding
        fn = coding(self._spread(parameters, site, torch.Size([coding.size])))
        return pyro.sample(site.name, fn)  # type: ignore[return-value]


class FamilyHead(nn.Module):
    """A network that gives the numbers, and what reads them.

    Args:
        coding: Of the site.
        network: `[B, F] -> [B, P]`, times the cells of a datum.
    """

    def __init__(self, coding: Coding, network: nn.Module) -> None:
        super().__init__()
        self.coding, self.network = coding, network

    def forward(self, *inputs: Any) -> Tensor:
        """The numbers."""
        return self.network(*inputs)
