"""Plain dense networks, and what a network must be. Nothing here knows Pyro.

Shapes: `...` any leading batch shape (particles, data), which every network takes; F features.
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
    "Decoder",
    "DenseDecoder",
    "DenseEncoder",
    "Encoder",
    "Nonlinearity",
    "NormalHead",
    "dense",
]

Activation = Literal["relu", "tanh", "softplus", "leaky_relu", "elu", "silu", "gelu"]


class Nonlinearity(nn.Module):
    """A function of `torch.nn.functional` by its name there."""

    def __init__(self, name: Activation) -> None:
        super().__init__()
        accepted = Activation.__args__  # type: ignore[attr-defined]
        if name not in accepted:
            raise ValueError(f"activation is {name!r}; accepted are {', '.join(accepted)}")
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """The function, element by element."""
        return getattr(F, self.name)(x)

    def extra_repr(self) -> str:
        """The name, as it shows in a module's print."""
        return self.name


def dense(sizes: Sequence[int], activation: Activation) -> list[nn.Module]:
    """Layers of a dense network, an activation behind each linear map.

    Args:
        sizes: Width of the input, then of each layer.
        activation: Its name in `torch.nn.functional`.
    """
    pairs = pairwise(sizes)
    return [layer for i, o in pairs for layer in (nn.Linear(i, o), Nonlinearity(activation))]


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
