"""The mean-field guide: every latent independent of every other given x."""

from collections.abc import Callable, Sequence

from torch import nn

from ppl_vae.families import DiagonalNormal
from ppl_vae.guides.family_guide import FamilyGuide
from ppl_vae.models.nn import Activation

__all__ = ["MeanFieldGuide"]


class MeanFieldGuide(FamilyGuide):
    r"""Diagonal normals: one encoder, one head for each latent site.

    .. math:: q(z | x) = \prod_s N(z_s; \mu_s(x), \operatorname{diag} \sigma_s^2(x))

    For a two-level model this is :math:`q(z_1 | x)\, q(z_2 | x)`. A site whose support is not the
    whole space gets the normal pushed through `biject_to(support)`; a discrete one, a probability
    for each of its values. A site outside the data plate is global: its numbers do not depend on x.
    Reparameterized where no site is discrete; the encoder runs once per datum, however many
    particles are drawn.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        activation: Of the dense encoder, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder: a network `[B, *data_shape] -> [B, F]`, or a class
            that makes one of `data_shape`.

    Raises:
        ValueError: As `FamilyGuide`.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes.

    Example:
        >>> guide = MeanFieldGuide(ppl_vae.models.VAE((784,), latent_dim=20))
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
        super().__init__(model, hidden, DiagonalNormal(), activation=activation, encoder=encoder)
