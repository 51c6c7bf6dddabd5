"""Whether a model and a guide agree at a site: its event, its plates, its support."""

from typing import Any

from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger

from ppl_vae.estimators.sites import family_of, is_point, own_plates, quoted, samples

__all__ = ["Agreement"]


class Agreement(Messenger):
    """Around a model that is replayed against a guide: stops it where the two do not agree.

    At the site itself, before a network chokes on a latent of another size.

    Args:
        guide_trace: Of the guide.

    Attributes:
        problem: What was found, in one sentence.
    """

    def __init__(self, guide_trace: poutine.Trace) -> None:
        super().__init__()
        self._sites = dict(samples(guide_trace))
        self.problem: str | None = None

    def _pyro_sample(self, msg: dict) -> None:
        site = self._sites.get(msg["name"])
        if site is None or type(msg["fn"]).__name__ == "_Subsample" or msg["is_observed"]:
            return
        what = _event_problem(msg, site) or _plate_problem(msg, site) or _support_problem(msg, site)
        if what:
            self.problem = f"model and guide do not fit: at '{msg['name']}' {what}"
            raise ValueError(self.problem)


def _event_problem(ours: dict, theirs: dict) -> str | None:
    event, other = tuple(ours["fn"].event_shape), tuple(theirs["fn"].event_shape)
    if event == other:
        return None
    return (
        f"the model's event has shape {event}, the guide's {other}; check `.to_event(...)` and the "
        "sizes of both"
    )


def _plate_problem(ours: dict, theirs: dict) -> str | None:
    wanted = {n: f for n, f in own_plates(ours).items() if f.vectorized}
    found = {n: f for n, f in own_plates(theirs).items() if f.vectorized}
    for name, frame in wanted.items():
        if name not in found:
            there = f"the plates {quoted(list(found))}" if found else "no plate"
            return (
                f"the model is in the plate '{name}', and the guide in {there}; write "
                f'`with pyro.plate("{name}", ..., dim={frame.dim}):` around it in the guide, as in '
                "the model"
            )
        # A model that is replayed has the guide's subsample, and a full size of its own.
        size, other = (f.full_size or f.size for f in (frame, found[name]))
        if (found[name].dim, found[name].size, other) != (frame.dim, frame.size, size):
            return (
                f"the plate '{name}' has size {size} at dim={frame.dim} in the model, and size "
                f"{other} at dim={found[name].dim} in the guide; a plate over the data is as long "
                f'as the batch: `pyro.plate("{name}", len(x), dim={frame.dim})` in both'
            )
    if extra := [name for name in found if name not in wanted]:
        return f"the guide is in the plate {quoted(extra)}, which the model has not around it"
    return None


def _support_problem(ours: dict, theirs: dict) -> str | None:
    """Looks at values, and so only where Pyro's validation is on."""
    if not poutine.util.is_validation_enabled():
        return None
    support, value = ours["fn"].support, theirs["value"]
    # What a transformed distribution says of its support is a bound: `GreaterThan(0)` is reached by
    # an `exp` and a shift, which says "real".
    says = family_of(theirs["fn"]) != "TransformedDistribution" and not is_point(theirs["fn"])
    on_reals = says and _is_real(theirs["fn"].support)
    leaves = on_reals and not support.is_discrete and not _is_real(support)
    if not leaves and bool(support.check(value).all()):
        return None
    return (
        f"the model's {family_of(ours['fn'])} has the support {_name(support)}, and the guide's "
        f"{family_of(theirs['fn'])} draws from {_name(theirs['fn'].support)}; draw from a "
        "distribution on the model's support, or push a normal there: "
        "`dist.TransformedDistribution(normal, [biject_to(support)])`"
    )


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support in (constraints.real, constraints.real_vector)


def _name(support: Any) -> str:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return str(support).removesuffix("()")
