"""The importance-weighted bound with truncated weights."""

import math

import torch
from torch import Tensor

from ppl_vae.estimators import PathwiseEstimator
from ppl_vae.estimators.particles import Particles, log_mean_exp


class TraceTruncated_ELBO(PathwiseEstimator):  # noqa: N801 (Pyro's style)
    """No weight counts for more than sqrt(K) times the mean: lower than IWAE's bound, and calmer.

    The truncation is that of Ionides (2008), Truncated Importance Sampling.
    """

    def _bound(self, particles: Particles) -> Tensor:
        log_w = particles.log_weights  # [M, K, B]
        ceiling = log_mean_exp(log_w) + 0.5 * math.log(log_w.shape[1])  # [M, B]
        return log_mean_exp(torch.minimum(log_w, ceiling.unsqueeze(1)))  # [M, B]
