"""A table of text, for the terminal, Markdown and LaTeX."""

import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Table", "as_latex", "as_markdown", "as_text"]


class Table(NamedTuple):
    """Text in columns; after the first `num_labels` come numbers.

    Attributes:
        headings: Above the columns.
        rows: As many words each.
        num_labels: How many columns say what a row is.
        remarks: What a reader must know, a sentence or two each.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_labels: int
    remarks: Sequence[str] = ()


def as_text(table: Table) -> str:
    """For a terminal: columns under each other.

    Args:
        table: Headings and rows of text.
    """
    lines = [table.headings, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        padded = [
            word.ljust(width) if i < table.num_labels else word.rjust(width)
            for i, (word, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append("  ".join(padded).rstrip())
    return "\n".join([*texts, "", *table.remarks])


def as_markdown(table: Table) -> str:
    """A Markdown table, with its remarks below."""
    lines = [table.headings, *table.rows]
    rows = ["| " + " | ".join(word.replace("|", "\\|") for word in line) + " |" for line in lines]
    rows.insert(1, "|" + "---|" * len(table.headings))
    return "\n".join([*rows, "", *table.remarks]) + "\n"


def as_latex(table: Table) -> str:
    """A LaTeX table for the package booktabs, its remarks as comments."""
    lines = [table.headings, *table.rows]
    columns = "l" * table.num_labels + "r" * (len(table.headings) - table.num_labels)
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
            *("% " + remark.replace("\n", " ") for remark in table.remarks),
            "",
        ]
    )


_SPECIAL = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "–": "--",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


def _escaped(word: str) -> str:
    minus, rest = ("$-$", word[1:]) if re.match(r"-\d", word) else ("", word)
    return minus + "".join(_SPECIAL.get(character, character) for character in rest)
