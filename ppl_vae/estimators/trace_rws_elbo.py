"""Reweighted wake-sleep."""

from collections.abc import Callable

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppl_vae.estimators.checks import check_unweighted
from ppl_vae.estimators.pair import Pair, compute_density
from ppl_vae.estimators.particles import Particles, log_mean_exp, weigh, with_gradient
from ppl_vae.estimators.paths import trace_stopped_pair
from ppl_vae.estimators.running import run_guide
from ppl_vae.estimators.simulation import check_draws_directly, simulate
from ppl_vae.estimators.sites import samples
from ppl_vae.estimators.weight_estimator import WeightEstimator

__all__ = ["TraceRWS_ELBO"]


class TraceRWS_ELBO(WeightEstimator):  # noqa: N801 (Pyro's style)
    r"""Reweighted wake-sleep: the model climbs IWAE, the guide learns to imitate the posterior.

    .. math:: \theta:\ \sum_k \tilde w_k \nabla_\theta \log p(x, z_k), \qquad
        \phi:\ \lambda \sum_k \tilde w_k \nabla_\phi \log q(z_k | x)
        + (1 - \lambda)\, E_{p(x', z')}\big[\nabla_\phi \log q(z' | x')\big]

    The value is that of `TraceIWAE_ELBO`. The guide's gradient is none of that value: it descends
    :math:`KL(p(z | x) \| q(z | x))`, on the data in the wake phase, on the model's own draws in the
    sleep phase. No reparameterization is needed. A KL weight is refused. Cost: that of
    `TraceIWAE_ELBO`, and a run of the guide and two of the model more if it sleeps.

    Args:
        insomnia: :math:`\lambda`, from 0 (sleep phase only) to 1 (wake phase only).
        num_particles: K.
        vectorize_particles: Draw the particles at once; see `Estimator`.
        max_plate_nesting: Found by one run if not given; see `Estimator`.
        num_outer: M.

    Raises:
        ValueError: `insomnia` is not in [0, 1]; a KL weight is in force; a site lies outside the
            data plate, or the guide has no density; it sleeps, and the model observes something
            that is none of its arguments.

    References:
        Bornschein and Bengio (2015), Reweighted Wake-Sleep; Le et al. (2020), Revisiting Reweighted
        Wake-Sleep.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = TraceRWS_ELBO(num_particles=5)(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    def __init__(
        self,
        insomnia: float = 1.0,
        num_particles: int = 5,
        vectorize_particles: bool = True,
        max_plate_nesting: int | None = None,
        num_outer: int = 1,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting, num_outer)
        if not 0 <= insomnia <= 1:
            raise ValueError(
                f"TraceRWS_ELBO: insomnia is {insomnia}; accepted is a number from 0 to 1"
            )
        self.insomnia = insomnia

    def _evaluate(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Tensor:
        loss = super()._evaluate(model, guide, args, kwargs)
        if self.insomnia < 1 and torch.is_grad_enabled():
            dream = -(1 - self.insomnia) * self._dream(model, guide, args, kwargs)
            loss = with_gradient(loss, loss + dream)
        return loss

    def _dream(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Tensor:
        """log q(z' | x') of data and latents that the model draws, summed over the batch."""
        with torch.no_grad():
            drawn, args, kwargs = simulate(model, args, kwargs)
        replayed = poutine.replay(guide, trace=drawn)
        trace = prune_subsample_sites(run_guide(replayed, args, kwargs))
        check_draws_directly(trace, "the sleep phase of TraceRWS_ELBO")
        compute_density(trace)
        terms = [site["log_prob"].sum() for _, site in samples(trace)]
        return torch.stack(terms).sum()

    def _run(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
        return trace_stopped_pair(model, guide, args, kwargs)

    def _check(self, pair: Pair) -> None:
        check_unweighted(pair, "TraceRWS_ELBO", "or TraceVIMCO_ELBO")

    def _bound(self, particles: Particles) -> Tensor:
        log_w = particles.log_weights.detach()
        w = log_w.softmax(1)
        climbed = particles.log_model + self.insomnia * particles.log_guide
        return with_gradient(log_mean_exp(log_w), weigh(w, climbed).sum(1))
