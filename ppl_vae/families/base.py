"""What a family of distributions is: a way to read numbers as a distribution over a real vector.

Shapes: `*batch` whatever stands left of an event, D the event's dimension, P how many numbers
choose a member of the family.
"""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from ppl_vae.configurable import Configurable

__all__ = ["MIN_SCALE", "Family", "Member"]

#: A scale of 0 has no density; softplus underflows to it.
MIN_SCALE = 1e-6


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
    """A family of distributions over a real vector, as an argument of a guide or of a prior.

    To write one: subclass, and define `make(dim)`, which gives a `Member`.

    Attributes:
        has_density: Whether log q(z) can be had at any z, and not only at a member's own draws.
            Path derivatives (STL, DReG), score functions, priors and `VampPrior` need that.
    """

    has_density: bool = True

    @abstractmethod
    def make(self, dim: int) -> Member:
        """The family over R^dim, with what parameters it has of its own."""
