"""Data and latents drawn together from a model: the posterior of such data is known to the draw."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro import poutine

from ppl_vae.estimators.sites import is_auxiliary, samples

__all__ = ["check_draws_directly", "simulate"]


def simulate(
    model: Callable, args: tuple, kwargs: dict
) -> tuple[poutine.Trace, tuple, dict[str, Any]]:
    """Runs the model with nothing observed, and puts what it drew in the place of the data.

    Args:
        model: The model.
        args: Data and what else it takes; of the data only the shapes count.
        kwargs: What else it takes.

    Returns:
        The trace of the run, in which z is a draw from p(z | x) for the x of that run; and the
        arguments with every observed value replaced by the drawn one.

    Raises:
        ValueError: The model observes a value that is none of its arguments; or, with Pyro's
            validation on, it does more with its data than to observe them.
    """
    given = poutine.trace(model).get_trace(*args, **kwargs)
    observed = {name: site["value"] for name, site in samples(given) if site["is_observed"]}
    trace = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
    swaps = [(value, trace.nodes[name]["value"], name) for name, value in observed.items()]
    for value, _, name in swaps:
        if not any(value is argument for argument in (*args, *kwargs.values())):
            raise ValueError(
                f"the model is to be simulated, and the value that it observes at '{name}' is none "
                "of its arguments, so what it draws there cannot be handed on; observe the "
                "argument itself, as in `obs=x`"
            )

    def swap(argument: Any) -> Any:
        return next((new for old, new, _ in swaps if old is argument), argument)

    args, kwargs = tuple(map(swap, args)), {key: swap(value) for key, value in kwargs.items()}
    if poutine.util.is_validation_enabled():
        _check_only_observes(model, trace, observed, args, kwargs)
    return trace, args, kwargs


def check_draws_directly(guide_trace: poutine.Trace, what: str) -> None:
    """Refuses a guide whose latents are made of auxiliary draws: it has no density at a given z."""
    for name, site in samples(guide_trace):
        if is_auxiliary(site):
            raise ValueError(
                f"{what} needs the density of the guide at the model's own draws, and the guide "
                f"makes its latents of the auxiliary site '{name}'; use MeanFieldGuide or another "
                "guide that samples them directly"
            )


def _check_only_observes(
    model: Callable, trace: poutine.Trace, observed: Iterable[str], args: tuple, kwargs: dict
) -> None:
    again = poutine.trace(poutine.replay(model, trace=trace)).get_trace(*args, **kwargs)
    for name in observed:
        one = trace.nodes[name]["fn"].log_prob(trace.nodes[name]["value"])
        other = again.nodes[name]["fn"].log_prob(again.nodes[name]["value"])
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(
                f"the model is to be simulated, and its distribution of '{name}' depends on the "
                "data themselves; what it draws is then no draw of x"
            )
