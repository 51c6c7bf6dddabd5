"""Data and latents drawn together from a model: the posterior of such data is known to the draw."""

from collections.abc import Callable
from typing import Any

from pyro import poutine

from ppl_vae.estimators.pair import samples

__all__ = ["simulate"]


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
        ValueError: The model observes a value that is none of its arguments.
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

    return trace, tuple(map(swap, args)), {key: swap(value) for key, value in kwargs.items()}
