"""Rows that lie on a disk and are read when they are asked for.

Shapes: N rows, B rows of a minibatch, `*data_shape` one datum.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ppl_vae.data.order import Blocks
from ppl_vae.data.permutation import Permutation

__all__ = ["Rest", "Rows", "check_rows", "read_rows", "some_rows"]

_BYTES_AT_ONCE = 2**24


class Rows(Dataset[Tensor], ABC):
    """Data too large for memory: a torch `Dataset` that is read many rows at a time.

    A subclass says how many rows there are and reads some of them. Reading must draw no random
    numbers and must be safe in another thread: `fit` reads the next minibatches ahead in one.

    Attributes:
        data_shape: The shape of one datum.
        name: What messages call the data.
        blocks: Whether an epoch moves rows by blocks; each by itself, if none.
        num_ahead: How many minibatches to read ahead in a thread; 0 for none, and no thread.
    """

    data_shape: tuple[int, ...]
    name: str = "data"
    blocks: Blocks | None = None
    num_ahead: int = 4

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def take(self, index: np.ndarray) -> Tensor:
        """The rows of these numbers.

        Args:
            index: int64 `[B]`, in any order, each in [0, N).

        Returns:
            Finite float32 `[B, *data_shape]` on the CPU.

        Raises:
            ValueError: Values that are not finite; the message names the first such row.
        """

    @property
    def shape(self) -> torch.Size:
        """`[N, *data_shape]`."""
        return torch.Size((len(self), *self.data_shape))

    @property
    def dtype(self) -> torch.dtype:
        """Of what `take` gives."""
        return torch.float32

    def __getitem__(self, index: int) -> Tensor:
        """One row, `[*data_shape]`; negative numbers count from the end."""
        number = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= number < len(self):
            raise IndexError(f"{self.name} has {len(self)} rows, and row {index} was asked for")
        return self.take(np.array([number]))[0]

    def __getitems__(self, index: Sequence[int]) -> list[Tensor]:
        """Several rows at once, as a torch `DataLoader` asks for them."""
        return list(self.take(np.asarray(index, dtype=np.int64)))


class Rest(Rows):
    """All rows but some that are held out.

    Row i of the rest is row i + #{j : h_j - j <= i} of all, for h_0 < h_1 < ... held out: the
    memory is that of h alone.

    Args:
        rows: All rows.
        held_out: The numbers of those left out, without repetition.

    Raises:
        ValueError: No row is left.
    """

    def __init__(self, rows: Rows, held_out: np.ndarray) -> None:
        if len(held_out) >= len(rows):
            raise ValueError(f"{rows.name}: {len(held_out)} of {len(rows)} rows are held out")
        self._rows = rows
        self._shift = np.sort(held_out) - np.arange(len(held_out))
        self.data_shape, self.name = rows.data_shape, rows.name
        self.blocks, self.num_ahead = rows.blocks, rows.num_ahead

    def __len__(self) -> int:
        return len(self._rows) - len(self._shift)

    def take(self, index: np.ndarray) -> Tensor:
        """As `Rows.take`."""
        return self._rows.take(index + np.searchsorted(self._shift, index, side="right"))


def some_rows(rows: Rows, num: int, seed: int) -> Tensor:
    """Rows drawn by `seed`, without repetition, `[num, *data_shape]`."""
    return read_rows(rows, Permutation(len(rows), (seed,))(np.arange(num)))


def read_rows(rows: Rows, index: np.ndarray) -> Tensor:
    """The rows of many numbers, `[B, *data_shape]`, in memory."""
    x = torch.empty((len(index), *rows.data_shape), dtype=rows.dtype)
    # In pieces, which need little memory besides.
    size = max(1, _BYTES_AT_ONCE // (4 * max(1, prod(rows.data_shape))))
    for start in range(0, len(index), size):
        x[start : start + size] = rows.take(index[start : start + size])
    return x


def check_rows(x: Tensor, index: np.ndarray, name: str) -> Tensor:
    """The rows themselves, if they are finite.

    Raises:
        ValueError: They are not; the message names the first bad row.
    """
    finite = torch.isfinite(x)
    if not finite.all():
        bad = int((~finite).nonzero()[0, 0])
        raise ValueError(f"{name}: row {int(index[bad])} holds NaN or infinite values")
    return x
