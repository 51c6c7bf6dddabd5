"""The learning curves of a run, for a page that shows values and zooms."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppl_vae.plots.curves import series_of, sites_under
from ppl_vae.plots.look import GREY, INK, site_colors

__all__ = ["curves"]

_MAX_POINTS = 1000


def curves(metrics: Sequence[Mapping]) -> dict[str, Any]:
    """The panels of `plots.learning_curves`, as JSON.

    Args:
        metrics: The lines of `metrics.jsonl`, in nats per datum; every key may be missing.

    Returns:
        Panels of a title and series of a name, a colour, steps and values, at most a thousand of
        each, evenly; a value that is not finite is None.
    """
    train = [line for line in metrics if line.get("split", "train") == "train"]
    valid = [line for line in metrics if line.get("split", "train") != "train"]
    latent = "kl" if sites_under(metrics, "kl") else "log_prior"
    color = site_colors({*sites_under(metrics, latent), *sites_under(metrics, "weight")})
    bounds = [
        _series(train, "bound", "estimator's bound, training", GREY, thin=bool(valid)),
        _series(valid, "elbo", "ELBO, validation", INK, errors="elbo_standard_error"),
    ]
    panels = [{"title": "Bound on log p(x), nats per datum", "series": bounds}]
    for key, title in ((latent, "KL" if latent == "kl" else "Log prior"), ("weight", "KL weight")):
        lines = []
        for site in sites_under(metrics, key):
            ink = {"color": color.get(site, INK), "site": site}
            name = site or "every site"
            lines.append(_series(train, key, f"{name}, training", thin=bool(valid), **ink))
            lines.append(_series(valid, key, f"{name}, validation", **ink))
        unit = "" if key == "weight" else ", nats per datum"
        panel = {"title": title + unit, "series": lines, "zero": key != "log_prior"}
        panels.append({**panel, "whole": True} if key == "weight" else panel)
    told = [
        _series(train, "reconstruction", "training", GREY, thin=bool(valid)),
        _series(valid, "reconstruction", "validation", INK),
    ]
    panels.insert(2, {"title": "Reconstruction, nats per datum", "series": told})
    for panel in panels:
        panel["series"] = [line for line in panel["series"] if line["steps"]]
    return {"panels": [panel for panel in panels if panel["series"] and not _is_one(panel)]}


def _is_one(panel: Mapping[str, Any]) -> bool:
    """Whether it is a KL weight that is 1 throughout."""
    return panel.get("whole", False) and all(set(s["values"]) == {1.0} for s in panel["series"])


def _series(
    lines: Sequence[Mapping],
    key: str,
    name: str,
    color: str,
    *,
    site: str = "",
    thin: bool = False,
    errors: str = "",
) -> dict[str, Any]:
    steps, values = series_of(lines, key, site)
    known = np.isfinite(steps)
    steps, values = steps[known], values[known]
    every = max(1, -(-len(steps) // _MAX_POINTS))
    found = {
        "name": name, "color": color, "thin": thin, "steps": steps[::every].astype(int).tolist(),
        "values": _rounded(values[::every]),
    }  # fmt: skip
    if errors:
        beside = [{errors: 0.0, **line} for line in lines if key in line]
        spread = np.nan_to_num(series_of(beside, errors)[1])
        found["errors"] = _rounded(spread[known][::every])
    return found


def _rounded(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in values.tolist()]
