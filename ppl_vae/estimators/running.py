"""One run of a guide, or of a model against it."""

from collections.abc import Callable

from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.estimators.agreement import Agreement
from ppl_vae.estimators.sites import quoted, samples

__all__ = ["OneSubsample", "run_guide", "run_model"]


def run_guide(guide: Callable, args: tuple, kwargs: dict) -> poutine.Trace:
    """The trace of a guide; a `ValueError` if it observes something, or outgrows its plates."""
    try:
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
    except ValueError as error:
        first, *_ = str(error).split("\n")
        if not first.startswith("Shape mismatch inside plate"):
            raise
        raise ValueError(
            f"the guide's shapes do not fit: {first[0].lower()}{first[1:]}. In a plate a site has "
            "one distribution for each index; what is left of its shape is one event, which "
            "`.to_event(1)` says of a vector"
        ) from None
    if told := [name for name, site in samples(trace) if site["is_observed"]]:
        raise ValueError(
            f"model and guide do not fit: the guide observes {quoted(told)}; a guide observes "
            "nothing"
        )
    return trace


def run_model(
    model: Callable, guide_trace: poutine.Trace, args: tuple, kwargs: dict
) -> poutine.Trace:
    """The trace of a model at the values of a guide's; a `ValueError` where the two differ."""
    replayed = poutine.replay(model, trace=guide_trace)
    agreement = Agreement(guide_trace)
    try:
        with agreement:
            return poutine.trace(replayed).get_trace(*args, **kwargs)
    except ValueError:
        # Pyro adds a page of shapes to whatever is raised in a program.
        if agreement.problem is None:
            raise
        raise ValueError(agreement.problem) from None


class OneSubsample(Messenger):
    """Gives every run inside of it the subsample that a plate drew in the first."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: dict) -> None:
        if type(msg["fn"]).__name__ == "_Subsample" and msg["name"] in self._drawn:
            msg["value"], msg["done"] = self._drawn[msg["name"]], True

    def _pyro_post_sample(self, msg: dict) -> None:
        if type(msg["fn"]).__name__ == "_Subsample":
            self._drawn.setdefault(msg["name"], msg["value"])
