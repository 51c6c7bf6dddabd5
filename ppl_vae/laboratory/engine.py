"""Cells run on this machine, one after the other or several at once."""

from collections.abc import Generator, Sequence
from pathlib import Path

from ppl_vae.laboratory.cells import Evaluation, Record, run_cell
from ppl_vae.laboratory.grid import Cell
from ppl_vae.laboratory.workers import run_in_workers

__all__ = ["run_all"]


def run_all(
    cells: Sequence[Cell], folder: Path, evaluation: Evaluation, num_workers: int = 1
) -> Generator[tuple[int, Record], None, None]:
    """Runs cells, and gives each one's number and record as it ends.

    A cell whose process is killed is given as failed; the others are run all the same. To be closed
    where it is left early: the cells under way then write checkpoints.

    Args:
        cells: The cells; each is written to a folder of its own in `folder`.
        folder: Where.
        evaluation: On what they are evaluated.
        num_workers: How many processes; each has one thread where there are several.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the cells under way have written checkpoints.
        WriteError: The disk is full, or cannot be written.
    """
    tasks = [(cell, folder / cell.name, evaluation) for cell in cells]
    if num_workers == 1:
        for index, task in enumerate(tasks):
            yield index, run_cell(*task)
        return
    yield from run_in_workers(tasks, num_workers)
