"""A decoder as a short list of array operations, for a page to run.

Seven kinds of step are enough for every decoder met here: a function of each entry, one of two
arrays that broadcast, a choice, a product of matrices, a convolution, a reduction, and a *move*,
which is whatever only rearranges entries (views, slices, padding, concatenation, upsampling by
repetition): one list of indices. What hangs on no latent is computed beforehand, and is a constant.

Programs are JSON; `templates/decoder.js` runs them, and `Program.run` does so here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ppl_vae.interactive.builder import Array, Builder, arrays_of
from ppl_vae.interactive.translation import is_known, translate

__all__ = ["Program", "program_of"]

_UNARY = {
    "abs": torch.abs, "ceil": torch.ceil, "cos": torch.cos, "erf": torch.erf, "exp": torch.exp,
    "expm1": torch.expm1, "floor": torch.floor, "log": torch.log, "log1p": torch.log1p,
    "neg": torch.neg, "not": lambda x: (x == 0).to(x), "relu": torch.relu, "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid, "sign": torch.sign, "sin": torch.sin, "sqrt": torch.sqrt,
    "tanh": torch.tanh,
}  # fmt: skip
_BINARY = {
    "add": torch.add, "and": torch.logical_and, "div": torch.div, "eq": torch.eq, "ge": torch.ge,
    "gt": torch.gt, "le": torch.le, "lt": torch.lt, "max": torch.maximum, "min": torch.minimum,
    "mul": torch.mul, "ne": torch.ne, "or": torch.logical_or, "pow": torch.pow, "sub": torch.sub,
}  # fmt: skip


# They take a tensor for its shape, type or device alone.
_VALUE_FREE = {
    getattr(torch.ops.aten, name)
    for name in ("empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros",
                 "ones_like", "zeros_like")
}  # fmt: skip


@dataclass(frozen=True)
class Program:
    """Steps from one array, the latent of one datum, to another.

    Attributes:
        steps: `[kind, *arguments]` each. An argument that is an array is the number of the step
            that made it, the input being 0; or, below zero, that of a constant, from -1 down.
        constants: What the steps take besides: floats, and int32 indices.
        shape: Of the input.
    """

    steps: tuple[list, ...]
    constants: tuple[Tensor, ...]
    shape: tuple[int, ...]

    def run(self, z: Tensor) -> Tensor:
        """What the page computes, `z` of the program's shape."""
        values = [z]

        def array(place: int) -> Tensor:
            return values[place] if place >= 0 else self.constants[-place - 1].to(z.device)

        for kind, *rest in self.steps:
            values.append(_STEPS[kind](array, *rest))
        return values[-1]


def program_of(function: Callable[[Tensor], Tensor], example: Tensor) -> Program:
    """The program of a function of one array.

    Args:
        function: Of tensors like `example`; gradients are not kept.
        example: One input.

    Raises:
        ValueError: The function looks at the value of a tensor, draws, or does what no kind of
            step does; which, the message says.
    """
    recorder = _Recorder(example)
    with torch.no_grad(), recorder:
        result = function(example)
    return Program(*recorder.finish(result), tuple(example.shape))


class _Recorder(TorchDispatchMode):
    """Sees every operation while a function runs, and translates those on what hangs on its input.

    Lighter than a trace to a graph: whoever wants a report need not wait for PyTorch's compiler.
    """

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self._builder = Builder()
        self._known = {id(example): self._builder.input(example)}
        self._alive: list[Any] = [example]  # so that no other tensor takes its identity

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing compiles this; to say so otherwise would import the compiler, which is slow."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inside = tree_map(self._array, (args, kwargs))
        if func.overloadpacket in _VALUE_FREE or not any(
            isinstance(leaf, Array) for leaf in arrays_of(inside)
        ):
            return func(*args, **kwargs)
        if func.overloadpacket is torch.ops.aten._local_scalar_dense:
            raise ValueError("the decoder looks at the value of a tensor")
        if not is_known(func):
            with self:
                made = func.decompose(*args, **kwargs)
                if made is NotImplemented and func in (table := _decompositions()):
                    made = table[func](*args, **kwargs)
            if made is not NotImplemented:
                return made
        found = translate(self._builder, func, *inside)
        made = func(*args, **kwargs)
        pairs = zip(made, found, strict=False) if isinstance(found, list) else [(made, found)]
        self._known.update({id(tensor): array for tensor, array in pairs})
        self._alive.append(made)
        return made

    def _array(self, leaf: Any) -> Any:
        return self._known.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf

    def finish(self, result: Tensor) -> tuple[tuple[list, ...], tuple[Tensor, ...]]:
        """Steps and constants of the result."""
        return self._builder.finish(self._array(result))


@cache
def _decompositions() -> dict:
    """PyTorch's own, imported when there is need: they bring a computer algebra system along."""
    from torch._decomp import core_aten_decompositions

    return core_aten_decompositions()


def _move(array: Callable, sources: list[int], index: int | None, shape: list[int]) -> Tensor:
    entries = torch.cat([array(source).flatten() for source in sources])
    if index is not None:
        # 0 is a zero; entries count from 1 on.
        entries = torch.cat([entries.new_zeros(1), entries])[array(index).long()]
    return entries.reshape(shape)


def _convolve(array: Callable, x: int, weight: int, bias: int | None, how: dict) -> Tensor:
    return torch.ops.aten.convolution.default(
        array(x), array(weight), None if bias is None else array(bias), how["stride"],
        how["padding"], how["dilation"], how["transposed"], how["output_padding"], how["groups"],
    )  # fmt: skip


def _reduce(array: Callable, name: str, x: int, dims: Sequence[int]) -> Tensor:
    """Reduced dimensions remain, of size 1."""
    functions = {"amax": torch.amax, "mean": torch.mean, "sum": torch.sum}
    return functions[name](array(x), list(dims), keepdim=True)


_STEPS: dict[str, Callable[..., Tensor]] = {
    "unary": lambda array, name, x: _UNARY[name](array(x)),
    "binary": lambda array, name, x, y: _BINARY[name](array(x), array(y)).to(torch.float32),
    "where": lambda array, c, x, y: torch.where(array(c) != 0, array(x), array(y)),
    "matmul": lambda array, x, y: array(x) @ array(y),
    "convolve": _convolve,
    "reduce": _reduce,
    "move": _move,
}
