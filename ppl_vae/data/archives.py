"""Reading `.npz` and `.npy` files, never through pickle, with messages that name the file."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

__all__ = ["map_npy", "read_npy", "read_npz"]

_DAMAGE = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, SyntaxError)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive, by name.

    Args:
        path: A `.npz` file of plain arrays.

    Raises:
        ValueError: The file is damaged, is not an archive, or an array holds Python objects (which
            only pickle could read, and pickle runs whatever code the file brings).
    """
    arrays = {}
    key = None
    try:
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array; name it .npy")
            with archive:
                for key in archive.files:
                    arrays[key] = archive[key]
    except _DAMAGE as error:
        raise _unreadable(path, error, key) from error
    return arrays


def read_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file; raises as `read_npz` does."""
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
            if isinstance(array, np.lib.npyio.NpzFile):
                raise ValueError("it is an archive of several arrays; name it .npz")
    except _DAMAGE as error:
        raise _unreadable(path, error, None) from error
    return array


def map_npy(path: Path) -> np.memmap:
    """The array of a `.npy` file, left on the disk; raises as `read_npz` does.

    The file must not change while the array is in use: what is cut off below it kills the process.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.memmap):
            raise ValueError("it is an archive of several arrays; name it .npz")
    except _DAMAGE as error:
        raise _unreadable(path, error, None) from error
    return array


def _unreadable(path: Path, error: Exception, key: str | None) -> ValueError:
    if "Object arrays" in str(error) or "Python objects" in str(error):
        which = f"the array {key!r}" if key else "the array"
        return ValueError(
            f"{path}: {which} holds Python objects, which only pickle could read, and pickle is "
            "refused; save plain numbers, array.astype(np.float32) for instance"
        )
    # np.load takes whatever it does not recognize for a pickle, and says so, misleadingly.
    reason = "not a NumPy file" if "pickle" in str(error) else str(error) or type(error).__name__
    return ValueError(f"{path}: cannot be read, it is damaged or of another kind ({reason})")
