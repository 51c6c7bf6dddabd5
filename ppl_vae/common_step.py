"""The one graph of several trainings' steps: traced, proven to be each one's own, lowered.

Shapes: R replicas, B data of a minibatch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.ahead import as_tensors
from ppl_vae.compiled import CompiledLoss, CompiledStep, TraceError
from ppl_vae.compiled.replicated import ReplicatedStep, twin
from ppl_vae.compiled.tracing import TracedLoss, sites_of
from ppl_vae.estimators.base import forgetting
from ppl_vae.handlers import Weight, weighted
from ppl_vae.loop import Loop
from ppl_vae.randomness import fork, looking
from ppl_vae.replica import Replica
from ppl_vae.schedules import Constant

__all__ = ["CommonStep", "common_step", "stacked"]


@dataclass(frozen=True)
class CommonStep:
    """A step of all.

    Attributes:
        step: What makes it.
        is_lowered: Whether its graph is compiled, or interpreted.
        sites: Those whose KL weights it takes; see `sites_of`.
        is_fixed: Whether the weights are part of the graph, for they never change.
    """

    step: ReplicatedStep
    is_lowered: bool
    sites: tuple[str, ...] | None
    is_fixed: bool

    def takes(self, weights: Sequence[Weight]) -> bool:
        """Whether it is for such KL weights."""
        return all(sites_of(weight) == self.sites for weight in weights)

    def columns(self, weights: Sequence[Weight], like: Tensor) -> list[Tensor]:
        """The tensors of the weights, `[R]`; none where they are part of the graph."""
        return [] if self.is_fixed else _columns(weights, like)


def common_step(
    replicas: Sequence[Replica],
    generators: Sequence[torch.Generator],
    lowers: Callable[[TracedLoss], bool],
) -> CommonStep:
    """What makes the steps of all at once.

    Args:
        replicas: The trainings, at the same step.
        generators: Where the noise of each comes from.
        lowers: Of the traced loss, whether to compile; else the graph is interpreted.

    Raises:
        TraceError: The pairs cannot be traced, or are not of one kind.
        CompileError: The graph cannot be compiled.
    """
    loops = [replica.course.loop for replica in replicas]
    batches = [loop.prepared.first for loop in loops]
    if not all(isinstance(value, Tensor) for args in batches for value in args):
        raise TraceError("a minibatch holds something that is no tensor")
    schedules = [loop.schedule for loop in loops]
    fixed = isinstance(schedules[0], Constant) and all(s == schedules[0] for s in schedules)
    weights = [loop.schedule(loop.step) for loop in loops]
    if not fixed:
        # What a weight of zero hides is to be seen.
        weights = [dict.fromkeys(w, 1.0) if isinstance(w, Mapping) else 1.0 for w in weights]
        columns = _columns(weights, batches[0][0])
        weights = [as_tensors(weight, loops[0]) for weight in weights]
    else:
        columns = []
    sites = sites_of(weights[0])
    if any(sites_of(weight) != sites for weight in weights):
        raise TraceError("the schedules weigh different sites")
    steps = [_step_of(loop) for loop in loops]
    traced = _trace(replicas, steps, batches, weights)
    lowered = lowers(traced[0])
    step = ReplicatedStep(steps, traced, lowered=lowered)
    if not step.is_exact:
        # Its noise is not each one's own, so losses cannot be held against each other.
        _check_same_code(_trace(replicas, steps, batches, weights, each=True))
    args = stacked(batches), columns
    step.prepare(*args)
    try:
        with _elsewhere([p for one in steps for p in one.loss.parameters]):
            if step.is_exact:
                _check(replicas, step.losses(*args, generators), weights)
    except TraceError:
        for index in range(len(steps)):
            step.release(index)
        raise
    return CommonStep(step, lowered, sites, fixed)


def stacked(batches: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """The minibatches of all, `[R, B, ...]`."""
    return [torch.stack(values) for values in zip(*batches, strict=True)]


def _columns(weights: Sequence[Weight], like: Tensor) -> list[Tensor]:
    if isinstance(weights[0], Mapping):
        columns = [[float(weight[name]) for weight in weights] for name in weights[0]]  # type: ignore[index]
    else:
        columns = [[float(weight) for weight in weights]]  # type: ignore[arg-type]
    return [like.new_tensor(column) for column in columns]


def _trace(
    replicas: Sequence[Replica],
    steps: Sequence[CompiledStep],
    batches: Sequence[tuple[Any, ...]],
    weights: Sequence[Weight],
    *,
    each: bool = False,
) -> list[TracedLoss]:
    """The graph of each; that of the first for all, where it holds nothing of its own."""
    traced: list[TracedLoss] = []
    for replica, step, args, weight in zip(replicas, steps, batches, weights, strict=True):
        if traced and not each and not traced[0].constants:
            traced.append(twin(traced[0], step.loss))
        else:
            with replica.awake():
                traced.append(step.loss.trace(args, weight))
    return traced


def _check(replicas: Sequence[Replica], losses: Tensor, weights: Sequence[Weight]) -> None:
    """Each pair's own programs must give the loss that the graph of the first gives for it."""
    for i, (replica, weight) in enumerate(zip(replicas, weights, strict=True)):
        loop = replica.course.loop
        pair = loop.model, loop.guide
        watched, kept = looking(*pair), forgetting(loop.estimator)
        with replica.awake(), watched, kept, torch.no_grad(), weighted(weight):
            own = loop.estimator.differentiable_loss(*pair, *loop.prepared.first)
        if not torch.allclose(losses[i], own, rtol=1e-3, equal_nan=True):
            raise TraceError(
                f"the pairs are not of one kind: the loss of pair {i} is {own.item():.6g}, and "
                f"that of the first one's graph, given its parameters, {losses[i].item():.6g}"
            )


def _check_same_code(traced: Sequence[TracedLoss]) -> None:
    for i, one in enumerate(traced):
        if one.graph.code != traced[0].graph.code:
            raise TraceError(f"the pairs are not of one kind: pair {i} has another graph than 0")


def _step_of(loop: Loop) -> CompiledStep:
    """Its step, of which only the graph is wanted."""
    trained = list(loop.optimizers.trained.values())
    loss = CompiledLoss(loop.model, loop.guide, loop.estimator, trained, lowered=False)
    optimizers = list(loop.optimizers.optimizers.values())
    return CompiledStep(loss, optimizers, loop.clip_grad_norm, lowered=False)


@contextmanager
def _elsewhere(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Parameters moved a little: behind those that begin as zero, a difference does not show."""
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        with fork(seed=0):
            for parameter in parameters:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        try:
            yield
        finally:
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
