"""The mean of several importance-weighted bounds."""

from torch import Tensor

from ppl_vae.estimators.particles import Particles, log_mean_exp
from ppl_vae.estimators.weight_estimator import PathwiseEstimator

__all__ = ["TraceMIWAE_ELBO"]


class TraceMIWAE_ELBO(PathwiseEstimator):  # noqa: N801 (Pyro's style)
    r"""The mean of M importance-weighted bounds of K particles each, MIWAE(M, K).

    .. math:: \log p(x) \ge E\Big[\frac1M \sum_m \log \frac1K \sum_k w_{mk}\Big]

    `TraceIWAE_ELBO` with `num_outer` = M, under its own name and with the paper's M = K = 8. Of M K
    particles in all it trades the tightness of a large K for the signal of the guide's gradient,
    which grows with M. M = 1 is IWAE, K = 1 the ELBO. Under a KL weight as `TraceIWAE_ELBO`. Cost:
    M K runs of guide and model, the encoder run once.

    Args:
        num_particles: K.
        vectorize_particles: Draw the particles at once; see `Estimator`.
        max_plate_nesting: Found by one run if not given; see `Estimator`.
        num_outer: M.

    Raises:
        ValueError: A site lies outside the data plate, or the guide has a site that is not
            reparameterized, or no density.

    References:
        Rainforth et al. (2018), Tighter Variational Bounds Are Not Necessarily Better.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> guide = ppl_vae.guides.MeanFieldGuide(model)
        >>> elbo = TraceMIWAE_ELBO(num_particles=4, num_outer=2)(model, guide)
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    def __init__(
        self,
        num_particles: int = 8,
        vectorize_particles: bool = True,
        max_plate_nesting: int | None = None,
        num_outer: int = 8,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting, num_outer)

    def _bound(self, particles: Particles) -> Tensor:
        return log_mean_exp(particles.log_weights)
