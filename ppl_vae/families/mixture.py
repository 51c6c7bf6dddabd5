"""Mixtures of normals.

Shapes: `*batch` whatever stands left of an event, C components, D the event's dimension.
"""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional as F

from ppl_vae.checks import check_dim
from ppl_vae.families.base import MIN_SCALE, Family, Member

__all__ = ["Mixture"]


class Mixture(Family):
    r"""Mixtures of C diagonal normals, :math:`\sum_c w_c N(\mu_c, \operatorname{diag} \sigma_c^2)`.

    Reparameterized, by a pathwise derivative through the mixture's distribution function. That
    divides by the density itself, and where it underflows the gradients are not finite: with C = 3
    in float32 from about D = 85 at scales of 0.7, and from about D = 30 at a scale of 8. The
    way out is float64 (to about D = 650), a smaller latent, or another family, as `FullRankNormal`
    or `NeuralSpline`. As a prior, whose draws have no gradient, it has no such limit.

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
        scale = F.softplus(raw) + MIN_SCALE
        return dist.MixtureOfDiagNormals(loc + self.apart.to(loc), scale, logits)
