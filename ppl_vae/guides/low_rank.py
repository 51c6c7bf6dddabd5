"""The low-rank guide: a few directions of correlation within a site."""

from collections.abc import Callable, Sequence

from torch import nn

from ppl_vae.families import LowRankNormal
from ppl_vae.guides.family_guide import FamilyGuide
from ppl_vae.models.nn import Activation

__all__ = ["LowRankGuide"]


class LowRankGuide(FamilyGuide):
    r"""Normals of low-rank plus diagonal covariance within each site.

    .. math:: q(z | x) = \prod_s N\big(z_s; \mu_s(x),
        F_s(x) F_s(x)^\top + \operatorname{diag} \sigma_s^2(x)\big)

    Sites are independent of each other. D (R + 2) numbers a site. Reparameterized.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        rank: R >= 1, columns of F.
        activation: Of the dense encoder, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder: a network `[B, *data_shape] -> [B, F]`, or a class
            that makes one of `data_shape`.

    Raises:
        ValueError: As `FamilyGuide`.

    Example:
        >>> guide = LowRankGuide(ppl_vae.models.VAE((784,), latent_dim=20))
        >>> guide(torch.zeros(5, 784))["z"].shape
        torch.Size([5, 20])
    """

    def __init__(
        self,
        model: Callable,
        hidden: Sequence[int] = (400,),
        rank: int = 2,
        *,
        activation: Activation = "relu",
        encoder: nn.Module | Callable[[Sequence[int]], nn.Module] | None = None,
    ) -> None:
        super().__init__(model, hidden, LowRankNormal(rank), activation=activation, encoder=encoder)
