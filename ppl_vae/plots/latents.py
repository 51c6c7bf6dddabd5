"""The latent space: where the data lie in it, and which of its units are in use."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from ppl_vae.plots.look import (
    CLASSES,
    FAINT,
    GREY,
    SITES,
    TEXT_WIDTH,
    array,
    cpu,
    dot_size,
    legend,
    look,
    plain,
    site_colors,
    spread,
)


@look()
def latent_scatter(
    z: ArrayLike,
    labels: ArrayLike | Sequence[str] | None = None,
    names: Sequence[str] = ("z[0]", "z[1]"),
    label_name: str = "",
) -> Figure:
    """Two latent units of each datum over circles of radius 1, 2, 3: deviations of N(0, I).

    Integer, boolean and string labels are classes, up to 40 of them: a colour each, a legend, and
    the class's name at its median, so that colour is never alone. Other labels are a continuous
    factor, with a colour bar. Points are drawn in a random (seeded) order, so that no class hides
    another; rows that are not finite are left out.

    Args:
        z: `[N, 2]`.
        labels: `[N]`.
        names: what the two axes are called.
        label_name: what the labels are called.

    Raises:
        ValueError: the shapes are others.

    Example:
        >>> import torch
        >>> figure = latent_scatter(torch.randn(50, 2), torch.arange(50) % 2)
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['0', '1']
    """
    z = array(z)
    labels = None if labels is None else np.asarray(cpu(labels))
    if z.ndim != 2 or z.shape[1] != 2 or (labels is not None and labels.shape != z.shape[:1]):
        got = z.shape if labels is None else (z.shape, labels.shape)
        raise ValueError(f"latent_scatter needs z [N, 2] and labels [N], got {got}")
    order = np.random.default_rng(0).permutation(np.flatnonzero(np.isfinite(z).all(1)))
    z, labels = z[order], None if labels is None else labels[order]
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.add_subplot(aspect="equal", adjustable="datalim")
    for radius in (1, 2, 3):  # not part of what must be in view, as of add_patch
        axes.add_artist(Circle((0, 0), radius, fill=False, ec=FAINT, lw=0.8, zorder=0.9))
    axes.update_datalim([(-2.1, -2.1), (2.1, 2.1)])
    axes.margins(0.04)
    axes.set(xlabel=plain(names[0]), ylabel=plain(names[1]))
    style: dict[str, Any] = {"s": dot_size(len(z)), "lw": 0, "alpha": 0.8}
    classes = [] if labels is None else np.unique(labels).tolist()
    if labels is None:
        axes.scatter(*z.T, color=SITES[0], **style)
    elif labels.dtype.kind == "f" or len(classes) > 40:
        points = axes.scatter(*z.T, c=labels.astype(float), cmap="viridis", **style)
        opaque = ScalarMappable(points.norm, points.cmap)
        bar = figure.colorbar(opaque, ax=axes, label=plain(label_name), shrink=0.8)
        bar.outline.set_visible(False)
    else:
        color = dict(zip(classes, spread(CLASSES, len(classes), "turbo"), strict=False))
        axes.scatter(*z.T, color=[color[label] for label in labels.tolist()], **style)
        halo = [withStroke(linewidth=3, foreground="white")]
        for name in classes:
            place = {"ha": "center", "va": "center", "weight": "bold", "path_effects": halo}
            x, y = np.median(z[labels == name], 0)
            axes.text(x, y, plain(name), **place)
        style = {"title": plain(label_name), "ncols": 1 + (len(classes) - 1) // 20}
        legend(figure, color, loc="outside right upper", **style)
    return figure


@look()
def active_units(
    variance: Mapping[str, ArrayLike],
    threshold: float = 0.01,
    kl: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Var_x E_q[z | x] of each latent unit, sorted, and the count above the threshold.

    A unit is active where the variance exceeds `threshold` (Burda et al. 2016, appendix C): filled
    dots; the others are hollow. The second panel, where `kl` is given, keeps the order of the
    first, so that a unit is at the same place in both. Zeros are drawn at the foot of the log axis.

    Args:
        variance: per site `[D]`, in squared units of z.
        threshold: variance above which a unit counts as active.
        kl: per site `[D]`, nats per datum.

    Raises:
        ValueError: there is no unit, or `kl` has other sites or sizes.

    Example:
        >>> active_units({"z": [0.9, 0.001]}).axes[0].get_title("left")
        '1 of 2 units active'
    """
    variance = {site: array(value).reshape(-1) for site, value in variance.items()}
    pooled = np.concatenate([*variance.values(), []])
    if not pooled.size:
        raise ValueError("active_units needs the variance of at least one unit, got none")
    sizes = {site: value.size for site, value in variance.items()}
    nats = {site: array(value).reshape(-1) for site, value in (kl or {}).items()}
    if kl and {site: value.size for site, value in nats.items()} != sizes:
        raise ValueError(f"kl needs the sites and sizes of variance, {sizes}")
    figure = Figure(figsize=(TEXT_WIDTH if kl else 4.6, 2.8), layout="constrained")
    panels = figure.subplots(1, 2 if kl else 1, squeeze=False)[0]
    above = pooled[pooled > 0]
    floor = min([threshold / 10, *(above / 2)])
    color = site_colors(variance)
    dots = {"s": 16, "lw": 0.9, "zorder": 3, "clip_on": False}
    for site, value in variance.items():
        order = np.argsort(-value, kind="stable")  # NaN last
        rank, active = np.arange(1, value.size + 1), value[order] > threshold
        curves = [np.maximum(value[order], floor), *([nats[site][order]] if kl else [])]
        for axes, curve in zip(panels, curves, strict=True):
            axes.plot(rank, curve, color=color[site], lw=0.8, alpha=0.6)
            face = np.where(active, color[site], "white")
            axes.scatter(rank, curve, c=face, edgecolors=color[site], **dots)
    panels[0].axhline(threshold, color=GREY, lw=0.9, ls=(0, (4, 2)), zorder=1)
    place = {"xycoords": ("axes fraction", "data"), "xytext": (-2, 3), "ha": "right"}
    label = f"threshold {threshold:g}"
    panels[0].annotate(label, (1, threshold), textcoords="offset points", color=GREY, **place)
    panels[0].set(yscale="log", ylabel="variance of the posterior mean")
    panels[0].set_title(f"{(pooled > threshold).sum()} of {pooled.size} units active")
    if kl:
        panels[1].set(ylabel="KL, nats per datum", ylim=(0, None))
        panels[1].set_title("KL of the same units")
    for axes in panels:
        axes.set_xlabel("unit, by variance")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    if len(variance) > 1:
        count = {site: (value > threshold).sum() for site, value in variance.items()}
        text = {f"{site}: {count[site]} of {sizes[site]}": color[site] for site in variance}
        legend(panels[-1], text, loc="upper right")
    return figure
