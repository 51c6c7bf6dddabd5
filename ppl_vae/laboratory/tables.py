"""A comparison as text: for the terminal, Markdown, LaTeX, CSV."""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence

from ppl_vae.evaluate import Estimate
from ppl_vae.laboratory.comparison import Comparison, Row
from ppl_vae.laboratory.statistics import Paired

__all__ = ["as_csv", "as_latex", "as_markdown", "as_text", "cells_of", "headings"]

_TITLES = {
    "log_marginal": "log p(x)",
    "elbo": "ELBO",
    "elbo_at_time": "ELBO at equal time",
    "seconds": "seconds",
    "num_steps": "steps",
}
# A row that is worse or better by chance in less than one of so many comparisons is marked.
_SIGNIFICANT = 0.05


def headings(comparison: Comparison) -> list[str]:
    """The columns: axes, how many repeats, a metric and the difference in it, the other metrics."""
    axes = [name for name in comparison.axes if name != "seed"]
    titles = [_title(name) for name in comparison.metrics]
    return [*axes, "n", titles[0], "Δ", "p", *titles[1:]]


def cells_of(comparison: Comparison) -> list[list[str]]:
    """The table's text, row by row; what has failed says so."""
    return [_texts(row, comparison.metrics) for row in comparison.rows()]


def as_text(comparison: Comparison) -> str:
    """For a terminal: columns under each other."""
    lines = [headings(comparison), *cells_of(comparison)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    labels = len(comparison.axes) - ("seed" in comparison.axes)
    texts = []
    for line in lines:
        padded = [
            word.ljust(width) if i < labels else word.rjust(width)
            for i, (word, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append("  ".join(padded).rstrip())
    return "\n".join([*texts, "", *_remarks(comparison)])


def as_markdown(comparison: Comparison) -> str:
    """A Markdown table."""
    lines = [headings(comparison), *cells_of(comparison)]
    rows = ["| " + " | ".join(word.replace("|", "\\|") for word in line) + " |" for line in lines]
    rows.insert(1, "|" + "---|" * len(lines[0]))
    return "\n".join([*rows, "", *_remarks(comparison)]) + "\n"


def as_latex(comparison: Comparison) -> str:
    """A LaTeX table, for the package booktabs."""
    lines = [headings(comparison), *cells_of(comparison)]
    labels = len(comparison.axes) - ("seed" in comparison.axes)
    columns = "l" * labels + "r" * (len(lines[0]) - labels)
    head, *body = [" & ".join(map(_escaped, line)) + r" \\" for line in lines]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(f"% {remark}" for remark in _remarks(comparison)),
            "",
        ]
    )


def as_csv(comparison: Comparison) -> str:
    """Every cell, one a line: axes, status, metrics, error."""
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
    return f"{nested.get(kind, kind)} {site}" if dot else _TITLES.get(metric, metric)


def _remarks(comparison: Comparison) -> list[str]:
    """What a reader must know."""
    base = ", ".join(v for k, v in comparison.baseline.items() if k != "seed")
    found = [
        "Mean ± standard error over n repeats; nats per datum. Δ and p: the mean paired difference "
        f"to {base}, and Student's t-test of it, corrected for the number of rows (Holm); * below "
        f"{_SIGNIFICANT}."
    ]
    if "elbo_at_time" in comparison.metrics:
        found.append(
            f"Equal time: the last validation within {comparison.equal_time:.3g} s, which the "
            "fastest training took."
        )
    for row in comparison.rows():
        for repeat, error in row.failed.items():
            where = f"{row.name}, seed {repeat}" if repeat else row.name
            found.append(f"Failed: {where}: {error.splitlines()[0]}")
    if comparison.missing:
        found.append(f"{comparison.missing} cells are not run yet.")
    return found


def _escaped(word: str) -> str:
    special: dict[str, str] = {c: "\\" + c for c in "&%$#_{}"}
    special |= {"±": r"$\pm$", "Δ": r"$\Delta$", "–": "--", "~": r"\textasciitilde{}",
                "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}  # fmt: skip
    replaced: Callable[[str], str] = lambda c: special.get(c, c)  # noqa: E731
    minus, rest = ("$-$", word[1:]) if re.match(r"-\d", word) else ("", word)
    return minus + "".join(map(replaced, rest))
