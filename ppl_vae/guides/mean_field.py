"""The mean-field guide: every latent independent of every other given x."""

import math

import pyro
import pyro.distributions as dist
from pyro.distributions import constraints
from pyro.distributions.transforms import biject_to
from torch import Tensor, nn

from ppl_vae.guides.amortized import AmortizedGuide
from ppl_vae.guides.sites import LatentSite
from ppl_vae.models.nn import NormalHead

__all__ = ["MeanFieldGuide", "is_real"]


class MeanFieldGuide(AmortizedGuide):
    r"""Diagonal normals: one encoder, one head for each latent site.

    .. math:: q(z | x) = \prod_s N(z_s; \mu_s(x), \operatorname{diag} \sigma_s^2(x))

    For a two-level model this is :math:`q(z_1 | x)\, q(z_2 | x)`. A site whose support is not the
    whole space gets the normal pushed through `biject_to(support)`. A site outside the data plate
    is global: its location and scale do not depend on x. Reparameterized; the encoder runs once per
    datum, however many particles are drawn.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        activation: Of the dense encoder, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder: a network `[B, *data_shape] -> [B, F]`, or a class
            that makes one of `data_shape`.

    Raises:
        ValueError: The model has no latent site, no plate over the data, or a discrete site.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes.

    Example:
        >>> guide = MeanFieldGuide(ppl_vae.models.VAE((784,), latent_dim=20))
        >>> guide(torch.zeros(5, 784))["z"].shape
        torch.Size([5, 20])
    """

    def _make_head(self, site: LatentSite, num_features: int) -> nn.Module:
        return NormalHead(num_features, math.prod(self._unconstrained_shape(site)))

    def _sample(self, site: LatentSite, parameters: tuple[Tensor, Tensor]) -> Tensor:
        loc, scale = (self._spread(value, site) for value in parameters)
        fn = dist.Normal(loc, scale).to_event(loc.dim() - len(site.batch_shape))
        if not is_real(site.support):
            fn = dist.TransformedDistribution(fn, [biject_to(site.support)])
        return pyro.sample(site.name, fn)  # type: ignore[return-value]


def is_real(support: constraints.Constraint) -> bool:
    """Whether the support is the whole space, of any event shape."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support in (constraints.real, constraints.real_vector)
