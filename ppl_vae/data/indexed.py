"""Minibatches of data that can be looked up by number.

Shapes: N data, B data of a minibatch.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset, default_collate

from ppl_vae.data.order import Shuffle
from ppl_vae.data.splits import Splits
from ppl_vae.data.streams import Minibatches, as_tuple, mixed

__all__ = ["DEFAULT_BATCH_SIZE", "FromDataset", "FromTensor", "Indexed", "drawn"]

DEFAULT_BATCH_SIZE = 128


class Indexed(Minibatches):
    """A fresh permutation of the data each epoch, from `(seed, epoch)` alone.

    The remainder of N modulo B is left out of the epoch, so that every batch has one size.
    """

    batch_size: int

    def __init__(self, num_data: int, batch_size: int | None) -> None:
        super().__init__()
        if batch_size is None:
            batch_size = min(DEFAULT_BATCH_SIZE, num_data)
        if not 1 <= batch_size <= num_data:
            raise ValueError(
                f"batch_size is {batch_size}; accepted are 1 to {num_data}, the number of training "
                "data"
            )
        self.batch_size = batch_size
        self._per_epoch = num_data // batch_size

    @property
    def fractional_epoch(self) -> float:
        """As `Minibatches.fractional_epoch`."""
        return self.epoch + self.position / self._per_epoch

    def next(self) -> tuple[Any, ...]:
        """As `Minibatches.next`."""
        return self.take(self.next_index())

    def next_index(self) -> Tensor:
        """As `Minibatches.next_index`."""
        epoch, position = self._advance()
        return self._numbers(epoch, position * self.batch_size)

    def _advance(self) -> tuple[int, int]:
        """Goes on by a minibatch; its epoch and its position in it."""
        if self.position == self._per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        self.position += 1
        return self.epoch, self.position - 1

    @abstractmethod
    def _numbers(self, epoch: int, start: int) -> Tensor:
        """B numbers from this place of the epoch's order on."""


class FromTensor(Indexed):
    """Of a tensor in memory, or on a GPU."""

    is_resident = True

    def __init__(self, x: Tensor, splits: Splits | None, batch_size: int | None, seed: int) -> None:
        super().__init__(len(x), batch_size)
        self._x, self._splits, self._seed = x, splits, seed
        self._order: tuple[int, Tensor] | None = None

    def take(self, index: Tensor, generators: Sequence[Generator] | None = None) -> tuple[Any, ...]:
        """As `Minibatches.take`."""
        x = self._x.index_select(0, index.flatten().to(self._x.device))
        return (drawn(x.unflatten(0, index.shape), self._splits, generators),)

    def _numbers(self, epoch: int, start: int) -> Tensor:
        # 8 bytes a datum, beside a tensor of more.
        if self._order is None or self._order[0] != epoch:
            generator = Generator().manual_seed(mixed(self._seed, epoch))
            self._order = epoch, torch.randperm(len(self._x), generator=generator)
        return self._order[1][start : start + self.batch_size]


class FromDataset(Indexed):
    """Of a torch `Dataset`, whose items may draw from the global random streams."""

    def __init__(self, dataset: Dataset, batch_size: int | None, seed: int) -> None:
        num_data = len(dataset)  # type: ignore[arg-type]
        super().__init__(num_data, batch_size)
        self._dataset, self._shuffle = dataset, Shuffle(num_data, seed)

    def take(self, index: Tensor, generators: Sequence[Generator] | None = None) -> tuple[Any, ...]:
        """As `Minibatches.take`."""
        numbers = index.tolist()
        several = getattr(self._dataset, "__getitems__", None)
        items = several(numbers) if several else [self._dataset[i] for i in numbers]
        return as_tuple(default_collate(items))

    def _numbers(self, epoch: int, start: int) -> Tensor:
        return torch.from_numpy(self._shuffle(epoch, start, self.batch_size))


def drawn(x: Tensor, splits: Splits | None, generators: Sequence[Generator] | None) -> Tensor:
    """What a step sees of these data: `[B, ...]`, or of each generator its own `[R, B, ...]`."""
    if splits is None or splits.binarize != "dynamic":
        return x
    if generators is None:
        return splits.draw(x)
    return torch.stack([splits.draw(row, g) for row, g in zip(x, generators, strict=True)])
