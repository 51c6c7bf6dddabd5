"""Compiling a training: asked for, refused, or left to the library."""

import warnings
from collections.abc import Sequence
from typing import Literal

from ppl_vae.ahead import Ahead, free_weight
from ppl_vae.compiled import CompiledLoss, CompiledStep, CompileError, TraceError
from ppl_vae.compiled.lowering import missing_compiler
from ppl_vae.compiled.replay import Replay
from ppl_vae.compiled.tracing import TracedLoss
from ppl_vae.estimators import Estimator
from ppl_vae.estimators.term_modifier import TermModifier
from ppl_vae.handlers import Weight
from ppl_vae.loop import Loop
from ppl_vae.replica import Replica
from ppl_vae.together import Together

__all__ = ["compile_loop", "compile_replicas"]

# Rough, in seconds, for the 784-400-20 network on 2 cores: what a compiled step saves for each
# operation of the graph, and what compiling takes, at first and for each operation.
_SAVED, _START, _EACH = 25e-6, 4.0, 0.05

# How many steps are made at once where they can be, the longest first.
_AT_ONCE, _REPLAYED_ON = (32, 1), ("cuda",)


def compile_loop(loop: Loop, num_steps: int, *, asked_for: bool) -> Ahead | Loop:
    """A training that makes compiled steps; where it is to stay eager, the training itself.

    Args:
        loop: The training.
        num_steps: How many steps there are in all.
        asked_for: Whether the user said so; if not, it has to pay for itself, and what stands in
            the way is a warning.

    Raises:
        TraceError: Asked for, and the pair cannot be traced.
        CompileError: Asked for, and there is no compiler, or it fails.
    """
    args, weight = loop.prepared.first, free_weight(loop, loop.schedule(loop.step))
    optimizers = loop.optimizers
    loss = CompiledLoss(loop.model, loop.guide, loop.estimator, list(optimizers.trained.values()))
    # Gradients of all ranks come together before an optimizer takes them.
    combined = None if loop.ranks is None else loop.combined
    step = CompiledStep(
        loss, list(optimizers.optimizers.values()), loop.clip_grad_norm, combined=combined
    )
    try:
        if loop.ranks is not None and isinstance(loop.estimator, TermModifier):
            raise TraceError(
                f"{type(loop.estimator).__name__} asks for a mean over ranks within its loss"
            )
        traced = loss.trace(args, weight)
        if not asked_for and not _pays(traced, num_steps):
            return loop
        if (missing := missing_compiler(args[0].device)) is not None:
            raise CompileError(missing)
        step.prepare(args, weight, traced)
    except (TraceError, CompileError) as error:
        if asked_for:
            raise type(error)(f"compile=True, and the step cannot be compiled: {error}") from error
        warnings.warn(f"training stays eager: {error}", stacklevel=3)
        return loop
    if not step.is_whole:
        optimizers.fuse()
    return Ahead(loop, step, _replays(loop, step, args, weight), asked_for=asked_for)


def compile_replicas(
    replicas: Sequence[Replica], num_steps: int, compile: bool | Literal["auto"]
) -> Together | None:
    """Trainings that make their steps together; none where each is to make its own.

    Args:
        replicas: The trainings, at the same step.
        num_steps: How many steps there are in all, of each.
        compile: Compile the graph of their step; `"auto"` where it pays for itself.

    Raises:
        TraceError: Asked for, and they have no common graph.
        CompileError: Asked for, and there is no compiler, or it fails.
    """
    device = replicas[0].course.loop.prepared.first[0].device

    def lowers(traced: TracedLoss) -> bool:
        if compile is False or (compile == "auto" and not _pays(traced, num_steps)):
            return False
        if (missing := missing_compiler(device)) is not None:
            raise CompileError(missing)
        return True

    def interpreted(traced: TracedLoss) -> bool:
        return False

    try:
        try:
            return Together(replicas, lowers)
        except CompileError as error:
            if compile is True:
                raise
            warnings.warn(f"the step of all is not compiled: {error}", stacklevel=4)
            return Together(replicas, interpreted)
    except (TraceError, CompileError) as error:
        if compile is True:
            raise type(error)(f"compile=True, and the step cannot be compiled: {error}") from error
        warnings.warn(f"each replica is trained by itself: {error}", stacklevel=4)
        return None


def _replays(loop: Loop, step: CompiledStep, args: tuple, weight: Weight) -> list[Replay]:
    """Steps in a row on CUDA, where the data are resident and the optimizers in the graph."""
    stream, estimator, device = loop.prepared.stream, loop.estimator, args[0].device
    # What an estimator is told of each step is told on the host.
    told = not isinstance(estimator, Estimator) or type(estimator).set_step != Estimator.set_step
    possible = stream.is_resident and stream.batch_size is not None and step.is_whole and not told
    if device.type not in _REPLAYED_ON or not possible:
        return []
    size = stream.batch_size
    try:
        return [Replay(step, loop.prepared.take, n, size, weight, device) for n in _AT_ONCE]
    except TraceError as error:
        warnings.warn(f"compiled steps are made one by one: {error}", stacklevel=3)
        return []


def _pays(traced: TracedLoss, num_steps: int) -> bool:
    """By the number of operations: the same answer on every machine, however busy it is."""
    size = sum(node.op == "call_function" for node in traced.graph.graph.nodes)
    return num_steps * size * _SAVED > 2 * (_START + size * _EACH)
