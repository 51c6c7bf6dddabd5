"""A comparison as a table of text, and its cells as CSV."""

import csv
import io
import math
from collections.abc import Sequence

from ppl_vae.evaluate import Estimate
from ppl_vae.laboratory.comparison import Comparison, Row
from ppl_vae.laboratory.rendering import Table
from ppl_vae.laboratory.statistics import Paired

__all__ = ["as_csv", "table_of"]

_TITLES = {
    "log_marginal": "log p(x)",
    "elbo": "ELBO",
    "elbo_at_time": "ELBO at equal time",
    "seconds": "seconds",
    "num_steps": "steps",
}
# A row that is worse or better by chance in less than one of so many comparisons is marked.
_SIGNIFICANT = 0.05


def table_of(comparison: Comparison, metrics: Sequence[str] | None = None) -> Table:
    """Axes, how many repeats, the first metric and the difference in it, the other metrics.

    Args:
        comparison: The grid.
        metrics: Which, by their names in `comparison.metrics`, those that are there; all if none
            are given.
    """
    axes = [name for name in comparison.axes if name != "seed"]
    known = comparison.metrics
    metrics = known if metrics is None else [name for name in metrics if name in known]
    titles = [_title(name) for name in metrics]
    headings = [*axes, "n", titles[0], "Δ", "p", *titles[1:]]
    rows = [_texts(row, metrics) for row in comparison.rows()]
    return Table(headings, rows, len(axes), _remarks(comparison, metrics))


def as_csv(comparison: Comparison) -> str:
    """Every cell, one a line: axes, status, metrics, error.

    Args:
        comparison: The grid.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*comparison.axes, "status", *comparison.metrics, "error"])
    for record in comparison.records:
        values = comparison.values({"": record}, "") and [
            comparison.values({"": record}, metric)[""] for metric in comparison.metrics
        ]
        numbers = [f"{value:.9g}" for value in values] if values else [""] * len(comparison.metrics)
        labels = [record.labels[name] for name in comparison.axes]
        writer.writerow([*labels, record.status, *numbers, record.error])
    return buffer.getvalue()


def _texts(row: Row, metrics: Sequence[str]) -> list[str]:
    labels = list(row.labels.values())
    count = str(row.num) + (f" ({len(row.failed)} failed)" if row.failed else "")
    first, *others = (_number(row.metrics[m]) for m in metrics)
    return [*labels, count, first, *_difference(row.paired.get(metrics[0])), *others]


def _difference(found: Paired | None) -> list[str]:
    if found is None:
        return ["", ""]
    star = "*" if found.p_value < _SIGNIFICANT else ""
    p_value = "" if math.isnan(found.p_value) else f"{found.p_value:.2g}{star}"
    return [_number(found.difference), p_value]


def _number(estimate: Estimate) -> str:
    return "–" if math.isnan(estimate.value) else str(estimate)


def _title(metric: str) -> str:
    nested = {"kl": "KL", "active_units": "active", "classes": "classes", "log_prior": "log p"}
    kind, dot, site = metric.partition(".")
    if kind == "measures":
        return site
    return f"{nested.get(kind, kind)} {site}" if dot else _TITLES.get(metric, metric)


def _remarks(comparison: Comparison, metrics: Sequence[str]) -> list[str]:
    """What a reader must know."""
    base = ", ".join(v for k, v in comparison.baseline.items() if k != "seed")
    found = [
        "Mean ± standard error over n repeats; nats per datum. Δ and p: the mean paired difference "
        f"to {base}, and Student's t-test of it, corrected for the number of rows (Holm); * below "
        f"{_SIGNIFICANT}."
    ]
    if any(record.results.get("is_proper") is False for record in comparison.records):
        found.append(
            "Grey data under a Bernoulli: log p(x), ELBO and reconstruction are scores and no "
            "log-probabilities (improper)."
        )
    if "elbo_at_time" in metrics:
        found.append(
            f"Equal time: the last validation within {comparison.equal_time:.3g} s, which the "
            "fastest training took; – where there was none yet."
        )
    for row in comparison.rows():
        for repeat, error in row.failed.items():
            where = f"{row.name}, seed {repeat}" if repeat else row.name
            found.append(f"Failed: {where}: {error.splitlines()[0]}")
    if comparison.missing:
        found.append(f"{comparison.missing} cells are not run yet.")
    return found
