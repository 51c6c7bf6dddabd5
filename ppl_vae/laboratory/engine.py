"""Cells run on this machine, one after the other or several at once."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import torch

from ppl_vae.laboratory.cells import Evaluation, Record, run_cell
from ppl_vae.laboratory.grid import Cell

__all__ = ["run_all"]


def run_all(
    cells: Sequence[Cell], folder: Path, evaluation: Evaluation, num_workers: int = 1
) -> Iterator[tuple[int, Record]]:
    """Runs cells, and gives each one's number and record as it ends.

    Args:
        cells: The cells; each is written to a folder of its own in `folder`.
        folder: Where.
        evaluation: On what they are evaluated.
        num_workers: How many processes; each has one thread where there are several.

    Raises:
        KeyboardInterrupt: Ctrl-C; the cells under way have written checkpoints.
    """
    tasks = [(cell, folder / cell.name, evaluation) for cell in cells]
    if num_workers == 1:
        for index, task in enumerate(tasks):
            yield index, run_cell(*task)
        return
    context = get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_begin)
    try:
        futures = {pool.submit(run_cell, *task): index for index, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """What each worker does first."""
    # Threads of several processes on the same cores wait for each other.
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent says nothing; its workers would go on where the next call goes on, too."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
