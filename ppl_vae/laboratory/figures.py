"""The figures of a comparison: who is how good, at what cost, and how they came there."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ppl_vae.laboratory.comparison import Comparison, Row
from ppl_vae.plots.look import CLASSES, FAINT, GREY, INK, TEXT_WIDTH, VERMILION, legend, look, plain

__all__ = ["curves", "dots", "frontier", "pareto"]


@look()
def dots(comparison: Comparison, metric: str) -> Figure:
    """A metric of every row: mean, a bar of two standard errors to each side, and each repeat."""
    rows = comparison.rows()
    figure = Figure(figsize=(TEXT_WIDTH, 0.8 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        for value in _repeats(comparison, row, metric):
            axes.plot(value, y, "o", ms=3, mew=0, color=FAINT, zorder=2)
        found = row.metrics[metric]
        color = INK if row.paired else VERMILION
        axes.plot(found.value, y, "o", ms=5, mew=0, color=color, zorder=4)
        if not math.isnan(found.standard_error):
            reach = 2 * found.standard_error
            axes.hlines(y, found.value - reach, found.value + reach, color=color, lw=1.2, zorder=3)
    axes.set_yticks(range(len(rows)), [plain(row.short_name) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(_title(metric))
    return figure


@look()
def pareto(comparison: Comparison, metric: str) -> Figure:
    """A metric against the seconds of training; those that nobody beats in both are numbered."""
    rows = [row for row in comparison.rows() if not math.isnan(row.metrics[metric].value)]
    best = frontier(rows, metric)
    figure = Figure(figsize=(TEXT_WIDTH, 3.4 + 0.17 * len(best)), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        x, y = row.metrics["seconds"], row.metrics[metric]
        color = INK if row in best else GREY
        axes.errorbar(x.value, y.value, xerr=_error(x), yerr=_error(y), fmt="o", ms=4, mew=0,
                      lw=0.8, color=color, zorder=3 if row in best else 2)  # fmt: skip
    line = [(row.metrics["seconds"].value, row.metrics[metric].value) for row in best]
    axes.step(*zip(*line, strict=True), where="post", color=VERMILION, lw=1, zorder=1)
    for number, place in enumerate(line, 1):
        axes.annotate(f"{number}", place, xytext=(-5, 4), textcoords="offset points", ha="right")
    # Names of programs are long, and points may be near each other.
    style = {"lw": 0, "color": INK, "ms": 5}
    numbers = [Line2D([], [], marker=f"${i + 1}$", **style) for i in range(len(best))]
    names = [plain(row.short_name) for row in best]
    figure.legend(numbers, names, loc="outside lower left", fontsize=8)
    axes.margins(x=0.1)
    seconds = [row.metrics["seconds"].value for row in rows]
    if max(seconds) > 5 * min(seconds):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("seconds of training, mean over repeats")
    axes.set_ylabel(_title(metric))
    return figure


@look()
def curves(comparison: Comparison, most: int = 10) -> Figure | None:
    """The validation elbo against time, mean over repeats, of the best rows that have any."""
    rows = [row for row in comparison.rows() if len(_curve(comparison, row)[0]) > 1]
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: -_curve(comparison, row)[1][-1])[:most]
    figure = Figure(figsize=(TEXT_WIDTH, 3.2 + 0.2 * len(rows)), layout="constrained")
    axes = figure.subplots()
    color = {row.short_name: CLASSES[i % len(CLASSES)] for i, row in enumerate(rows)}
    low = []
    for row in rows:
        times, means = _curve(comparison, row)
        axes.plot(times, means, color=color[row.short_name])
        low.append(np.quantile(means, 0.15))
    top = max(_curve(comparison, row)[1].max() for row in rows)
    axes.set_ylim(min(low) - 0.05 * (top - min(low)) - 1e-9, top + 0.05 * (top - min(low)) + 1e-9)
    axes.axvline(comparison.equal_time, color=FAINT, lw=1, zorder=1)
    axes.set_xlabel("seconds of training; the grey line is the fastest one's end")
    axes.set_ylabel("validation ELBO, nats per datum")
    legend(figure, color, loc="outside lower left", ncols=1)
    return figure


def frontier(rows: Sequence[Row], metric: str) -> list[Row]:
    """Rows that no other beats in both the metric and the seconds, the fastest first."""
    ordered = sorted(rows, key=lambda r: (r.metrics["seconds"].value, -r.metrics[metric].value))
    best: list[Row] = []
    for row in ordered:
        if not best or row.metrics[metric].value > best[-1].metrics[metric].value:
            best.append(row)
    return best


def _curve(comparison: Comparison, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Mean time and mean elbo of the validations that all repeats of a row have made."""
    found = [r.validations for r in _records(comparison, row) if r.validations]
    length = min(map(len, found), default=0)
    if length == 0:
        return np.zeros(0), np.zeros(0)
    whole = np.array([values[:length] for values in found], dtype=float)
    return whole[:, :, 1].mean(0), whole[:, :, 2].mean(0)


def _records(comparison: Comparison, row: Row) -> list:
    return [
        record
        for record in comparison.records
        if record.is_done and all(record.labels[k] == v for k, v in row.labels.items())
    ]


def _repeats(comparison: Comparison, row: Row, metric: str) -> list[float]:
    records = {str(i): record for i, record in enumerate(_records(comparison, row))}
    return list(comparison.values(records, metric).values())


def _error(estimate: object) -> float | None:
    error = getattr(estimate, "standard_error", math.nan)
    return None if math.isnan(error) else error


def _title(metric: str) -> str:
    titles = {"log_marginal": "log p(x)", "elbo": "ELBO", "elbo_at_time": "ELBO at equal time"}
    return f"{titles.get(metric, metric)}, nats per datum"
