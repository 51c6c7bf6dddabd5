"""`binarized_mnist`: MNIST binarized once and for all, the classic likelihood benchmark."""

from pathlib import Path

import numpy as np
import torch

from ppl_vae.data.archives import read_npz
from ppl_vae.data.splits import SPLIT_NAMES, Splits

__all__ = ["binarized_mnist"]

_SIZES = {"train": 50_000, "valid": 10_000, "test": 10_000}
_ARCHIVE = "binarized_mnist_packbits.npz"
_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"


def binarized_mnist(root: Path) -> Splits:
    """The fixed binarization by Larochelle after Salakhutdinov and Murray (2008), `(1, 28, 28)`.

    50,000 train, 10,000 valid and 10,000 test images of zeros and ones, in another order than
    `mnist`, without labels.

    Args:
        root: Holds `BinarizedMNIST/`, and in it either `binarized_mnist_packbits.npz` (keys train,
            valid, test: `np.packbits(rows, axis=1)`, uint8 `[N, 98]`) or the three original text
            files `binarized_mnist_{train,valid,test}.amat`.

    Raises:
        FileNotFoundError: Neither is there.
        ValueError: A file is damaged.
    """
    folder = root / "BinarizedMNIST"
    texts = {split: folder / f"binarized_mnist_{split}.amat" for split in SPLIT_NAMES}
    if (folder / _ARCHIVE).is_file():
        rows = _from_archive(folder / _ARCHIVE)
    elif all(path.is_file() for path in texts.values()):
        rows = {split: _from_text(path, _SIZES[split]) for split, path in texts.items()}
    else:
        raise FileNotFoundError(
            f"binarized_mnist: {folder} holds neither {_ARCHIVE} nor the three files "
            f"binarized_mnist_{{train,valid,test}}.amat; get the latter from {_URL}, or give the "
            "folder that holds BinarizedMNIST as root or in the environment variable PPL_VAE_DATA"
        )
    images = {
        split: torch.from_numpy(x.reshape(-1, 1, 28, 28)).float() for split, x in rows.items()
    }
    return Splits(**images, name="binarized_mnist", binarize="fixed")


def _from_archive(path: Path) -> dict[str, np.ndarray]:
    packed = read_npz(path)
    for split, size in _SIZES.items():
        array = packed.get(split)
        if array is None or array.shape != (size, 98) or array.dtype != np.uint8:
            found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{path}: {split} must be uint8 [{size}, 98], found {found}")
    return {
        split: np.unpackbits(packed[split]).reshape(size, 784) for split, size in _SIZES.items()
    }


def _from_text(path: Path, size: int) -> np.ndarray:
    """Rows of `0 1 ... 0` and a line feed, 784 digits each: two bytes per pixel, no more."""
    text = np.fromfile(path, dtype=np.uint8)
    if text.size != size * 784 * 2:
        raise ValueError(f"{path}: {text.size} bytes, expected {size * 784 * 2} ({size} rows)")
    values = text[::2] - ord("0")  # wraps around below "0", so one comparison finds every stranger
    if values.max() > 1:
        raise ValueError(f"{path}: holds something else than 784 zeros and ones in a row")
    return values.reshape(size, 784)
