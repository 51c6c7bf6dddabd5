"""Priors of the topmost code: standard normal, or a family whose numbers are learned.

Shapes: `*batch` particles and data, D dimension of the code.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.families import Family

__all__ = ["Prior", "make_prior"]


class Prior(nn.Module):
    """A member of a family, its numbers parameters.

    Args:
        family: The family.
        dim: D.
    """

    def __init__(self, family: Family, dim: int) -> None:
        super().__init__()
        self.member = family.make(dim)
        # Apart from each other, as the components of a mixture have to be.
        self.numbers = nn.Parameter(0.1 * torch.randn(self.member.size))

    def forward(self, like: Tensor) -> Any:
        """p(z), event `[D]`; `like` is not looked at."""
        return self.member(self.numbers)


class StandardNormal(nn.Module):
    """N(0, I) in D dimensions, without parameters.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, like: Tensor) -> Any:
        """p(z), event `[D]`, on the device and in the type of `like`."""
        return dist.Normal(like.new_zeros(self.dim), 1.0).to_event(1)


def make_prior(family: Family | None, dim: int, whose: str) -> nn.Module:
    """The prior that a model asks for.

    Args:
        family: Of the learned prior; none for the standard normal.
        dim: D.
        whose: Name of the model, for messages.

    Raises:
        ValueError: The family has a density at its own draws alone.
    """
    if family is None:
        return StandardNormal(dim)
    if not isinstance(family, Family):
        raise ValueError(f"{whose}: prior is {family!r}; accepted is a family, as Mixture()")
    if not family.has_density:
        raise ValueError(
            f"{whose}: prior is {type(family).__name__}, which has a density at its own draws, and "
            "a prior is asked for it at the guide's; accepted are families with one anywhere, as "
            "Mixture, MaskedAutoregressive, NeuralSpline"
        )
    return Prior(family, dim)
