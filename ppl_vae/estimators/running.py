"""One run of a guide, or of a model against it."""

from collections.abc import Callable

from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.estimators.sites import quoted, samples

__all__ = ["OneSubsample", "run_guide", "run_model"]


def run_guide(guide: Callable, args: tuple, kwargs: dict) -> poutine.Trace:
    """The trace of a guide; a `ValueError` if it observes something."""
    trace = poutine.trace(guide).get_trace(*args, **kwargs)
    if told := [name for name, site in samples(trace) if site["is_observed"]]:
        raise ValueError(
            f"model and guide do not fit: the guide observes {quoted(told)}; a guide observes "
            "nothing"
        )
    return trace


def run_model(
    model: Callable, guide_trace: poutine.Trace, args: tuple, kwargs: dict
) -> poutine.Trace:
    """The trace of a model at the values of a guide's; a `ValueError` where an event differs."""
    replayed = poutine.replay(model, trace=guide_trace)
    events = _CheckEvents(guide_trace)
    try:
        with events:
            return poutine.trace(replayed).get_trace(*args, **kwargs)
    except ValueError:
        # Pyro adds a page of shapes to whatever is raised in a program.
        if events.problem is None:
            raise
        raise ValueError(events.problem) from None


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


class _CheckEvents(Messenger):
    """Compares event shapes site by site, before a network chokes on a latent of another size."""

    def __init__(self, guide_trace: poutine.Trace) -> None:
        super().__init__()
        self._sites = dict(samples(guide_trace))
        self.problem: str | None = None

    def _pyro_sample(self, msg: dict) -> None:
        site = self._sites.get(msg["name"])
        if site is None or type(msg["fn"]).__name__ == "_Subsample":
            return
        ours, theirs = tuple(msg["fn"].event_shape), tuple(site["fn"].event_shape)
        if ours != theirs:
            self.problem = (
                f"model and guide do not fit: at '{msg['name']}' the model's event has shape "
                f"{ours}, the guide's {theirs}; check `.to_event(...)` and the sizes of both"
            )
            raise ValueError(self.problem)
