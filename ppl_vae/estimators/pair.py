"""A model and a guide, run once against each other: the ground that estimators stand on.

Shapes: K particles, B data, `*plates` the plates around a site.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

__all__ = [
    "PARTICLES",
    "Pair",
    "check_pair",
    "is_point",
    "join",
    "per_datum",
    "per_particle",
    "plate_scale",
    "run_guide",
    "run_model",
    "samples",
    "trace_pair",
]

Site = dict[str, Any]

#: The plate in which particles are drawn at once, left of the model's own.
PARTICLES = "num_particles_vectorized"


@dataclass(frozen=True)
class Pair:
    """The traces of a guide and of the model replayed against it, log-densities computed.

    Attributes:
        model_trace: p(x, z) at the guide's z.
        guide_trace: q(z | x).
    """

    model_trace: poutine.Trace
    guide_trace: poutine.Trace

    @property
    def latents(self) -> list[tuple[str, Any, Any]]:
        """Name, model's site and guide's site of every latent, in the guide's order."""
        nodes = self.model_trace.nodes
        sites = samples(self.guide_trace)
        return [(name, nodes[name], site) for name, site in sites if not is_auxiliary(site)]

    @property
    def auxiliary(self) -> list[tuple[str, Any]]:
        """Name and site of what the guide alone samples, as Pyro's autoguides do."""
        return [(name, site) for name, site in samples(self.guide_trace) if is_auxiliary(site)]

    @property
    def observed(self) -> list[tuple[str, Site]]:
        """Name and site of everything that the model observes."""
        return [(name, site) for name, site in samples(self.model_trace) if site["is_observed"]]

    @property
    def has_density(self) -> bool:
        """Whether the guide has a density; a point mass has none.

        Pyro's autoguides sample an auxiliary site and make the latent a point of it; they have one.
        """
        points = any(is_point(site["fn"]) for _, site in samples(self.guide_trace))
        return not points or bool(self.auxiliary)

    @property
    def data_plate(self) -> Any:
        """The frame of the plate over the data: `"data"`, else the one around the observed sites.

        Raises:
            ValueError: There is none.
        """
        stacks = [frame for _, site in self.observed for frame in site["cond_indep_stack"]]
        frames = [frame for frame in stacks if frame.name != PARTICLES]
        named = [frame for frame in frames if frame.name == "data"]
        if not (named or frames):
            raise ValueError(
                "the model has no plate over the data; write "
                '`with pyro.plate("data", len(x), dim=-1):` around what it samples per datum'
            )
        return (named or sorted(frames, key=lambda frame: -frame.dim))[0]


def trace_pair(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
    """Runs the guide, and the model against it.

    Raises:
        ValueError: The two do not sample the same sites, or events of different shapes; or the
            guide observes something.
    """
    guide_trace = run_guide(guide, args, kwargs)
    return join(run_model(model, guide_trace, args, kwargs), guide_trace)


def run_guide(guide: Callable, args: tuple, kwargs: dict) -> poutine.Trace:
    """The trace of a guide; a `ValueError` if it observes something."""
    trace = poutine.trace(guide).get_trace(*args, **kwargs)
    if told := [name for name, site in samples(trace) if site["is_observed"]]:
        raise ValueError(
            f"model and guide do not fit: the guide observes {_names(told)}; a guide observes "
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


def join(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Pair:
    """The pair of two traces, checked, their log-densities computed."""
    pair = Pair(prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace))
    check_pair(pair)
    pair.model_trace.compute_log_prob()
    pair.guide_trace.compute_log_prob()
    return pair


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


def check_pair(pair: Pair) -> None:
    """Checks that the guide samples what the model samples, and nothing else.

    Raises:
        ValueError: A site that one of the two lacks, or that the model observes. The message
            names the sites.
    """
    model_sites, guide_sites = dict(samples(pair.model_trace)), dict(samples(pair.guide_trace))
    observed = {name for name, site in model_sites.items() if site["is_observed"]}
    latent = model_sites.keys() - observed
    problems = []
    if missing := [name for name in model_sites if name in latent - guide_sites.keys()]:
        problems.append(f"the model samples {_names(missing)} which the guide does not")
    if summed := [name for name in missing if model_sites[name]["infer"].get("enumerate")]:
        problems.append(
            f"the model enumerates {_names(summed)} itself, where a KL weight cannot follow; "
            "sample it in the guide, with infer={'enumerate': 'parallel'}, and "
            "pyro.infer.TraceEnum_ELBO sums it out there"
        )
    own = [name for name, site in guide_sites.items() if not is_auxiliary(site)]
    if extra := [name for name in own if name not in model_sites]:
        problems.append(f"the guide samples {_names(extra)} which the model does not")
    if both := [name for name in guide_sites if name in observed]:
        problems.append(f"the guide samples {_names(both)} which the model observes")
    if problems:
        raise ValueError("model and guide do not fit: " + "; ".join(problems))


def plate_scale(site: Site) -> float:
    """N/B: the factor by which the plates around a site scale it up for subsampling."""
    frames = site["cond_indep_stack"]
    return math.prod((frame.full_size or frame.size) / frame.size for frame in frames)


def per_datum(site: Site, plate: Any, num_data: int | None = None) -> Tensor:
    """A site's log-density for each datum, with masks and scales but not the plates' N/B.

    Returns:
        `[B]`, summed over all plates but the data's; a site outside the data plate gives its sum,
        `[]`, divided by `num_data` (the plate's full size, if not given), so that the sum over all
        data counts it once.
    """
    scale = site["scale"] / plate_scale(site)
    log_prob = scale_and_mask(site["unscaled_log_prob"], scale, site["mask"])
    inside = [frame for frame in site["cond_indep_stack"] if frame.name == plate.name]
    if not inside:
        return log_prob.sum() / (num_data or plate.full_size or plate.size)
    return log_prob.movedim(plate.dim, 0).reshape(plate.size, -1).sum(1)


def per_particle(site: Site, plate: Any, log_prob: Any = None) -> Tensor:
    """A site's log-density for each particle and datum, without the plates' N/B.

    Args:
        site: A site in the data plate, and in the plate of the particles where there is one.
        plate: The frame of the data plate.
        log_prob: In place of the site's own, scaled and masked, log-density: `[*plates]`.

    Returns:
        `[K, B]`, summed over all other plates; K is 1 where there is no plate of particles.
    """
    if log_prob is None:
        scale = plate_scale(site)
        log_prob = site["log_prob"] if scale == 1 else site["log_prob"] / scale
    if not any(frame.name == PARTICLES for frame in site["cond_indep_stack"]):
        log_prob = log_prob.unsqueeze(0)
    kept = log_prob.movedim(plate.dim, 1)
    return kept if kept.dim() == 2 else kept.flatten(2).sum(-1)


def samples(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    """Name and site of every sample statement, observed ones included."""
    return ((name, site) for name, site in trace.nodes.items() if site["type"] == "sample")


def is_auxiliary(site: Site) -> bool:
    """Whether a site is marked as the guide's own, `infer={"is_auxiliary": True}`."""
    return bool(site["infer"].get("is_auxiliary"))


def is_point(fn: Any) -> bool:
    """Whether a distribution is a point mass, however it is wrapped."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def _names(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
