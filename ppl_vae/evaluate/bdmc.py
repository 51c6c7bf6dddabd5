"""log p(x) from below and from above by annealing, on data that the model itself has drawn.

Shapes: T steps, C chains, N data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.estimators.simulation import simulate
from ppl_vae.evaluate.ais import check_data
from ppl_vae.evaluate.annealing import Annealer, Spacing
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.terms import batches
from ppl_vae.evaluate.unconstrained import Unconstrained
from ppl_vae.randomness import looking, untouched, validation

__all__ = ["AnnealedBracket", "bdmc"]


@dataclass(frozen=True)
class AnnealedBracket:
    r"""Lower and upper bounds of log p(x), in nats, each `[N]`; they are bounds in mean.

    .. math:: \text{lower} = \log \frac1C \sum_c w_c \le \log p(x) \le
        \text{upper} = -\log \frac1C \sum_c \frac1{w_c'}

    with w of chains from the base to the posterior, and w' of chains from an exact draw of the
    posterior back. A single datum's values may well be out of order.

    Attributes:
        x: The data that the model drew, `[N, *data_shape]`.
        lower: By annealing forward.
        upper: By annealing in reverse.
        acceptance: The mean probability of acceptance, of both directions.
    """

    x: Tensor
    lower: Tensor
    upper: Tensor
    acceptance: Tensor

    @property
    def gap(self) -> Tensor:
        """Upper minus lower, `[N]`: in mean no less than what each is off."""
        return self.upper - self.lower

    def summary(self) -> dict[str, Estimate]:
        """Means over the data, with their standard errors; the gap's is that of the differences."""
        return {name: Estimate.of_mean(getattr(self, name)) for name in ("lower", "upper", "gap")}


def bdmc(
    model: Callable,
    x_like: Tensor,
    *,
    guide: Callable | None = None,
    num_steps: int = 1000,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    step_size: float = 0.1,
    adapt: bool = True,
    schedule: Spacing = "sigmoid",
    seed: int = 0,
    chunk_size: int = 5000,
) -> AnnealedBracket:
    r"""Bidirectional Monte Carlo: bounds log p(x) from both sides, on data drawn from the model.

    Data are drawn together with their latents, which are draws from their exact posterior. `ais`
    forward gives the lower bound; from the exact draws the same transitions in reverse order give
    the upper one, since :math:`E[1 / w'] = 1 / p(x)`. Their distance in mean bounds what `ais` with
    the same settings is off, on data such as the model draws; real data may be harder. All C
    reverse chains of a datum begin at its one exact draw.

    Step sizes are set as in `ais` and used in both directions. Cost: twice that of `ais`. Model,
    guide and the global random stream are left as they were.

    Args:
        model: The model; its latents must be continuous, in the data plate, and what it observes
            must be its argument.
        x_like: As many data as wanted, `[N, *data_shape]`, in the type and on the device wanted;
            values are not used.
        guide: As in `ais`.
        num_steps: As in `ais`.
        num_chains: As in `ais`, in each direction.
        num_leapfrog: As in `ais`.
        step_size: As in `ais`.
        adapt: As in `ais`.
        schedule: As in `ais`.
        seed: As in `ais`.
        chunk_size: As in `ais`.

    Raises:
        ValueError: As `ais`; or the model does more with its data than to observe them.

    References:
        Grosse, Ghahramani and Adams (2015), Sandwiching the Marginal Likelihood Using Bidirectional
        Monte Carlo; Wu, Burda, Salakhutdinov and Grosse (2017), On the Quantitative Analysis of
        Decoder-Based Generative Models.

    Example:
        >>> model = ppl_vae.models.LinearGaussian([[1.0], [2.0]], 0.5)
        >>> found = bdmc(model, torch.zeros(100, 2), num_steps=20, num_chains=4).summary()
        >>> 0 < found["gap"].value < 1
        True
    """
    annealer = Annealer(
        "bdmc", num_steps=num_steps, num_chains=num_chains, num_leapfrog=num_leapfrog,
        step_size=step_size, adapt=adapt, schedule=schedule,
    )  # fmt: skip
    check_data("bdmc", x_like, chunk_size, seed)
    found = []
    with looking(model, guide), untouched(seed), validation(False):
        for batch in batches(x_like, annealer.data_at_once(chunk_size)):
            with validation(True), torch.no_grad():
                drawn, (x,), _ = simulate(model, (batch,), {})
            target = Unconstrained(model, guide, x, "bdmc")
            u = target.draw(num_chains)
            step_sizes = annealer.step_sizes(target, len(x), u)
            log_w, acceptance = annealer.forward(target, u, step_sizes)
            lower = log_w.logsumexp(0) - math.log(num_chains)
            log_w, other = annealer.reverse(target, target.at(drawn, num_chains), step_sizes)
            upper = math.log(num_chains) - (-log_w).logsumexp(0)
            acceptance = torch.cat([acceptance, other]).mean(0)
            found.append((x, lower.to(u.dtype), upper.to(u.dtype), acceptance))
    return AnnealedBracket(*(torch.cat(parts) for parts in zip(*found, strict=True)))
