"""`check_bound`."""

import math
from collections.abc import Sequence

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.testing import oracle
from ppl_vae.testing.estimator import Factory
from ppl_vae.testing.isolation import expect, isolated, reporting

__all__ = ["check_bound"]

_NUM_DATA = 32
_NUM_EXACT = 3  # draws that are to be equal


def check_bound(
    factory: Factory,
    *,
    num_particles: Sequence[int] = (1, 3),
    exact_in_mean: bool = False,
    num_draws: int = 30,
    seed: int = 0,
) -> None:
    r"""Checks that minus the loss bounds log p(x) from below, and is tight at the posterior.

    On linear-Gaussian models of one and two levels, whose log p(x) and posterior are known:

    .. math:: E[-\text{loss}] \le \log p(x) \quad \text{for a guide beside the posterior}, \qquad
        -\text{loss} = \log p(x) \quad \text{at the posterior, for every draw}

    The first within 5 standard errors, the second to 1e-8 nats.

    Args:
        factory: `factory(num_particles=K, vectorize_particles=...)` makes an estimator.
        num_particles: The K to try.
        exact_in_mean: At the posterior only the mean is log p(x), within 5 standard errors: for
            estimators of which a part is sampled and a part is not, as `TraceAnalyticKL_ELBO`.
        num_draws: Evaluations of which the mean is taken.
        seed: Of what is drawn.

    Raises:
        ConformanceError: The first thing that is not so.

    Example:
        >>> from ppl_vae.testing import check_bound
        >>> check_bound(ppl_vae.estimators.TraceIWAE_ELBO, num_particles=[3], num_draws=10)
    """
    hows = [(size, True) for size in num_particles] + [(max(num_particles), False)]
    with isolated(seed), torch.no_grad():
        for name, model in oracle.models().items():
            x = torch.empty(_NUM_DATA, *model.data_shape, dtype=torch.float64)
            x = poutine.uncondition(model)(x)  # drawn from it
            truth = float(model.log_marginal(x).sum())
            for size, vectorize in hows:
                how = f"{size} particle(s), vectorize_particles={vectorize}, on {name}"
                losses = []
                num_exact = num_draws if exact_in_mean else _NUM_EXACT
                for guide, count in (
                    (oracle.inexact_guide(model), num_draws),
                    (oracle.exact_guide(model), num_exact),
                ):
                    with reporting(f"the loss, with {how},"):
                        elbo = factory(num_particles=size, vectorize_particles=vectorize)
                        draws = [elbo.loss(model, guide, x) for _ in range(count)]
                    losses.append(torch.tensor(draws, dtype=torch.float64))
                _check_below(losses[0], truth, how)
                _check_exact(losses[1], truth, how, exact_in_mean)


def _check_below(losses: Tensor, truth: float, how: str) -> None:
    bound, error = -float(losses.mean()), _standard_error(losses)
    expect(
        math.isfinite(bound) and bound <= truth + 5 * error,
        f"minus the loss, with {how}, is {bound:.6g} in mean, with a standard error of "
        f"{error:.2g}; expected was a lower bound of log p(x), {truth:.6g}",
    )


def _check_exact(losses: Tensor, truth: float, how: str, exact_in_mean: bool) -> None:
    if exact_in_mean:
        bound, error = -float(losses.mean()), _standard_error(losses)
        expect(
            abs(bound - truth) <= 5 * error + 1e-8,
            f"at the exact posterior minus the loss, with {how}, is {bound:.8g} in mean, with a "
            f"standard error of {error:.2g}; expected was log p(x), {truth:.8g}",
        )
        return
    furthest = -float(losses[(losses + truth).abs().argmax()])
    expect(
        abs(furthest - truth) <= 1e-8,
        f"at the exact posterior minus the loss, with {how}, is {furthest:.10g} for one of "
        f"{len(losses)} draws; expected for every draw was log p(x), {truth:.10g}, to 1e-8",
    )


def _standard_error(losses: Tensor) -> float:
    return float(losses.std()) / math.sqrt(len(losses))
