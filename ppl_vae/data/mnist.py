"""`mnist` and `fashion_mnist`: 28x28 grey images in ten classes, read by torchvision."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ppl_vae.data.splits import Splits

if TYPE_CHECKING:
    from torchvision.datasets import MNIST

__all__ = ["fashion_mnist", "mnist"]

_FILES = "{train,t10k}-{images-idx3,labels-idx1}-ubyte"
_NUM_VALID = 10_000


def mnist(root: Path) -> Splits:
    """Handwritten digits (LeCun et al., 1998), grey in [0, 1], `(1, 28, 28)`.

    50,000 train, 10,000 valid (the last 10,000 of the official training images) and the official
    10,000 test.

    Args:
        root: Holds `MNIST/raw/`; the files are downloaded into it when they are missing.

    Raises:
        FileNotFoundError: The files are missing and cannot be downloaded.
        ValueError: A file is damaged.
    """
    from torchvision.datasets import MNIST

    return _splits(MNIST, root, "mnist")


def fashion_mnist(root: Path) -> Splits:
    """Pieces of clothing (Xiao et al., 2017): shapes, splits, files and errors as in `mnist`.

    Args:
        root: Holds `FashionMNIST/raw/`.
    """
    from torchvision.datasets import FashionMNIST

    return _splits(FashionMNIST, root, "fashion_mnist")


def _splits(kind: "type[MNIST]", root: Path, name: str) -> Splits:
    x, labels = _read(kind, root, name, train=True)
    x_test, labels_test = _read(kind, root, name, train=False)
    return Splits(
        train=x[:-_NUM_VALID],
        valid=x[-_NUM_VALID:],
        test=x_test,
        labels={"train": labels[:-_NUM_VALID], "valid": labels[-_NUM_VALID:], "test": labels_test},
        label_names=("label",),
        name=name,
    )


def _read(
    kind: "type[MNIST]", root: Path, name: str, train: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The images `[N, 1, 28, 28]` and labels `[N]` of one official part."""
    folder = root / kind.__name__ / "raw"
    try:
        dataset = _open(kind, root, name, folder, train)
    # All that torchvision's parser of damaged files is known to raise.
    except (RuntimeError, ValueError, AssertionError, KeyError, TypeError) as error:
        raise ValueError(f"{name}: a file in {folder} is damaged: {error}; delete it") from error
    num = 60_000 if train else 10_000
    if dataset.data.shape != (num, 28, 28) or dataset.targets.shape != (num,):
        raise ValueError(
            f"{name}: the {'train' if train else 't10k'} files in {folder} hold images "
            f"{list(dataset.data.shape)} and labels {list(dataset.targets.shape)}, "
            f"expected [{num}, 28, 28] and [{num}]"
        )
    return dataset.data.float().div_(255).unsqueeze(1), dataset.targets.long()


def _open(kind: "type[MNIST]", root: Path, name: str, folder: Path, train: bool) -> "MNIST":
    try:
        return kind(root, train=train, download=False)
    except RuntimeError as error:
        if "not found" not in str(error):
            raise
    try:
        return kind(root, train=train, download=True)
    except (RuntimeError, OSError) as error:
        # torchvision's message lists every mirror; its first line is enough to act on.
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
        raise FileNotFoundError(
            f"{name}: no files in {folder}, and they could not be downloaded ({reason}). "
            f"Put the four files {_FILES} there, or give the folder that holds "
            f"{kind.__name__}/raw as root or in the environment variable PPL_VAE_DATA"
        ) from error
