"""Plain convolutional networks for images.

Shapes: `...` any leading batch shape (particles, data), F features, C channels, H height, W width.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ppl_vae.models.nn import Activation, Decoder, Encoder, Nonlinearity, dense

__all__ = ["ConvDecoder", "ConvEncoder"]


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
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), Nonlinearity(activation)]
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
            layers.append(Nonlinearity(activation))
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
