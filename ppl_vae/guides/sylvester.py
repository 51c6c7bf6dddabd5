"""The guide of Sylvester flows."""

from collections.abc import Callable, Sequence

from torch import nn

from ppl_vae.families import Sylvester
from ppl_vae.guides.family_guide import FamilyGuide
from ppl_vae.models.nn import Activation

__all__ = ["SylvesterGuide"]


class SylvesterGuide(FamilyGuide):
    r"""Triangular Sylvester flows, every number of them from the encoder.

    .. math:: q(z | x) = \prod_s \operatorname{T\text{-}SNF}(z_s; \mu_s(x), \sigma_s(x),
        \{R, \tilde R, b\}_{st}(x))

    2 D + T D (D + 2) numbers a site; see `ppl_vae.families.Sylvester`. Reparameterized, but without
    a density at another's sample: `Trace_ELBO`, `TraceAnalyticKL_ELBO`, IWAE and its kin take it;
    path derivatives (STL, DReG) and score functions refuse it by name.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        num_flows: T >= 1, how many maps.
        activation: Of the dense encoder, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder, as in `MeanFieldGuide`.

    Raises:
        ValueError: As `FamilyGuide` and `Sylvester`.

    References:
        van den Berg et al. (2018), Sylvester Normalizing Flows for Variational Inference.

    Example:
        >>> guide = SylvesterGuide(ppl_vae.models.VAE((784,), latent_dim=20))
        >>> guide(torch.zeros(5, 784))["z"].shape
        torch.Size([5, 20])
    """

    def __init__(
        self,
        model: Callable,
        hidden: Sequence[int] = (400,),
        num_flows: int = 4,
        *,
        activation: Activation = "relu",
        encoder: nn.Module | Callable[[Sequence[int]], nn.Module] | None = None,
    ) -> None:
        family = Sylvester(num_flows)
        super().__init__(model, hidden, family, activation=activation, encoder=encoder)
