"""Data, reconstructions, samples and traversals, as pictures or as points."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ppl_vae.plots.look import (
    CLASSES,
    FAINT,
    GREY,
    INK,
    SITES,
    VERMILION,
    array,
    dot_size,
    legend,
    look,
    plain,
    site_colors,
    spread,
)
from ppl_vae.plots.tiles import in_rows, profiles, rgb, tiled


@look()
def reconstructions(x: ArrayLike, x_mean: ArrayLike, num: int = 10) -> Figure:
    """Data above their reconstructions; vectors overlaid; points joined by a line to theirs.

    Args:
        x: data `[N, *shape]`.
        x_mean: means of p(x | z) with z ~ q(z | x), `[N, *shape]`.
        num: how many data are drawn, the first ones, ten to a row; points are drawn all.

    Raises:
        ValueError: the shapes differ or there is no datum.

    Example:
        >>> import torch
        >>> x = torch.rand(4, 1, 8, 8)
        >>> [label.get_text() for label in reconstructions(x, x).axes[0].get_yticklabels()]
        ['data', 'reconstruction']
    """
    x, x_mean = array(x), array(x_mean)
    if x.shape != x_mean.shape or not len(x):
        raise ValueError(f"x and x_mean need one shape [N, *shape], got {x.shape}, {x_mean.shape}")
    pairs = np.stack([x, x_mean])  # [2, N, *shape]
    if (tiles := rgb(pairs, 2)) is not None:
        bands = [in_rows(row[:num], 10) for row in tiles]  # each [R, 10, H, W, 3]
        rows = np.stack(bands, 1).reshape(-1, *bands[0].shape[1:])
        return tiled(rows, ["data", "reconstruction"] * len(bands[0]))
    pairs = pairs.reshape(2, len(x), -1)
    if pairs.shape[-1] > 2:
        return profiles(pairs[:, :num], (GREY, VERMILION), ("data", "reconstruction"))
    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    axes = figure.add_subplot(aspect="equal", adjustable="datalim")
    if pairs.shape[-1] == 1:
        axes.axline((0, 0), slope=1, color=FAINT, lw=1, zorder=1)
        axes.scatter(*pairs[:, :, 0], s=8, color=VERMILION, lw=0, alpha=0.7)
        axes.set(xlabel="data", ylabel="reconstruction")
        return figure
    axes.plot(*pairs.transpose(2, 0, 1), color=GREY, alpha=0.5, lw=0.6, zorder=1)
    axes.scatter(*pairs[0].T, s=8, color=GREY, lw=0, label="data")
    axes.scatter(*pairs[1].T, s=8, color=VERMILION, lw=0, label="reconstruction")
    axes.set(xlabel="x[0]", ylabel="x[1]")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


@look()
def samples(x: ArrayLike, num: int = 64) -> Figure:
    """A square grid of samples from the prior, the first `num`; points all.

    Args:
        x: samples `[N, *shape]`.
        num: how many to draw.

    Raises:
        ValueError: there is no sample.

    Example:
        >>> import torch
        >>> samples(torch.rand(9, 28, 28)).axes[0].images[0].get_array().shape  # gaps of two pixels
        (88, 88, 3)
    """
    x = array(x)
    if not len(x):
        raise ValueError(f"samples needs x [N, *shape] with N >= 1, got shape {x.shape}")
    if (tiles := rgb(x, 1)) is not None:
        return tiled(in_rows(tiles[:num], math.ceil(math.sqrt(min(num, len(x))))))
    x = x.reshape(len(x), -1)
    if x.shape[-1] > 2:
        return profiles(x[None, :num], (INK,), ())
    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    if x.shape[-1] == 1:
        axes.hist(x[np.isfinite(x)], bins="auto", color=SITES[0])
        axes.set(xlabel="x", ylabel="samples")
    else:
        axes.scatter(*x.T, s=dot_size(len(x)), color=SITES[0], lw=0, alpha=0.7)
        axes.set(xlabel="x[0]", ylabel="x[1]", aspect="equal", adjustable="datalim")
    return figure


@look()
def class_samples(
    x: ArrayLike,
    classes: Sequence[int | str],
    share: ArrayLike | None = None,
    site: str = "y",
    num: int = 10,
) -> Figure:
    r"""Samples from the prior given each class, a row for each; points in the class's colour.

    Args:
        x: samples of each class `[K, S, *shape]`.
        classes: K values of the site, written "y = 3", or names.
        share: of each class in the data, 0..1, `[K]`, written beside its name.
        site: the latent site that `classes` are values of.
        num: how many of each class are drawn, the first ones; points are drawn all.

    Raises:
        ValueError: `x` is not `[K, S, *shape]` for these classes.

    Example:
        >>> import torch
        >>> figure = class_samples(torch.rand(2, 5, 8, 8), [3, 0], share=[0.62, 0.38])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['y = 3\n62.0%', 'y = 0\n38.0%']
    """
    x = array(x)
    if x.ndim < 2 or len(x) != len(classes) or not x.size:
        raise ValueError(f"x needs [K, S, *shape] = [{len(classes)}, ...], got {x.shape}")
    names = [plain(c if isinstance(c, str) else f"{site} = {c}") for c in classes]
    if share is not None:
        names = [f"{name}\n{part:.1%}" for name, part in zip(names, array(share), strict=True)]
    if (tiles := rgb(x, 2)) is not None:
        return tiled(tiles[:, :num], names)
    x = x.reshape(*x.shape[:2], -1)
    if x.shape[-1] > 2:
        few = x[:, :num].swapaxes(0, 1)
        return profiles(few, (INK,) * len(few), (), names)
    figure = Figure(figsize=(4.8, 4.0), layout="constrained")
    axes = figure.add_subplot()
    colors = spread(CLASSES, len(names), "turbo")
    names = [name.replace("\n", ", ") for name in names]
    if x.shape[-1] == 1:
        for row, (points, color) in enumerate(zip(x, colors, strict=True)):
            axes.plot(points[:, 0], np.full(len(points), row), "|", color=color)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlabel="x")
        return figure
    for points, color in zip(x, colors, strict=True):
        axes.scatter(*points.T, s=dot_size(x.shape[0] * x.shape[1]), color=color, lw=0, alpha=0.8)
    axes.set(xlabel="x[0]", ylabel="x[1]", aspect="equal", adjustable="datalim")
    legend(figure, dict(zip(names, colors, strict=True)), loc="outside right upper")
    return figure


@look()
def traversals(
    x: ArrayLike,
    units: Sequence[int | str],
    values: ArrayLike,
    kl: ArrayLike | None = None,
    site: str = "z",
) -> Figure:
    r"""What one latent unit at a time does to the mean of p(x | z), the others held.

    Args:
        x: means `[U, S, *shape]`.
        units: U indices, written "z[3]", or names.
        values: the S values of the unit, as in -3..3.
        kl: KL of each unit, nats per datum, `[U]`, written beside its name.
        site: the latent site that `units` index.

    Raises:
        ValueError: `x` is not `[U, S, *shape]` for these units and values.

    Example:
        >>> import torch
        >>> figure = traversals(torch.rand(1, 3, 8, 8), [3], [-3, 0, 3], kl=[1.92])
        >>> figure.axes[0].get_yticklabels()[0].get_text()
        'z[3]\n1.92 nats'
    """
    x, values = array(x), array(values)
    if x.shape[:2] != (len(units), len(values)) or not x.size:
        raise ValueError(f"x needs [U, S, *shape] = [{len(units)}, {len(values)}, ...]: {x.shape}")
    names = [plain(u if isinstance(u, str) else f"{site}[{u}]") for u in units]
    if kl is not None:
        names = [f"{name}\n{nats:.2f} nats" for name, nats in zip(names, array(kl), strict=True)]
    if (tiles := rgb(x, 2)) is not None:
        return tiled(tiles, names, [f"{value:.3g}".replace("-", "−") for value in values])
    x = x.reshape(*x.shape[:2], -1)
    if x.shape[-1] > 2:
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(values)))
        labels = [f"{value:.3g}".replace("-", "−") for value in values]
        return profiles(x.swapaxes(0, 1), colors, labels, names)
    figure = Figure(figsize=(4.8, 4.0), layout="constrained")
    axes = figure.add_subplot()
    colors = site_colors(f"{i:09d}" for i in range(len(units))).values()
    for path, name, color in zip(x, names, colors, strict=True):
        line = (values, path[:, 0]) if x.shape[-1] == 1 else path.T
        axes.plot(*line, "o-", color=color, ms=2.5, lw=1, label=name.replace("\n", ", "))
        axes.plot(*(part[-1:] for part in line), "o", color=color, ms=6)  # where the path ends
    if x.shape[-1] == 1:
        axes.set(xlabel="value of the unit", ylabel="x")
    else:
        axes.set(xlabel="x[0]", ylabel="x[1]", aspect="equal", adjustable="datalim")
    figure.legend(loc="outside right upper", title=f"large dot at {values[-1]:.3g}")
    return figure
