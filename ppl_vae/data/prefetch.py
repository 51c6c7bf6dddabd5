"""The next items of an iterator, made ready in a thread."""

import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["Prefetch"]

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Items in their order, made ahead of whoever takes them.

    The thread ends when it is closed, when the iterator ends or fails, and when nobody holds this
    object any more.

    Args:
        items: What to run ahead in; from here on only the thread touches it.
        num_ahead: How many items may wait, >= 1; one more is in the making.
    """

    def __init__(self, items: Iterator[T], num_ahead: int) -> None:
        self._made: queue.Queue = queue.Queue(num_ahead)
        self._stopped = threading.Event()
        # Not a method, which would keep this object, and so the thread, alive for good.
        arguments = (items, self._made, self._stopped)
        self._thread = threading.Thread(
            target=_make, args=arguments, name="ppl_vae prefetch", daemon=True
        )
        self.close = weakref.finalize(self, _stop, self._thread, self._made, self._stopped)
        self._thread.start()

    def next(self) -> T:
        """The next item, as soon as it is there.

        Raises:
            StopIteration: There is none.
            RuntimeError: This is closed.
            BaseException: Whatever the iterator raised, as it was raised.
        """
        if not self.close.alive:
            raise RuntimeError("the prefetch is closed")
        try:
            item, error = self._made.get()
        except BaseException:  # Ctrl-C, while waiting
            self.close()
            raise
        if error is not None:
            self.close()
            raise error
        return item


def _make(items: Iterator, made: queue.Queue, stopped: threading.Event) -> None:
    try:
        for item in items:
            made.put((item, None))
            if stopped.is_set():
                return
        made.put((None, StopIteration()))
    except BaseException as error:  # to be raised where somebody waits for it
        made.put((None, error))


def _stop(thread: threading.Thread, made: queue.Queue, stopped: threading.Event) -> None:
    stopped.set()
    # One place is enough: whoever waits for it puts a last item, and sees that it is to stop.
    while True:
        try:
            made.get_nowait()
        except queue.Empty:
            break
    if thread is not threading.current_thread():
        thread.join()
