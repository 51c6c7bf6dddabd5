"""Families of distributions over a real vector: how a guide spreads a site, given numbers.

Shapes: `*batch` whatever stands left of an event, D the event's dimension, P how many numbers
choose a member of the family.
"""

import math
from abc import abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_vae.configurable import Configurable
from ppl_vae.models.base import check_dim

__all__ = ["DiagonalNormal", "Family", "FullRankNormal", "LowRankNormal", "Member", "Mixture"]

# A scale of 0 has no density; softplus underflows to it.
_MIN_SCALE = 1e-6


class Member(nn.Module):
    """A family at one dimension: from P numbers to a distribution.

    Args:
        size: P.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @abstractmethod
    def forward(self, values: Tensor) -> Any:
        """`[*batch, P]` to a distribution of batch `[*batch]` and event `[D]`."""


class Family(Configurable):
    """A family of distributions over a real vector, as an argument of a guide.

    To write one: subclass, and define `make(dim)`, which gives a `Member`.
    """

    @abstractmethod
    def make(self, dim: int) -> Member:
        """The family over R^dim, with what parameters it has of its own."""


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
    index: Tensor

    def __init__(self, dim: int) -> None:
        num_below = dim * (dim - 1) // 2
        super().__init__(2 * dim + num_below)
        self.dim = dim
        # Where each entry of L is found in (diagonal, below, 0): a gather, and no loop over rows.
        index = torch.full((dim, dim), dim + num_below)
        rows, columns = torch.tril_indices(dim, dim, -1)
        index[rows, columns] = dim + torch.arange(num_below)
        index.diagonal().copy_(torch.arange(dim))
        self.register_buffer("index", index.flatten(), persistent=False)

    def forward(self, values: Tensor) -> Any:
        loc, diagonal, below = values.split([self.dim, self.dim, self.size - 2 * self.dim], -1)
        entries = [F.softplus(diagonal) + _MIN_SCALE, below, torch.zeros_like(values[..., :1])]
        tril = torch.cat(entries, -1)[..., self.index].unflatten(-1, (self.dim, self.dim))
        return dist.MultivariateNormal(loc, scale_tril=tril)


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
        variance = (F.softplus(raw) + _MIN_SCALE) ** 2
        return dist.LowRankMultivariateNormal(loc, factor.unflatten(-1, (dim, self.rank)), variance)


class Mixture(Family):
    r"""Mixtures of C diagonal normals, :math:`\sum_c w_c N(\mu_c, \operatorname{diag} \sigma_c^2)`.

    Reparameterized, by a pathwise derivative through the mixture's distribution function.

    Args:
        num_components: C >= 2; C (2 D + 1) numbers.

    Raises:
        ValueError: `num_components` is below 2.

    References:
        Jankowiak and Karaletsos (2019), Pathwise Derivatives for Multivariate Distributions.

    Example:
        >>> Mixture(num_components=3).make(2)(torch.zeros(5, 15)).event_shape
        torch.Size([2])
    """

    def __init__(self, num_components: int = 3) -> None:
        check_dim(num_components, "Mixture: num_components")
        if num_components < 2:
            raise ValueError("Mixture: num_components is 1; accepted is an integer >= 2")
        self.num_components = num_components

    def make(self, dim: int) -> Member:
        """C weights, and C locations and scales of D each."""
        return _Mixture(dim, self.num_components)


class _Mixture(Member):
    apart: Tensor

    def __init__(self, dim: int, num_components: int) -> None:
        super().__init__(num_components * (2 * dim + 1))
        self.shape = (num_components, dim)
        # Components that begin at one place stay at one place.
        self.register_buffer("apart", torch.linspace(-1, 1, num_components).unsqueeze(-1))

    def forward(self, values: Tensor) -> Any:
        count = math.prod(self.shape)
        loc, raw, logits = values.split([count, count, self.shape[0]], -1)
        loc, raw = (v.unflatten(-1, self.shape) for v in (loc, raw))
        scale = F.softplus(raw) + _MIN_SCALE
        return dist.MixtureOfDiagNormals(loc + self.apart.to(loc), scale, logits)
