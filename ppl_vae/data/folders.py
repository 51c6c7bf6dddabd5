"""A folder of the user's own images as `Splits`."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppl_vae.data.arrays import from_arrays, split_at_random
from ppl_vae.data.splits import SPLIT_NAMES, Splits

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SUFFIXES", "image_files", "load_folder"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_GREY_MODES = ("1", "L")
_COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "LA", "CMYK", "YCbCr")


def load_folder(folder: Path) -> Splits:
    """Reads images `[N, C, H, W]`: C = 1 if all are grey, else 3 (any transparency is dropped).

    Three layouts: images in the folder itself; or in sub-folders, which are then the classes,
    numbered in alphabetical order; or either of these inside sub-folders `train` (and `valid`,
    `test`), which are then the splits. Without these the split is 80/10/10 at random by
    `SPLIT_SEED`. Files with other suffixes than `SUFFIXES`, and hidden ones, are passed over.

    Args:
        folder: Holds 8-bit images of one common size.

    Raises:
        ValueError: There are no images, images both beside and inside sub-folders, images of
            different sizes, more than 8 bits, or a damaged file; the message names it.
    """
    children = {child.name for child in _subfolders(folder)}
    has_splits = "train" in children and children <= {*SPLIT_NAMES} and not image_files(folder)
    parts = {name: folder / name for name in SPLIT_NAMES if name in children}
    parts = parts if has_splits else {"train": folder}
    listed = {split: _listed(part) for split, part in parts.items()}

    paths = [path for entries in listed.values() for path, _ in entries]
    images = _read(paths)
    classes = sorted({name for entries in listed.values() for _, name in entries if name})
    number = {name: index for index, name in enumerate(classes)}
    x, labels, start = {}, {}, 0
    for split, entries in listed.items():
        x[split] = images[start : start + len(entries)]
        start += len(entries)
        if all(name for _, name in entries):
            labels[split] = np.array([number[name] for _, name in entries])
    if has_splits:
        return from_arrays(x, labels, name=str(folder))
    return split_at_random(x["train"], labels.get("train"), name=str(folder))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(c for c in folder.iterdir() if c.is_dir() and not c.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """The images in the folder itself, by name."""
    return sorted(
        child
        for child in folder.iterdir()
        if child.suffix.lower() in SUFFIXES and child.is_file() and not child.name.startswith(".")
    )


def _listed(folder: Path) -> list[tuple[Path, str | None]]:
    """Image paths with the names of their classes, `None` where there are no classes."""
    here: list[tuple[Path, str | None]] = [(path, None) for path in image_files(folder)]
    inside: list[tuple[Path, str | None]] = [
        (path, child.name) for child in _subfolders(folder) for path in image_files(child)
    ]
    if here and inside:
        raise ValueError(
            f"{folder}: images both in the folder itself ({here[0][0].name}) and in sub-folders "
            f"({inside[0][1]}/{inside[0][0].name}); put all of them into one kind of place"
        )
    if not here and not inside:
        raise ValueError(
            f"{folder}: no images in it or in its sub-folders; looked for {', '.join(SUFFIXES)}"
        )
    return here or inside


def _read(paths: list[Path]) -> np.ndarray:
    """The images as uint8 `[N, C, H, W]`."""
    opened = [_read_one(path) for path in paths]
    mode = "L" if all(image.mode in _GREY_MODES for image in opened) else "RGB"
    for path, image in zip(paths, opened, strict=True):
        if image.size != opened[0].size:
            raise ValueError(
                f"{path}: {image.width} x {image.height} pixels, but {paths[0].name} has "
                f"{opened[0].width} x {opened[0].height}; all images must be of one size"
            )
    images = np.stack([np.asarray(image.convert(mode)) for image in opened])  # [N, H, W(, C)]
    return images[:, None] if mode == "L" else images.transpose(0, 3, 1, 2)


def _read_one(path: Path) -> "Image":
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    # Pillow's readers of damaged files raise SyntaxError and ValueError beside OSError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error
    if image.mode not in _GREY_MODES + _COLOUR_MODES:
        raise ValueError(
            f"{path}: its pixels are {image.mode!r}, not 8 bits each; save it with 8 bits, or all "
            "images as one .npy array"
        )
    return image
