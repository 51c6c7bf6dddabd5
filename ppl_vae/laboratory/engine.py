"""What runs the cells of a grid: this machine's processes, or an engine of many machines."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ppl_vae.laboratory.cells import Evaluation, Record, run_cell
from ppl_vae.laboratory.grid import Cell
from ppl_vae.laboratory.workers import run_in_workers

__all__ = ["Engine", "Local"]


class Engine(Protocol):
    """What runs cells; see `Local`, and `ppl_vae.laboratory.on_ray.Ray`."""

    def run(
        self, cells: Sequence[Cell], folder: Path, evaluation: Evaluation
    ) -> Generator[tuple[int, Record], None, None]:
        """Runs cells, and gives each one's number and record as it ends.

        A cell whose process is killed is given as failed, or is run again; the others are run all
        the same. To be closed where it is left early: the cells under way then write checkpoints.

        Args:
            cells: The cells; each is written to a folder of its own in `folder`.
            folder: Where.
            evaluation: On what they are evaluated.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; the cells under way have written checkpoints.
            WriteError: The disk is full, or cannot be written.
        """
        ...


@dataclass(frozen=True)
class Local:
    """Cells run on this machine, one after the other or several at once.

    Args:
        num_workers: How many processes; each has one thread where there are several.

    Raises:
        ValueError: `num_workers` is less than 1.
    """

    num_workers: int = 1

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers is {self.num_workers}; accepted is >= 1")

    def run(
        self, cells: Sequence[Cell], folder: Path, evaluation: Evaluation
    ) -> Generator[tuple[int, Record], None, None]:
        """As `Engine.run`."""
        tasks = [(cell, folder / cell.name, evaluation) for cell in cells]
        if self.num_workers == 1:
            for index, task in enumerate(tasks):
                yield index, run_cell(*task)
            return
        yield from run_in_workers(tasks, self.num_workers)
