"""Between the ELBO and the importance-weighted bound."""

import torch
from torch import Tensor

from ppl_vae.estimators.particles import Particles, log_mean_exp
from ppl_vae.estimators.weight_estimator import PathwiseEstimator

__all__ = ["TraceCIWAE_ELBO"]


class TraceCIWAE_ELBO(PathwiseEstimator):  # noqa: N801 (Pyro's style)
    r"""A convex combination of the ELBO and IWAE.

    .. math:: \log p(x) \ge \lambda\, E\Big[\frac1K \sum_k \log w_k\Big]
        + (1 - \lambda)\, E\Big[\log \frac1K \sum_k w_k\Big]

    `elbo_weight` 0 is IWAE, 1 the ELBO; both share the K particles. Under a KL weight both have the
    weights of `TraceIWAE_ELBO`. Cost: that of `TraceIWAE_ELBO`.

    Args:
        elbo_weight: :math:`\lambda`, from 0 to 1.
        num_particles: K.
        vectorize_particles: Draw the particles at once; see `Estimator`.
        max_plate_nesting: Found by one run if not given; see `Estimator`.
        num_outer: M.

    Raises:
        ValueError: `elbo_weight` is not in [0, 1]; a site lies outside the data plate, or the guide
            has a site that is not reparameterized, or no density.

    References:
        Rainforth et al. (2018), Tighter Variational Bounds Are Not Necessarily Better.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = TraceCIWAE_ELBO(elbo_weight=0.05)(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    def __init__(
        self,
        elbo_weight: float = 0.05,
        num_particles: int = 5,
        vectorize_particles: bool = True,
        max_plate_nesting: int | None = None,
        num_outer: int = 1,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting, num_outer)
        if not 0 <= elbo_weight <= 1:
            raise ValueError(
                f"TraceCIWAE_ELBO: elbo_weight is {elbo_weight}; accepted is a number from 0 to 1"
            )
        self.elbo_weight = elbo_weight

    def _bound(self, particles: Particles) -> Tensor:
        log_w = particles.log_weights
        return torch.lerp(log_mean_exp(log_w), log_w.mean(1), self.elbo_weight)
