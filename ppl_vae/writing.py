"""Files written whole or not at all, and never through a link; what is said where that fails."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "WriteError",
    "append_text",
    "confined",
    "file_name",
    "remove",
    "write_bytes",
    "write_text",
    "writing",
]

_REASONS = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EFBIG: ("the file would be too large", "make room"),
    errno.EROFS: ("the file system is read-only", "make it writable"),
    errno.EACCES: ("that is not permitted", "make it writable"),
    errno.EPERM: ("that is not permitted", "make it writable"),
    errno.ELOOP: ("it is a link", "remove it"),
}
_MAX_NAME = 100


class WriteError(OSError):
    """What could not be written, why, and what to do; what was there before is whole."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context in which a file or folder is written.

    Args:
        path: What the message names.

    Raises:
        WriteError: In the place of any other OSError, with its `errno`.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        reason, advice = _REASONS.get(
            error.errno or 0, (error.strerror or str(error), "put that right")
        )
        found = WriteError(
            f"{path} cannot be written: {reason}. What was there before is whole; {advice}, then "
            "resume, or repeat the command"
        )
        found.errno = error.errno
        raise found from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, making its folder.

    A link of this name is replaced, and what it points to is left alone.

    Raises:
        WriteError: The disk is full, or the folder cannot be written; the old file stays.
    """
    # Of its own process: two that write the same file do not move each other's halves.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Left by a kill, or by a stranger as a link to a file that is to be overwritten.
            part.unlink(missing_ok=True)
            _write(part, content, os.O_CREAT | os.O_EXCL)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file of text as `write_bytes` does, in UTF-8."""
    write_bytes(path, text.encode())


def append_text(path: Path, text: str) -> None:
    """Adds text to the end of a file, which is made if there is none.

    Raises:
        WriteError: As `write_bytes`; or the file is a link.
    """
    with writing(path):
        _write(path, text.encode(), os.O_CREAT | os.O_APPEND, lasts=False)


def confined(path: Path, root: Path) -> Path:
    """The same path, if it lies inside of `root` with all links followed but that of its own name.

    Raises:
        WriteError: It leads out of there.
    """
    with writing(path):
        folder, inside = path.parent.resolve(), root.resolve()
    if path.name in ("", "..") or not folder.is_relative_to(inside):
        raise WriteError(
            f"{path} is not written, for it leads out of {root}, to {folder}; accepted are files "
            "and folders inside of it, no links to elsewhere"
        )
    return path


def file_name(words: str) -> str:
    """Words as the name of a file: without separators, dots in front, or excessive length.

    Example:
        >>> file_name("latents_z1"), file_name("../../etc/x y")
        ('latents_z1', '_.._etc_x y')
    """
    plain = re.sub(r"[/\\\x00-\x1f]", "_", words).lstrip(".")
    return plain[:_MAX_NAME] or "_"


def remove(folder: Path) -> None:
    """Removes a folder with all that is in it; of a link only the link."""
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, content: bytes, flags: int, *, lasts: bool = True) -> None:
    flags |= os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        if lasts:
            os.fsync(file.fileno())
