"""Partially importance-weighted: one bound for the model, one for the guide."""

from collections.abc import Callable

from torch import Tensor

from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.particles import Particles, log_mean_exp
from ppl_vae.estimators.paths import trace_forked_pair
from ppl_vae.estimators.weight_estimator import PathwiseEstimator

__all__ = ["TracePIWAE_ELBO"]


class TracePIWAE_ELBO(PathwiseEstimator):  # noqa: N801 (Pyro's style)
    r"""IWAE of all M K particles for the model, MIWAE(M, K) for the guide.

    .. math:: \theta:\ \log \frac{1}{MK} \sum_{mk} w_{mk}, \qquad
        \phi:\ \frac1M \sum_m \log \frac1K \sum_k w_{mk}

    The model climbs the tighter bound, the guide the one with more signal. The value is the
    model's, IWAE with M K particles. M = 1 is IWAE. Under a KL weight both have the weights of
    `TraceIWAE_ELBO`. Cost: M K runs of guide and model, the encoder run once.

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
        >>> elbo = TracePIWAE_ELBO(num_particles=4, num_outer=2)(model, guide)
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

    def _run(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
        return trace_forked_pair(model, guide, args, kwargs)

    def _bound(self, particles: Particles) -> Tensor:
        log_w = particles.log_weights  # [M, K, B]
        flat = log_w.detach().reshape(1, -1, log_w.shape[-1])  # [1, M K, B]
        of_model = flat.softmax(1).reshape(log_w.shape)
        of_guide = log_w.detach().softmax(1) / self.num_outer
        # Times M, of which `WeightEstimator` takes the mean.
        of_model, of_guide = self.num_outer * of_model, self.num_outer * of_guide
        value = log_mean_exp(flat)  # [1, B]
        return particles.climb(value, model=of_model, path=of_guide, guide=of_guide)
