"""The evidence lower bound, by sampling."""

from torch import Tensor

from ppl_vae.estimators.kl import sampled_kl
from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.termwise import TermwiseEstimator

__all__ = ["Trace_ELBO"]


class Trace_ELBO(TermwiseEstimator):  # noqa: N801 (Pyro's style)
    r"""The evidence lower bound, every term sampled, with pathwise gradients.

    .. math:: \log p(x) \ge E_{q(z | x)}[\log p(x, z) - \log q(z | x)]
        \approx \frac1K \sum_k \log p(x, z_k) - \log q(z_k | x), \qquad z_k \sim q(z | x)

    Equal to Pyro's estimator of the same name given the same noise, without its wait for the device
    at every site. The gradient is the pathwise one, so each of the guide's sites must be
    reparameterized. Under a KL weight :math:`\beta` (`ppl_vae.handlers.scale_latents`) the latent
    terms are :math:`\beta (\log p(z) - \log q(z | x))`; for :math:`\beta \le 1` that is still a
    lower bound in expectation. Cost: K runs of guide and model, the encoder run once.

    Args:
        num_particles: K.
        vectorize_particles: Draw the particles at once; see `Estimator`.
        max_plate_nesting: Found by one run if not given; see `Estimator`.
        num_outer: M; all M K draws are averaged.

    Raises:
        ValueError: The guide has a site that is not reparameterized, or does not fit the model.

    References:
        Kingma and Welling (2014); Ranganath et al. (2014); Wingate and Weber (2013).

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = Trace_ELBO(num_particles=5)(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> loss = elbo(torch.rand(3, 784).round())
        >>> loss.shape, loss.requires_grad
        (torch.Size([]), True)
    """

    def _kl(self, pair: Pair, name: str) -> Tensor:
        return sampled_kl(pair, name)
