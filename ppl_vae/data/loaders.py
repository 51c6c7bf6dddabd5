"""Minibatches of a torch `DataLoader`."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from ppl_vae.data.streams import Minibatches, as_tuple, mixed
from ppl_vae.randomness import fork

__all__ = ["FromLoader"]


class FromLoader(Minibatches):
    """A `DataLoader` with its own batching rules, restarted each epoch from `(seed, epoch)`."""

    def __init__(self, loader: DataLoader, seed: int) -> None:
        super().__init__()
        self.batch_size = loader.batch_size
        self._loader, self._seed = loader, seed
        self._batches: Iterator | None = None

    @property
    def fractional_epoch(self) -> float:
        """As `Minibatches.fractional_epoch`."""
        if isinstance(self._loader.dataset, IterableDataset):
            return float(self.epoch)
        return self.epoch + self.position / len(self._loader)

    def seek(self, epoch: int, position: int) -> None:
        """As `Minibatches.seek`."""
        super().seek(epoch, position)
        self.close()

    def close(self) -> None:
        """Ends the worker processes."""
        self._batches = None

    def next(self) -> tuple[Any, ...]:
        """As `Minibatches.next`."""
        for _ in range(2):
            if self._batches is None:
                self._open()
            batch = self._draw(self.position)
            if batch is not None:
                self.position += 1
                return as_tuple(batch)
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
                generator.manual_seed(mixed(self._seed, self.epoch))
        with fork(seed=mixed(self._seed, self.epoch)):
            self._batches = iter(self._loader)
        for position in range(self.position):
            self._draw(position)

    def _draw(self, position: int) -> Any:
        # A stream for each batch: the samplers take their seed from the global one at the first,
        # and a dataset may augment. What is read over then draws as it did the first time.
        with fork(seed=mixed(self._seed, self.epoch, position)):
            return next(self._batches, None)  # type: ignore[arg-type]
