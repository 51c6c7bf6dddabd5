"""The latent sites of a Pyro model, found by running it once.

Shapes: B data, `*event` the event shape of a site.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppl_vae.guides.supports import bounds_of, check_constant, fixed_support
from ppl_vae.randomness import untouched

__all__ = ["LatentSite", "check_supports", "find_data_plate", "find_latent_sites"]


@dataclass(frozen=True)
class LatentSite:
    """A latent site of a model.

    Attributes:
        name: Its name.
        event_shape: Shape of one event.
        support: Where its values live, as a `torch.distributions` constraint.
        frames: The plates around it, outermost dimension first.
        is_discrete: Whether it has no density to reparameterize.
        family: The name of its distribution, such as `"Normal"`.
    """

    name: str
    event_shape: torch.Size
    support: constraints.Constraint
    frames: tuple[CondIndepStackFrame, ...]
    is_discrete: bool
    family: str

    @property
    def batch_shape(self) -> torch.Size:
        """Sizes of the plates around the site, by their dimension."""
        if not self.frames:
            return torch.Size()
        depth = -min(frame.dim for frame in self.frames)  # type: ignore[type-var, operator]
        shape = [1] * depth
        for frame in self.frames:
            shape[frame.dim] = frame.size  # type: ignore[index]
        return torch.Size(shape)

    def is_local(self, plate: CondIndepStackFrame) -> bool:
        """Whether the site lies in the given plate."""
        return any(frame.name == plate.name for frame in self.frames)


def trace_model(model: Callable, x: Tensor, *args: Any, **kwargs: Any) -> poutine.Trace:
    """One run of the model that nobody sees: handlers, random streams, and parameter store."""
    with untouched(), torch.no_grad(), poutine.block():
        trace = poutine.trace(model).get_trace(x, *args, **kwargs)
    return prune_subsample_sites(trace)


def find_latent_sites(trace: poutine.Trace) -> list[LatentSite]:
    """The latent sites of a model's trace, in the order in which the model samples them.

    Raises:
        ValueError: The model samples nothing, or inside a sequential plate, or on a support whose
            bounds differ within a plate.
    """
    sites = []
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"]:
            continue
        frames = site["cond_indep_stack"]
        loops = [frame.name for frame in frames if not frame.vectorized]
        if loops:
            raise ValueError(
                f"the model samples '{name}' in a loop over the plate '{loops[0]}'; amortized "
                "guides need vectorized plates: `with pyro.plate(...)` in place of `for`"
            )
        fn = site["fn"]
        sites.append(
            LatentSite(
                name=name,
                event_shape=fn.event_shape,
                support=fixed_support(name, fn),
                frames=tuple(sorted(frames, key=lambda frame: frame.dim)),
                is_discrete=bool(fn.support.is_discrete),
                family=_family(fn),
            )
        )
    if not sites:
        raise ValueError(
            "the model has no latent site: every `pyro.sample` in it has `obs=...`; "
            "a guide needs at least one site to sample"
        )
    return sites


def check_supports(
    sites: list[LatentSite], model: Callable, x: Tensor, *args: Any, **kwargs: Any
) -> None:
    """Where a support has bounds, one more run of the model, to see whether they have gradients.

    Raises:
        ValueError: They have.
    """
    if not any(bounds_of(site.support) for site in sites):
        return
    with untouched(), torch.enable_grad(), poutine.block():
        # No leaf, or the model could not write into it.
        x = x.detach().requires_grad_().clone() if x.is_floating_point() else x
        trace = poutine.trace(model).get_trace(x, *args, **kwargs)
        check_constant(prune_subsample_sites(trace))


def find_data_plate(trace: poutine.Trace, num_data: int) -> CondIndepStackFrame:
    """The plate over the data: the one named `"data"`, else the only one of the batch's size.

    Args:
        trace: A model's trace.
        num_data: B, the length of the batch that the model was run on.

    Raises:
        ValueError: There is no such plate, or it has another size than the batch.
    """
    frames = {
        frame.name: frame
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    }
    recipe = 'write `with pyro.plate("data", len(x), dim=-1):` around what is sampled per datum'
    if "data" in frames:
        frame = frames["data"]
        if num_data not in (frame.size, frame.full_size):
            raise ValueError(
                f"the model's plate 'data' has size {frame.size}, the batch {num_data}; {recipe}"
            )
        return frame
    fitting = [frame for frame in frames.values() if frame.size == num_data]
    if len(fitting) == 1:
        return fitting[0]
    if not frames:
        raise ValueError(f"the model has no plate over the data; {recipe}")
    raise ValueError(
        f"the model has the plates {sorted(frames)}, of which none is named 'data' and "
        f"{len(fitting)} have the batch's size {num_data}; {recipe}"
    )


def _family(fn: Any) -> str:
    """A distribution's name, without the wrappers that make events of it."""
    while type(fn).__name__ in ("Independent", "ExpandedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__
