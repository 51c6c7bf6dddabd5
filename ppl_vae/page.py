"""One run as one HTML page that needs nothing but itself.

Figures are data URIs, the style is inline, and the page's own content security policy forbids any
request, and any script but the page's own, known by its hash. All text is escaped: a title or a
class label may hold markup. The same input gives the same bytes.
"""

import json
import math
import struct
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ppl_vae.writing import write_text

__all__ = ["Picture", "Table", "render", "write"]

# autoescape by name would miss the ".jinja" suffix
TEMPLATE = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_SCRIPTS = ("decoder", "drawing", "chart", "explorer", "main")
SCALE = 0.72  # pixels of the page per pixel of a figure: text of 8 pt at 150 dpi becomes 12 px


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Args:
        title: its heading, and its text for those who do not see it.
        caption: how to read it, a sentence or two.
        png: the bytes of a PNG file.
        still: the part of the page, "curves", that takes its place where scripts run.

    Raises:
        ValueError: `png` is not a PNG.
    """

    title: str
    caption: str
    png: bytes
    still: str = ""

    def __post_init__(self) -> None:
        if self.png[:8] != b"\x89PNG\r\n\x1a\n":
            raise ValueError(f"{self.title!r} is not a PNG: it starts with {self.png[:8]!r}")

    @property
    def uri(self) -> str:
        """The PNG as a data URI."""
        return "data:image/png;base64," + b64encode(self.png).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page, in CSS pixels; known, the page does not jump in loading."""
        width, height = struct.unpack(">II", self.png[16:24])  # the IHDR chunk is always first
        return round(SCALE * width), round(SCALE * height)


class Table(NamedTuple):
    """A table of text; after the first `num_labels` columns come numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_labels: int


class Row(NamedTuple):
    """A line of the results table; a group's heading has neither value nor error."""

    depth: int
    name: str
    value: str = ""
    error: str = ""
    remark: str = ""


def render(
    *,
    title: str,
    summary: Mapping[str, str],
    config: str,
    results: Mapping[str, Any],
    figures: Sequence[Picture],
    notes: Sequence[str] = (),
    pair: Mapping[str, str] | None = None,
    verdict: str = "",
    table: Table | None = None,
    curves: Mapping[str, Any] | None = None,
    explorer: Mapping[str, Any] | None = None,
) -> str:
    """The page.

    Args:
        title: the heading.
        summary: headline numbers, name to text, such as "-104.2 ± 0.3 nats".
        config: the whole configuration, YAML.
        results: a nested mapping of numbers, texts, and `{"value": ..., "standard_error": ...}`,
            of which other keys become remarks.
        figures: the pictures, in order.
        notes: what a reader must know not to misread a number.
        pair: what was fitted, name to text: model, guide, estimator, schedule, data.
        verdict: one sentence below the title.
        table: one table of text, above the figures.
        curves: of `interactive.curves`; shown in place of the picture that is its still.
        explorer: of `interactive.explorer`.

    Example:
        >>> html = render(title="a < b", summary={}, config="", results={}, figures=[])
        >>> "<h1>a &lt; b</h1>" in html
        True
    """
    return TEMPLATE.get_template("report.html.jinja").render(
        title=title,
        verdict=verdict,
        summary={name: _minus(text) for name, text in summary.items()},
        pair=pair or {},
        figures=figures,
        rows=list(_rows(results)),
        config=config,
        notes=notes,
        table=table and table._replace(rows=[list(map(_minus, row)) for row in table.rows]),
        curves=curves and _json(curves),
        explorer=explorer and _json(explorer),
        explorer_half=bool(explorer and explorer["half"]),
        script=_script() if curves or explorer else None,
    )


def write(path: str | Path, **content: Any) -> Path:
    """Write `render(**content)` to `path` in one move, making its folder."""
    path = Path(path)
    write_text(path, render(**content))
    return path


class Script(NamedTuple):
    """A script, and what a content security policy calls it."""

    text: Markup
    name: str


@cache
def _script() -> Script:
    """The page's only script: its files in one function, so that they share names with no one."""
    folder = Path(__file__).parent / "templates"
    files = [(folder / f"{name}.js").read_text() for name in _SCRIPTS]
    text = '(() => {\n"use strict";\n' + "\n".join(files) + "})();\n"
    return Script(Markup(text), "sha256-" + b64encode(sha256(text.encode()).digest()).decode())


def _json(value: Mapping[str, Any]) -> Markup:
    """JSON that no HTML parser takes for anything else, whatever its texts hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"}))


def _rows(results: Mapping[str, Any], depth: int = 0) -> Iterator[Row]:
    for key, value in results.items():
        name = str(key).replace("_", " ")
        if not isinstance(value, Mapping):
            yield Row(depth, name, _text(value))
        elif "value" in value and not isinstance(value["value"], Mapping):
            digits, error = _rounded(value["value"], value.get("standard_error"))
            rest = {k: v for k, v in value.items() if k not in ("value", "standard_error", "unit")}
            remarks = [f"{str(k).replace('_', ' ')} {_text(v)}" for k, v in rest.items()]
            remarks[:0] = [str(value["unit"])] if "unit" in value else []
            yield Row(depth, name, digits, error, ", ".join(remarks))
        else:
            yield Row(depth, name)
            yield from _rows(value, depth + 1)


def _rounded(value: Any, error: Any) -> tuple[str, str]:
    """A value to the second digit of its standard error, and that error."""
    numbers = all(isinstance(n, Real) and math.isfinite(n) for n in (value, error))
    if not numbers or error <= 0:
        return _text(value), "" if error is None else _text(error)
    decimals = min(8, max(0, 1 - math.floor(math.log10(error))))
    return _minus(f"{value:.{decimals}f}"), f"{error:.{decimals}f}"


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Real) and not isinstance(value, Integral):
        return _minus(f"{value:.5g}")
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        head = ", ".join(_text(item) for item in value[:12])
        return head if len(value) <= 12 else f"{head}, … ({len(value)} values)"
    return _minus(str(value)) if isinstance(value, Integral) else str(value)


def _minus(number: str) -> str:
    """A leading hyphen before a digit as the minus sign it stands for."""
    return "−" + number[1:] if number[:1] == "-" and number[1:2].isdigit() else number
