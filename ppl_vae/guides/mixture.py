"""The mixture guide: several modes within a site."""

from collections.abc import Callable, Sequence

from torch import nn

from ppl_vae.families import Mixture
from ppl_vae.guides.family_guide import FamilyGuide
from ppl_vae.models.nn import Activation

__all__ = ["MixtureGuide"]


class MixtureGuide(FamilyGuide):
    r"""Mixtures of diagonal normals within each site.

    .. math:: q(z | x) = \prod_s \sum_c w_{sc}(x)\,
        N(z_s; \mu_{sc}(x), \operatorname{diag} \sigma_{sc}^2(x))

    Sites are independent of each other. C (2 D + 1) numbers a site. Reparameterized, by a pathwise
    derivative through the mixture's distribution function.

    That divides by q(z | x) itself, and where the density underflows the gradients are not finite:
    with C = 3 in float32 from about D = 85 at scales of 0.7, and from about D = 30 at a scale of 8.
    The way out is float64 (to about D = 650), a smaller latent, or another guide, as
    `FullRankGuide` or `NeuralSplineGuide`.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        num_components: C >= 2.
        activation: Of the dense encoder, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder: a network `[B, *data_shape] -> [B, F]`, or a class
            that makes one of `data_shape`.

    Raises:
        ValueError: As `FamilyGuide`.

    Example:
        >>> guide = MixtureGuide(ppl_vae.models.VAE((784,), latent_dim=20))
        >>> guide(torch.zeros(5, 784))["z"].shape
        torch.Size([5, 20])
    """

    def __init__(
        self,
        model: Callable,
        hidden: Sequence[int] = (400,),
        num_components: int = 3,
        *,
        activation: Activation = "relu",
        encoder: nn.Module | Callable[[Sequence[int]], nn.Module] | None = None,
    ) -> None:
        super().__init__(
            model, hidden, Mixture(num_components), activation=activation, encoder=encoder
        )
