"""The guide of planar flows."""

from collections.abc import Callable, Sequence

from torch import nn

from ppl_vae.families import Planar
from ppl_vae.guides.family_guide import FamilyGuide
from ppl_vae.models.nn import Activation

__all__ = ["PlanarGuide"]


class PlanarGuide(FamilyGuide):
    r"""Planar flows, every number of them from the encoder.

    .. math:: q(z | x) = \prod_s \operatorname{planar}(z_s; \mu_s(x), \sigma_s(x),
        \{u, w, b\}_{st}(x))

    2 D + T (2 D + 1) numbers a site; see `ppl_vae.families.Planar`. Reparameterized, but without a
    density at another's sample: `Trace_ELBO`, `TraceAnalyticKL_ELBO`, IWAE and its kin take it;
    path derivatives (STL, DReG) and score functions refuse it by name.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        num_flows: T >= 1, how many maps.
        activation: Of the dense encoder, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder, as in `MeanFieldGuide`.

    Raises:
        ValueError: As `FamilyGuide` and `Planar`.

    References:
        Rezende and Mohamed (2015), Variational Inference with Normalizing Flows.

    Example:
        >>> guide = PlanarGuide(ppl_vae.models.VAE((784,), latent_dim=20))
        >>> guide(torch.zeros(5, 784))["z"].shape
        torch.Size([5, 20])
    """

    def __init__(
        self,
        model: Callable,
        hidden: Sequence[int] = (400,),
        num_flows: int = 8,
        *,
        activation: Activation = "relu",
        encoder: nn.Module | Callable[[Sequence[int]], nn.Module] | None = None,
    ) -> None:
        family = Planar(num_flows)
        super().__init__(model, hidden, family, activation=activation, encoder=encoder)
