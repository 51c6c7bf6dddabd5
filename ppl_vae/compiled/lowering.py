"""From a graph to machine code, by Inductor."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from ppl_vae.compiled.changes import changed, out_of_place

__all__ = ["CompileError", "lower", "missing_compiler"]

_OPTIONS: dict[str, Any] = {
    # torch's own generators: the stream of the eager programs, draw by draw.
    "fallback_random": True,
}


class CompileError(ValueError):
    """Inductor could not make code of a graph; the message says what it said."""


def lower(graph: fx.GraphModule, examples: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Machine code of a graph, for the shapes of these tensors, without gradients.

    Inductor keeps what it has compiled in a cache on disk, which later processes read
    (`TORCHINDUCTOR_CACHE_DIR`).

    Raises:
        CompileError: There is no compiler, or it fails.
    """
    try:
        return _lower(graph, examples)
    except CompileError:
        # Inductor stumbles over some orders of reads and changes (KeyError of a buffer).
        numbers = changed(graph)
        if not numbers:
            raise
    function, num = _lower(out_of_place(graph), examples), len(numbers)

    def call(*values: Tensor) -> Sequence[Tensor]:
        results = function(*values)
        torch._foreach_copy_([values[i] for i in numbers], list(results[-num:]))
        return results[:-num]

    return call


def _lower(graph: fx.GraphModule, examples: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    from torch import _inductor
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    examples = [value.detach() for value in examples]
    # Without a place for symbols of shapes the graph passes by the cache, though it has none.
    shapes = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
    try:
        with torch.no_grad(), config.patch(_OPTIONS), tracing(TracingContext(shapes)), _quietly():
            return _inductor.compile(copy.deepcopy(graph), examples)  # type: ignore[arg-type]
    except Exception as error:  # Inductor has no one kind of its own.
        first = str(error).strip().split("\n")[0]
        raise CompileError(f"Inductor failed: {type(error).__name__}: {first}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch's compiler warns its own authors of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def missing_compiler(device: torch.device) -> str | None:
    """What is not here that compiling for this device needs; none if all is."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is not installed, or does not know this GPU"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:  # torch's own error has moved between versions.
        return "there is no C++ compiler (g++ or clang++; name one in CXX)"
    return None
