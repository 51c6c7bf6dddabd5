"""What is the gradient of each estimator worth at a trained point, and what does it cost, along K?

    python experiments/estimators/run.py             # table, results.json, results.png
    python experiments/estimators/run.py --smoke     # seconds, on digits

One VAE is trained; a few test images are held, and each estimator draws gradients there. What is in
results.json already is not run again. After Rainforth et al. (2018) and Tucker et al. (2019).

Shapes: K particles in all; of MIWAE and PIWAE M outer samples of K / M each.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, NullLocator
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import ppl_vae
from ppl_vae import estimators as e
from ppl_vae.evaluate import Estimate, bound_at, gradient_signal, log_marginal, step_cost
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.models import VAE
from ppl_vae.plots.look import FAINT, GREY, SITES, legend, look, save

Row = dict[str, Any]
NUM_OUTER = 5
ARMS: dict[str, Callable[[int], e.Estimator]] = {
    "Trace_ELBO": e.Trace_ELBO,
    "TraceSTL_ELBO": e.TraceSTL_ELBO,
    "TraceIWAE_ELBO": e.TraceIWAE_ELBO,
    "TraceIWAESTL_ELBO": e.TraceIWAESTL_ELBO,
    "TraceDReG_ELBO": e.TraceDReG_ELBO,
    "TraceMIWAE_ELBO": lambda k: e.TraceMIWAE_ELBO(k // NUM_OUTER, num_outer=NUM_OUTER),
    "TracePIWAE_ELBO": lambda k: e.TracePIWAE_ELBO(k // NUM_OUTER, num_outer=NUM_OUTER),
}
SPLIT = ("TraceMIWAE_ELBO", "TracePIWAE_ELBO")
COLORS = dict(zip(ARMS, (GREY, "#1d2126", *SITES[:5]), strict=True))
GROUPS = ("guide", "model")
FIGURES = ("squared_norm", "variance", "squared_snr", "snr", "entry_snr", "dsnr")


def settings(smoke: bool, seed: int) -> Row:
    """Sizes, of the smoke tier or of the experiment."""
    if smoke:
        return {"seed": seed, "data": "digits", "hidden": [32], "latent_dim": 8, "steps": 60,
                "num_data": 4, "counts": [1, 5, 10], "num_draws": 12, "num_values": 5,
                "num_repeats": 2, "biases": [5], "num_marginal": 50}  # fmt: skip
    return {"seed": seed, "data": "binarized_mnist", "hidden": [200], "latent_dim": 20,
            "steps": 3000, "num_data": 8, "counts": [1, 2, 5, 10, 20, 50, 100, 200],
            "num_draws": 300, "num_values": 50, "num_repeats": 7, "biases": [2, 10, 50],
            "num_marginal": 5000}  # fmt: skip


def trained(how: Row, folder: Path) -> tuple[VAE, MeanFieldGuide, Tensor]:
    """The pair, in evaluation mode, and test images at random; a run in `folder` is gone on with.

    Adam 1e-3, falling to 0, on minibatches of 128 and the ELBO.
    """
    data = how["data"]
    splits = ppl_vae.data.load(data, binarize="fixed" if data == "digits" else None)
    torch.manual_seed(how["seed"])
    model = VAE(splits.data_shape, latent_dim=how["latent_dim"], hidden=how["hidden"])
    guide = MeanFieldGuide(model, hidden=how["hidden"])
    start = time.monotonic()
    ppl_vae.fit(
        model, guide, splits, num_steps=how["steps"], optimizer=partial(Adam, lr=1e-3),
        lr_schedule=partial(CosineAnnealingLR, T_max=how["steps"]), seed=how["seed"],
        compile="auto", log_every=how["steps"], eval_every=how["steps"], tensorboard=False,
        progress=False, device="cpu", out=folder, resume=True,
    )  # fmt: skip
    print(f"{how['steps']} steps: {time.monotonic() - start:.0f} s", flush=True)
    # The files are sorted by label.
    chosen = torch.Generator().manual_seed(how["seed"])
    index = torch.randperm(len(splits.test), generator=chosen)[: how["num_data"]]
    return model.eval(), guide.eval(), splits.test[index]


def cell(pair: tuple, arm: str, num_particles: int, truth: Estimate, how: Row) -> Row:
    """One estimator with so many particles: signal, bound and cost."""
    start = time.monotonic()
    elbo = ARMS[arm](num_particles)
    seed = how["seed"]
    found = gradient_signal(
        *pair[:2], elbo, pair[2], num_draws=how["num_draws"], seed=seed, max_entries=150_000_000
    )
    bound = bound_at(*pair[:2], elbo, pair[2], how["num_values"], log_marginal=truth, seed=seed)
    cost = step_cost(*pair[:2], elbo, pair[2], num_repeats=how["num_repeats"])
    signal = {g: {f: numbers(getattr(found[g], f)) for f in FIGURES} for g in GROUPS}
    return {
        "arm": arm, "num_particles": num_particles, "signal": signal,
        "bound": numbers(bound.value), "gap": numbers(bound.gap),
        "seconds": cost.seconds, "bytes": cost.peak_bytes, "wall": time.monotonic() - start,
    }  # fmt: skip


def bias_of(pair: tuple, num_particles: int, how: Row) -> Row:
    """How far the guide's gradient without its score is from the bound's own, relatively."""
    model, guide, x = pair
    found = gradient_signal(
        model, guide, e.TraceIWAESTL_ELBO(num_particles), x, num_draws=how["num_draws"],
        reference=e.TraceDReG_ELBO(num_particles), reference_draws=how["num_draws"],
        groups=["guide"], seed=how["seed"] + 1, max_entries=150_000_000,
    )["guide"]  # fmt: skip
    return {"num_particles": num_particles, "squared_bias": numbers(found.squared_bias),
            "squared_norm": numbers(found.squared_norm)}  # fmt: skip


def numbers(estimate: Any) -> list[float | None]:
    """Value and standard error, as JSON has them: what is not finite is none."""
    values = (estimate.value, estimate.standard_error)
    return [v if math.isfinite(v) else None for v in values]


def text(pair: list[float | None]) -> str:
    """Value and standard error, as a cell of a table has them."""
    value, error = (math.nan if v is None else v for v in pair)
    return str(Estimate(value, error))


def borrowed(rows: list[Row]) -> list[Row]:
    """IWAE's noise against DReG's mean, which is the same and less noisy: SNR of the guide."""
    by = {(r["arm"], r["num_particles"]): r["signal"]["guide"] for r in rows}
    found = []
    for (arm, k), own in by.items():
        other = by.get(("TraceDReG_ELBO", k))
        if arm != "TraceIWAE_ELBO" or other is None or (other["squared_norm"][0] or 0) <= 0:
            continue
        (norm, norm_error), (variance, variance_error) = other["squared_norm"], own["variance"]
        value = math.sqrt(norm / variance)
        error = 0.5 * value * math.hypot(norm_error / norm, variance_error / variance)
        found.append({"num_particles": k, "snr": [value, error]})
    return found


def slope(points: list[tuple[int, list[float | None]]], least: int) -> Estimate | None:
    """Of log figure in log K, from K = `least` on, by least squares weighted by the errors."""
    usable = [
        (math.log(k), math.log(pair[0]), pair[0] / pair[1])
        for k, pair in points
        if k >= least and pair[0] and pair[1]
    ]
    if len(usable) < 3:
        return None
    x, y, w = (torch.tensor(v, dtype=torch.float64) for v in zip(*usable, strict=True))
    w = w**2
    x = x - (w * x).sum() / w.sum()
    spread = (w * x**2).sum()
    return Estimate(((w * x * y).sum() / spread).item(), (1 / spread.sqrt()).item())


def report(found: Row) -> None:
    """The tables."""
    rows, counts = found["cells"], found["settings"]["counts"]
    for group, figure in (("guide", "snr"), ("model", "snr"), ("guide", "dsnr"), ("model", "dsnr")):
        print(f"\n{figure.upper()} of the {group}'s gradient\n")
        print("| arm | " + " | ".join(f"K = {k}" for k in counts) + " | slope |")
        print("|---|" + "---|" * (len(counts) + 1))
        lines = {arm: series(rows, arm, group, figure) for arm in ARMS}
        if (group, figure) == ("guide", "snr"):
            extra = [(r["num_particles"], r["snr"]) for r in borrowed(rows)]
            lines["TraceIWAE_ELBO, DReG's mean"] = extra
        for arm, points in lines.items():
            cells = [text(dict(points)[k]) if k in dict(points) else "" for k in counts]
            fitted = slope(points, 5)
            print(f"| {arm} | " + " | ".join([*cells, str(fitted or "")]) + " |")
    for title, key in (("log p(x) less the bound, nats per image", "gap"), ("Cost", "cost")):
        print(f"\n{title}\n")
        print("| arm | " + " | ".join(f"K = {k}" for k in counts) + " |")
        print("|---|" + "---|" * len(counts))
        for arm in ARMS:
            mine = {r["num_particles"]: r for r in rows if r["arm"] == arm}
            cells = [_cell(mine[k], key) if k in mine else "" for k in counts]
            print(f"| {arm} | " + " | ".join(cells) + " |")
    for row in found["biases"]:
        (square, error), (norm, _) = row["squared_bias"], row["squared_norm"]
        share = square / norm if norm else math.nan
        print(f"TraceIWAESTL_ELBO, K = {row['num_particles']}: squared bias of the guide "
              f"{square:.4g} ± {error:.2g}, {share:.2f} of its squared norm")  # fmt: skip


def _cell(row: Row, key: str) -> str:
    if key == "gap":
        return text(row["gap"])
    return f"{1e3 * row['seconds']:.1f} ms, {row['bytes'] / 1e6:.1f} MB"


def series(rows: list[Row], arm: str, group: str, figure: str) -> list[tuple[int, list]]:
    """K and a figure with its error, along K."""
    return [(r["num_particles"], r["signal"][group][figure]) for r in rows if r["arm"] == arm]


def picture(rows: list[Row]) -> Figure:
    """SNR and DSNR of both gradients along K; a band is one standard error either way."""
    figure = Figure((7.2, 5.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    panels = [(g, f) for f in ("snr", "dsnr") for g in GROUPS]
    for ax, (group, name) in zip(axes.flat, panels, strict=True):
        for arm, color in COLORS.items():
            draw(ax, series(rows, arm, group, name), color)
        if (group, name) == ("guide", "snr"):
            points = [(r["num_particles"], r["snr"]) for r in borrowed(rows)]
            draw(ax, points, COLORS["TraceIWAE_ELBO"], ls=(0, (2, 1.5)))
        ax.set(title=f"{name.upper()} of the {group}'s gradient", xscale="log", yscale="log")
        counts = sorted({r["num_particles"] for r in rows})
        ax.set_xticks(counts, [str(k) for k in counts])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        guides(ax, counts)
    for ax in axes[-1]:
        ax.set_xlabel("K")
    legend(figure, {arm.removesuffix("_ELBO"): c for arm, c in COLORS.items()},
           loc="outside lower center", ncols=4)  # fmt: skip
    return figure


def draw(ax: Axes, points: list[tuple[int, list]], color: str, **style: Any) -> None:
    """One line, where there is a signal."""
    seen = [(k, v, s) for k, (v, s) in points if v and s]
    if not seen:
        return
    counts, values, errors = zip(*seen, strict=True)
    ax.plot(counts, values, color=color, marker="o", ms=2.5, lw=1.2, **style)
    low = [max(v - s, 0.1 * v) for v, s in zip(values, errors, strict=True)]
    high = [v + s for v, s in zip(values, errors, strict=True)]
    ax.fill_between(counts, low, high, color=color, alpha=0.15, lw=0)


def guides(ax: Axes, counts: list[int]) -> None:
    """Faint lines of slope 1/2 and -1/2, through the middle of the panel."""
    low, high = ax.get_ylim()
    first, last = counts[0], counts[-1]
    middle, half = math.sqrt(low * high), math.sqrt(last / first) ** 0.5
    for ends in ((middle / half, middle * half), (middle * half, middle / half)):
        ax.plot((first, last), ends, color=FAINT, lw=0.8, ls=(0, (4, 3)), zorder=0)
    ax.set_ylim(low, high)


def main() -> None:
    """Runs what is missing, prints the tables, and writes numbers and figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    how = settings(options.smoke, options.seed)
    found: Row = {"settings": how, "seconds": 0, "log_marginal": None, "cells": [], "biases": []}
    if options.out.is_file():
        before = json.loads(options.out.read_text())
        if before["settings"] != how:
            raise SystemExit(f"{options.out} is of other settings; move it away, or give --out")
        found = before
    spent = found["seconds"]

    def write() -> None:
        found["seconds"] = round(spent + time.monotonic() - start)
        options.out.write_text(json.dumps(found, indent=1) + "\n")

    cells = [
        (arm, k) for k in how["counts"] for arm in ARMS if arm not in SPLIT or k % NUM_OUTER == 0
    ]
    done = {(r["arm"], r["num_particles"]) for r in found["cells"]}
    todo = [key for key in cells if key not in done]
    biases = {r["num_particles"] for r in found["biases"]}
    if todo or set(how["biases"]) - biases:
        pair = trained(how, options.out.with_suffix(".run"))
        if found["log_marginal"] is None:
            each = log_marginal(*pair, num_particles=how["num_marginal"])
            error = each.standard_error.double().square().sum().sqrt().item() / len(pair[2])
            found["log_marginal"] = [each.value.double().mean().item(), error]
        truth = Estimate(*found["log_marginal"])
        for arm, k in todo:
            found["cells"].append(cell(pair, arm, k, truth, how))
            write()
            print(f"{arm} K = {k}: {found['cells'][-1]['wall']:.1f} s", flush=True)
        for k in how["biases"]:
            if k not in biases:
                found["biases"].append(bias_of(pair, k, how))
                write()
    with look():
        save(picture(found["cells"]), options.out.with_suffix(".png"))
    report(found)
    print(f"\n{found['seconds']} s")


if __name__ == "__main__":
    main()
