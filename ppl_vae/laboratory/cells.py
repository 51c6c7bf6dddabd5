"""One cell of a grid: trained, evaluated, and written down; finished cells are never run again."""

import json
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ppl_vae.data import Splits
from ppl_vae.diagnosis import NonFiniteError
from ppl_vae.evaluate import Estimate
from ppl_vae.laboratory.grid import Cell
from ppl_vae.memory import OutOfMemoryError
from ppl_vae.options import make_options
from ppl_vae.results import evaluate_run
from ppl_vae.runs import Run, load_run
from ppl_vae.training import train
from ppl_vae.writing import WriteError, confined, write_text, writing

__all__ = ["Evaluation", "Measure", "Record", "lost_cell", "read_record", "run_cell"]


#: More figures of a finished run, by name; numbers or estimates.
Measure = Callable[[Run, Splits], Mapping[str, float | Estimate]]


@dataclass(frozen=True)
class Evaluation:
    """On what finished cells are evaluated; see `ppl_vae.results.evaluate_run`.

    Attributes:
        split: `"train"`, `"valid"` or `"test"`.
        num_particles: K of log p(x).
        num_data: How many data, drawn at random; all if none.
        seed: Of what is drawn.
        measures: What gives further figures, of the run and its data. Where cells run in other
            processes, functions of a module, which these can import.
    """

    split: str = "test"
    num_particles: int = 1000
    num_data: int | None = None
    seed: int = 0
    measures: tuple[Measure, ...] = ()

    def described(self) -> dict[str, Any]:
        """As plain data, by which a cell that was evaluated otherwise is known."""
        names = [getattr(measure, "__qualname__", repr(measure)) for measure in self.measures]
        return {**self.asked(), **({"measures": names} if names else {})}

    def asked(self) -> dict[str, Any]:
        """What `evaluate_run` is asked for."""
        return {
            "split": self.split,
            "num_particles": self.num_particles,
            "num_data": self.num_data,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Record:
    """What a cell has come to.

    Attributes:
        labels: What each axis is here.
        options: What was asked for.
        status: `"done"` or `"failed"`.
        error: What a failed one failed of; empty for the others.
        evaluation: On what it was evaluated.
        results: The figures of `results.json`.
        seconds: What the training took.
        num_steps: How many steps were made.
        validations: Of each validation step, seconds and elbo.
    """

    labels: dict[str, str]
    options: dict[str, Any]
    status: str
    error: str = ""
    evaluation: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    seconds: float = math.nan
    num_steps: int = 0
    validations: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether it was trained and evaluated."""
        return self.status == "done"

    def metric(self, name: str) -> float:
        """One of its figures, nan where there is none: a name of `results`, or `a.b` inside it."""
        if name in ("seconds", "num_steps"):
            return float(getattr(self, name)) if self.is_done else math.nan
        value: Any = self.results
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):
            value = next(
                (value[key] for key in ("value", "active", "in_use") if key in value), None
            )
        return float(value) if isinstance(value, int | float) else math.nan

    def elbo_after(self, seconds: float) -> float:
        """The validation elbo of the last validation within so much time; nan before the first."""
        found = [elbo for _, time, elbo in self.validations if time <= seconds]
        return found[-1] if found else math.nan


def run_cell(cell: Cell, folder: Path, evaluation: Evaluation) -> Record:
    """Trains a cell from where it stands, evaluates it, and writes `cell.json`.

    What fails is written down as failed, with its traceback in `error.txt`, and is tried again next
    time. What is done stays as it is; evaluated otherwise than is asked for now, it is evaluated
    anew, and not trained.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was written first.
        WriteError: The disk is full, or cannot be written: for the other cells as well.
    """
    if (before := _done(cell, folder, evaluation)) is not None:
        return before
    with writing(folder):
        confined(folder / "any", folder.parent).parent.mkdir(parents=True, exist_ok=True)
    try:
        record = _run(cell, folder, evaluation)
    except WriteError:
        raise
    except Exception as error:  # Whatever it is, the other cells are to be run.
        write_text(folder / "error.txt", traceback.format_exc())
        record = Record(cell.labels, cell.options, "failed", _said(error), evaluation.described())
    else:
        (folder / "error.txt").unlink(missing_ok=True)
    _write(record, folder)
    return record


def lost_cell(cell: Cell, folder: Path, evaluation: Evaluation, reason: str) -> Record:
    """What a cell has come to whose process ended without a word; failed, unless it was done."""
    if (before := _done(cell, folder, evaluation)) is not None:
        return before
    record = Record(cell.labels, cell.options, "failed", reason, evaluation.described())
    _write(record, folder)
    return record


def read_record(cell: Cell, folder: Path) -> Record | None:
    """What a cell has come to, as far as it has been written down."""
    try:
        found = json.loads((folder / "cell.json").read_text())
        return Record(**{**found, "labels": cell.labels})
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return None


def _done(cell: Cell, folder: Path, evaluation: Evaluation) -> Record | None:
    found = read_record(cell, folder)
    done = found is not None and found.is_done and found.evaluation == evaluation.described()
    return found if done else None


def _write(record: Record, folder: Path) -> None:
    write_text(folder / "cell.json", json.dumps(asdict(record), indent=1) + "\n")


def _said(error: Exception) -> str:
    """A line on what went wrong; only what the user did wrong says it in full by itself."""
    name, message = type(error).__name__, str(error).strip()
    if isinstance(error, ValueError | NonFiniteError | OutOfMemoryError) and message:
        return message
    return f"{name}: {message}" if message else name


def _run(cell: Cell, folder: Path, evaluation: Evaluation) -> Record:
    allow = cell.options.get("allow", ())
    options = make_options(cell.options, allow)
    train(**{**options, "out": str(folder), "resume": True, "progress": False, "report": False})
    run = load_run(folder, allow)
    splits = run.data(options.get("root"))
    asked = evaluation.asked()
    size = len(getattr(splits, evaluation.split, ()))
    if evaluation.num_data is not None and size:
        asked["num_data"] = min(evaluation.num_data, size)
    results = evaluate_run(run, splits, **asked)
    if evaluation.measures:
        results["measures"] = _measured(run, splits, evaluation)
    valid = [line for line in run.metrics if line["split"] == "valid" and "elbo" in line]
    return Record(
        cell.labels,
        cell.options,
        "done",
        evaluation=evaluation.described(),
        results=results,
        seconds=run.metrics[-1]["seconds"],
        num_steps=run.step,
        validations=[(line["step"], line["seconds"], line["elbo"]) for line in valid],
    )


def _measured(run: Run, splits: Splits, evaluation: Evaluation) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for measure in evaluation.measures:
        for name, value in measure(run, splits).items():
            if name in found:
                raise ValueError(f"two measures give {name}; accepted is each name once")
            found[name] = {"value": float(getattr(value, "value", value))}
            if isinstance(value, Estimate):
                found[name]["standard_error"] = float(value.standard_error)
    return found
