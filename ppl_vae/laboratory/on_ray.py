"""Cells run by Ray, on this machine or on a cluster whose nodes share its file system."""

import math
import os
import socket
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ppl_vae.laboratory.cells import Evaluation, Record, lost_cell, run_cell
from ppl_vae.laboratory.grid import Cell
from ppl_vae.locking import Lock, LockedError

__all__ = ["Ray"]

# How long a cell waits for what is left of its first attempt, on a node that is going down.
_PATIENCE = 60.0
# How long to wait, where the grid is left, for the checkpoints of the cells under way.
_FAREWELL = 60.0
_KNOCKING = 10.0


@dataclass(frozen=True)
class Ray:
    """Cells as Ray tasks.

    A cell whose process or node is lost is begun again elsewhere and goes on from its checkpoint.
    All nodes see the folder of the grid, the data, and the folder that this process runs in, under
    the same names; a user's modules are found where this process finds them.

    Args:
        address: Of a cluster that is up, `"auto"` for that of this machine, `"host:port"`; a new
            one of this machine alone, which ends with the grid, if not given. In a process that has
            called `ray.init` its cluster is taken.
        num_cpus: Cores of a cell, for Ray to reckon with; its threads are as many, 1 at least.
            0.5 lets two cells share one.
        num_gpus: GPUs of a cell; 0.25 lets four share one. With 0 it sees none.
        num_retries: How often a cell is begun again that is lost.

    Raises:
        ValueError: A number that cannot be, or Ray is not installed.

    Example:
        >>> engine = Ray(num_cpus=0.5)  # doctest: +SKIP
        >>> compare({"seed": [0, 1]}, base, out="sweep", engine=engine)  # doctest: +SKIP
    """

    address: str | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    num_retries: int = 3

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus", "num_retries"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; accepted is >= 0")
        for name in ("num_cpus", "num_gpus"):
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise ValueError(f"{name} is {value}; accepted is a whole number, or less than 1")
        if find_spec("ray") is None:
            raise ValueError('engine is ray, but Ray is not installed; pip install "ppl_vae[ray]"')

    def run(
        self, cells: Sequence[Cell], folder: Path, evaluation: Evaluation
    ) -> Generator[tuple[int, Record], None, None]:
        """As `Engine.run`.

        Raises:
            ValueError: No node of the cluster has what a cell needs.
            ConnectionError: There is no cluster at the address.
        """
        import ray

        begun = self._connected()
        try:
            self._check_resources()
            task = ray.remote(
                num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=self.num_retries
            )(_run)
            place = _Place.of_this_process()
            folder = folder.resolve()
            tasks = [(cell, folder / cell.name, evaluation) for cell in cells]
            waiting = {
                task.remote(*one, place, max(1, int(self.num_cpus))): i
                for i, one in enumerate(tasks)
            }
            try:
                while waiting:
                    for done in ray.wait(list(waiting))[0]:
                        index = waiting.pop(done)
                        yield index, _ended(done, tasks[index])
            finally:
                _leave(list(waiting))
        finally:
            if begun:
                ray.shutdown()

    def _connected(self) -> bool:
        """Reaches the cluster; whether that has to be ended again."""
        import ray

        if ray.is_initialized():
            return False
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if self.address is None:
            # It is nobody else's, and reports to nobody.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # Ray's own is 15: its tasks would wait for whatever else runs here.
            os.environ.setdefault("RAY_worker_niceness", "0")
            options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        try:
            if self.address is not None:
                _knock(self.address)
            ray.init(address=self.address or "local", **options)
        except OSError as error:
            raise ConnectionError(
                f"there is no Ray cluster at {self.address}: {str(error).splitlines()[0]}. Begin "
                "one by `ray start --head`, or leave the address out for one of this machine"
            ) from None
        return True

    def _check_resources(self) -> None:
        """Ray would wait for a node that is large enough, for ever if need be."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        if not any(all(node.get(k, 0) >= v for k, v in wanted.items()) for node in nodes):
            there = "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes)
            raise ValueError(
                f"a cell needs {self.num_cpus:g} CPU and {self.num_gpus:g} GPU, and no node of the "
                f"Ray cluster has them; there are: {there}"
            )


def _knock(address: str) -> None:
    """Sees whether anybody answers there, for which Ray itself would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        with closing(socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCKING)):
            pass


@dataclass(frozen=True)
class _Place:
    """Where a process finds what is named: files, modules, data."""

    folder: str
    modules: list[str]
    data: str | None

    @classmethod
    def of_this_process(cls) -> "_Place":
        data = os.environ.get("PPL_VAE_DATA")
        here = Path.cwd()
        modules = [str(here / path) for path in sys.path]
        return cls(str(here), modules, None if data is None else str(here / data))

    def enter(self) -> None:
        os.chdir(self.folder)
        sys.path.extend(path for path in self.modules if path not in sys.path)
        if self.data is not None:
            os.environ["PPL_VAE_DATA"] = self.data


def _run(cell: Cell, folder: Path, evaluation: Evaluation, place: _Place, threads: int) -> Record:
    """What a task does, in a process of Ray's."""
    place.enter()
    torch.set_num_threads(threads)
    _wait_for(folder)
    return run_cell(cell, folder, evaluation)


def _wait_for(folder: Path) -> None:
    """Until nobody writes the folder: a lost node's process may outlive it by a moment."""
    end = time.monotonic() + _PATIENCE
    while folder.is_dir() and time.monotonic() < end:
        try:
            with closing(Lock(folder)):
                return
        except LockedError:
            time.sleep(0.5)


def _ended(done: Any, task: tuple[Cell, Path, Evaluation]) -> Record:
    """A task's record; where its process was lost too often, one that says so."""
    import ray

    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        # As from a process of this machine: what is wrong for all cells ends the grid.
        raise error.cause from None
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()
        return lost_cell(*task, f"{type(error).__name__}: {said[0] if said else 'lost'}")


def _leave(waiting: list[Any]) -> None:
    """Asks for the end of what is under way, each at the end of its step, and waits for it."""
    import ray

    for task in waiting:
        ray.cancel(task)
    if waiting:
        ray.wait(waiting, num_returns=len(waiting), timeout=_FAREWELL)
