"""A model and a guide, run once against each other: the ground that estimators stand on.

Shapes: K particles, B data, `*plates` the plates around a site.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.poutine.util import prune_subsample_sites

from ppl_vae.estimators.running import run_guide, run_model
from ppl_vae.estimators.sites import Site, is_auxiliary, is_point, own_plates, quoted, samples
from ppl_vae.handlers import is_weighted

__all__ = ["Pair", "check_pair", "check_weights", "compute_density", "join", "trace_pair"]


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
        """The frame of the plate over the data: `"data"`, else the one around all sites.

        Raises:
            ValueError: There is none, or more than one and none is named `"data"`.
        """
        # Where the likelihood is hidden, to train by the KL alone, the latents are in the plate.
        sites = list(self.observed) or list(samples(self.model_trace))
        observed = [own_plates(site) for _, site in sites]
        candidates = {name: plates[name] for plates in observed for name in plates}
        if "data" in candidates:
            return candidates["data"]
        if len(candidates) > 1:
            # The one that is around everything that has plates at all.
            stacks = [
                plates for _, site in samples(self.model_trace) if (plates := own_plates(site))
            ]
            shared = {n: f for n, f in candidates.items() if all(n in plates for plates in stacks)}
            if len(shared) != 1:
                raise ValueError(
                    f"the model has the plates {quoted(sorted(candidates))}, and none of them is "
                    "named 'data'; give that name to the one over the data"
                )
            candidates = shared
        if not candidates:
            raise ValueError(
                "the model has no plate over the data; write "
                '`with pyro.plate("data", len(x), dim=-1):` around what it samples per datum'
            )
        return next(iter(candidates.values()))


def trace_pair(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
    """Runs the guide, and the model against it.

    Raises:
        ValueError: The two do not sample the same sites, or events of different shapes; or the
            guide observes something.
    """
    guide_trace = run_guide(guide, args, kwargs)
    return join(run_model(model, guide_trace, args, kwargs), guide_trace)


def join(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Pair:
    """The pair of two traces, checked, their log-densities computed."""
    pair = Pair(prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace))
    check_pair(pair)
    check_weights(pair)
    pair.model_trace.compute_log_prob()
    compute_density(pair.guide_trace)
    return pair


def compute_density(guide_trace: poutine.Trace) -> None:
    """The guide's log-densities; a `ValueError` where a flow has none at a given value."""
    try:
        guide_trace.compute_log_prob()
    except (KeyError, NotImplementedError) as error:
        raise ValueError(
            "the estimator needs the guide's density at given values, and the guide has a flow "
            f"without an inverse ({error}); use a flow that has one, or Trace_ELBO, TraceIWAE_ELBO"
        ) from error


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
        problems.append(f"the model samples {quoted(missing)} which the guide does not")
    if summed := [name for name in missing if model_sites[name]["infer"].get("enumerate")]:
        problems.append(
            f"the model enumerates {quoted(summed)} itself, where a KL weight cannot follow; "
            "sample it in the guide, with infer={'enumerate': 'parallel'}, and "
            "pyro.infer.TraceEnum_ELBO sums it out there"
        )
    own = [name for name, site in guide_sites.items() if not is_auxiliary(site)]
    if extra := [name for name in own if name not in model_sites]:
        problems.append(f"the guide samples {quoted(extra)} which the model does not")
    if both := [name for name in guide_sites if name in observed]:
        problems.append(f"the guide samples {quoted(both)} which the model observes")
    if problems:
        raise ValueError("model and guide do not fit: " + "; ".join(problems))


def check_weights(pair: Pair) -> None:
    """Refuses KL weights by site where the guide draws a latent from an auxiliary site.

    The weight of the latent would reach its prior, and not the density that it was drawn from.
    """
    for name, site in pair.auxiliary:
        for latent, _, guide_site in pair.latents:
            if is_weighted(site) != is_weighted(guide_site):
                raise ValueError(
                    f"the KL weight names '{latent}', which the guide draws from the auxiliary "
                    f"site '{name}'; use one weight for all, or a guide without auxiliary sites"
                )
