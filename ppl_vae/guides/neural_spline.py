"""The guide of neural spline flows."""

from collections.abc import Callable, Sequence

from torch import nn

from ppl_vae.families import NeuralSpline
from ppl_vae.guides.family_guide import FamilyGuide
from ppl_vae.models.nn import Activation

__all__ = ["NeuralSplineGuide"]


class NeuralSplineGuide(FamilyGuide):
    r"""Autoregressive rational-quadratic spline flows, conditioned on the encoder.

    .. math:: q(z | x) = \prod_s \operatorname{NSF}(z_s; \mu_s(x), \sigma_s(x), c_s(x))

    Each site is standard normals, `num_flows` spline maps whose networks see the context c(x), and
    a location and scale; see `ppl_vae.families.NeuralSpline`. The most flexible of the flows here.
    One pass of the networks a draw. Reparameterized; STL, DReG and score functions take a density
    at given samples, which costs D passes.

    Where its networks are steep the density at given values, which goes through the inverse, loses
    digits in float32: at D = 20 the 99th percentile of its error can come to nats. That matters
    under STL, DReG and score functions; take float64 there, or `Trace_ELBO`, which has the density
    of its own draws.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        num_flows: T >= 1, how many maps.
        num_bins: K >= 2, pieces of each spline.
        bound: Where the splines end, in standard deviations; > 0.
        context_dim: C >= 1.
        flow_hidden: Widths of each map's network, none below D; one of max(64, 2 D) if not given.
        activation: Of the dense encoder, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder, as in `MeanFieldGuide`.

    Raises:
        ValueError: As `FamilyGuide` and `NeuralSpline`.

    References:
        Durkan et al. (2019), Neural Spline Flows.

    Example:
        >>> guide = NeuralSplineGuide(ppl_vae.models.VAE((784,), latent_dim=20))
        >>> guide(torch.zeros(5, 784))["z"].shape
        torch.Size([5, 20])
    """

    def __init__(
        self,
        model: Callable,
        hidden: Sequence[int] = (400,),
        num_flows: int = 2,
        num_bins: int = 8,
        bound: float = 5.0,
        context_dim: int = 16,
        flow_hidden: Sequence[int] | None = None,
        *,
        activation: Activation = "relu",
        encoder: nn.Module | Callable[[Sequence[int]], nn.Module] | None = None,
    ) -> None:
        family = NeuralSpline(num_flows, num_bins, bound, context_dim, flow_hidden)
        super().__init__(model, hidden, family, activation=activation, encoder=encoder)
