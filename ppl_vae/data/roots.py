"""The folder that holds the data sets' files."""

import os
from pathlib import Path

__all__ = ["data_root"]


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder to look in.

    Args:
        root: Taken as it is (with `~` expanded) unless `None`.

    Returns:
        `root`, else the environment variable `PPL_VAE_DATA`, else `ppl_vae` in the user's cache
        folder (`$XDG_CACHE_HOME`, else `~/.cache`). It need not exist.
    """
    if root is not None:
        return Path(root).expanduser()
    if os.environ.get("PPL_VAE_DATA"):
        return Path(os.environ["PPL_VAE_DATA"]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "ppl_vae"
