"""The user's own `.npz` and `.npy` files as `Splits`."""

from pathlib import Path

import numpy as np
import torch

from ppl_vae.data.archives import read_npy, read_npz
from ppl_vae.data.partition import partition
from ppl_vae.data.splits import SPLIT_NAMES, Splits

__all__ = ["from_arrays", "load_npy", "load_npz", "split_at_random"]

_LABEL_KEYS = tuple(f"{split}_labels" for split in SPLIT_NAMES)
_ACCEPTED = (
    "accepted are train (with valid, test, train_labels, valid_labels, test_labels as there are), "
    "or x (with y for its labels), or one single array of any name"
)


def load_npz(path: Path) -> Splits:
    """Reads an archive that holds its own splits, or one array to be split.

    Args:
        path: A `.npz` with keys `train`[, `valid`, `test`, `train_labels`, ...]: splits that are
            left out stay empty. Or with `x`[, `y`] or a single array: split 80/10/10 at random.

    Raises:
        ValueError: The keys are others, or as `from_arrays` says.
    """
    arrays = read_npz(path)
    keys = set(arrays)
    if "train" in keys and keys <= {*SPLIT_NAMES, *_LABEL_KEYS}:
        labels = {key.removesuffix("_labels"): arrays[key] for key in keys & {*_LABEL_KEYS}}
        x = {key: arrays[key] for key in SPLIT_NAMES if key in keys}
        if set(labels) - set(x):
            lonely = sorted(set(labels) - set(x))[0]
            raise ValueError(f"{path}: {lonely}_labels without {lonely}")
        return from_arrays(x, labels, name=str(path))
    if "x" in keys and keys <= {"x", "y"}:
        return split_at_random(arrays["x"], arrays.get("y"), str(path))
    if len(keys) == 1:
        return split_at_random(arrays[keys.pop()], None, str(path))
    raise ValueError(f"{path}: the keys are {sorted(keys)}; {_ACCEPTED}")


def load_npy(path: Path) -> Splits:
    """Reads one array `[N, *data_shape]` and splits it 80/10/10 at random, by `SPLIT_SEED`."""
    return split_at_random(read_npy(path), None, str(path))


def from_arrays(x: dict[str, np.ndarray], labels: dict[str, np.ndarray], name: str) -> Splits:
    """Splits from arrays by split name, `[N, *data_shape]` each, all of one dtype.

    Values become float32 as they are, except that uint8 is taken for grey values and divided by 255
    (unless it holds nothing but 0 and 1, which are then binary already). Shapes stay: images that
    a convolution is to see must be `[N, C, H, W]`.
    Labels `[N]` of whole numbers become int64; `[N, F]`, and numbers that are not whole, become
    factor values `[N, F]`.

    Args:
        x: By split name; `train` must be there.
        labels: By split name, for the splits that have them.
        name: What messages call the data, the path.

    Raises:
        ValueError: An array is not numeric, has no data dimension, no rows, other dtypes or shapes
            than train, NaN or infinite values, or labels of another length.
    """
    for split, array in x.items():
        _check_numbers(name, split, array)
        if array.ndim < 2:
            raise ValueError(
                f"{name}: {split} has shape {list(array.shape)}, must be [N, *data_shape] with at "
                "least one data dimension"
            )
        if array.dtype != x["train"].dtype:
            raise ValueError(f"{name}: {split} is {array.dtype}, train is {x['train'].dtype}")
    grey = x["train"].dtype == np.uint8 and any(a.size and a.max() > 1 for a in x.values())
    tensors = {split: _float32(array).div_(255 if grey else 1) for split, array in x.items()}
    columns = {split: _label_tensor(name, split, array) for split, array in labels.items()}
    if len({column.dim() for column in columns.values()}) > 1:  # whole numbers in one split only
        columns = {k: c.float().unsqueeze(1) if c.dim() == 1 else c for k, c in columns.items()}
    names = ()
    if columns:
        first = next(iter(columns.values()))
        several = first.dim() == 2 and first.shape[1] > 1
        names = tuple(f"label{i}" for i in range(first.shape[1])) if several else ("label",)
    return Splits(**tensors, labels=columns, label_names=names, name=name)


def split_at_random(x: np.ndarray, y: np.ndarray | None, name: str) -> Splits:
    """Splits data that come in one piece 80/10/10 (tenths rounded down), by `SPLIT_SEED`.

    Args:
        x: `[N, *data_shape]`.
        y: `[N]` or `[N, F]`, its labels.
        name: What messages call the data, the path.

    Raises:
        ValueError: `x` is empty or has no data dimension, `y` has another length, or as
            `from_arrays` says.
    """
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"{name}: shape {list(x.shape)}, must be [N, *data_shape] and not empty")
    if y is not None and (y.ndim == 0 or len(y) != len(x)):
        raise ValueError(f"{name}: x has {len(x)} rows, but y has shape {list(y.shape)}")
    parts = partition(len(x), num_valid=len(x) // 10, num_test=len(x) // 10)
    rows = dict(zip(SPLIT_NAMES, (part.numpy() for part in parts), strict=True))
    return from_arrays(
        {split: x[index] for split, index in rows.items()},
        {} if y is None else {split: y[index] for split, index in rows.items()},
        name,
    )


def _check_numbers(name: str, what: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name}: {what} is {array.dtype}, must be real numbers (bool, integer or floating)"
        )


def _float32(array: np.ndarray) -> torch.Tensor:
    # What overflows becomes infinite, which Splits reports with its place.
    with np.errstate(over="ignore"):
        return torch.from_numpy(array.astype(np.float32, order="C"))


def _label_tensor(name: str, split: str, array: np.ndarray) -> torch.Tensor:
    _check_numbers(name, f"labels of {split}", array)
    if array.ndim not in (1, 2):
        raise ValueError(
            f"{name}: labels of {split} have shape {list(array.shape)}, must be [N] or [N, F]"
        )
    if array.ndim == 2:
        return _float32(array)
    if array.dtype.kind != "f" or (np.isfinite(array).all() and (array == np.round(array)).all()):
        return torch.from_numpy(array.astype(np.int64))
    return _float32(array).unsqueeze(1)
