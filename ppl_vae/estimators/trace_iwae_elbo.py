"""The importance-weighted bound."""

from torch import Tensor

from ppl_vae.estimators.particles import Particles, log_mean_exp
from ppl_vae.estimators.weight_estimator import PathwiseEstimator

__all__ = ["TraceIWAE_ELBO"]


class TraceIWAE_ELBO(PathwiseEstimator):  # noqa: N801 (Pyro's style)
    r"""The importance-weighted bound of K particles, IWAE.

    .. math:: \log p(x) \ge E\Big[\log \frac1K \sum_k w_k\Big], \qquad
        w_k = \frac{p(x, z_k)}{q(z_k | x)},\quad z_k \sim q(z | x)

    With K = 1 the ELBO; it rises to log p(x) with K. With `num_outer` = M it is MIWAE(M, K), the
    mean of M such bounds. The gradient is the whole derivative, pathwise: that of the guide has a
    signal-to-noise ratio that falls as :math:`\sqrt{M / K}` (Rainforth et al., 2018);
    `TraceDReG_ELBO` mends it. Under a KL weight :math:`\beta` the weights are
    :math:`w = p(x | z) (p(z) / q(z | x))^\beta`. Cost: M K runs of guide and model, the encoder run
    once.

    Raises:
        ValueError: A site lies outside the data plate, or the guide has a site that is not
            reparameterized, or no density.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = TraceIWAE_ELBO(num_particles=5)(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    def _bound(self, particles: Particles) -> Tensor:
        return log_mean_exp(particles.log_weights)
