"""The figures and the page of a comparison at a point."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppl_vae import page, plots
from ppl_vae.evaluate import Estimate
from ppl_vae.plots.look import INK, TEXT_WIDTH, legend, look, plain, site_colors
from ppl_vae.writing import confined

if TYPE_CHECKING:
    from ppl_vae.laboratory.point import PointComparison

__all__ = ["distances", "signals", "write_page"]


@look()
def signals(comparison: PointComparison) -> Figure:
    """SNR and DSNR of each contender's gradient, a colour for each group of parameters."""
    names = _names(comparison)
    figure = Figure(figsize=(TEXT_WIDTH, 1.1 + 0.26 * len(names)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    color = site_colors(group for one in comparison.contenders for group in one.groups)
    for axes, figure_name in zip(panels, ("snr", "dsnr"), strict=True):
        for y, one in enumerate(comparison.contenders):
            for group, signal in one.groups.items():
                _dot(axes, getattr(signal, figure_name), y, color[group])
        axes.set_title(f"{figure_name.upper()} of the gradient")
        _scale(axes, [getattr(s, figure_name) for o in comparison.contenders
                      for s in o.groups.values()])  # fmt: skip
    _label(panels[0], names)
    legend(figure, color, loc="outside lower center", ncols=len(color))
    return figure


@look()
def distances(comparison: PointComparison) -> Figure | None:
    """How far each contender's bound is from log p(x); none where no bound is known."""
    names = _names(comparison)
    figure = Figure(figsize=(TEXT_WIDTH, 0.9 + 0.26 * len(names)), layout="constrained")
    axes = figure.subplots()
    gaps = [one.bound.gap if one.bound else None for one in comparison.contenders]
    if not any(gaps):
        return None
    for y, gap in enumerate(gaps):
        if gap is not None:
            _dot(axes, gap, y, INK)
    _label(axes, names)
    axes.axvline(0, color=INK, lw=0.8, zorder=1)
    axes.set_xlabel("log p(x) less the bound, nats per datum")
    return figure


def write_page(comparison: PointComparison, out: Path) -> Path:
    """Writes `figures/` and `index.html` into a folder, and gives the page's path."""
    drawn = [("gradients", "What the gradients are worth", _SIGNALS, signals(comparison))]
    if (figure := distances(comparison)) is not None:
        drawn.insert(0, ("gaps", "How tight the bounds are", _GAPS, figure))
    pictures = []
    for name, title, caption, figure in drawn:
        path = plots.save(figure, confined(out / "figures" / f"{name}.png", out))
        pictures.append(page.Picture(title, caption, path.read_bytes()))
    table = comparison.table()
    pairs = [name for name in comparison.log_marginal if name]
    page.write(
        out / "index.html",
        title="Comparison at a point",
        verdict=f"{len(comparison.contenders)} contenders, {comparison.num_draws} draws each.",
        summary={},
        pair={"pairs": ", ".join(pairs)} if pairs else {},
        config="",
        results={},
        figures=pictures,
        notes=table.remarks,
        table=page.Table(table.headings, table.rows, table.num_labels),
    )
    return out / "index.html"


def _names(comparison: PointComparison) -> list[str]:
    """Arguments without their names, `TraceIWAE_ELBO(5)`."""
    several = len(comparison.log_marginal) > 1
    found = [re.sub(r"\b\w+=", "", one.estimator) for one in comparison.contenders]
    if not several:
        return found
    return [f"{one.pair}, {name}" for one, name in zip(comparison.contenders, found, strict=True)]


def _scale(axes: Axes, found: list[Estimate]) -> None:
    """From zero; where there are magnitudes between them, logarithmic."""
    values = [one.value for one in found if one.value > 0]
    if values and max(values) > 10 * min(values):
        # What is not significantly above zero may reach to any power below it.
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 2, 2 * max(values))
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))


def _dot(axes: Axes, found: Estimate, y: int, color: str) -> None:
    """An estimate, with a bar of two standard errors to each side."""
    if math.isnan(found.value):
        return
    axes.plot(found.value, y, "o", ms=5, mew=0, color=color, zorder=3)
    if not math.isnan(found.standard_error):
        reach = 2 * found.standard_error
        axes.hlines(y, found.value - reach, found.value + reach, color=color, lw=1.2, zorder=2)


def _label(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(5))


_GAPS = "Bars of two standard errors, over draws of the guide at fixed data. Left is tighter."
_SIGNALS = (
    "SNR: length of the mean gradient over its standard deviation; DSNR: the share of a draw along "
    "the mean over that across. Bars of two standard errors. Further right, a step is worth more; "
    "where magnitudes lie between them, the axis is logarithmic."
)
