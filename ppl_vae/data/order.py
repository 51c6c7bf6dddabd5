"""The order of an epoch, position by position: rows one by one, or by blocks.

Shapes: N rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ppl_vae.data.permutation import Permutation

__all__ = ["Blocks", "Shuffle", "order_of"]

# From positions in the epoch to row numbers, each row at one position.
Order = Callable[[np.ndarray], np.ndarray]

# Positions looked up at once: 16 rounds on arrays of a minibatch's size are mostly overhead.
_AT_ONCE = 8192


@dataclass(frozen=True)
class Blocks:
    """Rows that lie together come in one window, for disks that are slow at single rows.

    Blocks of contiguous rows are permuted, and then the rows within each window of several blocks
    in a row. Every row still comes once an epoch, and a window is read from few places; but rows of
    one block are seen near each other, so data sorted on disk make minibatches less random.

    Args:
        num_rows: Rows of a block.
        num_together: Blocks of a window.

    Raises:
        ValueError: One of them is below 1.
    """

    num_rows: int = 4096
    num_together: int = 32

    def __post_init__(self) -> None:
        """Checks."""
        for name in ("num_rows", "num_together"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; accepted is an integer >= 1")


def order_of(num: int, seed: Sequence[int], blocks: Blocks | None) -> Order:
    """The order of an epoch over N rows; its memory does not grow with N.

    Args:
        num: N.
        seed: Of this epoch.
        blocks: Whether rows move by blocks; each by itself, if not.
    """
    return Permutation(num, (*seed, 0)) if blocks is None else _Blockwise(num, seed, blocks)


class Shuffle:
    """Row numbers of any stretch of any epoch.

    Args:
        num: N.
        seed: Of all epochs; each has an order of its own.
        blocks: As for `order_of`.
    """

    def __init__(self, num: int, seed: int, blocks: Blocks | None = None) -> None:
        self._num, self._seed, self._blocks = num, seed, blocks
        self._epoch, self._start, self._known = -1, 0, np.empty(0, np.int64)

    def __call__(self, epoch: int, start: int, num: int) -> np.ndarray:
        """The rows at `num` positions from `start` on, int64 `[num]`."""
        offset = start - self._start
        if epoch != self._epoch or not 0 <= offset <= len(self._known) - num:
            if epoch != self._epoch:
                self._order = order_of(self._num, (self._seed, epoch), self._blocks)
            stop = min(self._num, start + max(num, _AT_ONCE))
            self._known = self._order(np.arange(start, stop))
            self._epoch, self._start, offset = epoch, start, 0
        return self._known[offset : offset + num]


class _Blockwise:
    """Blocks in random order, the last and shorter one anywhere, and windows shuffled."""

    def __init__(self, num: int, seed: Sequence[int], blocks: Blocks) -> None:
        self._num, self._seed, self._size = num, tuple(seed), blocks.num_rows
        self._window = blocks.num_rows * blocks.num_together
        num_whole, self._rest = divmod(num, self._size)
        self._whole = Permutation(num_whole, (*self._seed, 0)) if num_whole else None
        # The place of the shorter block among the others.
        generator = np.random.default_rng((*self._seed, 1))
        self._place = int(generator.integers(num_whole + 1)) if self._rest else num_whole
        self._last = num_whole

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        positions = positions.astype(np.int64)
        moved = np.empty_like(positions)
        window = positions // self._window
        for number in np.unique(window):
            here, start = window == number, int(number) * self._window
            inside = Permutation(
                min(self._window, self._num - start), (*self._seed, 2, int(number))
            )
            moved[here] = inside(positions[here] - start) + start
        return self._in_blocks(moved)

    def _in_blocks(self, positions: np.ndarray) -> np.ndarray:
        """The rows, where blocks are moved as wholes."""
        start = self._place * self._size
        rows = positions - start + self._last * self._size  # of the shorter block
        behind = positions >= start + self._rest
        whole = behind | (positions < start)
        if self._whole is not None and whole.any():
            places = positions[whole] - self._rest * behind[whole]
            rows[whole] = self._whole(places // self._size) * self._size + places % self._size
        return rows
