"""Comparing by training: the same data and steps, one thing or several varied, repeated by seed."""

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from ppl_vae import page, plots
from ppl_vae.interruption import termination
from ppl_vae.laboratory import figures
from ppl_vae.laboratory.cells import Evaluation, Measure, Record, read_record
from ppl_vae.laboratory.comparison import Comparison, metrics_of
from ppl_vae.laboratory.engine import Engine, Local
from ppl_vae.laboratory.grid import Cell, expand
from ppl_vae.laboratory.rendering import as_latex, as_markdown
from ppl_vae.laboratory.tables import as_csv, table_of
from ppl_vae.locking import Lock
from ppl_vae.training import train
from ppl_vae.writing import confined, write_text, writing

__all__ = ["compare", "compare_cells"]

_OPTIONS = sorted(
    set(inspect.signature(train).parameters) - {"out", "resume", "progress", "report"}
)


def compare(
    axes: Mapping[str, Sequence[Any] | Mapping[str, Any]],
    base: Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    baseline: Mapping[str, Any] | None = None,
    split: str = "test",
    num_particles: int = 1000,
    num_data: int | None = None,
    measures: Sequence[Measure] = (),
    num_workers: int = 1,
    engine: Engine | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Trains every cell of a grid, and compares what comes out, with errors over seeds.

    Each cell is `ppl_vae.training.train` with its options: equal steps. Beside the figures at the
    end stands the validation elbo that each had when the fastest training ended: equal time.
    Repeats are the values of the axis `seed`; differences to the baseline are taken repeat by
    repeat.

    The grid can be interrupted, and called again: finished cells are not run again, and the one
    under way goes on from its checkpoint. A cell that fails, or whose process is killed, is shown
    as failed, does not stop the others, and is tried again by the next call. Writes
    `comparison.json`, `cells.csv`, `table.md`, `table.tex`, `figures/` and `index.html`, and each
    run into `cells/`.

    Args:
        axes: For each name of an option of `train` its values, or labels and values: classes,
            instances, `functools.partial`, plain data. A name with dots is an argument of an
            object in the base, `guide.hidden`. A user's own class is written as its import path,
            and needs its module in `allow`. An axis of a name that is no option sets several:
            `{"levels": {"one": {"model": VAE, "guide": MeanFieldGuide}, "two": {...}}}`.
        base: The other options of `train`.
        out: The folder.
        baseline: The values of the row to compare the others with, by axis; the first, where not
            given.
        split: On what to evaluate.
        num_particles: K of the log p(x) of each run.
        num_data: Evaluate on this many data, drawn at random; all if not given.
        measures: Functions of a finished run and its data (`ppl_vae.Run`, `Splits`) that give more
            figures by name, numbers or estimates, to be compared like the others; of a module that
            can be imported, where there are several workers.
        num_workers: How many processes; each with one thread, where there are several.
        engine: What runs the cells: processes of this machine if not given, which alone have
            `num_workers`; or `ppl_vae.laboratory.on_ray.Ray(...)`, with the same results.
        progress: Show a bar; on a terminal, if not given.

    Raises:
        ValueError: An option that `train` does not have, or an axis that cannot be.
        LockedError: Another process is at this grid. A ValueError.
        WriteError: The disk is full, or `out` cannot be written.
        KeyboardInterrupt: Ctrl-C; what is done is written, and the cells under way have written
            checkpoints. `Terminated`, a subclass, for SIGTERM.

    Example:
        >>> from tempfile import mkdtemp
        >>> base = {"data": "digits", "num_steps": 20}
        >>> found = compare({"seed": [0, 1]}, base, out=mkdtemp(), num_particles=10, num_data=50)
        >>> found.rows()[0].num
        2
    """
    sets = [name for name, axis in axes.items() if _is_set(name, axis)]
    for name in (*axes, *(base or {})):
        if name not in sets and name.split(".")[0] not in _OPTIONS:
            raise ValueError(f"there is no option {name}; accepted are {', '.join(_OPTIONS)}")
    cells = expand(axes, base or {}, sets)
    chosen = _baseline(cells, baseline or {})
    evaluation = Evaluation(split, num_particles, num_data, measures=tuple(measures))
    return compare_cells(
        cells, out, evaluation, baseline=chosen, num_workers=num_workers, engine=engine,
        progress=progress,
    )  # fmt: skip


def compare_cells(
    cells: Sequence[Cell],
    out: str | Path,
    evaluation: Evaluation,
    *,
    baseline: Mapping[str, str] | None = None,
    num_workers: int = 1,
    engine: Engine | None = None,
    progress: bool | None = None,
) -> Comparison:
    """As `compare`, of cells that are made already, all of the same axes.

    Args:
        cells: What is to be trained.
        out: The folder.
        evaluation: On what to evaluate.
        baseline: As `compare`.
        num_workers: As `compare`.
        engine: As `compare`.
        progress: As `compare`.

    Raises:
        ValueError: `num_workers` is below 1, or not 1 beside an engine.
        LockedError: As `compare`.
        WriteError: As `compare`.
        KeyboardInterrupt: As `compare`.
    """
    if engine is None:
        engine = Local(num_workers)
    elif num_workers != 1:
        raise ValueError(
            f"num_workers is {num_workers}, which is of this machine's processes; accepted beside "
            f"the engine {type(engine).__name__} is 1"
        )
    if baseline is not None:
        baseline = _baseline(cells, baseline)
    out = Path(out)
    folder = out / "cells"
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        confined(folder / "any", out).parent.mkdir(exist_ok=True)
    records: dict[int, Record] = {}
    disable = None if progress is None else not progress
    bar = tqdm(total=len(cells), disable=disable, unit="cell", dynamic_ncols=True)

    def comparison() -> Comparison:
        found = [records[i] for i in sorted(records)]
        base = dict(baseline or cells[0].labels)
        missing = len(cells) - len(found)
        return Comparison(list(cells[0].labels), found, base, metrics_of(found), missing)

    with closing(Lock(out)), termination():
        try:
            with bar, closing(engine.run(cells, folder, evaluation)) as ended:
                for index, record in ended:
                    records[index] = record
                    bar.update()
                    if not record.is_done:
                        bar.write(f"failed: {', '.join(record.labels.values())}: {record.error}")
        except KeyboardInterrupt as stop:
            for index, cell in enumerate(cells):
                before = read_record(cell, folder / cell.name)
                if before is not None and before.is_done:
                    records.setdefault(index, before)
            if records:
                _write(comparison(), cells, out)
            done = sum(record.is_done for record in records.values())
            raise type(stop)(
                f"{done} of {len(cells)} cells are done; the same command goes on in {out}"
            ) from None
        found = comparison()
        _write(found, cells, out)
        return found


def _is_set(name: str, axis: Any) -> bool:
    """Whether an axis is no option, and sets several instead."""
    if name.split(".")[0] in _OPTIONS or not (isinstance(axis, Mapping) and axis):
        return False
    for label, options in axis.items():
        known = isinstance(options, Mapping) and all(o.split(".")[0] in _OPTIONS for o in options)
        if not known:
            raise ValueError(
                f"the axis {name} is no option, and its value {label} is {options!r}; accepted are "
                f"mappings of options to their values, of the options {', '.join(_OPTIONS)}"
            )
    return True


def _baseline(cells: Sequence[Cell], asked: Mapping[str, Any]) -> dict[str, str]:
    """The labels of the first cell that is as asked."""
    wanted = {name: str(value) for name, value in asked.items()}
    for cell in cells:
        if all(cell.labels.get(name) == label for name, label in wanted.items()):
            return dict(cell.labels)
    there = {name: list(dict.fromkeys(c.labels[name] for c in cells)) for name in cells[0].labels}
    raise ValueError(f"baseline is {wanted}, which is no cell of the grid; accepted are {there}")


def _write(comparison: Comparison, cells: Sequence[Cell], out: Path) -> None:
    """All files; the page last."""
    shown = [metric for metric in comparison.metrics if metric != "seconds"][:1]
    drawn: list[tuple[str, str, str, Any]] = []
    if any(record.is_done for record in comparison.records):
        for metric in shown:
            drawn.append(("dots", "Every row", _DOTS, figures.dots(comparison, metric)))
            drawn.append(
                ("pareto", "Nats against cost", _PARETO, figures.pareto(comparison, metric))
            )
        if (figure := figures.curves(comparison)) is not None:
            drawn.append(("curves", "Against time", _CURVES, figure))
    pictures = []
    for name, title, caption, figure in drawn:
        path = plots.save(figure, confined(out / "figures" / f"{name}.png", out))
        pictures.append(page.Picture(title, caption, path.read_bytes()))
    write_text(out / "comparison.json", json.dumps(_as_data(comparison), indent=1) + "\n")
    write_text(out / "cells.csv", as_csv(comparison))
    table = table_of(comparison)
    write_text(out / "table.md", as_markdown(table))
    write_text(out / "table.tex", as_latex(table))
    axes = comparison.axes
    varied = {n: ", ".join(dict.fromkeys(cell.labels[n] for cell in cells)) for n in axes}
    page.write(
        out / "index.html",
        title="Comparison by training",
        verdict=f"{len(comparison.records)} of {len(cells)} cells.",
        summary={},
        pair=varied,
        config=yaml.safe_dump(cells[0].options, sort_keys=False),
        results={},
        figures=pictures,
        notes=table.remarks,
        table=page.Table(table.headings, table.rows, table.num_labels),
    )


def _as_data(comparison: Comparison) -> dict[str, Any]:
    return {
        "axes": comparison.axes,
        "baseline": comparison.baseline,
        "metrics": comparison.metrics,
        "missing": comparison.missing,
        "equal_time": comparison.equal_time,
        "rows": [asdict(row) for row in comparison.rows()],
        "cells": [asdict(record) for record in comparison.records],
    }


_DOTS = (
    "Black: mean over repeats with a bar of two standard errors; red: the baseline; grey: repeats."
)
_PARETO = (
    "Mean over repeats, with bars of one standard error. Rows on the red line are beaten by no "
    "other in both; they are numbered."
)
_CURVES = (
    "The validation elbo against the seconds of training, mean over repeats; the best ten rows."
)
