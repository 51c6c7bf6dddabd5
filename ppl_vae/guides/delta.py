"""The point-mass guide: the encoder of a deterministic autoencoder."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import biject_to
from torch import Tensor, nn

from ppl_vae.guides.amortized import AmortizedGuide
from ppl_vae.guides.sites import LatentSite
from ppl_vae.guides.supports import Support

__all__ = ["DeltaGuide"]


class DeltaGuide(AmortizedGuide):
    r"""A point for each datum: the deterministic autoencoder, or amortized MAP.

    .. math:: q(z | x) = \delta(z - f(x))

    A point mass has no density, so there is no ELBO: the loss is
    :math:`-\log p(x | z) - \beta \log p(z)` at :math:`z = f(x)`, and no `elbo` is ever logged. With
    weight 0 on the latents it is the deterministic autoencoder.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        activation: Of the dense encoder, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder: a network `[B, *data_shape] -> [B, F]`, or a class
            that makes one of `data_shape`.

    Raises:
        ValueError: The model has no latent site, no plate over the data, or a discrete site.

    Example:
        >>> guide = DeltaGuide(ppl_vae.models.VAE((784,), latent_dim=20))
        >>> x = torch.rand(5, 784)
        >>> bool((guide(x)["z"] == guide(x)["z"]).all())
        True
    """

    def _check_site(self, site: LatentSite) -> None:
        if site.is_discrete:
            raise ValueError(
                f"DeltaGuide: the model's site '{site.name}' is discrete "
                f"({str(site.support).removesuffix('()')}); accepted are continuous sites"
            )

    def _make_head(self, site: LatentSite, num_features: int) -> nn.Module:
        size = math.prod(self._cells(site)) * math.prod(_event(site))
        head = nn.Linear(num_features, size)
        head.support = Support(site.support)
        return head

    def _sample(self, site: LatentSite, parameters: Tensor) -> Tensor:
        head = self.heads[site.name]
        support = getattr(head, "head", head).support()
        value = biject_to(support)(self._spread(parameters, site, _event(site)))
        point = dist.Delta(value, event_dim=len(site.event_shape))
        return pyro.sample(site.name, point)  # type: ignore[return-value]


def _event(site: LatentSite) -> torch.Size:
    """Of a value before `biject_to(support)`: a simplex of 3, for one, has 2 coordinates."""
    return biject_to(site.support).inverse_shape(site.event_shape)
