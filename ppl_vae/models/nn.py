"""Plain networks, dense and convolutional. Nothing here knows Pyro.

Shapes: `...` any leading batch shape (particles, data), F features, C channels, H height, W width.
Every network takes any leading batch shape.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_vae.configurable import Configurable

__all__ = [
    "Activation",
    "ConvDecoder",
    "ConvEncoder",
    "Decoder",
    "DenseDecoder",
    "DenseEncoder",
    "Encoder",
    "NormalHead",
    "dense",
]

Activation = Literal["relu", "tanh", "softplus", "leaky_relu", "elu", "silu", "gelu"]


class _Activation(nn.Module):
    """A function of `torch.nn.functional` by its name there."""

    def __init__(self, name: Activation) -> None:
        super().__init__()
        accepted = Activation.__args__  # type: ignore[attr-defined]
        if name not in accepted:
            raise ValueError(f"activation is {name!r}; accepted are {', '.join(accepted)}")
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(F, self.name)(x)

    def extra_repr(self) -> str:
        return self.name


def dense(sizes: Sequence[int], activation: Activation) -> list[nn.Module]:
    """Layers of a dense network, an activation behind each linear map.

    Args:
        sizes: Width of the input, then of each layer.
        activation: Its name in `torch.nn.functional`.
    """
    pairs = pairwise(sizes)
    return [layer for i, o in pairs for layer in (nn.Linear(i, o), _Activation(activation))]


class Encoder(Configurable, nn.Module):
    """A network from one datum to features: `[..., *data_shape] -> [..., F]`.

    A subclass takes `data_shape` as its first argument, so that the command line can fill it in.
    """


class Decoder(Configurable, nn.Module):
    """A network from features to the parameters of p(x | z): `[..., F] -> [..., *out_shape]`.

    A subclass takes `in_features` and `out_shape` as its first two arguments.
    """


class DenseEncoder(Encoder):
    """Flattens, then one linear map and activation for each entry of `hidden`.

    Args:
        data_shape: Shape of one datum.
        hidden: Widths; empty flattens only.
        activation: Its name in `torch.nn.functional`.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        hidden: Sequence[int] = (400,),
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.event_dim = len(data_shape)
        self.layers = nn.Sequential(*dense([math.prod(data_shape), *hidden], activation))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., *data_shape] -> [..., F]`."""
        return self.layers(x.flatten(-self.event_dim) if self.event_dim else x.unsqueeze(-1))


class DenseDecoder(Decoder):
    """One linear map and activation for each entry of `hidden`, then one linear map to the shape.

    Args:
        in_features: F.
        out_shape: Shape of the output.
        hidden: Widths; empty is a linear decoder.
        activation: Its name in `torch.nn.functional`.
    """

    def __init__(
        self,
        in_features: int,
        out_shape: Sequence[int],
        hidden: Sequence[int] = (400,),
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.out_shape = torch.Size(out_shape)
        sizes = [in_features, *hidden]
        last = nn.Linear(sizes[-1], math.prod(out_shape))
        self.layers = nn.Sequential(*dense(sizes, activation), last)

    def forward(self, z: Tensor) -> Tensor:
        """`[..., F] -> [..., *out_shape]`."""
        return self.layers(z).unflatten(-1, self.out_shape)


class NormalHead(nn.Module):
    r"""Location and scale of a diagonal normal, :math:`\sigma = \exp(\frac12 \log \sigma^2)`.

    Args:
        in_features: F.
        num_outputs: D, the number of locations, and as many scales.
    """

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 2 * num_outputs)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`[..., F] -> [..., D], [..., D]`."""
        loc, log_variance = self.linear(features).chunk(2, dim=-1)
        return loc, (0.5 * log_variance).exp()


class ConvEncoder(Encoder):
    """Convolutions of stride 2, each halving height and width, then one dense layer.

    Args:
        data_shape: `(C, H, W)` or `(H, W)`.
        channels: Channels behind each convolution (kernel 3, padding 1).
        features: F, width of the dense layer.
        activation: Its name in `torch.nn.functional`.

    Raises:
        ValueError: `data_shape` is not an image's.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        features: int = 256,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.image = image_shape(data_shape, "ConvEncoder")
        self.event_dim = len(data_shape)
        layers: list[nn.Module] = []
        for i, o in pairwise([self.image[0], *channels]):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), _Activation(activation)]
        size = math.prod(_sizes(self.image, len(channels))[-1]) * [self.image[0], *channels][-1]
        self.layers = nn.Sequential(*layers, nn.Flatten(), *dense([size, features], activation))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., *data_shape] -> [..., F]`."""
        lead = x.shape[: x.dim() - self.event_dim]
        return self.layers(x.reshape(-1, *self.image)).unflatten(0, lead)


class ConvDecoder(Decoder):
    """The mirror of `ConvEncoder`: a dense layer, then transposed convolutions of stride 2.

    Args:
        in_features: F.
        out_shape: `(C, H, W)` or `(H, W)`.
        channels: Channels in front of each transposed convolution.
        features: Width of the first dense layer.
        activation: Its name in `torch.nn.functional`.

    Raises:
        ValueError: `out_shape` is not an image's.
    """

    def __init__(
        self,
        in_features: int,
        out_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        features: int = 256,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        image = image_shape(out_shape, "ConvDecoder")
        self.out_shape = torch.Size(out_shape)
        sizes = _sizes(image, len(channels))[::-1]
        planes = [*channels, image[0]]
        first = (planes[0], *sizes[0])
        layers: list[nn.Module] = [*dense([in_features, features], activation)]
        layers += dense([features, math.prod(first)], activation)
        layers.append(nn.Unflatten(-1, first))
        for (i, o), (small, large) in zip(pairwise(planes), pairwise(sizes), strict=True):
            # A side of odd length is halved upwards; the output padding finds the way back.
            extra = tuple(b - (2 * a - 1) for a, b in zip(small, large, strict=True))
            layers.append(
                nn.ConvTranspose2d(i, o, 3, stride=2, padding=1, output_padding=extra)  # type: ignore[arg-type]
            )
            layers.append(_Activation(activation))
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, z: Tensor) -> Tensor:
        """`[..., F] -> [..., *out_shape]`."""
        out = self.layers(z.reshape(-1, z.shape[-1]))
        return out.reshape(*z.shape[:-1], *self.out_shape)


def image_shape(shape: Sequence[int], who: str) -> tuple[int, int, int]:
    """`(H, W)` or `(C, H, W)` as `(C, H, W)`; a `ValueError` for anything else."""
    if len(shape) == 2:
        return (1, *shape)  # type: ignore[return-value]
    if len(shape) == 3:
        return tuple(shape)  # type: ignore[return-value]
    raise ValueError(f"{who}: the shape is {tuple(shape)}; accepted are (C, H, W) and (H, W)")


def _sizes(image: tuple[int, int, int], num_layers: int) -> list[tuple[int, int]]:
    """Height and width before and behind each of `num_layers` convolutions of stride 2."""
    sizes = [image[1:]]
    for _ in range(num_layers):
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))  # type: ignore[arg-type]
    return sizes
