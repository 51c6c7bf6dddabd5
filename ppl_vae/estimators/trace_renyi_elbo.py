"""The variational Renyi bound."""

import math

from torch import Tensor

from ppl_vae.estimators.particles import Particles, log_mean_exp
from ppl_vae.estimators.weight_estimator import PathwiseEstimator

__all__ = ["TraceRenyi_ELBO"]


class TraceRenyi_ELBO(PathwiseEstimator):  # noqa: N801 (Pyro's style)
    r"""The variational Renyi bound of order alpha.

    .. math:: L_\alpha = E\Big[\frac{1}{1 - \alpha} \log \frac1K \sum_k w_k^{1 - \alpha}\Big]

    :math:`\alpha = 0` is IWAE, :math:`\alpha \to 1` (1 itself is taken) the ELBO. For
    :math:`\alpha \ge 0` a lower bound of log p(x) for every K. For :math:`\alpha < 0` it is above
    log p(x) only as K grows, and no bound of either kind for a finite K: `fit` then logs none. The
    N/B of a subsampled plate stands outside, unlike in Pyro's `RenyiELBO`. Under a KL weight as
    `TraceIWAE_ELBO`. Cost: that of `TraceIWAE_ELBO`.

    Args:
        alpha: The order, any finite number.
        num_particles: K.
        vectorize_particles: Draw the particles at once; see `Estimator`.
        max_plate_nesting: Found by one run if not given; see `Estimator`.
        num_outer: M.

    Raises:
        ValueError: `alpha` is not finite; a site lies outside the data plate, or the guide has a
            site that is not reparameterized, or no density.

    References:
        Li and Turner (2016), Renyi Divergence Variational Inference.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = TraceRenyi_ELBO(alpha=0.5)(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    def __init__(
        self,
        alpha: float = 0.5,
        num_particles: int = 5,
        vectorize_particles: bool = True,
        max_plate_nesting: int | None = None,
        num_outer: int = 1,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting, num_outer)
        if not math.isfinite(alpha):
            raise ValueError(f"TraceRenyi_ELBO: alpha is {alpha}; accepted is a finite number")
        self.alpha = alpha
        self.is_bound = alpha >= 0

    def _bound(self, particles: Particles) -> Tensor:
        log_w = particles.log_weights
        if self.alpha == 1:
            return log_w.mean(1)
        power = 1 - self.alpha
        if abs(power) > 0.01:
            return log_mean_exp(power * log_w) / power
        # Near 1 the division magnifies rounding, unless what is divided begins at 0.
        center = log_w.mean(1, keepdim=True)
        rest = (power * (log_w - center)).expm1().mean(1).log1p() / power
        return center.squeeze(1) + rest
