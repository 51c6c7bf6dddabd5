"""Guides whose later sites look at the earlier ones.

Shapes: K particles, B data, F features, D of what was drawn before, P numbers that choose a member.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ppl_vae.checks import check_hidden
from ppl_vae.families import Family
from ppl_vae.guides.amortized import Encoded
from ppl_vae.guides.family_guide import FamilyGuide, FamilyHead
from ppl_vae.guides.sites import LatentSite
from ppl_vae.models.nn import Activation, Nonlinearity, dense

__all__ = ["StructuredGuide"]


class StructuredGuide(FamilyGuide):
    """A guide that draws one site after the other, each given what its subclass says.

    To write one: subclass, and define `_arrange(sites)`, the order, and `_parents(sites, i)`.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        latent_hidden: Widths of the dense layers between what a site looks at and its numbers; none
            for linear dependence.
        family: Of every site; `DiagonalNormal()` if not given.
        activation: Of the dense layers, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder, as in `AmortizedGuide`.

    Raises:
        ValueError: As `FamilyGuide`; a site lies outside the data plate, or in a second plate.
    """

    def __init__(
        self,
        model: Callable,
        hidden: Sequence[int] = (400,),
        latent_hidden: Sequence[int] = (200,),
        family: Family | None = None,
        *,
        activation: Activation = "relu",
        encoder: nn.Module | Callable[[Sequence[int]], nn.Module] | None = None,
    ) -> None:
        # Before `nn.Module` is, as in `FamilyGuide`.
        widths = check_hidden(latent_hidden, f"{type(self).__name__}: latent_hidden")
        self.__dict__.update(latent_hidden=widths, _site_activation=activation, _looks_at={})
        super().__init__(model, hidden, family, activation=activation, encoder=encoder)

    @abstractmethod
    def _arrange(self, sites: list[LatentSite]) -> list[LatentSite]:
        """The order in which the guide draws the sites."""

    @abstractmethod
    def _parents(self, sites: list[LatentSite], index: int) -> tuple[bool, list[LatentSite]]:
        """Whether the site of this place in the order looks at x, and at which earlier sites."""

    def _check_site(self, site: LatentSite) -> None:
        super()._check_site(site)
        if not site.is_local(self.data_plate) or len(site.frames) != 1:
            where = [frame.name for frame in site.frames]
            raise ValueError(
                f"{type(self).__name__} draws sites that lie in the data plate and in no other, "
                f"and the model's '{site.name}' lies in {where or 'none'}; use MeanFieldGuide"
            )

    def _make_head(self, site: LatentSite, num_features: int) -> nn.Module:
        sees_x, parents = self._looks_at[site.name]
        coding = self._codings[site.name]
        num_drawn = sum(self._codings[parent.name].dim for parent in parents)
        sizes = num_features if sees_x else 0, num_drawn
        widths = [*self.latent_hidden, coding.size]
        return FamilyHead(coding, Junction(*sizes, widths, self._site_activation))

    def _plan(self, sites: list[LatentSite]) -> list[LatentSite]:
        """Writes down what each site looks at."""
        for i, site in enumerate(sites):
            self._looks_at[site.name] = self._parents(sites, i)
        return sites

    def _read(
        self, head: nn.Module, site: LatentSite, encoded: Encoded, values: dict[str, Tensor]
    ) -> Tensor:
        features = encoded.features
        sees_x, parents = self._looks_at[site.name]
        plate_dim = self.data_plate.dim
        # B of the features to where the data plate has it.
        features = features.reshape(len(features), *[1] * (-plate_dim - 1), -1)  # type: ignore
        seen = [self._codings[parent.name].write(values[parent.name]) for parent in parents]
        return head(features if sees_x else None, _beside(seen, features) if seen else None)

    def _spread(self, values: Tensor, site: LatentSite, event: torch.Size) -> Tensor:
        # Already where it belongs: these sites have no cells within a datum.
        return values


class Junction(nn.Module):
    """From features, and what was drawn before, to numbers.

    The first layer is the sum of a layer for each, so that the features', however many particles
    are drawn, go through theirs once per datum.
    """

    def __init__(
        self, num_features: int, num_drawn: int, widths: Sequence[int], activation: Activation
    ) -> None:
        super().__init__()
        # A site that looks at x alone has a linear head: the encoder is network enough.
        first, *others = widths if num_drawn else widths[-1:]
        self.of_features = nn.Linear(num_features, first) if num_features else None
        self.of_drawn = nn.Linear(num_drawn, first, bias=not num_features) if num_drawn else None
        self.rest = nn.Sequential()
        if others:
            self.rest.append(Nonlinearity(activation))
            self.rest.extend(dense([first, *others[:-1]], activation))
            self.rest.append(nn.Linear([first, *others][-2], others[-1]))

    def forward(self, features: Tensor | None, drawn: Tensor | None) -> Tensor:
        """`[B, F]` and `[..., B, D]` to `[..., B, P]`."""
        parts = []
        if features is not None and self.of_features is not None:
            parts.append(self.of_features(features))
        if drawn is not None and self.of_drawn is not None:
            parts.append(self.of_drawn(drawn))
        return self.rest(sum(parts))


def _beside(written: Sequence[Tensor], like: Tensor) -> Tensor:
    """Vectors side by side; a site that is enumerated has all of its values on the left."""
    batch = torch.broadcast_shapes(*(value.shape[:-1] for value in written))
    return torch.cat([value.to(like).expand(*batch, -1) for value in written], -1)
