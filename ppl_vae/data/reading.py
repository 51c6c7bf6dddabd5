"""Minibatches of rows on a disk, read ahead in a thread.

Shapes: N rows, B rows of a minibatch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from ppl_vae.data.indexed import Indexed, drawn
from ppl_vae.data.order import Shuffle
from ppl_vae.data.prefetch import Prefetch
from ppl_vae.data.rows import Rows
from ppl_vae.data.splits import Splits

__all__ = ["FromRows"]


class FromRows(Indexed):
    """Of `Rows`: the same minibatches in the same order, however many are read ahead.

    The thread reads, and converts. What is random is drawn when a minibatch is taken, from the
    stream of the training, so that epoch and position of what was taken say all.
    """

    def __init__(
        self, rows: Rows, splits: Splits | None, batch_size: int | None, seed: int
    ) -> None:
        super().__init__(len(rows), batch_size)
        self._rows, self._splits, self._seed = rows, splits, seed
        self._shuffle = Shuffle(len(rows), seed, rows.blocks)
        self._ahead: Prefetch[Tensor] | None = None

    def next(self) -> tuple[Any, ...]:
        """As `Minibatches.next`."""
        if self._rows.num_ahead == 0:
            return super().next()
        if self._ahead is None:
            self._ahead = Prefetch(self._following(), self._rows.num_ahead)
        try:
            x = self._ahead.next()
        except BaseException:
            self.close()
            raise
        self._advance()
        return (drawn(x, self._splits, None),)

    def next_index(self) -> Tensor:
        """As `Minibatches.next_index`."""
        self.close()
        return super().next_index()

    def take(self, index: Tensor, generators: Sequence[Generator] | None = None) -> tuple[Any, ...]:
        """As `Minibatches.take`."""
        x = _read(self._rows, self._splits, index.flatten().numpy())
        return (drawn(x.unflatten(0, index.shape), self._splits, generators),)

    def seek(self, epoch: int, position: int) -> None:
        """As `Minibatches.seek`."""
        self.close()
        super().seek(epoch, position)

    def close(self) -> None:
        """Ends the thread."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _numbers(self, epoch: int, start: int) -> Tensor:
        return torch.from_numpy(self._shuffle(epoch, start, self.batch_size))

    def _following(self) -> Iterator[Tensor]:
        """The rows of all minibatches from the present position on, by an order of their own."""
        shuffle = Shuffle(len(self._rows), self._seed, self._rows.blocks)
        place = self.epoch, self.position
        return _following(
            self._rows, self._splits, shuffle, self.batch_size, self._per_epoch, place
        )


# Not a method: the thread must not hold the stream, which ends it when nobody holds it any more.
def _following(
    rows: Rows,
    splits: Splits | None,
    shuffle: Shuffle,
    batch_size: int,
    per_epoch: int,
    place: tuple[int, int],
) -> Iterator[Tensor]:
    epoch, position = place
    while True:
        if position == per_epoch:
            epoch, position = epoch + 1, 0
        yield _read(rows, splits, shuffle(epoch, position * batch_size, batch_size))
        position += 1


def _read(rows: Rows, splits: Splits | None, index: np.ndarray) -> Tensor:
    x = rows.take(index)
    if splits is not None and splits.binarize == "dynamic" and not ((x >= 0) & (x <= 1)).all():
        raise ValueError(
            f"{rows.name}: train has values from {x.min().item():g} to {x.max().item():g}, but "
            "only values in [0, 1] can be binarized; rescale them, or leave binarize=None"
        )
    return x
