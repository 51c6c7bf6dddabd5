"""One rank's part of each minibatch of a stream."""

from typing import Any

from torch import Tensor

from ppl_vae.data.streams import Minibatches
from ppl_vae.ranks import Ranks

__all__ = ["Parts"]


class Parts(Minibatches):
    """The part of each minibatch that one of R ranks trains on, B / R of its B data.

    All ranks go through the same stream, so that together they see what one process would.

    Args:
        stream: One that knows its data by number.
        ranks: Of which this is one.

    Raises:
        ValueError: The minibatches are not to be cut into R equal parts.
    """

    def __init__(self, stream: Minibatches, ranks: Ranks) -> None:
        self._stream, self._ranks = stream, ranks
        size = stream.batch_size
        if size is None or type(stream).next_index is Minibatches.next_index:
            raise ValueError(
                "the data are a DataLoader or an iterable, which come in an order of their own and "
                "cannot be shared among ranks; give a dataset with a length"
            )
        if size % ranks.num:
            raise ValueError(
                f"batch_size is {size}, of all ranks together; accepted is a multiple of their "
                f"number, {ranks.num}"
            )
        self.batch_size = size // ranks.num

    @property
    def epoch(self) -> int:  # type: ignore[override]
        """How many passes over the data are complete."""
        return self._stream.epoch

    @property
    def position(self) -> int:  # type: ignore[override]
        """How many minibatches of the present pass are taken."""
        return self._stream.position

    @property
    def fractional_epoch(self) -> float:
        """Passes over the data, the present one counted in part."""
        return self._stream.fractional_epoch

    def next(self) -> tuple[Any, ...]:
        """This rank's part of the next minibatch."""
        return self._stream.take(self.next_index())

    def next_index(self) -> Tensor:
        """The numbers of its data, `[B / R]`."""
        return self._ranks.part(self._stream.next_index())

    def seek(self, epoch: int, position: int) -> None:
        """Goes on from where a stream with this `epoch` and `position` stood."""
        self._stream.seek(epoch, position)

    def close(self) -> None:
        """As `Minibatches.close`."""
        self._stream.close()
