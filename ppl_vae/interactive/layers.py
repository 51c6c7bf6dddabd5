"""What operations of PyTorch are that take more than one step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_vae.interactive.builder import Array, Builder, shape_of

aten = torch.ops.aten


def clamp(builder: Builder, x: Any, low: Any = None, high: Any = None) -> Any:
    """Within bounds, of which one may be missing."""
    x = x if low is None else builder.binary("max", x, low)
    return x if high is None else builder.binary("min", x, high)


def matmul(builder: Builder, x: Any, y: Any) -> Array:
    """A product of matrices."""
    shape = (*shape_of(x)[:-1], shape_of(y)[-1])
    return builder.add("matmul", builder.place(x), builder.place(y), shape=shape)


def addmm(builder: Builder, bias: Any, x: Any, y: Any, *, beta: Any = 1, alpha: Any = 1) -> Array:
    """A product of matrices, and a bias."""
    product = matmul(builder, x, y)
    product = product if alpha == 1 else builder.binary("mul", product, alpha)
    bias = bias if beta == 1 else builder.binary("mul", bias, beta)
    return builder.binary("add", product, bias)


def convolution(
    builder: Builder, x: Array, weight: Any, bias: Any, stride: list, padding: list,
    dilation: list, transposed: bool, output_padding: list, groups: int,
) -> Array:  # fmt: skip
    """A convolution of one image, or its transpose."""
    if len(x.shape) != 4 or x.shape[0] != 1:
        raise ValueError(f"the page knows convolutions of [1, C, H, W], not of {list(x.shape)}")
    shape = aten.convolution.default(
        torch.empty(x.shape, device="meta"), torch.empty(shape_of(weight), device="meta"), None,
        stride, padding, dilation, transposed, output_padding, groups,
    ).shape  # fmt: skip
    how = {"stride": stride, "padding": padding, "dilation": dilation, "transposed": transposed,
           "output_padding": output_padding, "groups": groups, "shape": list(shape)}  # fmt: skip
    places = (x.place, builder.place(weight), None if bias is None else builder.place(bias))
    return builder.add("convolve", *places, how, shape=shape)


def gelu(builder: Builder, x: Array, *, approximate: str = "none") -> Array:
    """The Gaussian error linear unit, exactly or by tanh."""
    if approximate == "none":
        inside = builder.unary("erf", builder.binary("mul", x, 0.5**0.5))
    else:
        cube = builder.binary("mul", builder.binary("pow", x, 3.0), 0.044715)
        sum_ = builder.binary("mul", builder.binary("add", x, cube), (2 / torch.pi) ** 0.5)
        inside = builder.unary("tanh", sum_)
    return builder.binary("mul", builder.binary("mul", x, 0.5), builder.binary("add", inside, 1.0))


def glu(builder: Builder, x: Array, dim: int = -1) -> Array:
    """One half of the entries, gated by the other."""
    numbers = torch.arange(1, 1 + torch.Size(x.shape).numel()).reshape(x.shape)
    value, gate = (builder.move([x], half, half.shape) for half in numbers.chunk(2, dim))
    return builder.binary("mul", value, builder.unary("sigmoid", gate))


def elu(builder: Builder, x: Array, alpha: float = 1.0, scale: float = 1.0, inner: float = 1.0):
    """The exponential linear unit; SELU and CELU by its factors."""
    below = builder.unary("expm1", builder.binary("mul", x, inner))
    below = builder.binary("mul", below, alpha * scale)
    return builder.where(builder.binary("gt", x, 0.0), builder.binary("mul", x, scale), below)


def leaky(builder: Builder, x: Array, slope: float = 0.01) -> Array:
    """x above 0, a slope below."""
    return builder.where(builder.binary("gt", x, 0.0), x, builder.binary("mul", x, slope))


def softplus(builder: Builder, x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """log(1 + exp(beta x)) / beta."""
    # max(x, 0) + log1p(exp(-|x|)): exact at both ends, where PyTorch's own passes to x.
    del threshold
    x = builder.binary("mul", x, float(beta))
    small = builder.unary("exp", builder.unary("neg", builder.unary("abs", x)))
    rest = builder.unary("log1p", small)
    return builder.binary("div", builder.binary("add", builder.unary("relu", x), rest), float(beta))


def softmax(builder: Builder, x: Array, dim: int, half: bool = False) -> Array:
    """Along one dimension."""
    shifted = builder.binary("sub", x, builder.reduce("amax", x, [dim]))
    exp = builder.unary("exp", shifted)
    return builder.binary("div", exp, builder.reduce("sum", exp, [dim]))


def log_softmax(builder: Builder, x: Array, dim: int, half: bool = False) -> Array:
    """Along one dimension."""
    shifted = builder.binary("sub", x, builder.reduce("amax", x, [dim]))
    total = builder.reduce("sum", builder.unary("exp", shifted), [dim])
    return builder.binary("sub", shifted, builder.unary("log", total))


def _centred(builder: Builder, x: Array, dims: Sequence[int] | None) -> tuple[Array, Array]:
    """What lies around the mean, and its mean square."""
    centred = builder.binary("sub", x, builder.reduce("mean", x, dims))
    return centred, builder.reduce("mean", builder.binary("mul", centred, centred), dims)


def var(
    builder: Builder, x: Array, dims: Any = None, *, correction: Any = 1, keepdim: bool = False
) -> Array:
    """The variance along dimensions."""
    _, square = _centred(builder, x, dims)
    count = torch.Size(x.shape).numel() / torch.Size(square.shape).numel()
    factor = count / (count - (1 if correction is None else correction))
    found = builder.binary("mul", square, factor)
    return builder.reduce("mean", found, dims, keepdim)  # of one each: drops the dimensions


def _normalized(builder: Builder, x: Array, dims: Sequence[int], eps: float) -> Array:
    centred, variance = _centred(builder, x, dims)
    scale = builder.unary("rsqrt", builder.binary("add", variance, eps))
    return builder.binary("mul", centred, scale)


def _affine(builder: Builder, x: Array, weight: Tensor | None, bias: Tensor | None) -> Array:
    x = x if weight is None else builder.binary("mul", x, weight)
    return x if bias is None else builder.binary("add", x, bias)


def layer_norm(builder: Builder, x: Array, shape: list, weight: Any, bias: Any, eps: float):
    """Over the last dimensions."""
    found = _normalized(builder, x, [-1 - i for i in range(len(shape))], eps)
    return [_affine(builder, found, weight, bias)]


def _channels(value: Tensor | None, x: Array) -> Tensor | None:
    return None if value is None else value.reshape(-1, *[1] * (len(x.shape) - 2))


def group_norm(
    builder: Builder, x: Array, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int,
    eps: float,
) -> list[Array]:  # fmt: skip
    """Over the channels of each group."""
    apart = builder.move([x], None, [n, groups, c * hw // groups])
    found = builder.move([_normalized(builder, apart, [2], eps)], None, x.shape)
    return [_affine(builder, found, _channels(weight, x), _channels(bias, x))]


def batch_norm(
    builder: Builder, x: Array, weight: Any, bias: Any, mean: Tensor, var: Tensor, *rest: Any
) -> list[Array]:
    """In evaluation mode, of known statistics."""
    if rest[0] is True:
        raise ValueError("batch normalization in training mode hangs on the batch")
    scale = _channels((var + rest[-1]).rsqrt(), x)
    found = builder.binary("mul", builder.binary("sub", x, _channels(mean, x)), scale)
    return [_affine(builder, found, _channels(weight, x), _channels(bias, x))]
