"""Maps in which each coordinate moves by what the ones before it say.

Shapes: `*batch` any, D the dimension, C the context's.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Transform, constraints

__all__ = ["GatedMap", "MaskedNets", "TriangularMap"]

# Near the identity at first, 0.1 + 0.9 sigmoid(2) = 0.89; and never shut.
_OPEN, _SHUT = 2.0, 0.1

Parameters = tuple[Tensor, ...]


class TriangularMap(Transform):
    r"""An autoregressive map, :math:`y_d = g(x_d; \theta_d),\ \theta_d = f(x_1, \dots, x_{d-1})`.

    Onwards in one pass of the network; backwards in D passes, a coordinate each. Differentiable
    both ways, in the type and on the device of what it is given, and without a look at a value.

    To write one: subclass, and define `_move` and `_move_back`.

    Args:
        net: f, from `[*batch, D]` to parameters `[*batch, ..., D]`.
        order: Which coordinate is first, second, ...
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, net: Callable[[Tensor], Parameters], order: Sequence[int]) -> None:
        super().__init__(cache_size=1)
        self._net, self._order = net, order
        self._last: tuple[Any, ...] = (None, None, None)

    @abstractmethod
    def _move(self, x: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """y and log dy/dx, of as many coordinates as it is given."""

    @abstractmethod
    def _move_back(self, y: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """x and log dy/dx, of as many coordinates as it is given."""

    def _call(self, x: Tensor) -> Tensor:
        y, log_slope = self._move(x, self._net(x))
        self._last = x, y, log_slope
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        # What is not known yet is 0: the network's numbers for it are not used, but a nan among
        # them would pass through a mask, which multiplies by 0.
        xs, log_slopes = [torch.zeros_like(y[..., :1])] * y.shape[-1], [y[..., :1]] * y.shape[-1]
        for d in self._order:
            parameters = self._net(_joined(xs))
            one = slice(d, d + 1)
            found = self._move_back(y[..., one], tuple(p[..., one] for p in parameters))
            xs[d], log_slopes[d] = found
        x = _joined(xs)
        self._last = x, y, _joined(log_slopes)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """`[*batch]`."""
        last_x, last_y, log_slope = self._last
        if x is not last_x or y is not last_y:
            _, log_slope = self._move(x, self._net(x))
        return log_slope.sum(-1)


def _joined(columns: list[Tensor]) -> Tensor:
    # The context may have more of a batch than the value.
    return torch.cat(torch.broadcast_tensors(*columns), -1)


class GatedMap(TriangularMap):
    """y = g x + (1 - g) m, g in (0.1, 1): steps can be large, and the way back stays finite."""

    def _move(self, x: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        shift, gate = parameters[0], _gate(parameters[1])
        return gate * x + (1 - gate) * shift, gate.log()

    def _move_back(self, y: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        shift, gate = parameters[0], _gate(parameters[1])
        return (y - (1 - gate) * shift) / gate, gate.log()


def _gate(raw: Tensor) -> Tensor:
    return _SHUT + (1 - _SHUT) * torch.sigmoid(raw + _OPEN)


class MaskedNets(nn.ModuleList):
    """Masked networks of `[*batch, D]` and a context, every other one in reverse order.

    They skip to their outputs, so that linear dependence costs nothing.

    Args:
        num_flows: How many.
        dim: D.
        num_context: C.
        hidden: Widths, none below D.
        param_dims: How many numbers each parameter of a coordinate has.

    References:
        Germain et al. (2015), MADE.
    """

    def __init__(
        self,
        num_flows: int,
        dim: int,
        num_context: int,
        hidden: Sequence[int],
        param_dims: Sequence[int],
    ) -> None:
        self.orders = [range(dim), range(dim - 1, -1, -1)] * num_flows
        with warnings.catch_warnings():
            # In one dimension there is nothing before the first coordinate but the context.
            warnings.filterwarnings("ignore", message="ConditionalAutoRegressiveNN input_dim = 1")
            super().__init__(
                ConditionalAutoRegressiveNN(
                    dim,
                    num_context,
                    list(hidden),
                    list(param_dims),
                    permutation=torch.tensor(list(order)),  # type: ignore[arg-type]
                    skip_connections=True,
                    nonlinearity=nn.ELU(),
                )
                for order in self.orders[:num_flows]
            )
        for net in self:
            # Maps that begin near the identity are trained with larger steps.
            for layer in (net.layers[-1], net.skip_layer):  # type: ignore[union-attr]
                for parameter in layer.parameters():
                    nn.init.normal_(parameter, std=0.01)

    def given(self, context: Tensor) -> list[tuple[Callable[[Tensor], Parameters], Sequence[int]]]:
        """Each network at this context, `[*batch, C]`, and its order."""
        pairs = zip(self, self.orders, strict=False)
        if len(self.orders[0]) == 1:
            # What a network says of the first coordinate hangs on the context alone.
            nothing = torch.zeros_like(context[..., :1])
            return [(partial(_same_for_all, net(nothing, context)), o) for net, o in pairs]
        return [(partial(_beside, net, context), order) for net, order in pairs]


def _beside(net: nn.Module, context: Tensor, x: Tensor) -> Parameters:
    batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
    return net(x.expand(*batch, -1), context.expand(*batch, -1))


def _same_for_all(parameters: Parameters, x: Tensor) -> Parameters:
    return parameters
