"""The top-down guide: each level given x and the levels above it."""

from ppl_vae.guides.sites import LatentSite
from ppl_vae.guides.structured import StructuredGuide

__all__ = ["TopDownGuide"]


class TopDownGuide(StructuredGuide):
    r"""Each site given x and the sites that the model draws before it: q(z2 | x) q(z1 | z2, x).

    .. math:: q(z_{1:L} | x) = q(z_L | x) \prod_{l < L} q(z_l | z_{l+1}, \dots, z_L, x)

    The order is the model's own, for any number of sites. The exact posterior of any model
    factorizes this way; how near it comes is a matter of the family. Reparameterized if that is.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        latent_hidden: Widths of the dense layers between what a site looks at and its numbers; none
            for linear dependence.
        family: Of every site; `DiagonalNormal()` if not given.
        activation: Of the dense layers, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder, as in `MeanFieldGuide`.

    Raises:
        ValueError: As `FamilyGuide`; a site lies outside the data plate, or in a second plate.

    References:
        Burda et al. (2016), bottom-up; Soenderby et al. (2016), top-down.

    Example:
        >>> guide = TopDownGuide(ppl_vae.models.HierarchicalVAE((784,), latent_dims=(20, 10)))
        >>> list(guide(torch.zeros(5, 784)))
        ['z2', 'z1']
    """

    def _arrange(self, sites: list[LatentSite]) -> list[LatentSite]:
        return self._plan(list(sites))

    def _parents(self, sites: list[LatentSite], index: int) -> tuple[bool, list[LatentSite]]:
        return True, sites[:index]
