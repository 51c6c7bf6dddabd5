"""log p(x) from below and from above, on data that the model itself has drawn.

Shapes: K particles, N data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.estimators.checks import check_density, check_local
from ppl_vae.estimators.pair import join
from ppl_vae.estimators.particles import Particles
from ppl_vae.estimators.running import run_guide, run_model
from ppl_vae.estimators.simulation import check_draws_directly, simulate
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.likelihood import log_marginal
from ppl_vae.randomness import untouched, validation

__all__ = ["Bracket", "bracket"]


@dataclass(frozen=True)
class Bracket:
    r"""Lower and upper bounds of log p(x), in nats, each `[N]`; they are bounds in mean.

    .. math:: \text{elbo} = \log w(z_1) \le \text{lower} = \log \frac1K \sum_{k=1}^K w(z_k)
        \le \log p(x) \le
        \text{upper} = \log \frac1K \Big(w(z^*) + \sum_{k=2}^K w(z_k)\Big)
        \le \text{eubo} = \log w(z^*)

    with :math:`z_k \sim q(z | x)`, and :math:`z^* \sim p(z | x)` exactly. A single datum's values
    may well be out of order.

    Attributes:
        x: The data that the model drew, `[N, *data_shape]`.
        elbo: The evidence lower bound.
        lower: The importance-weighted lower bound of K particles.
        upper: The upper bound of K particles.
        eubo: The evidence upper bound.
    """

    x: Tensor
    elbo: Tensor
    lower: Tensor
    upper: Tensor
    eubo: Tensor

    def summary(self) -> dict[str, Estimate]:
        """Means over the data, with their standard errors."""
        names = ("elbo", "lower", "upper", "eubo")
        return {name: Estimate.of_mean(getattr(self, name)) for name in names}


def bracket(
    model: Callable, guide: Callable, x_like: Tensor, *, num_particles: int = 100, seed: int = 0
) -> Bracket:
    r"""Bounds log p(x) from both sides, on data simulated from the model.

    An upper bound needs a draw from the exact posterior. Of real data there is none; of data drawn
    together with their latents there is one, the latents. (What is sometimes called an upper bound
    on real data, a Monte Carlo CUBO or a self-normalized EUBO, is an estimate from q alone and
    bounds nothing.) The distance between the two sides is at least the guide's inference gap on
    the model's own data. Cost: K runs of both programs. Leaves the random stream alone.

    Args:
        model: The model; its latents must lie in the data plate, and what it observes must be its
            argument.
        guide: The guide; it must have a density at any z.
        x_like: As many data as wanted, `[N, *data_shape]`, in the type and on the device wanted;
            values are not used.
        num_particles: K.
        seed: Of the draws.

    Raises:
        ValueError: K is below 1; the guide has no density at a given z; a site lies outside the
            data plate; the model does more with its data than to observe them.

    References:
        Grosse, Ghahramani and Adams (2015), on simulated data; Sobolev and Vetrov (2019) and
        Brekelmans et al. (2022), the upper bound of K particles.

    Example:
        >>> model = ppl_vae.models.LinearGaussian([[1.0], [2.0]], 0.5)
        >>> guide = ppl_vae.guides.MeanFieldGuide(model)
        >>> found = bracket(model, guide, torch.zeros(200, 2), num_particles=20).summary()
        >>> found["elbo"].value < found["lower"].value < found["upper"].value
        True
    """
    if num_particles < 1:
        raise ValueError(f"num_particles is {num_particles}; accepted is >= 1")
    with untouched(seed), torch.no_grad(), validation(True):
        drawn, (x,), _ = simulate(model, (x_like,), {})
        guide_trace = run_guide(poutine.replay(guide, trace=drawn), (x,), {})
        check_draws_directly(guide_trace, "bracket")
        pair = join(run_model(model, guide_trace, (x,), {}), guide_trace)
        check_density(pair, "bracket")
        check_local(pair, "bracket")
        eubo = Particles([pair], 1, 1).log_weights.reshape(-1)
    lower = log_marginal(model, guide, x, num_particles=num_particles, seed=seed + 1).value
    upper = eubo
    if num_particles > 1:
        rest = log_marginal(model, guide, x, num_particles=num_particles - 1, seed=seed + 2).value
        upper = torch.logaddexp(eubo, rest + math.log(num_particles - 1)) - math.log(num_particles)
    elbo = log_marginal(model, guide, x, num_particles=1, seed=seed + 3).value
    return Bracket(x, elbo, lower, upper, eubo)
