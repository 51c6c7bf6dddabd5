"""Data of Hugging Face's `datasets`, which is not imported here: who has data of it, has it.

Shapes: N rows, B rows of a minibatch, `*data_shape` one datum.
"""

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.rows import Rows, check_rows

__all__ = ["Column", "HuggingFaceRows", "is_hugging_face"]


def is_hugging_face(data: Any, kind: str) -> bool:
    """Whether these are data of `datasets`, of its class `Dataset` or `IterableDataset`."""
    package = sys.modules.get("datasets")
    return package is not None and isinstance(data, getattr(package, kind, ()))


class Column:
    """The one column of a table that holds x, and how it becomes numbers.

    Args:
        features: What the table says of its columns.
        name: Which column; the only one of images or arrays, if not given.

    Raises:
        ValueError: The column is not there or holds no images or arrays of numbers; or it is not
            given, and there are several such columns or none.
    """

    def __init__(self, features: Any, name: str | None) -> None:
        if features is None:
            raise ValueError(
                "the table does not say what its columns hold; make it with "
                "features=datasets.Features({...})"
            )
        known = {key: text for key, f in features.items() if (text := _numbers(f)) is not None}
        if name is None and len(known) != 1:
            which = f"there are {len(known)}, {sorted(known)}" if known else "there is none"
            raise ValueError(
                f"the table's columns are {_listed(features)}; accepted is one of images or arrays "
                f"of numbers, and {which}" + ("; give column=..." if known else "")
            )
        self.name = next(iter(known)) if name is None else name
        if self.name not in known:
            what = _listed({self.name: features[self.name]} if self.name in features else features)
            raise ValueError(
                f"column is {self.name!r}, and the table has {what}; accepted is a column of "
                "images or of arrays of numbers"
            )
        self._is_image = known[self.name] == "image"
        self._divisor = 255 if known[self.name] in ("image", "uint8") else 1

    def batch(self, values: Any, index: Any = None) -> Tensor:
        """Values as the table gives them in the format "numpy", as float32 `[B, *data_shape]`.

        Raises:
            ValueError: Shapes differ, or values are not finite.
        """
        shapes = sorted({np.shape(value) for value in values})
        if len(shapes) > 1:
            raise ValueError(f"column {self.name!r} has data of shapes {shapes}; accepted is one")
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"column {self.name!r} has values of {array.dtype}, no numbers")
        if self._is_image:
            if array.dtype != np.uint8:
                raise ValueError(
                    f"column {self.name!r} has images of {array.dtype}; accepted are 8 bits a value"
                )
            # [B, H, W] or [B, H, W, C] to channels first
            array = array[:, None] if array.ndim == 3 else np.moveaxis(array, -1, 1)
        with np.errstate(over="ignore"):
            x = torch.from_numpy(array.astype(np.float32, order="C")).div_(self._divisor)
        rows = np.arange(len(x)) if index is None else index
        return check_rows(x, rows, f"column {self.name!r}")


class HuggingFaceRows(Rows):
    """A `datasets.Dataset` as rows on the disk, where its Arrow files lie, memory-mapped.

    Images become `[C, H, W]`, C = 1 for grey ones, divided by 255 as are arrays of uint8; other
    numbers stay as they are. `fit` takes a `datasets.Dataset` as it is, if it has one such column;
    this class is for `split_rows`, or to name the column.

    Args:
        dataset: The table.
        column: The column of x; the only one of images or arrays, if not given.
        num_ahead: Minibatches to read ahead in a thread; 0 for none.

    Raises:
        ValueError: The table is empty, or as `Column`.
    """

    def __init__(self, dataset: Any, column: str | None = None, *, num_ahead: int = 4) -> None:
        if not is_hugging_face(dataset, "Dataset"):
            raise TypeError(
                f"data are {type(dataset).__name__}; accepted is a datasets.Dataset (of a "
                "DatasetDict, one of its splits)"
            )
        if len(dataset) == 0:
            raise ValueError("the table is empty; accepted is at least one row")
        self._column = Column(dataset.features, column)
        self._table = dataset.with_format("numpy", columns=[self._column.name])
        self.name = str(getattr(dataset.info, "dataset_name", None) or "data")
        self.num_ahead = num_ahead
        self.data_shape = tuple(self.take(np.zeros(1, np.int64)).shape[1:])

    def __len__(self) -> int:
        return len(self._table)

    def take(self, index: np.ndarray) -> Tensor:
        """As `Rows.take`."""
        rows, inverse = np.unique(index, return_inverse=True)  # each page is read once, in order
        x = self._column.batch(self._table[rows.tolist()][self._column.name], rows)
        return x[torch.from_numpy(inverse)]


def _numbers(feature: Any) -> str | None:
    """`"image"`, or the type of an array's numbers; none for a column of anything else."""
    if type(feature).__name__ == "Image":
        return "image"
    depth = 0
    # Lists of lists; older versions have a list of one element.
    while (inner := getattr(feature, "feature", None)) is not None or isinstance(feature, list):
        feature, depth = feature[0] if isinstance(feature, list) else inner, depth + 1
    depth += len(getattr(feature, "shape", ()) or ())
    dtype = str(getattr(feature, "dtype", ""))
    is_class = type(feature).__name__ == "ClassLabel"
    numeric = dtype == "bool" or dtype.startswith(("int", "uint", "float"))
    return dtype if depth and numeric and not is_class else None


def _listed(features: Any) -> str:
    return ", ".join(f"{key!r} ({feature})" for key, feature in features.items())
