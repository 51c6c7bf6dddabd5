"""Normal distributions: diagonal, low rank plus diagonal, full rank.

Shapes: `*batch` whatever stands left of an event, D the event's dimension.
"""

from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.nn import functional as F

from ppl_vae.checks import check_dim
from ppl_vae.families.base import MIN_SCALE, Family, Member
from ppl_vae.families.triangles import Triangle

__all__ = ["DiagonalNormal", "FullRankNormal", "LowRankNormal"]


class DiagonalNormal(Family):
    r"""Independent normals, :math:`N(\mu, \operatorname{diag} \sigma^2)`.

    Example:
        >>> DiagonalNormal().make(3)(torch.zeros(5, 6)).event_shape
        torch.Size([3])
    """

    def make(self, dim: int) -> Member:
        """D locations and D scales."""
        return _Diagonal(dim)


class _Diagonal(Member):
    def __init__(self, dim: int) -> None:
        super().__init__(2 * dim)

    def forward(self, values: Tensor) -> Any:
        loc, log_variance = values.chunk(2, -1)
        return dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1)


class FullRankNormal(Family):
    r"""Normals of any covariance, :math:`N(\mu, L L^\top)`, L a lower triangle.

    D (D + 3) / 2 numbers.

    Example:
        >>> FullRankNormal().make(3)(torch.zeros(5, 9)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    def make(self, dim: int) -> Member:
        """D locations, D scales and what lies below the diagonal."""
        return _FullRank(dim)


class _FullRank(Member):
    def __init__(self, dim: int) -> None:
        triangle = Triangle(dim)
        super().__init__(2 * dim + triangle.num_above)
        self.dim, self.triangle = dim, triangle

    def forward(self, values: Tensor) -> Any:
        dim = self.dim
        loc, diagonal, below = values.split([dim, dim, self.triangle.num_above], -1)
        upper = self.triangle(F.softplus(diagonal) + MIN_SCALE, below)
        return dist.MultivariateNormal(loc, scale_tril=upper.mT)


class LowRankNormal(Family):
    r"""Normals of covariance :math:`F F^\top + \operatorname{diag} \sigma^2`, F of a given rank.

    Args:
        rank: R >= 1, columns of F; D (R + 2) numbers.

    Raises:
        ValueError: `rank` is below 1.

    Example:
        >>> LowRankNormal(rank=2).make(5)(torch.zeros(4, 20)).cov_factor.shape
        torch.Size([4, 5, 2])
    """

    def __init__(self, rank: int = 2) -> None:
        check_dim(rank, "LowRankNormal: rank")
        self.rank = rank

    def make(self, dim: int) -> Member:
        """D locations, D scales and D R loadings."""
        return _LowRank(dim, self.rank)


class _LowRank(Member):
    def __init__(self, dim: int, rank: int) -> None:
        super().__init__(dim * (2 + rank))
        self.dim, self.rank = dim, rank

    def forward(self, values: Tensor) -> Any:
        dim = self.dim
        loc, raw, factor = values.split([dim, dim, dim * self.rank], -1)
        variance = (F.softplus(raw) + MIN_SCALE) ** 2
        return dist.LowRankMultivariateNormal(loc, factor.unflatten(-1, (dim, self.rank)), variance)
