"""The guide of inverse autoregressive flows."""

from collections.abc import Callable, Sequence

from torch import nn

from ppl_vae.families import InverseAutoregressive
from ppl_vae.guides.family_guide import FamilyGuide
from ppl_vae.models.nn import Activation

__all__ = ["IAFGuide"]


class IAFGuide(FamilyGuide):
    r"""Inverse autoregressive flows, conditioned on the encoder.

    .. math:: q(z | x) = \prod_s \operatorname{IAF}(z_s; \mu_s(x), \sigma_s(x), c_s(x))

    Each site is a diagonal normal and `num_flows` maps, whose networks see the context c(x); see
    `ppl_vae.families.InverseAutoregressive`. Exact for a linear-Gaussian model of one level. One
    pass of the networks a draw. Reparameterized; STL, DReG and score functions take a density at
    given samples, which costs D passes.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        num_flows: T >= 1, how many maps.
        context_dim: C >= 1.
        flow_hidden: Widths of each map's network, none below D; one of max(64, 2 D) if not given.
        activation: Of the dense encoder, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder, as in `MeanFieldGuide`.

    Raises:
        ValueError: As `FamilyGuide` and `InverseAutoregressive`.

    References:
        Kingma et al. (2016), Improving Variational Inference with Inverse Autoregressive Flow.

    Example:
        >>> guide = IAFGuide(ppl_vae.models.VAE((784,), latent_dim=20))
        >>> guide(torch.zeros(5, 784))["z"].shape
        torch.Size([5, 20])
    """

    def __init__(
        self,
        model: Callable,
        hidden: Sequence[int] = (400,),
        num_flows: int = 2,
        context_dim: int = 16,
        flow_hidden: Sequence[int] | None = None,
        *,
        activation: Activation = "relu",
        encoder: nn.Module | Callable[[Sequence[int]], nn.Module] | None = None,
    ) -> None:
        family = InverseAutoregressive(num_flows, context_dim, flow_hidden)
        super().__init__(model, hidden, family, activation=activation, encoder=encoder)
