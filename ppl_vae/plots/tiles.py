"""Many data in one figure: images as tiles of one picture, vectors as small panels of lines."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from ppl_vae.plots.look import DPI, SMALL, VERMILION

WIDTH = 7.0  # inches, at most: ten tiles to a row


def rgb(x: np.ndarray, lead: int) -> np.ndarray | None:
    """Images `[*lead, H, W, 3]` in 0..1 from `[*lead, *shape]`; None where data are not images."""
    shape = x.shape[lead:]
    if len(shape) == 3 and shape[0] in (1, 3):
        x = np.moveaxis(x, lead, -1)
    elif len(shape) == 2:
        x = x[..., None]
    else:
        return None
    x = np.broadcast_to(x, (*x.shape[:-1], 3))
    return np.where(np.isnan(x), to_rgb(VERMILION), np.clip(x, 0, 1))


def in_rows(tiles: np.ndarray, columns: int) -> np.ndarray:
    """`[N, H, W, 3]` as `[R, columns, H, W, 3]`, the last row filled up with white."""
    columns = min(columns, len(tiles))
    blank = np.ones((-len(tiles) % columns, *tiles.shape[1:]))
    return np.concatenate([tiles, blank]).reshape(-1, columns, *tiles.shape[1:])


def tiled(tiles: np.ndarray, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> Figure:
    """One picture of tiles `[R, S, H, W, 3]`, a pixel of data a whole number of pixels wide."""
    across, down, high, wide = tiles.shape[1], tiles.shape[0], *tiles.shape[2:4]
    gap = max(1, round(high / 14))
    canvas = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=1.0)
    canvas = canvas.transpose(0, 2, 1, 3, 4).reshape(down * (high + gap), across * (wide + gap), 3)
    canvas = canvas[:-gap, :-gap]

    texts = [part for name in rows for part in name.split("\n")]
    extent = [TextPath((0, 0), text, size=SMALL).get_extents().width for text in texts]
    left, edge = round(max(extent, default=0) * DPI / 72) + (14 if rows else 6), 6
    top = 30 if columns else edge
    free = WIDTH * DPI - left - edge
    scale = min(free // canvas.shape[1], max(1, 130 // wide)) or free / canvas.shape[1]
    width, height = scale * canvas.shape[1], scale * canvas.shape[0]
    size = (math.ceil(left + width + edge), math.ceil(top + height + edge))
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI))
    box = (left / size[0], edge / size[1], width / size[0], height / size[1])
    axes = figure.add_axes(box, frameon=False)
    axes.imshow(canvas, interpolation="nearest" if scale >= 1 else "antialiased", aspect="auto")
    axes.grid(False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False, pad=3)
    middle = (high - 1) / 2, (wide - 1) / 2
    axes.set_yticks([middle[0] + i * (high + gap) for i in range(len(rows))], rows)
    axes.set_xticks([middle[1] + i * (wide + gap) for i in range(len(columns))], columns)
    return figure


def profiles(
    curves: np.ndarray, colors: Iterable, labels: Sequence[str], titles: Sequence[str] = ()
) -> Figure:
    """Small panels of `[L, P, D]`: P panels, at most 20, of L lines each on common axes."""
    curves = curves[:, :20]
    number = curves.shape[1]
    across = min(number, 5 if not titles else 3)
    down = -(-number // across)
    size = (WIDTH, 0.5 + 1.15 * down if across > 1 else 2.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    panels: list[Axes] = list(grid.flat)
    for index in range(number, len(panels)):
        panels[index].remove()
        panels[index - across].tick_params(labelbottom=True)
    for index, panel in enumerate(panels[:number]):
        for curve, color in zip(curves[:, index], colors, strict=True):
            panel.plot(curve, color=color, lw=1.1)
        if titles:
            panel.set_title(titles[index].replace("\n", ", "))
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if len(labels):
        handles = panels[0].get_lines()
        figure.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 6))
    figure.supxlabel("element of x")
    return figure
