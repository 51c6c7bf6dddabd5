"""Whether ranks are uniform, unit by unit, over all of their distribution."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from ppl_vae.plots.look import FAINT, GREY, SITES, TEXT_WIDTH, VERMILION, array, look, plain

# Units that leave the band and are named: those that leave it by most.
_NAMED = 4


@look()
def calibration(difference: Mapping[str, ArrayLike], lower: ArrayLike, upper: ArrayLike) -> Figure:
    """How far ranks are from uniform: a panel for each site, a curve for each unit, and the band.

    A unit that is calibrated stays in the band as a whole. Curves that leave it are vermilion, and
    those that leave it by most are named where they do. Of a guide that is too narrow the curve is
    above on the left and below on the right; of one too broad the reverse; of one off to a side it
    is above or below throughout. All panels have one scale.

    Args:
        difference: by site the ECDF difference of each unit, `[U, L]`; that of
            `Calibration.ecdf_difference`.
        lower: the band's lower edge, `[L]`; that of `Calibration.band`.
        upper: the upper edge, `[L]`.

    Raises:
        ValueError: there is no unit, or sizes differ.

    Example:
        >>> import torch
        >>> from ppl_vae.evaluate import Calibration
        >>> ranks = torch.stack([torch.randint(100, (500,)), torch.randint(50, (500,))], 1)
        >>> found = Calibration({"z": ranks}, num_draws=99)
        >>> band = found.band()
        >>> calibration(found.ecdf_difference(), band.lower, band.upper).axes[0].get_title("left")
        'z: 1 of 2 units outside the band'
    """
    curves = {site: array(value) for site, value in difference.items()}
    edges = array(lower), array(upper)
    fits = [c.ndim == 2 and c.shape[1:] == edges[0].shape and c.size > 0 for c in curves.values()]
    if not fits or not all(fits) or edges[0].shape != edges[1].shape:
        got = [c.shape for c in curves.values()]
        raise ValueError(
            "calibration needs differences [U, L], U >= 1, and edges [L], got "
            f"{', '.join(map(str, [*got, *(e.shape for e in edges)]))}"
        )
    across = min(len(curves), 2)
    down = -(-len(curves) // across)
    figure = Figure(figsize=(TEXT_WIDTH if across > 1 else 4.6, 2.6 * down), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for index in range(len(curves), len(panels)):
        panels[index].remove()
        panels[index - across].tick_params(labelbottom=True)
    share = np.linspace(0, 1, len(edges[0]) + 2)
    band = [np.pad(edge, 1) for edge in edges]  # at 0 and 1 every distribution function is the same
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for axes, (site, units) in zip(panels, curves.items(), strict=False):
        axes.fill_between(share, *band, color=FAINT, alpha=0.6, lw=0, zorder=0.8)
        axes.axhline(0, color=GREY, lw=0.6, zorder=0.9)
        beyond = np.maximum(edges[0] - units, units - edges[1]).clip(min=0)  # [U, L]
        out = beyond.max(1) > 0
        style: dict[str, Any] = {"lw": 0.9, "alpha": 0.8}
        for curve, leaves in zip(units, out, strict=True):
            color = VERMILION if leaves else SITES[0]
            axes.plot(share, np.pad(curve, 1), color=color, zorder=2 + leaves, **style)
        for unit in np.argsort(-beyond.max(1), kind="stable")[: min(_NAMED, out.sum())]:
            at = beyond[unit].argmax()
            where = share[at + 1], units[unit, at]
            axes.annotate(
                f"[{unit}]", where, (0, 3 if where[1] > 0 else -3), textcoords="offset points",
                ha="center", va="bottom" if where[1] > 0 else "top", color=VERMILION,
                fontsize=8, path_effects=halo, zorder=4,
            )  # fmt: skip
        name = plain(site)
        between = "\n" if len(name) > 12 else ": "
        axes.set_title(f"{name}{between}{out.sum()} of {len(out)} units outside the band")
        axes.margins(x=0, y=0.12)
    figure.supxlabel("rank of the latent among the draws, as a share")
    figure.supylabel("ECDF difference")
    return figure
