"""The full-rank guide: any covariance within a site."""

from collections.abc import Callable, Sequence

from torch import nn

from ppl_vae.families import FullRankNormal
from ppl_vae.guides.family_guide import FamilyGuide
from ppl_vae.models.nn import Activation

__all__ = ["FullRankGuide"]


class FullRankGuide(FamilyGuide):
    r"""Normals of any covariance within each site.

    .. math:: q(z | x) = \prod_s N(z_s; \mu_s(x), L_s(x) L_s(x)^\top)

    Exact for a linear-Gaussian model of one level. Sites are independent of each other. A head of
    D (D + 3) / 2 numbers a site, a density of cost D^2. Reparameterized.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        activation: Of the dense encoder, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder: a network `[B, *data_shape] -> [B, F]`, or a class
            that makes one of `data_shape`.

    Raises:
        ValueError: As `FamilyGuide`.

    Example:
        >>> guide = FullRankGuide(ppl_vae.models.VAE((784,), latent_dim=20))
        >>> guide(torch.zeros(5, 784))["z"].shape
        torch.Size([5, 20])
    """

    def __init__(
        self,
        model: Callable,
        hidden: Sequence[int] = (400,),
        *,
        activation: Activation = "relu",
        encoder: nn.Module | Callable[[Sequence[int]], nn.Module] | None = None,
    ) -> None:
        super().__init__(model, hidden, FullRankNormal(), activation=activation, encoder=encoder)
