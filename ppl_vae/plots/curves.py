"""The curves of a run against the step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from ppl_vae.plots.look import GREY, INK, TEXT_WIDTH, legend, look, plain, site_colors


@look()
def learning_curves(metrics: Sequence[Mapping]) -> Figure:
    """Bounds, KL per latent site, reconstruction and KL weight against the step.

    Thin curves are training batches, thick ones the validation set, whose ELBO carries a band of
    one standard error. A site keeps its colour in all panels. A panel without data is left out, and
    so is the weight where it is 1 throughout. The estimator's own bound on the validation set is
    dashed where it differs from the ELBO.

    The axes hold what a curve does once it has settled: all that is within five interquartile
    ranges of the quartiles of the last three quarters of its points. What lies beyond (the first
    steps, a spike) is cut off and said above the panel, as is the number of NaN or infinite values.
    KL and weight are drawn from zero on.

    Args:
        metrics: the lines of `metrics.jsonl`, in nats per datum; every key may be missing.

    Raises:
        ValueError: `metrics` is empty.

    Example:
        >>> figure = learning_curves([{"split": "train", "step": 1, "bound": -540.0}])
        >>> [axes.get_title("left") for axes in figure.axes]
        ['Bound on log p(x)']
    """
    if not metrics:
        raise ValueError("learning_curves needs at least one line of metrics, got none")
    train = [line for line in metrics if line.get("split", "train") == "train"]
    valid = [line for line in metrics if line.get("split", "train") != "train"]
    latent = "kl" if sites_under(metrics, "kl") else "log_prior"
    color = site_colors({*sites_under(metrics, latent), *sites_under(metrics, "weight")})
    weighted = any(
        (series_of(train, "weight", site)[1] != 1).any() for site in sites_under(train, "weight")
    )
    terms = [latent] * bool(sites_under(metrics, latent))
    terms += ["reconstruction"] * any("reconstruction" in line for line in metrics)
    rows = [["bound"], terms, ["weight"] * weighted]
    heights = [height for row, height in zip(rows, (2.6, 2.0, 1.2), strict=True) if row]
    mosaic: Any = [row * 2 if len(row) == 1 else row for row in rows if row]
    below = -(-len(color) // 5) if len(color) > 4 else 0  # lines of a legend too large for a panel

    figure = Figure(figsize=(TEXT_WIDTH, sum(heights) + 0.25 * below), layout="constrained")
    axes = figure.subplot_mosaic(mosaic, height_ratios=heights)
    thin: dict[str, Any] = {"lw": 0.8, "alpha": 0.75} if valid else {"lw": 1.2}

    top = axes["bound"]
    if any("bound" in line for line in metrics):
        _curve(top, train, "bound", label="estimator's bound, training", color=GREY, **thin)
    else:
        _curve(top, train, "loss", -1, label="minus weighted loss", color=GREY, **thin)
    steps, elbo = series_of(valid, "elbo")
    bound = series_of(valid, "bound")[1]
    if bound.shape != elbo.shape or not np.allclose(bound, elbo, rtol=1e-3, equal_nan=True):
        style: dict[str, Any] = {"color": INK, "lw": 1.0, "ls": (0, (4, 2))}
        _curve(top, valid, "bound", label="estimator's bound, validation", **style)
    _curve(top, valid, "elbo", label="ELBO, validation", color=INK)
    error = np.array([line.get("elbo_standard_error") or 0.0 for line in valid if "elbo" in line])
    if error.any():
        top.fill_between(steps, elbo - error, elbo + error, color=INK, alpha=0.15, lw=0)
    titles = {
        "bound": "Bound on log p(x)",
        "kl": "KL",
        "log_prior": "Log prior",
        "reconstruction": "Reconstruction",
        "weight": "Weight of the KL",
    }
    for key, panel in axes.items():
        if key in (latent, "weight"):
            for site in sites_under(metrics, key):
                style = {"site": site, "color": color.get(site, INK)}
                _curve(panel, train, key, **style, **(thin if key == latent else {}))
                _curve(panel, valid, key, **style)
        elif key == "reconstruction":
            _curve(panel, train, key, color=GREY, **thin)
            _curve(panel, valid, key, color=INK)
        panel.set_title(titles[key])
        panel.set_xlabel("step")
        bins = 4 if len(terms) == 2 and key in terms else 8
        panel.xaxis.set_major_locator(MaxNLocator(bins, integer=True, steps=[1, 2, 5, 10]))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        _settle(panel, whole=key == "weight", floor=0.0 if key in ("kl", "weight") else math.inf)
    for key in ("bound", *terms[:1]):
        axes[key].set_ylabel("nats per datum")
    if top.get_legend_handles_labels()[0]:
        top.legend(loc="best")
    if len(color) == 1 and latent in terms:
        axes[latent].set_title(f"{titles[latent]} of {plain(*color)}")
    elif color:
        where = figure if below else axes[latent if latent in terms else "weight"]
        legend(where, color, **({"loc": "outside lower left", "ncols": 5} if below else {}))
    return figure


def sites_under(metrics: Sequence[Mapping], key: str) -> list[str]:
    """The sites under `key`, where "" is a number that is not per site."""
    found = set()
    for line in metrics:
        value = line.get(key, {})
        found.update(value if isinstance(value, Mapping) else [""])
    return sorted(found)


def series_of(
    metrics: Sequence[Mapping], key: str, site: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of `key` in the lines that have it; null and infinite are NaN."""
    found = []
    for index, line in enumerate(metrics):
        value = line.get(key, {})
        value = value if isinstance(value, Mapping) else {"": value}
        if site in value:
            number = math.nan if value[site] is None else float(value[site])
            found.append((line.get("step", index), number))
    steps, values = np.array(found, dtype=float).reshape(-1, 2).T
    return steps, np.where(np.isfinite(values), values, math.nan)


def _curve(
    axes: Axes, metrics: Sequence[Mapping], key: str, sign: int = 1, site: str = "", **style: Any
) -> None:
    steps, values = series_of(metrics, key, site)
    if len(steps):
        few = {"marker": "o", "ms": 3} if np.isfinite(values).sum() <= 12 else {}
        axes.plot(steps, sign * values, **few, **style)


def _settle(axes: Axes, whole: bool, floor: float) -> None:
    """Limits by the settled part of each curve, or by the whole, and a note of what is cut off."""
    curves = [np.asarray(line.get_ydata()) for line in axes.get_lines()]
    finite = [curve[np.isfinite(curve)] for curve in curves if np.isfinite(curve).any()]
    notes = []
    if finite:
        bounds = []
        for curve in finite:
            low, high = np.quantile(settled := curve[len(curve) // 4 :], [0.25, 0.75])
            reach = math.inf if whole else 5 * (high - low) or np.ptp(settled)
            inside = curve[(curve >= low - reach) & (curve <= high + reach)]
            bounds.append((inside.min(), inside.max()))
        low, high = min(floor, *(b[0] for b in bounds)), max(b[1] for b in bounds)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        axes.set_ylim(low - margin, high + margin)
        least, most = min(curve.min() for curve in finite), max(curve.max() for curve in finite)
        notes += [f"cut: lowest {least:.3g}"] * bool(least < low - margin)
        notes += [f"cut: highest {most:.3g}"] * bool(most > high + margin)
    missing = sum((~np.isfinite(curve)).sum() for curve in curves)
    notes += [f"{missing} not finite"] * bool(missing)
    note = "\n".join(notes).replace("-", "−")
    axes.set_title(note, loc="right", color=GREY, fontsize=7)
