"""A stream of minibatches that can be taken up again where it stopped.

Shapes: N data, B data of a minibatch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Generator, Tensor

__all__ = ["Minibatches", "as_tuple", "mixed"]


class Minibatches:
    """A stream of minibatches, tuples of the program's arguments.

    Attributes:
        epoch: How many passes over the data are complete.
        position: How many minibatches of the present pass are taken.
        is_resident: Whether all data lie in one tensor, to be taken by number (`take`).
    """

    batch_size: int | None
    is_resident = False

    def __init__(self) -> None:
        self.epoch, self.position = 0, 0

    @property
    def fractional_epoch(self) -> float:
        """Passes over the data, the present one counted in part."""
        raise NotImplementedError

    def next(self) -> tuple[Any, ...]:
        """The next minibatch."""
        raise NotImplementedError

    def next_index(self) -> Tensor:
        """In place of `next`, the numbers of its data, `[B]`, on the host; where they have any."""
        raise NotImplementedError

    def take(self, index: Tensor, generators: Sequence[Generator] | None = None) -> tuple[Any, ...]:
        """The data of these numbers, `[B]`; or, with R generators to draw from, of `[R, B]`."""
        raise NotImplementedError

    def seek(self, epoch: int, position: int) -> None:
        """Goes on from where a stream with this `epoch` and `position` stood."""
        self.epoch, self.position = epoch, position

    def close(self) -> None:
        """Ends what runs beside the training; `next` would start it again."""


def as_tuple(batch: Any) -> tuple[Any, ...]:
    """What one item or several make as arguments of a program."""
    return tuple(batch) if isinstance(batch, list | tuple) else (batch,)


def mixed(*numbers: int) -> int:
    """One seed of several numbers, without the collisions of a sum."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
