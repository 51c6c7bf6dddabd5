"""Runs of a pair in which parts of the gradient are stopped, or taken apart.

`trace_path_pair`
    log q with the guide's parameters stopped: only the path through the samples is left.
`trace_forked_pair`
    The model sees aliases of the samples, so that what flows back from it can be scaled.
`trace_stopped_pair`
    The samples are constants: only the score is left.

Shapes: K particles, B data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.estimators.pair import Pair, compute_density, join, trace_pair
from ppl_vae.estimators.running import run_guide, run_model
from ppl_vae.estimators.sites import PARTICLES, samples
from ppl_vae.exchange import Exchange
from ppl_vae.randomness import on_copies

__all__ = ["ForkedPair", "trace_forked_pair", "trace_path_pair", "trace_stopped_pair"]


@dataclass(frozen=True)
class ForkedPair(Pair):
    """A pair in which the log-densities are those of aliases of the guide's samples.

    Attributes:
        aliases: For each of the guide's sites its value under another name: the same numbers, but
            what flows back into the alias has not yet met the guide's own use of the sample.
    """

    aliases: dict[str, Tensor]

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiplies what flows back from the aliases into the guide.

        Args:
            factor: `[K, B]` where the particles were drawn at once, else `[B]`.
        """
        plate = self.data_plate
        for name, alias in self.aliases.items():
            if alias.requires_grad:
                spread = _spread(factor, self.guide_trace.nodes[name], plate)
                alias.register_hook(lambda gradient, spread=spread: gradient * spread)


def trace_path_pair(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
    """A `ForkedPair` whose log q has only the path derivative, through the aliases.

    For q(z1 | x) q(z2 | z1) the density of z2 keeps its path through z1. The guide is run twice:
    once to draw, and once, its parameters stopped, for the density. Under `torch.no_grad` there is
    nothing to stop, and this is `trace_pair`.

    Raises:
        ValueError: As `trace_pair`; where the guide's density depends on a tensor that was
            computed, from parameters, before the guide ran: it cannot be stopped; where a flow has
            no density at given values; and, with Pyro's validation on, where the density at the
            same values differs from run to run, as with dropout.
    """
    if not torch.is_grad_enabled():
        return trace_pair(model, guide, args, kwargs)
    drawn = run_guide(guide, args, kwargs)
    forked, aliases = _fork(drawn)
    model_trace = run_model(model, forked, args, kwargs)
    # The model's too: there are guides that run it.
    with on_copies(guide, model), _StopLeaves() as stopping:
        guide_trace = poutine.trace(poutine.replay(guide, trace=forked)).get_trace(*args, **kwargs)
        # Here, for a flow has parameters of its own to stop.
        compute_density(guide_trace)
    if poutine.util.is_validation_enabled():
        _check_repeatable(drawn, guide_trace)
    pair = join(model_trace, guide_trace)
    for name, site in samples(pair.guide_trace):
        if _depends_on_leaf(site["log_prob"], aliases, stopping.own):
            raise ValueError(
                f"path derivatives (STL, DReG) stop the guide's parameters, and its density of "
                f"'{name}' depends on a tensor that was computed from parameters before the guide "
                "ran; compute it inside the guide, or use Trace_ELBO or TraceIWAE_ELBO"
            )
    return ForkedPair(pair.model_trace, pair.guide_trace, aliases)


def trace_forked_pair(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
    """A `ForkedPair`: the model at the aliases, the guide's log-densities as it made them."""
    if not torch.is_grad_enabled():
        return trace_pair(model, guide, args, kwargs)
    drawn = run_guide(guide, args, kwargs)
    forked, aliases = _fork(drawn)
    pair = join(run_model(model, forked, args, kwargs), drawn)
    return ForkedPair(pair.model_trace, pair.guide_trace, aliases)


def trace_stopped_pair(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
    """A pair whose samples are constants, to the guide's later sites as well as to the model."""
    with _StopSamples():
        guide_trace = run_guide(guide, args, kwargs)
    return join(run_model(model, guide_trace, args, kwargs), guide_trace)


def _fork(trace: poutine.Trace) -> tuple[poutine.Trace, dict[str, Tensor]]:
    forked, aliases = trace.copy(), {}
    for name, site in samples(trace):
        value = site["value"]
        if type(site["fn"]).__name__ != "_Subsample":
            aliases[name] = value.view_as(value)
            forked.nodes[name] = {**site, "value": aliases[name]}
    return forked, aliases


class _StopSamples(Messenger):
    """Detaches samples as they are drawn; to stand outside of the trace, which copies them."""

    def _pyro_post_sample(self, msg: dict) -> None:
        if not msg["is_observed"] and type(msg["fn"]).__name__ != "_Subsample":
            msg["value"] = msg["value"].detach()


class _StopLeaves(Exchange):
    """Detaches every leaf that requires a gradient, wherever a program uses one.

    Leaves that the program makes itself are left alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.own: list[Tensor] = []

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            # A property of a parameter, such as `requires_grad`, is asked of itself; unless it is
            # another tensor made of it, such as `mT`.
            out = func(*args, **kwargs or {})
            if not (isinstance(out, Tensor) and out.requires_grad):
                return out
        out = super().__torch_function__(func, types, args, kwargs)
        if isinstance(out, Tensor) and out.requires_grad and out.is_leaf:
            self.own.append(out)
        return out

    def take(self, value: Tensor) -> Tensor:
        """A parameter without its gradient, anything else as it is."""
        is_parameter = value.requires_grad and value.is_leaf
        if not is_parameter or any(value is own for own in self.own):
            return value
        return value.detach()


def _check_repeatable(drawn: poutine.Trace, again: poutine.Trace) -> None:
    with torch.no_grad():
        compute_density(drawn)
    for name, site in samples(again):
        one, other = drawn.nodes[name]["log_prob"].detach(), site["log_prob"].detach()
        # Inverting a flow costs digits.
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(
                f"path derivatives (STL, DReG) run the guide twice, and at the same value its "
                f"density of '{name}' came out another; something in it is random besides its "
                "sites, such as dropout. Use Trace_ELBO or TraceIWAE_ELBO"
            )


def _depends_on_leaf(value: Tensor, aliases: dict[str, Tensor], own: list[Tensor]) -> bool:
    """Whether a gradient of `value` would reach a leaf other than through an alias.

    Leaves that the run itself made are no parameters.
    """
    ends = [alias.grad_fn for alias in aliases.values()]
    pending, seen = [value.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen or any(node is end for end in ends):
            continue
        if hasattr(node, "variable"):
            if not any(node.variable is leaf for leaf in own):
                return True
            continue
        seen.add(node)
        pending += [following for following, _ in node.next_functions]
    return False


def _spread(factor: Tensor, site: dict, plate: Any) -> Tensor:
    """`[K, B]` or `[B]` in the shape of a site's value, to multiply it."""
    event_dim, value = site["fn"].event_dim, site["value"]
    shape = [1] * value.dim()
    shape[plate.dim - event_dim] = factor.shape[-1]
    for frame in site["cond_indep_stack"]:
        if frame.name == PARTICLES:
            shape[frame.dim - event_dim] = factor.shape[0]
    return factor.reshape(shape)
