"""A folder that one training at a time writes: a lock that ends with its process."""

import errno
import os
import socket
import warnings
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

from ppl_vae.writing import writing

try:
    import fcntl
except ImportError:  # There is none on Windows.
    fcntl = None

__all__ = ["Lock", "LockedError"]

_NAME = ".lock"
_held: "WeakSet[Lock]" = WeakSet()


class LockedError(ValueError):
    """A folder that another training is writing."""


class Lock:
    """Holds a folder for a training of this process, until `close` or the process's end.

    The kernel keeps it (`flock`), so that a kill leaves nothing to clean up: the file `.lock` that
    it is tied to says who holds it, and alone means nothing. Processes that are forked meanwhile
    do not hold it. Reading asks for no lock.

    Args:
        folder: The folder, which must exist.

    Raises:
        LockedError: Another process holds it, or another training of this one.
        WriteError: The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._handle: int | None = None
        if fcntl is not None:
            self._handle = self._taken()
            _held.add(self)

    def close(self) -> None:
        """Gives the folder back."""
        if self._handle is None:
            return
        # While it is held: a file that another one holds by now is not ours to remove.
        with suppress(OSError):
            self._path.unlink()
        self.forget()

    def forget(self) -> None:
        """Closes the file without giving back what another process holds by it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _taken(self) -> int | None:
        assert fcntl is not None
        while True:
            with writing(self._path):
                # Not through a link, which may lead to a file of the user's.
                flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
                handle = os.open(self._path, flags, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_still(handle):
                    break
            except OSError as error:
                holder = _holder(handle)
                os.close(handle)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise LockedError(
                        f"{self._path.parent} is being written by {holder}; wait for its end, end "
                        "it, or name another folder. Evaluations and reports may read it meanwhile"
                    ) from None
                warnings.warn(
                    f"{self._path.parent} is on a file system without locks ({error.strerror}): "
                    "see to it that no other process trains there",
                    stacklevel=2,
                )
                return None
            os.close(handle)
        # Without room for its name it is held all the same.
        with suppress(OSError):
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
        return handle

    def _is_still(self, handle: int) -> bool:
        """Whether the file held is the one of that name; who held it before may have removed it."""
        try:
            return os.path.samestat(os.fstat(handle), self._path.stat())
        except FileNotFoundError:
            return False


def _holder(handle: int) -> str:
    """Who holds a lock, by what its file says."""
    words = os.read(handle, 200).decode(errors="replace").split()
    if len(words) != 2 or not words[0].isdigit():
        return "another process"
    process, host = words
    if host != socket.gethostname():
        return f"process {process} on {host}"
    if int(process) == os.getpid():
        return f"this process itself ({process}), in a training that is not over"
    return f"process {process}"


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
