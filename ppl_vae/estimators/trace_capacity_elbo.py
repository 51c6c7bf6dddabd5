"""The capacity objective: hold the KL at a value that grows, rather than weigh it."""

from typing import Any

import torch
from torch import Tensor

from ppl_vae.estimators.base import Estimator
from ppl_vae.estimators.kl import site_kl
from ppl_vae.estimators.pair import Pair
from ppl_vae.handlers import is_weighted
from ppl_vae.schedules import Linear, Schedule

__all__ = ["TraceCapacity_ELBO"]


class TraceCapacity_ELBO(Estimator):  # noqa: N801 (Pyro's style)
    r"""Burgess et al.'s objective: the KL is pulled to a capacity C(t), in nats per datum.

    .. math:: L_t = \sum_b -E_q[\log p(x_b | z_b)]
        + B \gamma \left| \frac1B \sum_b KL(q(z_b | x_b) \| p(z_b)) - C(t) \right|

    The KL is the sum over all latent sites, in closed form where there is one. This is no bound of
    log p(x) and no weight: `fit` logs the `elbo` beside it, no `bound`, and a KL weight is refused.
    Cost: that of `Trace_ELBO`.

    Args:
        gamma: How hard the KL is pulled, > 0.
        capacity: C(t) in nats per datum, a schedule; `Linear(num_steps=100000, end=25.0)` if not
            given, the paper's for dSprites.
        num_particles: K, over which the terms are averaged.
        vectorize_particles: Draw the particles at once; see `Estimator`.
        max_plate_nesting: Found by one run if not given; see `Estimator`.

    Raises:
        ValueError: `gamma` is not positive; a KL weight is in force; the guide has a site that is
            not reparameterized, or no density.

    References:
        Burgess et al. (2018), Understanding disentangling in beta-VAE.
    """

    is_bound = False

    def __init__(
        self,
        gamma: float = 1000.0,
        capacity: Schedule | None = None,
        num_particles: int = 1,
        vectorize_particles: bool = True,
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting)
        if not 0 < gamma < float("inf"):
            raise ValueError(f"TraceCapacity_ELBO: gamma is {gamma}; accepted is a number > 0")
        self.gamma = gamma
        self.capacity = Linear(num_steps=100_000, end=25.0) if capacity is None else capacity
        # A tensor, so that a captured step reads the value of the moment.
        self.target = torch.zeros(())
        self.set_step(0)

    def set_step(self, step: int) -> None:
        """Sets C to its value at `step`."""
        value: Any = self.capacity(step)
        if not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ValueError(
                f"TraceCapacity_ELBO: capacity({step}) is {value!r}; accepted are nats >= 0"
            )
        self.target.fill_(value)

    def _loss(self, pairs: list[Pair]) -> Tensor:
        reconstruction, kl = 0.0, 0.0
        for pair in pairs:
            self._check(pair)
            for _, site in pair.observed:
                reconstruction = reconstruction + site["log_prob"].sum()
            for name, _, _ in pair.latents:
                kl = kl + site_kl(pair, name).sum()
        plate = pairs[0].data_plate
        num_data = (plate.full_size or plate.size) * self.num_particles
        if self.target.device != kl.device:
            self.target = self.target.to(kl.device)  # once
        return (
            -reconstruction / self.num_particles
            + (plate.full_size or plate.size) * self.gamma * (kl / num_data - self.target).abs()
        )

    def _check(self, pair: Pair) -> None:
        for name, _, site in pair.latents:
            if is_weighted(site):
                raise ValueError(
                    "TraceCapacity_ELBO holds the KL at a capacity and takes no KL weight; use the "
                    "schedule Constant(1.0), and let `capacity` do the annealing"
                )
            if not site["fn"].has_rsample:
                raise ValueError(
                    f"TraceCapacity_ELBO needs reparameterized guides, and the guide samples "
                    f"'{name}' from {type(site['fn']).__name__}, which is not"
                )
        if not pair.has_density:
            raise ValueError(
                "TraceCapacity_ELBO needs the KL of the guide, and a point mass (DeltaGuide) has "
                "none; use MeanFieldGuide or another guide with a density"
            )
