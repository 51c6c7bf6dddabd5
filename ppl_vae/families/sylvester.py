"""Sylvester flows, of the triangular kind.

Shapes: `*batch` whatever stands left of an event, D the event's dimension.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.nn import functional as F

from ppl_vae.checks import check_dim
from ppl_vae.families.base import MIN_SCALE, Family, Member
from ppl_vae.families.triangles import Triangle

__all__ = ["Sylvester"]

# Products of diagonal entries above -1 keep the map invertible; in floating point, well above.
_MAX_DIAGONAL = 0.999


class Sylvester(Family):
    r"""A diagonal normal, then T residual maps of triangular matrices.

    .. math:: z_t = z_{t-1} + R_t \tanh(\tilde R_t z_{t-1} + b_t)

    R and its partner are upper triangles for odd t and lower ones for even t (the paper's
    permutation). 2 D + T D (D + 2) numbers. There is no inverse in closed form, hence no density at
    another's sample: no path derivatives (STL, DReG), no estimator that scores given samples, no
    prior.

    Args:
        num_flows: T >= 1.

    Raises:
        ValueError: `num_flows` is below 1.

    References:
        van den Berg et al. (2018), Sylvester Normalizing Flows for Variational Inference (T-SNF).

    Example:
        >>> Sylvester(num_flows=2).make(3)(torch.zeros(5, 36)).rsample().shape
        torch.Size([5, 3])
    """

    has_density = False

    def __init__(self, num_flows: int = 4) -> None:
        check_dim(num_flows, "Sylvester: num_flows")
        self.num_flows = num_flows

    def make(self, dim: int) -> Member:
        """D locations, D scales, and two triangles and D biases of each map."""
        return _Sylvester(dim, self.num_flows)


class _Sylvester(Member):
    def __init__(self, dim: int, num_flows: int) -> None:
        super().__init__(2 * dim + num_flows * dim * (dim + 2))
        self.dim, self.triangle = dim, Triangle(dim)

    def forward(self, values: Tensor) -> Any:
        dim, above = self.dim, self.triangle.num_above
        loc, raw, maps = values.split([dim, dim, self.size - 2 * dim], -1)
        base = dist.Normal(loc, F.softplus(raw) + MIN_SCALE).to_event(1)
        flows: list[Transform] = []
        for t, numbers in enumerate(maps.split(dim * (dim + 2), -1)):
            *diagonals, first, second, bias = numbers.split([dim, dim, above, above, dim], -1)
            one, two = (_MAX_DIAGONAL * torch.tanh(d) for d in diagonals)
            flows.append(
                _Residual(self.triangle(one, first), self.triangle(two, second), bias,
                          products=one * two, turned=t % 2 == 1)
            )  # fmt: skip
        return dist.TransformedDistribution(base, flows)


class _Residual(Transform):
    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(
        self, outer: Tensor, inner: Tensor, bias: Tensor, *, products: Tensor, turned: bool
    ) -> None:
        super().__init__(cache_size=1)
        self._outer, self._inner, self._bias = outer, inner, bias
        self._products, self._turned = products, turned

    def _call(self, x: Tensor) -> Tensor:
        step = (self._outer @ torch.tanh(self._angle(x)).unsqueeze(-1)).squeeze(-1)
        return x + (step.flip(-1) if self._turned else step)

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError("a Sylvester flow has no inverse in closed form")

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """`[*batch]`: the product of triangles has its determinant on the diagonal."""
        slopes = 1 - torch.tanh(self._angle(x)) ** 2
        return (slopes * self._products).log1p().sum(-1)

    def _angle(self, x: Tensor) -> Tensor:
        x = x.flip(-1) if self._turned else x
        return (self._inner @ x.unsqueeze(-1)).squeeze(-1) + self._bias
