"""Minibatches for training: one stream of batches that can be taken up again where it stopped.

Shapes: N data, B data of a minibatch.
"""

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ppl_vae.data.splits import Splits
from ppl_vae.randomness import fork

__all__ = ["Minibatches", "TrainingData", "minibatches"]

TrainingData = Tensor | Splits | Dataset | DataLoader

DEFAULT_BATCH_SIZE = 128


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

    def take(
        self, index: Tensor, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Any, ...]:
        """The data of these numbers, `[B]`; or, with R generators to draw from, of `[R, B]`."""
        raise NotImplementedError

    def seek(self, epoch: int, position: int) -> None:
        """Goes on from where a stream with this `epoch` and `position` stood."""
        self.epoch, self.position = epoch, position


class _Indexed(Minibatches):
    """A fresh permutation of the data each epoch, from `(seed, epoch)` alone.

    The remainder of N modulo B is left out of the epoch, so that every batch has one size.
    """

    def __init__(self, num_data: int, batch_size: int | None, seed: int) -> None:
        super().__init__()
        if batch_size is None:
            batch_size = min(DEFAULT_BATCH_SIZE, num_data)
        if not 1 <= batch_size <= num_data:
            raise ValueError(
                f"batch_size is {batch_size}; accepted are 1 to {num_data}, the number of training "
                "data"
            )
        self.batch_size = self._size = batch_size
        self._num_data, self._seed = num_data, seed
        self._per_epoch = num_data // batch_size
        self._order: tuple[int, Tensor] | None = None

    @property
    def fractional_epoch(self) -> float:
        return self.epoch + self.position / self._per_epoch

    def next(self) -> tuple[Any, ...]:
        return self.take(self.next_index())

    def next_index(self) -> Tensor:
        if self.position == self._per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        if self._order is None or self._order[0] != self.epoch:
            generator = torch.Generator().manual_seed(_mix(self._seed, self.epoch))
            self._order = self.epoch, torch.randperm(self._num_data, generator=generator)
        start = self.position * self._size
        self.position += 1
        return self._order[1][start : start + self._size]


class _FromTensor(_Indexed):
    is_resident = True

    def __init__(self, data: Splits | Tensor, batch_size: int | None, seed: int) -> None:
        x = data.train if isinstance(data, Splits) else data
        super().__init__(len(x), batch_size, seed)
        draws = isinstance(data, Splits) and data.binarize == "dynamic"
        self._x, self._draw = x, data.draw if draws else None

    def take(
        self, index: Tensor, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Any, ...]:
        x = self._x.index_select(0, index.flatten().to(self._x.device))
        x = x.unflatten(0, index.shape)
        if self._draw is None:
            return (x,)
        if generators is None:
            return (self._draw(x),)
        draw = self._draw
        return (torch.stack([draw(row, g) for row, g in zip(x, generators, strict=True)]),)


class _FromDataset(_Indexed):
    def __init__(self, dataset: Dataset, batch_size: int | None, seed: int) -> None:
        super().__init__(len(dataset), batch_size, seed)  # type: ignore[arg-type]
        self._dataset = dataset

    def take(
        self, index: Tensor, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Any, ...]:
        return _as_tuple(default_collate([self._dataset[i] for i in index.tolist()]))


class _FromLoader(Minibatches):
    """A `DataLoader` with its own batching rules, restarted each epoch from `(seed, epoch)`."""

    def __init__(self, loader: DataLoader, seed: int) -> None:
        super().__init__()
        self.batch_size = loader.batch_size
        self._loader, self._seed = loader, seed
        self._batches: Iterator | None = None

    @property
    def fractional_epoch(self) -> float:
        if isinstance(self._loader.dataset, IterableDataset):
            return float(self.epoch)
        return self.epoch + self.position / len(self._loader)

    def seek(self, epoch: int, position: int) -> None:
        super().seek(epoch, position)
        self._batches = None

    def next(self) -> tuple[Any, ...]:
        for _ in range(2):
            if self._batches is None:
                self._open()
            batch = self._draw(self.position)
            if batch is not None:
                self.position += 1
                return _as_tuple(batch)
            if self.position == 0:
                raise ValueError("the DataLoader gives no batch; accepted is at least one an epoch")
            self.epoch, self.position, self._batches = self.epoch + 1, 0, None
        raise ValueError(
            "the DataLoader gave no batch in its second pass; it cannot be iterated anew"
        )

    def _open(self) -> None:
        """Starts the epoch, and reads forward to where the stream stands in it."""
        sampler = getattr(self._loader, "sampler", None)
        for generator in (self._loader.generator, getattr(sampler, "generator", None)):
            if generator is not None:
                generator.manual_seed(_mix(self._seed, self.epoch))
        with fork(seed=_mix(self._seed, self.epoch)):
            self._batches = iter(self._loader)
        for position in range(self.position):
            self._draw(position)

    def _draw(self, position: int) -> Any:
        # A stream for each batch: the samplers take their seed from the global one at the first,
        # and a dataset may augment. What is read over then draws as it did the first time.
        with fork(seed=_mix(self._seed, self.epoch, position)):
            return next(self._batches, None)  # type: ignore[arg-type]


def minibatches(data: TrainingData, batch_size: int | None, seed: int) -> Minibatches:
    """The stream of minibatches of any kind of data.

    Args:
        data: A tensor `[N, *data_shape]`, `Splits` (the training split), a `Dataset` with a length,
            or a `DataLoader`, which keeps its own rules of batching. Items that are tuples are
            `(x, *args)`.
        batch_size: B; `min(128, N)` if not given. Not for a `DataLoader`.
        seed: Of the permutations.

    Raises:
        ValueError: `batch_size` does not fit the data, or the data are empty.
        TypeError: `data` is of no known kind.
    """
    if isinstance(data, DataLoader):
        if batch_size is not None:
            raise ValueError(
                f"batch_size is {batch_size}, but the data are a DataLoader, which has its own "
                f"({data.batch_size}); leave batch_size out"
            )
        return _FromLoader(data, seed)
    if isinstance(data, Splits | Tensor):
        _check_not_empty(data.train if isinstance(data, Splits) else data)
        return _FromTensor(data, batch_size, seed)
    if isinstance(data, Dataset):
        if not isinstance(data, Sized):
            raise ValueError(
                f"the data are {type(data).__name__}, a Dataset without a length; wrap it in a "
                "torch DataLoader"
            )
        _check_not_empty(data)
        return _FromDataset(data, batch_size, seed)
    raise TypeError(
        f"data are {type(data).__name__}; accepted are a Tensor, ppl_vae.data.Splits, a torch "
        "Dataset or DataLoader"
    )


def _check_not_empty(data: Sized) -> None:
    if len(data) == 0:
        raise ValueError("the training data are empty; accepted is at least one datum")


def _as_tuple(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, list | tuple) else (batch,)


def _mix(*numbers: int) -> int:
    """One seed of several numbers, without the collisions of a sum."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
