"""Minibatches of a Hugging Face `IterableDataset`, in its own order.

Shapes: B rows of a minibatch.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import Tensor

from ppl_vae.data.huggingface import Column
from ppl_vae.data.indexed import DEFAULT_BATCH_SIZE
from ppl_vae.data.prefetch import Prefetch
from ppl_vae.data.streams import Minibatches

__all__ = ["FromIterable"]

_NUM_AHEAD = 4


class FromIterable(Minibatches):
    """A table that is only read forward: from a disk, or as it arrives over a network.

    Its own order is kept, `set_epoch` told each epoch; `table.shuffle(seed, buffer_size=...)` makes
    it random. The remainder modulo B is left out. To go on within an epoch, what came before is
    read once more: exact under a shuffle too, where the table's own `state_dict` is not, for it
    loses the buffer; but it takes the time of reading.

    Args:
        table: A `datasets.IterableDataset`.
        batch_size: B; 128 if not given.

    Raises:
        ValueError: `batch_size` is below 1, or as `Column`.
    """

    def __init__(self, table: Any, batch_size: int | None) -> None:
        super().__init__()
        self.batch_size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; accepted is an integer >= 1")
        self._column = Column(table.features, None)
        self._table = table.select_columns([self._column.name]).with_format("numpy")
        self._ahead: Prefetch[tuple[int, int, Tensor]] | None = None

    @property
    def fractional_epoch(self) -> float:
        """Whole passes only: how long one is, is not known."""
        return float(self.epoch)

    def next(self) -> tuple[Any, ...]:
        """As `Minibatches.next`."""
        if self._ahead is None:
            place = self.epoch, self.position
            items = _following(self._table, self._column, self.batch_size or 1, place)
            self._ahead = Prefetch(items, _NUM_AHEAD)
        try:
            self.epoch, self.position, x = self._ahead.next()
        except BaseException:
            self.close()
            raise
        return (x,)

    def seek(self, epoch: int, position: int) -> None:
        """As `Minibatches.seek`."""
        self.close()
        super().seek(epoch, position)

    def close(self) -> None:
        """Ends the thread."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


def _following(
    table: Any, column: Column, batch_size: int, place: tuple[int, int]
) -> Iterator[tuple[int, int, Tensor]]:
    """Minibatches, each with the epoch and the position that the stream has after it."""
    epoch, position = place
    while True:
        table.set_epoch(epoch)
        rows = islice(iter(table), position * batch_size, None)
        while len(batch := [row[column.name] for row in islice(rows, batch_size)]) == batch_size:
            position += 1
            yield epoch, position, column.batch(batch)
        if position == 0:
            raise ValueError(
                f"the table has fewer rows than a minibatch of {batch_size}; accepted is a "
                "batch_size up to their number"
            )
        epoch, position = epoch + 1, 0
