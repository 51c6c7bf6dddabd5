"""`Shards`: one `.npy` or a folder of them, left on the disk and read by rows.

Shapes: N rows, B rows of a minibatch, `*data_shape` one datum.
"""

import mmap
import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.archives import map_npy
from ppl_vae.data.folders import image_files
from ppl_vae.data.order import Blocks
from ppl_vae.data.partition import SPLIT_SEED
from ppl_vae.data.permutation import Permutation
from ppl_vae.data.rows import Rows, check_rows

__all__ = ["Shards", "holds_shards"]

# Mapped at once; a process may have 65,530 maps (Linux), and every one costs page tables.
_MAX_OPEN = 256
# Rows larger than this gain by the kernel's reading ahead, smaller ones lose: it reads 128 KiB.
_LARGE_ROW = 32 * 1024
# Above this, pages are given back after each minibatch. They are the kernel's cache, which it takes
# back by itself; but they count as the process's resident memory as long as they are mapped.
_MAX_MAPPED = 2**30
_NUM_SAMPLED, _MAX_SAMPLED = 1024, 2**26  # rows, bytes


class Shards(Rows):
    """Arrays on the disk as one data set, memory-mapped: no file is ever loaded whole.

    A minibatch is read in the order of the files, and becomes float32 only then: uint8 is taken
    for grey values and divided by 255, other numbers stay as they are. Where 1,024 rows (of 64 MiB
    at most), drawn by `SPLIT_SEED`, hold nothing but 0 and 1, uint8 is binary already; a later
    value above 1 is an error then.

    Args:
        path: A `.npy` file `[N, *data_shape]`, or a folder of such files, which are strung together
            in the order of their names (`0010.npy` after `0009.npy`; `10.npy` before `9.npy`).
            They must not change while they are in use.
        divide_by: What uint8 values are divided by, 255 or 1, where it is not to be guessed.
        blocks: Move rows by blocks, for slow disks; each row by itself, if none.
        num_ahead: Minibatches to read ahead in a thread; 0 for none.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: A file is damaged, holds no rows or no numbers, is in Fortran order, or differs
            from the first one in dtype or shape; the message names it.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> for i in range(3):
        ...     np.save(f"{folder.name}/{i}.npy", np.full((10, 1, 8, 8), 50 * i, np.uint8))
        >>> shards = Shards(folder.name)
        >>> shards.shape
        torch.Size([30, 1, 8, 8])
        >>> (shards[25][0, 0, 0] * 255).item()
        100.0
        >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        divide_by: int | None = None,
        blocks: Blocks | None = None,
        num_ahead: int = 4,
    ) -> None:
        if divide_by not in (None, 1, 255):
            raise ValueError(f"divide_by is {divide_by!r}; accepted are None, 1 and 255")
        if isinstance(num_ahead, bool) or not isinstance(num_ahead, int) or num_ahead < 0:
            raise ValueError(f"num_ahead is {num_ahead!r}; accepted is an integer >= 0")
        self.name, self.blocks, self.num_ahead = str(path), blocks, num_ahead
        self._paths = _paths(Path(path).expanduser())
        counts = []
        for file in self._paths:
            array = map_npy(file)
            _check(file, array)
            if not counts:
                self.data_shape, self._stored = array.shape[1:], array.dtype
            elif (array.shape[1:], array.dtype) != (self.data_shape, self._stored):
                raise ValueError(
                    f"{file}: rows are {array.dtype} {list(array.shape[1:])}, those of "
                    f"{self._paths[0].name} are {self._stored} {list(self.data_shape)}; they must "
                    "be equal"
                )
            counts.append(len(array))
        self._ends = np.cumsum(counts)
        self._row_bytes = self._stored.itemsize * int(np.prod(self.data_shape))
        self._maps: OrderedDict[int, np.memmap] = OrderedDict()
        self._lock = Lock()
        self.divide_by = (divide_by or self._guessed()) if self._stored == np.uint8 else 1

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def num_bytes(self) -> int:
        """What the rows take on the disk."""
        return len(self) * self._row_bytes

    def take(self, index: np.ndarray) -> Tensor:
        """As `Rows.take`.

        Raises:
            ValueError: Values that are not finite, or above 1 where they were taken for binary.
        """
        stored, order = self._gather(index)
        x = torch.empty((len(index), *self.data_shape), dtype=torch.float32)
        # What overflows becomes infinite, which is reported.
        with np.errstate(over="ignore"):
            x.numpy()[order] = stored
        if self._stored == np.uint8:
            if self.divide_by == 1 and len(index) and stored.max() > 1:
                raise ValueError(
                    f"{self.name}: a value of {stored.max()}, where the rows looked at before "
                    "were 0 and 1 and taken for binary; give divide_by=255 for grey values"
                )
            return x.div_(self.divide_by)
        return check_rows(x, index, self.name)

    def _gather(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows as they are stored, ascending, and the order that sorts them."""
        order = np.argsort(index, kind="stable")
        rows = index[order]
        stored = np.empty((len(rows), *self.data_shape), dtype=self._stored)
        shard = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(shard):
            here = slice(*np.searchsorted(shard, (number, number + 1)))
            first = self._ends[number - 1] if number else 0
            array = self._map(int(number))
            if self._is_scattered and self.num_bytes > _MAX_MAPPED:
                _ask_for(array, (rows[here] - first) * self._row_bytes, self._row_bytes)
            # In range already; "clip" writes without a buffer, and other threads go on meanwhile.
            np.take(array, rows[here] - first, axis=0, out=stored[here], mode="clip")
            if self.num_bytes > _MAX_MAPPED:
                _advise(array, "MADV_DONTNEED")
        return stored, order

    @property
    def _is_scattered(self) -> bool:
        return self.blocks is None and self._row_bytes < _LARGE_ROW

    def _map(self, number: int) -> np.memmap:
        with self._lock:
            if number not in self._maps:
                array = self._maps[number] = map_npy(self._paths[number])
                if self._is_scattered:
                    _advise(array, "MADV_RANDOM")
                if len(self._maps) > _MAX_OPEN:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(number)
            return self._maps[number]

    def _guessed(self) -> int:
        num = min(len(self), _NUM_SAMPLED, max(1, _MAX_SAMPLED // self._row_bytes))
        some = Permutation(len(self), (SPLIT_SEED,))(np.arange(num))
        return 255 if self._gather(some)[0].max() > 1 else 1

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens the files for itself; a map would travel as all of its rows.
        return {k: v for k, v in vars(self).items() if k not in ("_maps", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _maps=OrderedDict(), _lock=Lock())


def holds_shards(folder: Path) -> bool:
    """Whether there are shards in a folder, and not images.

    Raises:
        ValueError: There are both.
    """
    shards, images = _shards(folder), image_files(folder)
    if shards and images:
        raise ValueError(
            f"{folder}: both .npy shards ({shards[0].name}) and images ({images[0].name}); put "
            "them into folders of their own"
        )
    return bool(shards)


def _paths(path: Path) -> list[Path]:
    """The files of a folder of shards in their order, or the one file."""
    if path.is_dir():
        if not (found := _shards(path)):
            raise ValueError(f"{path}: no .npy files in it")
        return found
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder; accepted is a .npy or a folder")
    if not _is_npy(path):
        raise ValueError(f"{path}: accepted is a .npy, or a folder of them")
    return [path]


def _shards(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if _is_npy(p) and not p.name.startswith("."))


def _is_npy(path: Path) -> bool:
    return path.suffix.lower() == ".npy" and path.is_file()


def _check(path: Path, array: np.ndarray) -> None:
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: is {array.dtype}, must be real numbers (bool, integer or floating)"
        )
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"{path}: shape {list(array.shape)}, must be [N, *data_shape] and not empty"
        )
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{path}: is in Fortran order, which scatters a row over the whole file; save "
            "np.ascontiguousarray(x)"
        )


def _ask_for(array: np.memmap, starts: np.ndarray, num_bytes: int) -> None:
    """Lets the disk look for all rows at once: one after the other takes 3.5 times as long."""
    mapped, advice = getattr(array, "_mmap", None), getattr(mmap, "MADV_WILLNEED", None)
    if mapped is None or advice is None:
        return
    for start in (starts + array.offset).tolist():
        page = start - start % mmap.PAGESIZE
        mapped.madvise(advice, page, start + num_bytes - page)


def _advise(array: np.memmap, what: str) -> None:
    """Tells the kernel how a map is used, where it can be told."""
    mapped, advice = getattr(array, "_mmap", None), getattr(mmap, what, None)
    if mapped is not None and advice is not None:
        mapped.madvise(advice)
