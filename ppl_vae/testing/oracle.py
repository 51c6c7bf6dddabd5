"""Linear-Gaussian pairs in double precision, about which everything is known.

Shapes: B data, D dimensions of a latent.
"""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_vae.models.linear_gaussian import HierarchicalLinearGaussian, LinearGaussian

__all__ = ["DiagonalGuide", "closed_form_loss", "exact_guide", "inexact_guide", "learned", "models"]

_DOUBLE = torch.float64
_LOADING = torch.tensor([[1.2, -0.3], [0.4, 0.9], [-0.7, 0.2]], dtype=_DOUBLE)
_NOISE = torch.tensor([0.5, 0.8, 1.1], dtype=_DOUBLE)
_BIAS = torch.tensor([0.3, -0.2, 0.1], dtype=_DOUBLE)
_LOWER = torch.tensor([[1.0, 0.5], [0.3, -0.9], [0.2, 0.6]], dtype=_DOUBLE)  # [X, D1]
_UPPER = torch.tensor([[0.8], [-0.5]], dtype=_DOUBLE)  # [D1, D2]

Oracle = LinearGaussian | HierarchicalLinearGaussian


def models() -> dict[str, Oracle]:
    """One level and two, all fixed."""
    scales = (torch.tensor(0.6, dtype=_DOUBLE), torch.tensor(0.9, dtype=_DOUBLE))
    return {
        "the linear-Gaussian model": LinearGaussian(_LOADING, _NOISE, _BIAS),
        "the linear-Gaussian model of two levels": HierarchicalLinearGaussian(
            (_LOWER, _UPPER), scales
        ),
    }


def exact_guide(model: Oracle) -> Callable:
    """The posterior, from the top down: q(z2 | x) q(z1 | z2, x)."""

    def guide(x: Tensor) -> None:
        posterior = model.posterior(x)
        loc, covariance = posterior.loc, posterior.covariance_matrix  # [B, D], [D, D]
        with pyro.plate("data", len(x), dim=-1):
            if isinstance(model, LinearGaussian):
                pyro.sample("z", dist.MultivariateNormal(loc, covariance))
                return
            one = len(model.loading2)  # D1
            upper, cross = covariance[..., one:, one:], covariance[..., :one, one:]
            z2 = pyro.sample("z2", dist.MultivariateNormal(loc[..., one:], upper))
            gain = cross @ torch.linalg.inv(upper)
            shift = (gain @ (z2 - loc[..., one:]).unsqueeze(-1)).squeeze(-1)
            rest = covariance[..., :one, :one] - gain @ cross.mT
            pyro.sample("z1", dist.MultivariateNormal(loc[..., :one] + shift, rest))

    return guide


def inexact_guide(model: Oracle) -> Callable:
    """Independent normals beside the posterior's marginals, and broader."""

    def guide(x: Tensor) -> None:
        posterior = model.posterior(x)
        scale = 1.5 * posterior.variance.sqrt()
        marginals = torch.stack([posterior.loc + 0.2, scale], -1)  # [B, D, 2]
        with pyro.plate("data", len(x), dim=-1):
            if isinstance(model, LinearGaussian):
                sites = {"z": marginals}
            else:
                one = len(model.loading2)
                sites = {"z2": marginals[:, one:], "z1": marginals[:, :one]}
            for name, q in sites.items():
                pyro.sample(name, dist.Normal(q[..., 0], q[..., 1]).to_event(1))

    return guide


class DiagonalGuide(PyroModule):
    """q(z | x) = N(x A^T + a, diag exp(s)^2), all of it learned."""

    def __init__(self) -> None:
        super().__init__(name="guide")
        weight = [[0.5, 0.2, -0.1], [-0.2, 0.4, 0.1]]
        self.weight = nn.Parameter(torch.tensor(weight, dtype=_DOUBLE))
        self.bias = nn.Parameter(torch.tensor([0.1, -0.3], dtype=_DOUBLE))
        self.log_scale = nn.Parameter(torch.tensor([-0.6, 0.1], dtype=_DOUBLE))

    def forward(self, x: Tensor) -> None:
        """The program; `x` is `[B, 3]`."""
        loc, scale = x @ self.weight.mT + self.bias, self.log_scale.exp()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def learned() -> tuple[LinearGaussian, DiagonalGuide, Tensor]:
    """A model with a learned loading, a diagonal guide, and data, each of them several times.

    For data of several times one draw is as good as several draws, and costs as one.
    """
    x = torch.tensor([[1.0, -0.5, 0.3], [-1.2, 0.8, 0.1], [0.2, 1.5, -0.9]], dtype=_DOUBLE)
    model = LinearGaussian(nn.Parameter(_LOADING.clone()), _NOISE, _BIAS)
    return model, DiagonalGuide(), x.repeat(10, 1)


def closed_form_loss(model: LinearGaussian, guide: DiagonalGuide, x: Tensor) -> Tensor:
    r"""Minus the ELBO of `learned`, summed over data: nothing in it is sampled.

    .. math:: E_q[\log p(x | z)] = \log N(x; W m + b, s^2)
        - \tfrac12 \sum_{id} (W_{id} \sigma_d / s_i)^2
    """
    loc, scale = x @ guide.weight.mT + guide.bias, guide.log_scale.exp()
    loading, noise = model.loading, model.noise_scale
    spread = (scale**2) @ (loading**2).mT  # of W z
    squares = (x - model.bias - loc @ loading.mT) ** 2 + spread
    reconstruction = -0.5 * squares / noise**2 - noise.log() - 0.5 * math.log(2 * math.pi)
    kl = 0.5 * (loc**2 + scale**2 - 1) - scale.log()
    return kl.sum() - reconstruction.sum()
