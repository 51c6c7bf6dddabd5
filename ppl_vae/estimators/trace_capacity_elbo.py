"""The capacity objective: hold the KL at a value that grows, rather than weigh it."""

from typing import Any

import torch
from torch import Tensor

from ppl_vae.estimators.base import Estimator
from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.term_modifier import TermModifier, num_data
from ppl_vae.schedules import Linear, Schedule

__all__ = ["TraceCapacity_ELBO"]


class TraceCapacity_ELBO(TermModifier):  # noqa: N801 (Pyro's style)
    r"""Burgess et al.'s objective: the KL is pulled to a capacity C(t), in nats per datum.

    .. math:: L_t = \sum_b -E_q[\log p(x_b | z_b)]
        + B \gamma \left| \frac1B \sum_b KL(q(z_b | x_b) \| p(z_b)) - C(t) \right|

    The KL is the sum over all latent sites; around `TraceAnalyticKL_ELBO` in closed form where
    there is one. This is no bound of log p(x) and no weight: `fit` logs the `elbo` beside it, no
    `bound`, and a KL weight is refused. Cost: that of the inner estimator.

    Args:
        gamma: How hard the KL is pulled, > 0.
        capacity: C(t) in nats per datum, a schedule; `Linear(num_steps=100000, end=25.0)` if not
            given, the paper's for dSprites.
        estimator: Where the terms come from, `Trace_ELBO`, `TraceAnalyticKL_ELBO` or
            `TraceSTL_ELBO`; `TraceAnalyticKL_ELBO()` if not given.

    Raises:
        ValueError: `gamma` is not positive; the estimator has no KL terms; a KL weight is in force;
            the guide has a site that is not reparameterized, or no density.

    References:
        Burgess et al. (2018), Understanding disentangling in beta-VAE.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = TraceCapacity_ELBO(gamma=10.0)(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    is_bound = False

    def __init__(
        self,
        gamma: float = 1000.0,
        capacity: Schedule | None = None,
        estimator: Estimator | None = None,
    ) -> None:
        super().__init__(estimator)
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
            self._check(pair, "and let `capacity` do the annealing")
            observed, terms = self.estimator.terms(pair)
            reconstruction = reconstruction + observed
            kl = kl + sum(term.sum() for term in terms.values())
        if self.target.device != kl.device:
            self.target = self.target.to(kl.device)  # once
        draws, size = self.num_draws, num_data(pairs[0])
        mean = self._mean(kl / (draws * size))
        return -reconstruction / draws + size * self.gamma * (mean - self.target).abs()
