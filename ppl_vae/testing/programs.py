"""Running programs in the ways that the checks need.

Shapes: K particles, B data.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import pyro
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from ppl_vae.estimators.sites import Site, is_point, samples
from ppl_vae.testing.handlers import Held
from ppl_vae.testing.isolation import expect, reporting

__all__ = [
    "check_shapes",
    "check_store",
    "find_leaves",
    "frames",
    "held",
    "nesting",
    "particles",
    "run",
    "values",
]


def run(program: Callable, args: tuple, what: str) -> poutine.Trace:
    """A trace with its log-densities, without the choices of subsampled plates."""
    with reporting(what):
        trace = prune_subsample_sites(poutine.trace(program).get_trace(*args))
        trace.compute_log_prob()
    return trace


def held(program: Callable, values: Mapping[str, Tensor]) -> Callable:
    """The program with given values at its latent sites; those not named are drawn."""
    return Held(values)(program)


def values(trace: poutine.Trace) -> dict[str, Tensor]:
    """Copies of what was drawn, to be held; not of points, which have no density elsewhere."""
    return {
        name: site["value"].detach().clone()
        for name, site in samples(trace)
        if not (site["is_observed"] or is_point(site["fn"]))
    }


def particles(program: Callable, sizes: Sequence[int], nesting: int) -> Callable:
    """The program in plates of so many particles, left of its own plates."""
    for i, size in enumerate(reversed(sizes)):
        program = pyro.plate(f"_particles_{i}", size, dim=-1 - nesting - i)(program)
    return program


def nesting(*traces: poutine.Trace) -> int:
    """How many dimensions the plates of the traces use."""
    found = [f.dim for trace in traces for _, s in samples(trace) for f in s["cond_indep_stack"]]
    return -min((dim for dim in found if dim is not None), default=0)


def frames(site: Site) -> list[tuple[str, int | None, int, int]]:
    """Name, dimension, size and full size of the plates around a site."""
    stack = site["cond_indep_stack"]
    return sorted((f.name, f.dim, f.size, f.full_size or f.size) for f in stack)


def check_shapes(trace: poutine.Trace, role: str, how: str) -> None:
    """Checks that what a trace has at each site is of its plates' shape, and finite."""
    for name, site in samples(trace):
        where = f"the {role}'s log-density of '{name}', {how},"
        stack = [frame for frame in site["cond_indep_stack"] if frame.dim is not None]
        shape = [1] * max((-frame.dim for frame in stack), default=0)
        for frame in stack:
            shape[frame.dim] = frame.size
        found = list(site["log_prob"].shape)
        expect(
            found == shape,
            f"{where} has shape {found}; expected was {shape}, the sizes of the plates around it. "
            "Check `.to_event(...)`, and that no network or reshape moves a dimension",
        )
        event = list(site["fn"].event_shape)
        drawn = list(site["value"].shape)
        expect(
            site["is_observed"] or drawn == shape + event,
            f"the {role}'s value of '{name}', {how}, has shape {drawn}; expected was "
            f"{shape + event}, its plates and its event",
        )
        bad = ~site["log_prob"].isfinite()
        expect(not bad.any(), f"{where} is not finite for {int(bad.sum())} of {bad.numel()}")


def check_store(program: Callable, trace: poutine.Trace, role: str) -> dict[str, Tensor]:
    """Checks that one run, from an empty store, has put there only what is the program's own.

    Returns:
        What is in the store.
    """
    store = pyro.get_param_store()
    ours = {id(p) for p in program.parameters()} if isinstance(program, nn.Module) else set()
    stated = {name for name, site in trace.nodes.items() if site["type"] == "param"}
    found = dict(store.named_parameters())
    for name, value in found.items():
        expect(
            name in stated or id(value) in ours,
            f"running the {role} leaves '{name}' in Pyro's parameter store, which is none of its "
            "own parameters; whatever it runs on the side, run it in `store.scope()`",
        )
    return found


def find_leaves(args: tuple, **programs: Callable) -> dict[str, Tensor]:
    """Every tensor that the programs could learn, by a name that a message can use.

    A module's parameters, whether or not they are used; `pyro.param`s; and what else a program's
    log-densities depend on, such as a tensor in a closure. The parameter store holds afterwards
    what the programs put there.
    """
    # A `pyro.param` is another tensor whenever the store is new: what is found here stays there.
    pyro.clear_param_store()
    leaves: dict[str, Tensor] = {}
    known: set[int] = set()

    def add(name: str, leaf: Tensor) -> None:
        if id(leaf) not in known and leaf.requires_grad:
            known.add(id(leaf))
            leaves[name] = leaf

    for role, program in programs.items():
        trace = run(program, args, f"the {role}")
        if isinstance(program, nn.Module):
            for name, parameter in program.named_parameters():
                add(f"the {role}'s parameter '{name}'", parameter)
        for name, parameter in pyro.get_param_store().named_parameters():
            add(f"the {role}'s `pyro.param` '{name}'", parameter)
        for _, site in samples(trace):
            for end in (site["log_prob"], site["value"]):
                for leaf in _ends(end):
                    shape = list(leaf.shape)
                    add(f"the {role}'s tensor {len(leaves)}, of shape {shape},", leaf)
    return leaves


def _ends(value: Tensor) -> Iterator[Tensor]:
    """The leaves that a gradient of `value` would reach."""
    pending, seen = [value.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        pending += [following for following, _ in node.next_functions]
    if value.is_leaf and value.requires_grad:
        yield value
