"""The look of the figures, how they are written, and what their files share."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from ppl_vae.writing import write_bytes

INK, GREY, FAINT, VERMILION = "#1d2126", "#7b8794", "#c9ced4", "#d55e00"
# Okabe & Ito (2008), without black and yellow, for sites; Petroff (2021), ten colours chosen for
# the three kinds of colour blindness, for classes.
SITES = ("#0072b2", VERMILION, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
CLASSES = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
DPI, SMALL = 150, 8.5  # pixels per inch, points
TEXT_WIDTH = 5.6  # inches: a phone shows a figure of this width with text of 8 px
LOOK: Any = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.fontsize": SMALL,
    "axes.titlelocation": "left", "axes.titlepad": 5, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": "#e9ebee", "grid.linewidth": 0.6,
    "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "text.color": INK, "axes.labelcolor": INK,
    "axes.titlecolor": INK, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5,
    "ytick.major.size": 2.5, "ytick.minor.size": 0, "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round", "legend.frameon": False, "figure.dpi": DPI,
    "figure.labelsize": 9,
}  # fmt: skip


@contextmanager
def look() -> Iterator[None]:
    """The look of every figure here, as a context; the caller's rc parameters come back after."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's style (usetex, dark) would break byte stability
        matplotlib.rcParams.update(LOOK)
        yield


@look()
def png(figure: Figure) -> bytes:
    """`figure` as PNG at 150 dpi, without time or version: equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> Path:
    """Write `png(figure)` to `path` in one move, making its folder; a reader never sees half."""
    path = Path(path)
    write_bytes(path, png(figure))
    return path


def cpu(x: Any) -> Any:
    """`x`, where it is a tensor without its graph and on the CPU."""
    return x.detach().cpu() if isinstance(x, torch.Tensor) else x


def array(x: ArrayLike) -> np.ndarray:
    """`x`, tensors among others, as an array of doubles."""
    x = cpu(x)
    return x.double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, dtype=float)


@cache
def _glyphs() -> frozenset[int]:
    """The characters of the font in both weights used."""
    fonts = [FontProperties(family="DejaVu Sans", weight=weight) for weight in ("normal", "bold")]
    return frozenset.intersection(*(frozenset(get_font(findfont(f)).get_charmap()) for f in fonts))


def plain(name: object) -> str:
    r"""`name` such that matplotlib draws it as it is: a dollar does not start mathematics.

    Characters that the font lacks, Chinese ones for instance, are written as escapes: names remain
    different from each other, and the figure does not depend on the fonts of the machine. Names of
    more than 40 characters lose their middle.

    Example:
        >>> print(plain("größe"), plain("大"), plain("$"))
        größe \u5927 \$
    """
    known = "".join(c if ord(c) in _glyphs() or c == "\n" else ascii(c)[1:-1] for c in str(name))
    short = known if len(known) <= 40 else f"{known[:20]}…{known[-19:]}"
    return short.replace("$", r"\$")


def spread(colors: Sequence[str], num: int, beyond: str) -> list[str]:
    """`num` of `colors`, or where they do not suffice as many from the colour map `beyond`."""
    if num <= len(colors):
        return list(colors[:num])
    return [to_hex(c) for c in matplotlib.colormaps[beyond](np.linspace(0.03, 0.94, num))]


def site_colors(sites: Iterable[str]) -> dict[str, str]:
    """A colour for each site, the same for the same set of sites."""
    names = sorted(set(sites) - {""})
    return dict(zip(names, spread(SITES, len(names), "viridis"), strict=True))


def dot_size(num: int) -> float:
    """The area of each of `num` dots of a scatter."""
    return float(np.clip(12_000 / max(num, 1), 3, 14))


def legend(where: Axes | Figure, color: Mapping[Any, str], **style: Any) -> None:
    """A legend of one dot for each name in `color`."""
    dots = {"lw": 0, "marker": "o", "ms": 4.5, "mew": 0}
    handles = [Line2D([], [], color=value, **dots) for value in color.values()]
    box = where.legend(handles, [" "] * len(handles), handletextpad=0.2, **style)
    box.set_in_layout(isinstance(where, Figure))  # a long name in a panel does not push it away
    for text, name in zip(box.get_texts(), color, strict=True):
        text.set_text(plain(name))  # not as labels: those with a leading underscore are dropped
