"""Minibatches for training, of any kind of data."""

from collections.abc import Sized

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ppl_vae.data.huggingface import HuggingFaceRows, is_hugging_face
from ppl_vae.data.indexed import FromDataset, FromTensor
from ppl_vae.data.iterables import FromIterable
from ppl_vae.data.loaders import FromLoader
from ppl_vae.data.reading import FromRows
from ppl_vae.data.rows import Rows
from ppl_vae.data.splits import Splits
from ppl_vae.data.streams import Minibatches

__all__ = ["Minibatches", "TrainingData", "minibatches"]

TrainingData = Tensor | Splits | Dataset | DataLoader


def minibatches(data: TrainingData, batch_size: int | None, seed: int) -> Minibatches:
    """The stream of minibatches of any kind of data.

    Args:
        data: A tensor `[N, *data_shape]`, `Splits` (the training split), `Rows` on a disk, a
            `Dataset` with a length, or a `DataLoader`, which keeps its own rules of batching. Items
            that are tuples are `(x, *args)`. Of Hugging Face, a `datasets.Dataset`, or an
            `IterableDataset`, whose own order is kept.
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
        return FromLoader(data, seed)
    if is_hugging_face(data, "IterableDataset"):
        return FromIterable(data, batch_size)
    if is_hugging_face(data, "Dataset"):
        data = HuggingFaceRows(data)
    splits = data if isinstance(data, Splits) else None
    x = data if splits is None else splits.train
    if isinstance(x, Tensor | Rows):
        _check_not_empty(x)
        kind = FromTensor if isinstance(x, Tensor) else FromRows
        return kind(x, splits, batch_size, seed)
    if isinstance(data, Dataset):
        if not isinstance(data, Sized):
            raise ValueError(
                f"the data are {type(data).__name__}, a Dataset without a length; wrap it in a "
                "torch DataLoader"
            )
        _check_not_empty(data)
        return FromDataset(data, batch_size, seed)
    raise TypeError(
        f"data are {type(data).__name__}; accepted are a Tensor, ppl_vae.data.Splits, a torch "
        "Dataset or DataLoader, and Hugging Face's datasets.Dataset or IterableDataset"
    )


def _check_not_empty(data: Sized) -> None:
    if len(data) == 0:
        raise ValueError("the training data are empty; accepted is at least one datum")
