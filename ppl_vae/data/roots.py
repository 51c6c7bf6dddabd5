"""The folder that holds the data sets' files."""

import os
from pathlib import Path

__all__ = ["data_root", "expanded"]


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder to look in.

    Args:
        root: Taken as it is (with `~` expanded) unless `None`.

    Returns:
        `root`, else the environment variable `PPL_VAE_DATA`, else `ppl_vae` in the user's cache
        folder (`$XDG_CACHE_HOME`, else `~/.cache`). It need not exist.
    """
    if root is not None:
        return expanded(root)
    if os.environ.get("PPL_VAE_DATA"):
        return expanded(os.environ["PPL_VAE_DATA"])
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "ppl_vae"


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder in the place of `~`.

    Raises:
        ValueError: It is the home folder of nobody.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no such user; accepted is ~ for one's own") from None
