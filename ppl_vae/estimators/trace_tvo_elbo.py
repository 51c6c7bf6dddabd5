"""The thermodynamic variational objective."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.particles import Particles, with_gradient
from ppl_vae.estimators.paths import trace_stopped_pair
from ppl_vae.estimators.weight_estimator import WeightEstimator

__all__ = ["TraceTVO_ELBO"]


class TraceTVO_ELBO(WeightEstimator):  # noqa: N801 (Pyro's style)
    r"""The thermodynamic variational objective: a Riemann sum on the way from q(z | x) to p(z | x).

    .. math:: \log p(x) = \int_0^1 E_{\pi_\beta}[\log w]\, d\beta
        \ge \sum_t (\beta_{t+1} - \beta_t)\, E_{\pi_{\beta_t}}[\log w], \qquad
        \pi_\beta \propto q(z | x)^{1 - \beta}\, p(x, z)^\beta

    The expectations are self-normalized over the K particles, with weights :math:`w^\beta`. For
    every draw the sum is then at most :math:`\log \frac1K \sum_k w_k`, so in mean it is a lower
    bound for every K. The partition is 0, and `num_partitions` - 1 further points from `smallest`,
    log-spaced towards 1; with one partition it is the ELBO. The gradients are covariances,

    .. math:: \nabla E_{\pi_\beta}[\log w] = E_{\pi_\beta}[\nabla \log w]
        + \mathrm{Cov}_{\pi_\beta}\big[(1 - \beta) \nabla \log q + \beta \nabla \log p,\ \log w\big]

    which need no reparameterization. Their bias vanishes as 1/K. Under a KL weight w is that of
    `TraceIWAE_ELBO`, and the way leads from q to q w. Cost: that of `TraceIWAE_ELBO`.

    Args:
        num_partitions: T >= 1.
        smallest: :math:`\beta_1`, in (0, 1).
        num_particles: K >= 2.
        vectorize_particles: Draw the particles at once; see `Estimator`.
        max_plate_nesting: Found by one run if not given; see `Estimator`.
        num_outer: M.

    Raises:
        ValueError: An argument is out of its range; a site lies outside the data plate, or the
            guide has no density.

    References:
        Masrani, Le and Wood (2019), The Thermodynamic Variational Objective.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> guide = ppl_vae.guides.MeanFieldGuide(model)
        >>> elbo = TraceTVO_ELBO(num_partitions=3, num_particles=10)(model, guide)
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    min_particles = 2

    def __init__(
        self,
        num_partitions: int = 5,
        smallest: float = 0.02,
        num_particles: int = 10,
        vectorize_particles: bool = True,
        max_plate_nesting: int | None = None,
        num_outer: int = 1,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting, num_outer)
        check_dim(num_partitions, "TraceTVO_ELBO: num_partitions")
        if not 0 < smallest < 1:
            raise ValueError(
                f"TraceTVO_ELBO: smallest is {smallest}; accepted is a number between 0 and 1"
            )
        steps = num_partitions - 1
        self.partition = [0.0, *(smallest ** (1 - t / steps) for t in range(steps))]

    def _run(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
        return trace_stopped_pair(model, guide, args, kwargs)

    def _bound(self, particles: Particles) -> Tensor:
        live = particles.log_weights
        log_w = live.detach()
        value = torch.zeros_like(log_w[:, 0])
        of_weights, of_score = torch.zeros_like(log_w), torch.zeros_like(log_w)
        for beta, end in pairwise([*self.partition, 1.0]):
            width = end - beta
            w = (beta * log_w).softmax(1)
            mean = (w * log_w).sum(1)
            value = value + width * mean
            covariance = w * (log_w - mean.unsqueeze(1))
            # log pi_beta = log q + beta log w, and a constant.
            of_weights = of_weights + width * (w + beta * covariance)
            of_score = of_score + width * covariance
        surrogate = of_weights * live + of_score * particles.score(of_all=True)
        return with_gradient(value, surrogate.sum(1))
