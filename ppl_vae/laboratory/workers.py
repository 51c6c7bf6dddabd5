"""Processes that run cells, each known by the cell it is at, so that one may die alone.

A worker takes one cell after the other. That one was killed is seen at once, and said of its cell;
another process takes its place.
"""

import os
import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from ppl_vae.interruption import termination
from ppl_vae.laboratory.cells import Evaluation, Record, lost_cell, run_cell
from ppl_vae.laboratory.grid import Cell

__all__ = ["run_in_workers"]

Task = tuple[Cell, Path, Evaluation]

# What a worker says when it can take its first cell.
_READY = "ready"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_in_workers(
    tasks: Sequence[Task], num_workers: int
) -> Generator[tuple[int, Record], None, None]:
    """Runs cells in processes of one thread each; see `ppl_vae.laboratory.engine.run_all`."""
    waiting = deque(enumerate(tasks))
    workers = list[_Worker]()
    try:
        for _ in range(min(num_workers, len(tasks))):
            workers.append(_Worker())
        while workers:
            for worker in _heard(workers):
                ended = ""
                said = worker.said()
                index, worker.index = worker.index, None
                if isinstance(said, Exception):
                    raise said
                if waiting and said is not None:
                    worker.take(*waiting.popleft())
                else:
                    workers.remove(worker)
                    ended = worker.end()
                    if said is None and index is None:
                        raise RuntimeError(
                            f"a process of the grid could not begin: {ended}. In a script, what "
                            "calls `compare` belongs below `if __name__ == '__main__':`"
                        )
                    if waiting:
                        workers.append(_Worker())
                if index is not None:
                    yield index, said or lost_cell(*tasks[index], ended)
    finally:
        # Of what is under way each writes a checkpoint at the end of its step.
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()


class _Worker:
    """A process, and the number of the cell that it is at."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,))
        self.index: int | None = None
        with _held_back():
            self.process.start()
        theirs.close()

    def take(self, index: int, task: Task) -> None:
        """Gives it a cell."""
        self.index = index
        # A process that is dead by now is found so by `said`.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(task)

    def said(self) -> Any:
        """A record, what ended a cell, or that it is ready; none if it has ended without a word."""
        try:
            return self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):
            return None

    def end(self) -> str:
        """Lets it end, and waits for that; in what way it has."""
        self.connection.close()
        self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "a signal"
        said = f"its process was killed by signal {-code} ({name})"
        # The only one that the system itself sends.
        return f"{said}, as it is where memory runs out" if -code == signal.SIGKILL else said


def _heard(workers: Sequence[_Worker]) -> list[_Worker]:
    """Those that have said something, or have ended; waits for one."""
    ready = wait([*(w.connection for w in workers), *(w.process.sentinel for w in workers)])
    return [w for w in workers if w.connection in ready or w.process.sentinel in ready]


def _work(connection: Connection) -> None:
    """What a worker does."""
    # Ctrl-C reaches it by its parent, as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Threads of several processes on the same cores wait for each other.
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()
    with suppress(KeyboardInterrupt, EOFError, BrokenPipeError), termination():
        _let_through()
        connection.send(_READY)
        while True:
            task = connection.recv()
            try:
                said = run_cell(*task)
            except Exception as error:
                said = error
            connection.send(said)


@contextmanager
def _held_back() -> Iterator[None]:
    """Signals wait; a process that is begun here inherits that, until it can take them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _let_through() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _end_with_parent() -> None:
    """A killed parent says nothing; its workers would go on where the next call goes on, too."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
