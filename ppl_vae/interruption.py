"""Ctrl-C and SIGTERM, taken at the end of a step and not in its middle."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interruption", "Terminated", "termination"]


class Terminated(KeyboardInterrupt):
    """SIGTERM, asked for by a scheduler or `kill`; like Ctrl-C, with the exit code 143."""


class Interruption:
    """A context in which the first Ctrl-C or SIGTERM is only noted; a second Ctrl-C stops at once.

    A KeyboardInterrupt inside an optimizer's step would leave parameters and moments of two
    different steps. Further SIGTERMs change nothing: a group of processes may get one from the
    system and one from its leader. Outside the main thread signals cannot be caught, and nothing is
    changed.

    Attributes:
        requested: What is to be raised where the training can be left; none if it may go on.
    """

    def __init__(self) -> None:
        self.requested: type[KeyboardInterrupt] | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        """Takes over the signals."""
        if threading.current_thread() is threading.main_thread():
            self._take(signal.SIGINT)
            # Who has said that SIGTERM is to be ignored has said so of this, too.
            if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
                self._take(signal.SIGTERM)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take(self, number: signal.Signals) -> None:
        previous = signal.signal(number, self._note)
        # None is a handler that was not set from Python, and cannot be set again.
        self._previous[number] = signal.SIG_DFL if previous is None else previous

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            self.requested = self.requested or Terminated
        elif self.requested is None:
            self.requested = KeyboardInterrupt
        else:
            raise KeyboardInterrupt


@contextmanager
def termination() -> Iterator[None]:
    """A context in which SIGTERM raises `Terminated`, once, so that what is begun is put in order.

    Where a handler is set already, or outside the main thread, nothing is changed.
    """
    free = threading.current_thread() is threading.main_thread()
    if not free or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    # A second one would end the putting in order.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated
