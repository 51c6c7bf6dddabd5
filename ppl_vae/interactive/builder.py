"""The steps and constants of a `Program`, as they are found."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

__all__ = ["Array", "Builder", "arrays_of", "shape_of"]


class Array(NamedTuple):
    """What a step makes: its number, and its shape."""

    place: int
    shape: tuple[int, ...]


class Builder:
    """Collects steps and constants."""

    def __init__(self) -> None:
        self._steps: list[list] = []
        self._constants: list[Tensor] = []
        self._shapes: list[tuple[int, ...]] = []

    def input(self, x: Tensor) -> Array:
        """The input, number 0."""
        self._shapes.append(tuple(x.shape))
        return Array(0, tuple(x.shape))

    def constant(self, value: Any) -> int:
        """The place of a number or a tensor."""
        tensor = torch.as_tensor(value).detach().cpu()
        if tensor.dtype != torch.int32:
            tensor = tensor.to(torch.float32)
        self._constants.append(tensor)
        return -len(self._constants)

    def place(self, value: Any) -> int:
        """The place of an array, or of a constant."""
        return value.place if isinstance(value, Array) else self.constant(value)

    def add(self, kind: str, *rest: Any, shape: Sequence[int]) -> Array:
        """One more step."""
        self._steps.append([kind, *rest])
        self._shapes.append(tuple(shape))
        return Array(len(self._steps), tuple(shape))

    def unary(self, name: str, x: Array) -> Array:
        """A function of each entry."""
        return self.add("unary", name, x.place, shape=x.shape)

    def binary(self, name: str, x: Any, y: Any) -> Array:
        """A function of the entries of two, which broadcast."""
        shape = np.broadcast_shapes(shape_of(x), shape_of(y))
        return self.add("binary", name, self.place(x), self.place(y), shape=shape)

    def where(self, condition: Any, x: Any, y: Any) -> Array:
        """`x` where the condition is not 0, else `y`."""
        shape = np.broadcast_shapes(shape_of(condition), shape_of(x), shape_of(y))
        places = map(self.place, (condition, x, y))
        return self.add("where", *places, shape=shape)

    def reduce(self, name: str, x: Array, dims: Sequence[int] | None, keep: bool = True) -> Array:
        """Along dimensions, all of them for none."""
        over = sorted({d % len(x.shape) for d in dims or range(len(x.shape))})
        shape = [1 if i in over else n for i, n in enumerate(x.shape)]
        found = self.add("reduce", name, x.place, over, shape=shape)
        kept = [n for i, n in enumerate(x.shape) if i not in over]
        return found if keep else self.move([found], None, kept)

    def move(self, sources: Sequence[Any], index: Tensor | None, shape: Sequence[int]) -> Array:
        """Entries of one or more, rearranged; of index 0 comes a zero."""
        place = None if index is None else self.constant(index.to(torch.int32).flatten())
        places = [self.place(source) for source in sources]
        return self.add("move", places, place, list(shape), shape=shape)

    def finish(self, result: Any) -> tuple[tuple[list, ...], tuple[Tensor, ...]]:
        """The steps, of which the last gives the result, and the constants."""
        if not isinstance(result, Array):
            raise ValueError("what is decoded does not hang on the latent")
        if result.place != len(self._steps):
            self.move([result], None, result.shape)
        return tuple(self._steps), tuple(self._constants)


def shape_of(value: Any) -> tuple[int, ...]:
    """Of an array or a tensor; of a number none."""
    return tuple(value.shape) if isinstance(value, Array | Tensor) else ()


def arrays_of(tree: Any) -> list[Any]:
    """The leaves of nested arguments, an array being one."""
    return tree_flatten(tree, is_leaf=lambda leaf: isinstance(leaf, Array))[0]
