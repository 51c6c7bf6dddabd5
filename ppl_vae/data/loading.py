"""`load`: a data set by its name or by the path of the user's own file."""

import difflib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ppl_vae.data.archives import map_npy
from ppl_vae.data.arrays import load_npy, load_npz
from ppl_vae.data.binarization import binarize as binarize_splits
from ppl_vae.data.binarized_mnist import binarized_mnist
from ppl_vae.data.digits import digits
from ppl_vae.data.folders import load_folder
from ppl_vae.data.held_out import split_rows
from ppl_vae.data.mnist import fashion_mnist, mnist
from ppl_vae.data.omniglot import omniglot
from ppl_vae.data.roots import data_root, expanded
from ppl_vae.data.shards import Shards, holds_shards
from ppl_vae.data.splits import Splits
from ppl_vae.data.sprites import sprites

__all__ = ["DESCRIPTIONS", "MAX_LOADED", "NAMES", "load"]

MAX_LOADED = 2**30
"""Bytes as float32 above which a `.npy` stays on the disk: 1 GiB, 342,392 images of 784 values."""

_SOURCES: dict[str, Callable[[Path], Splits]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "binarized_mnist": binarized_mnist,
    "omniglot": omniglot,
    "sprites": sprites,
}

NAMES = tuple(_SOURCES)
"""The names that `load` knows; the function of the same name says what each one is."""

DESCRIPTIONS = {name: (inspect.getdoc(f) or "").split("\n")[0] for name, f in _SOURCES.items()}
"""What each of them is, in a line."""


def load(
    name_or_path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    binarize: Literal["dynamic", "fixed"] | None = None,
) -> Splits:
    """Loads a data set as three disjoint splits of float32 tensors on the CPU.

    What is large stays on the disk: of a folder of `.npy` shards, and of a `.npy` that would take
    more than `MAX_LOADED` as float32, `train` are `Shards`, read as they are trained on, and
    `valid` and `test` are at most 10,000 rows each in memory (`split_rows`).

    A name always means the same rows in the same splits, and under `binarize` the same bits in
    `valid` and `test`: the seeds are part of the data, not of a run, so that two runs are compared
    on the same numbers. To split otherwise, save the splits as `.npz`, or build `Splits`.

    =================  =================================  ===========  ========================
    name               data                               shape        train / valid / test
    =================  =================================  ===========  ========================
    `digits`           scikit-learn's handwritten digits  (1, 8, 8)    1,297 / 250 / 250
    `mnist`            handwritten digits                 (1, 28, 28)  50,000 / 10,000 / 10,000
    `fashion_mnist`    clothing                           (1, 28, 28)  50,000 / 10,000 / 10,000
    `binarized_mnist`  the fixed binarization             (1, 28, 28)  50,000 / 10,000 / 10,000
    `omniglot`         characters, not Burda's version    (1, 28, 28)  17,280 / 2,000 / 13,180
    `sprites`          drawn shapes with their factors    (1, 64, 64)  20,000 / 2,000 / 2,000
    =================  =================================  ===========  ========================

    Args:
        name_or_path: One of `NAMES`; or the path of a `.npz`, of a `.npy`, of a folder of `.npy`
            shards or of a folder of images (a folder that is called like a data set: `./mnist`).
            A `Path` object is always a path.
        root: The folder that holds the named sets' files; by default `$PPL_VAE_DATA`, else
            `ppl_vae` in the user's cache folder. A path to a user's own data does not use it.
        binarize: How grey values in [0, 1] become binary, see `binarize`.

    Returns:
        The splits; those of a user's own data may be empty, except train.

    Raises:
        ValueError: The name is unknown, a file is damaged or holds something unfit, or `binarize`
            does not suit the data.
        FileNotFoundError: The file is missing; the message says where it was looked for and how to
            get it.

    Example:
        >>> load("digits").train.shape
        torch.Size([1297, 1, 8, 8])
    """
    # Before anything is read, so that a misspelt word does not cost a minute.
    if binarize not in (None, "dynamic", "fixed"):
        raise ValueError(f"binarize={binarize!r} is none of None, 'dynamic', 'fixed'")
    if isinstance(name_or_path, str) and name_or_path in _SOURCES:
        return binarize_splits(_SOURCES[name_or_path](data_root(root)), binarize)
    if not isinstance(name_or_path, (str, os.PathLike)) or not str(name_or_path):
        raise ValueError(f"{name_or_path!r} is neither a name, {', '.join(NAMES)}, nor a path")
    return binarize_splits(_load_path(name_or_path), binarize)


def _load_path(given: str | os.PathLike[str]) -> Splits:
    path = expanded(given)
    # Of os, whose answer to what can be no path is no error.
    if os.path.isdir(path):  # noqa: PTH112
        return split_rows(Shards(path)) if holds_shards(path) else load_folder(path)
    suffix = path.suffix.lower()
    if os.path.isfile(path):  # noqa: PTH113
        if suffix not in (".npz", ".npy"):
            raise ValueError(f"{path}: {_ACCEPTED}; this file is {suffix or 'without a suffix'}")
        if suffix == ".npz":
            return load_npz(path)
        is_large = 4 * map_npy(path).size > MAX_LOADED
        return split_rows(Shards(path)) if is_large else load_npy(path)
    if isinstance(given, Path) or path.name != str(given) or suffix:
        raise FileNotFoundError(f"{given}: no such file or folder; {_ACCEPTED}")
    close = difflib.get_close_matches(str(given).lower(), NAMES, n=1)
    hint = f", did you mean {close[0]!r}?" if close else "."
    raise ValueError(
        f"Unknown data set {given!r}{hint} The names are {', '.join(NAMES)}; a path works as well: "
        f"{_ACCEPTED}"
    )


_ACCEPTED = "the user's own data are a .npz, a .npy, a folder of .npy shards or a folder of images"
