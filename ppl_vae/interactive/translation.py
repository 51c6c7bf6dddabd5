"""From operations of PyTorch to the steps of a `Program`.

A table: what a tensor operation is in terms of a few. Operations that only rearrange entries need
no entry of their own: they are run on the entries' numbers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppl_vae.interactive import layers
from ppl_vae.interactive.builder import Array, Builder, shape_of

__all__ = ["is_known", "translate"]

aten = torch.ops.aten


def translate(builder: Builder, target: Any, args: Any, kwargs: Any) -> Any:
    """The steps of one operation, of whose arguments some are arrays.

    Raises:
        ValueError: It is none that the page knows.
    """
    if target.overloadpacket in _STEPS:
        return _STEPS[target.overloadpacket](builder, *args, **kwargs)
    if target.overloadpacket in _MOVES:
        return _moved(builder, target, args, kwargs)
    raise ValueError(f"the page knows no {target}")


def is_known(target: Any) -> bool:
    """Whether there are steps for an operation."""
    return target.overloadpacket in _STEPS or target.overloadpacket in _MOVES


def _moved(builder: Builder, target: Callable, args: Any, kwargs: Any) -> Any:
    """An operation that only rearranges entries, run on their numbers, which count from 1 on."""
    sources: list[Any] = []
    count = 1

    def numbered(value: Any) -> Any:
        nonlocal count
        if isinstance(value, Tensor) and not value.is_floating_point():
            return value.cpu()  # an index
        if not isinstance(value, Array | Tensor):
            return value
        shape, size = shape_of(value), torch.Size(shape_of(value)).numel()
        sources.append(value)
        numbers = torch.arange(count, count + size).reshape(shape)
        count += size
        return numbers

    leaves, tree = tree_flatten((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Array))
    inside, named = tree_unflatten([numbered(leaf) for leaf in leaves], tree)
    found = target(*inside, **named)
    several = isinstance(found, tuple | list)
    arrays = [
        builder.move(sources, None if _in_order(numbers, count) else numbers, numbers.shape)
        for numbers in (found if several else [found])
    ]
    return arrays if several else arrays[0]


def _in_order(numbers: Tensor, count: int) -> bool:
    return torch.equal(numbers.flatten(), torch.arange(1, count))


def _scaled(name: str) -> Callable:
    def add(builder: Builder, x: Any, y: Any, *, alpha: Any = 1) -> Array:
        return builder.binary(name, x, y if alpha == 1 else builder.binary("mul", y, alpha))

    return add


def _reduced(name: str) -> Callable:
    def reduce(builder: Builder, x: Array, dims: Any = None, keepdim: bool = False, **_: Any):
        return builder.reduce(name, x, dims, keepdim)

    return reduce


def _same(builder: Builder, x: Array, *_: Any, **__: Any) -> Array:
    return x


def _unary(name: str) -> Callable:
    return lambda builder, x: builder.unary(name, x)


def _binary(name: str) -> Callable:
    return lambda builder, x, y, **_: builder.binary(name, x, y)


_STEPS: dict[Any, Callable] = {
    **{getattr(aten, n): _unary(n) for n in ("abs", "ceil", "cos", "erf", "exp", "expm1", "floor",
       "log", "log1p", "neg", "relu", "rsqrt", "sigmoid", "sign", "sin", "sqrt", "tanh")},
    **{getattr(aten, n): _binary(n) for n in ("eq", "ge", "gt", "le", "lt", "mul", "ne", "pow")},
    aten.add: _scaled("add"), aten.sub: _scaled("sub"), aten.add_: _scaled("add"),
    aten.div: _binary("div"), aten.maximum: _binary("max"), aten.minimum: _binary("min"),
    aten.logical_and: _binary("and"), aten.logical_or: _binary("or"),
    aten.bitwise_and: _binary("and"), aten.bitwise_or: _binary("or"),
    aten.logical_not: _unary("not"), aten.bitwise_not: _unary("not"),
    aten.isnan: lambda b, x: b.binary("ne", x, x),
    aten.silu: lambda b, x: b.binary("mul", x, b.unary("sigmoid", x)),
    aten.reciprocal: lambda b, x: b.binary("div", 1.0, x),
    aten.rsub: lambda b, x, y, alpha=1: b.binary("sub", y, b.binary("mul", x, alpha)),
    aten.where: Builder.where, aten.clamp: layers.clamp,
    aten.hardtanh: lambda b, x, low=-1.0, high=1.0: layers.clamp(b, x, low, high),
    aten.clamp_min: lambda b, x, low: layers.clamp(b, x, low),
    aten.clamp_max: lambda b, x, high: layers.clamp(b, x, None, high),
    aten.mm: layers.matmul, aten.bmm: layers.matmul, aten.addmm: layers.addmm,
    aten.convolution: layers.convolution,
    aten.gelu: layers.gelu, aten.glu: layers.glu, aten.elu: layers.elu,
    aten.leaky_relu: layers.leaky,
    aten.softplus: layers.softplus,
    aten.var: layers.var, aten._softmax: layers.softmax, aten._log_softmax: layers.log_softmax,
    aten.native_layer_norm: layers.layer_norm, aten.native_group_norm: layers.group_norm,
    aten.native_batch_norm: layers.batch_norm,
    aten._native_batch_norm_legit_no_training: layers.batch_norm,
    aten.sum: _reduced("sum"), aten.mean: _reduced("mean"), aten.amax: _reduced("amax"),
    aten.lift_fresh: _same, aten.clone: _same, aten.detach: _same, aten.alias: _same,
    aten._to_copy: _same, aten.to: _same, aten.contiguous: _same,
}  # fmt: skip
_MOVES = {
    aten.view, aten._unsafe_view, aten.reshape, aten.permute, aten.t, aten.transpose,
    aten.unsqueeze, aten.squeeze, aten.expand, aten.slice, aten.select, aten.flip, aten.repeat,
    aten.cat, aten.stack, aten.constant_pad_nd, aten.pixel_shuffle, aten.index,
    aten._unsafe_index, aten.index_select, aten.unbind, aten.tensor_split, aten.chunk,
    aten.flatten, aten.unflatten, aten.split, aten.split_with_sizes, aten.unfold, aten.roll,
    aten.diagonal,
}  # fmt: skip
