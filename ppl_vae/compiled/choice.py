"""Whether to compile a training: asked for, refused, or left to the library."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from ppl_vae.compiled.lowering import CompileError, missing_compiler
from ppl_vae.compiled.step import CompiledStep
from ppl_vae.compiled.tracing import TracedLoss, TraceError
from ppl_vae.handlers import Weight

__all__ = ["prepared_step"]

# Measured on the demo network with 2 cores (experiments/throughput): what a compiled step saves for
# each operation of the graph, and what compiling takes, at first and for each operation.
_SAVED, _START, _EACH = 25e-6, 4.0, 0.05


def prepared_step(
    step: CompiledStep, args: Sequence[Any], weight: Weight, num_steps: int, *, asked_for: bool
) -> CompiledStep | None:
    """The step, compiled for this batch; none where it is to stay eager.

    Args:
        step: Not compiled yet.
        args: The first batch.
        weight: The KL weight.
        num_steps: How many steps are to come.
        asked_for: Whether the user said so; if not, it has to pay for itself, and what stands in
            the way is a warning.

    Raises:
        TraceError: Asked for, and the pair cannot be traced.
        CompileError: Asked for, and there is no compiler, or it fails.
    """
    try:
        traced = step.loss.trace(args, weight)
        if not asked_for and not _pays(traced, num_steps):
            return None
        device = next(value.device for value in args if isinstance(value, torch.Tensor))
        if (missing := missing_compiler(device)) is not None:
            raise CompileError(missing)
        step.prepare(args, weight, traced)
    except (TraceError, CompileError) as error:
        if asked_for:
            raise type(error)(f"compile=True, and the step cannot be compiled: {error}") from error
        warnings.warn(f"training stays eager: {error}", stacklevel=3)
        return None
    return step


def _pays(traced: TracedLoss, num_steps: int) -> bool:
    """By the number of operations: the same answer on every machine, however busy it is."""
    size = sum(node.op == "call_function" for node in traced.graph.graph.nodes)
    return num_steps * size * _SAVED > 2 * (_START + size * _EACH)
