"""The importance-weighted bound for discrete latents."""

import torch
from torch import Tensor

from ppl_vae.estimators.particles import exclusive_logsumexp, exclusive_mean, log_mean_exp
from ppl_vae.estimators.score_estimator import ScoreEstimator

__all__ = ["TraceVIMCO_ELBO"]


class TraceVIMCO_ELBO(ScoreEstimator):  # noqa: N801 (Pyro's style)
    r"""The importance-weighted bound by the score function, each particle against the others.

    .. math:: \nabla_\phi = E\Big[\sum_k (\hat L - \hat L_{-k}) \nabla_\phi \log q(z_k | x)
        + \tilde w_k \nabla_\phi \log w_k\Big]

    with :math:`\hat L = \log \frac1K \sum_k w_k` and :math:`\hat L_{-k}` the same with
    :math:`w_k` replaced by the geometric mean of the others. The value is that of
    `TraceIWAE_ELBO`; unbiased for discrete latents as for continuous ones. Under a KL weight as
    `TraceIWAE_ELBO`, and unbiased. Cost: that of `TraceIWAE_ELBO`, memory linear in K.

    Args:
        num_particles: K >= 2.
        pathwise: Take the pathwise derivative of reparameterized sites, and the score of the others
            alone; see `ScoreEstimator`.
        vectorize_particles: Draw the particles at once; see `Estimator`.
        max_plate_nesting: Found by one run if not given; see `Estimator`.
        num_outer: M.

    Raises:
        ValueError: K is 1 (there are no others: use `TraceScoreFunction_ELBO`); a site lies outside
            the data plate, or the guide has no density; `pathwise` with nothing left to score.

    References:
        Mnih and Rezende (2016), Variational Inference for Monte Carlo Objectives.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = TraceVIMCO_ELBO(num_particles=5)(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    min_particles = 2

    def _value(self, log_w: Tensor) -> Tensor:
        return log_mean_exp(log_w)

    def _signal(self, log_w: Tensor) -> Tensor:
        without = torch.logaddexp(exclusive_logsumexp(log_w), exclusive_mean(log_w))
        return log_w.logsumexp(1, keepdim=True) - without
