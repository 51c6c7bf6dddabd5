"""Dense networks of gated layers.

Shapes: `...` any leading batch shape (particles, data), F features.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_vae.checks import check_dims
from ppl_vae.models.nn import Decoder, Encoder

__all__ = ["GatedDecoder", "GatedEncoder"]


class Gated(nn.Module):
    """One linear map times the sigmoid of another: `[..., in_features] -> [..., out_features]`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 2 * out_features)

    def forward(self, x: Tensor) -> Tensor:
        """`(W x + b) * sigmoid(V x + c)`."""
        return F.glu(self.linear(x))


class GatedEncoder(Encoder):
    r"""Flattens, then one gated layer for each entry of `hidden`.

    .. math:: h = (W x + b) \odot \operatorname{sigmoid}(V x + c)

    Args:
        data_shape: Shape of one datum.
        hidden: Widths of the gated layers, one or more.

    Raises:
        ValueError: A width below 1, or none.

    References:
        Dauphin et al. (2017), Language Modeling with Gated Convolutional Networks; Tomczak and
        Welling (2018), VAE with a VampPrior, whose networks have two layers of 300.

    Example:
        >>> GatedEncoder((784,), (300, 300))(torch.zeros(5, 784)).shape
        torch.Size([5, 300])
    """

    def __init__(self, data_shape: Sequence[int], hidden: Sequence[int] = (300, 300)) -> None:
        super().__init__()
        self.event_dim = len(data_shape)
        self.layers = _gated(math.prod(data_shape), hidden, "GatedEncoder")

    def forward(self, x: Tensor) -> Tensor:
        """`[..., *data_shape] -> [..., F]`."""
        return self.layers(x.flatten(-self.event_dim) if self.event_dim else x.unsqueeze(-1))


class GatedDecoder(Decoder):
    """One gated layer for each entry of `hidden`, then one linear map to the shape.

    Args:
        in_features: F.
        out_shape: Shape of the output.
        hidden: Widths of the gated layers, one or more.

    Raises:
        ValueError: A width below 1, or none.

    References:
        As `GatedEncoder`.
    """

    def __init__(
        self, in_features: int, out_shape: Sequence[int], hidden: Sequence[int] = (300, 300)
    ) -> None:
        super().__init__()
        self.out_shape = torch.Size(out_shape)
        self.layers = _gated(in_features, hidden, "GatedDecoder")
        self.last = nn.Linear(hidden[-1], math.prod(out_shape))

    def forward(self, z: Tensor) -> Tensor:
        """`[..., F] -> [..., *out_shape]`."""
        return self.last(self.layers(z)).unflatten(-1, self.out_shape)


def _gated(size: int, hidden: Sequence[int], who: str) -> nn.Sequential:
    sizes = [size, *check_dims(hidden, f"{who}: hidden")]
    return nn.Sequential(*(Gated(i, o) for i, o in pairwise(sizes)))
