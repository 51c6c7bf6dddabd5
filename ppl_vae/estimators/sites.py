"""The sample sites of a trace, and what each is."""

from collections.abc import Iterator
from typing import Any

from pyro.distributions import Delta, MaskedDistribution

__all__ = [
    "PARTICLES",
    "Site",
    "family_of",
    "is_auxiliary",
    "is_masked",
    "is_point",
    "own_plates",
    "quoted",
    "samples",
]

Site = dict[str, Any]

#: The plate in which particles are drawn at once, left of the model's own.
PARTICLES = "num_particles_vectorized"


def samples(trace: Any) -> Iterator[tuple[str, Any]]:
    """Name and site of every sample statement, observed ones included.

    Not those of `pyro.deterministic`, which Pyro writes down as observations without a density.
    """
    nodes = ((name, site) for name, site in trace.nodes.items() if site["type"] == "sample")
    return ((name, site) for name, site in nodes if not site["infer"].get("_deterministic"))


def is_auxiliary(site: Site) -> bool:
    """Whether a site is marked as the guide's own, `infer={"is_auxiliary": True}`."""
    return bool(site["infer"].get("is_auxiliary"))


def own_plates(site: Site) -> dict[str, Any]:
    """The frames of the program's own plates around a site, by name."""
    return {f.name: f for f in site["cond_indep_stack"] if f.name != PARTICLES}


def is_masked(site: Site) -> bool:
    """Whether a mask lies on a site, be it around the program or on the distribution."""
    fn = site["fn"]
    while hasattr(fn, "base_dist"):
        if isinstance(fn, MaskedDistribution):
            return True
        fn = fn.base_dist
    return site["mask"] is not None and site["mask"] is not True


def is_point(fn: Any) -> bool:
    """Whether a distribution is a point mass, however it is wrapped."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def family_of(fn: Any) -> str:
    """The name of a distribution, without the wrappers that make events of it."""
    while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__


def quoted(names: list[str]) -> str:
    """Names as they stand in a message."""
    return ", ".join(f"'{name}'" for name in names)
