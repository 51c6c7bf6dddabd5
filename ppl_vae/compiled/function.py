"""A function of one tensor that runs programs, compiled."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ppl_vae.compiled.lowering import CompileError, lower, missing_compiler
from ppl_vae.compiled.tracing import TraceError, trace_function
from ppl_vae.randomness import fork, validation

__all__ = ["compiled_function"]


def compiled_function(
    function: Callable[[Tensor], Tensor], x: Tensor, *, asked_for: bool
) -> Callable[[Tensor], Tensor]:
    """A function without gradients, for tensors like this one; parameters are read at each call.

    It draws what the function draws. What the function cannot be compiled to is itself, with a
    warning, or an error if it was asked for.

    Raises:
        TraceError: Asked for, and the function looks at the value of a tensor, or does something
            that is no operation on tensors.
        CompileError: Asked for, and there is no compiler, or it fails.
    """
    try:
        if (missing := missing_compiler(x.device)) is not None:
            raise CompileError(missing)
        with torch.no_grad(), validation(False):
            with fork():
                traced = trace_function(function, [x])
            with fork():
                found = traced.graph(*traced.inputs([x]))
            with fork():
                expected = function(x)
            if not torch.allclose(found, expected, rtol=1e-3, equal_nan=True):
                raise TraceError("at the same noise the programs and their graph differ")
            with fork():
                lowered = lower(traced.graph, traced.inputs([x]))
    except (TraceError, CompileError) as error:
        if asked_for:
            raise
        warnings.warn(f"evaluation stays eager: {error}", stacklevel=4)
        return function
    return lambda x: _only(lowered(*traced.inputs([x])))


def _only(result: object) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]  # type: ignore[index]
