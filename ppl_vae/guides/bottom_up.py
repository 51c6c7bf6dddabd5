"""The bottom-up guide: each level given the one below it."""

from ppl_vae.guides.sites import LatentSite
from ppl_vae.guides.structured import StructuredGuide

__all__ = ["BottomUpGuide"]


class BottomUpGuide(StructuredGuide):
    r"""Against the model's order: q(z1 | x) q(z2 | z1), and so on upwards.

    .. math:: q(z_{1:L} | x) = q(z_1 | x) \prod_{l > 1} q(z_l | z_{l-1})

    The first site drawn, the model's last, is given x; each other the one below it alone. The exact
    posterior of a chain p(z_L) ... p(z_1 | z_2) p(x | z_1) factorizes this way. KLs in closed form
    exist for the uppermost site alone (`TraceAnalyticKL_ELBO` samples the others'). Reparameterized
    if the family is.

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
        >>> guide = BottomUpGuide(ppl_vae.models.HierarchicalVAE((784,), latent_dims=(20, 10)))
        >>> list(guide(torch.zeros(5, 784)))
        ['z1', 'z2']
    """

    def _arrange(self, sites: list[LatentSite]) -> list[LatentSite]:
        return self._plan(list(reversed(sites)))

    def _parents(self, sites: list[LatentSite], index: int) -> tuple[bool, list[LatentSite]]:
        return index == 0, sites[max(0, index - 1) : index]
