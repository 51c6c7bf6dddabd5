"""What does beta buy? Reconstruction against disentanglement, on sprites and MNIST.

    python experiments/beta/run.py             # tables, results.json, results.png, traversals.png
    python experiments/beta/run.py --tier gpu  # ten times the steps
    python experiments/beta/run.py --smoke     # seconds, on digits

A grid of beta and seeds for each data set; cells that are done are not run again.
After Higgins et al. (2017).
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae.data import Splits
from ppl_vae.evaluate import (
    Estimate,
    codes_and_factors,
    dci,
    factor_vae_score,
    knn_accuracy,
    mig,
    posterior_means,
    reconstruct,
    traverse,
    unit_kl,
)
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.laboratory import Cell, Comparison, compare
from ppl_vae.models import VAE
from ppl_vae.plots.look import SITES, look, save
from ppl_vae.runs import Run, load_run
from ppl_vae.schedules import Constant

# Of sprites: orientation, x and y are continuous; shape and scale are few values.
CONTINUOUS = (2, 3, 4)
BETAS = [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
COLUMNS = {"reconstruction": "E log p(x given z), nats", "kl.z": "KL, nats",
           "active_units.z": "active units", "measures.squared error": "squared error a pixel",
           "measures.MIG": "MIG", "measures.DCI": "DCI", "measures.FactorVAE": "FactorVAE",
           "measures.5-NN": "5-NN accuracy"}  # fmt: skip


def settings(tier: str) -> dict[str, dict[str, Any]]:
    """For each data set the sizes of a tier; on a GPU ten times the steps."""
    if tier == "smoke":
        return {"digits": {"betas": [0.0, 4.0], "seeds": [0], "steps": 40, "batch": 64,
                           "latent_dim": 4, "hidden": [16], "binarize": None}}  # fmt: skip
    sizes = {"betas": BETAS, "seeds": [0, 1, 2], "latent_dim": 10}
    times = 10 if tier == "gpu" else 1
    return {
        "sprites": {**sizes, "steps": 3000 * times, "batch": 64, "hidden": [400], "binarize": None},
        "mnist": {
            **sizes,
            "steps": 6000 * times,
            "batch": 128,
            "hidden": [400],
            "binarize": "dynamic",
        },
    }


def disentanglement(run: Run, splits: Splits) -> dict[str, Estimate]:
    """MIG, DCI and FactorVAE score of the test codes."""
    codes, factors = codes_and_factors(run.guide, splits)
    return {
        "MIG": mig(codes, factors).score,
        "DCI": dci(codes, factors, continuous=CONTINUOUS).disentanglement,
        "FactorVAE": factor_vae_score(codes, factors),
    }


def labels_told(run: Run, splits: Splits) -> dict[str, Estimate]:
    """How well the nearest codes tell the label."""
    codes = posterior_means(run.guide, run.like(splits.test))["z"]
    return {"5-NN": knn_accuracy(codes, splits.labels["test"])}


def sharpness(run: Run, splits: Splits) -> dict[str, float]:
    """The squared error of a reconstruction, for each pixel."""
    x = run.like(splits.test[:1000])
    return {"squared error": (reconstruct(run.model, run.guide, x) - x).square().mean().item()}


def grid(data: str, how: dict[str, Any], out: Path, workers: int) -> Comparison:
    """One data set's grid."""
    base = {
        "data": data, "binarize": how["binarize"], "num_steps": how["steps"],
        "batch_size": how["batch"], "optimizer": partial(Adam, lr=1e-3),
        "lr_schedule": partial(CosineAnnealingLR, T_max=how["steps"]),
        "model": partial(VAE, latent_dim=how["latent_dim"], hidden=how["hidden"]),
        "guide": partial(MeanFieldGuide, hidden=how["hidden"]), "log_every": how["steps"],
        "eval_every": how["steps"], "tensorboard": False,
    }  # fmt: skip
    schedules = {f"{beta:g}": Constant(beta) for beta in how["betas"]}
    measures = [sharpness, disentanglement if data == "sprites" else labels_told]
    return compare(
        {"schedule": schedules, "seed": how["seeds"]}, base, out=out / data,
        baseline={"schedule": "1"} if "1" in schedules else None, num_particles=100,
        num_data=1000 if data != "digits" else None, measures=measures, num_workers=workers,
    )  # fmt: skip


def table(found: Comparison) -> dict[str, dict[str, str]]:
    """By beta and figure: mean ± standard error over seeds, and the p-value of beta against 1."""
    rows = {}
    for row in found.rows():
        cells = {}
        for name in COLUMNS:
            if name in row.metrics:
                p_value = row.paired[name].p_value if name in row.paired else 1.0
                cells[name] = f"{row.metrics[name]}{'*' if p_value < 0.05 else ''}"
        rows[row.labels["schedule"]] = cells
    return rows


def report(data: str, rows: dict[str, dict[str, str]]) -> None:
    """One data set's table."""
    names = [name for name in COLUMNS if name in next(iter(rows.values()))]
    print(f"\n{data}\n\n| β | " + " | ".join(COLUMNS[n] for n in names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for beta, cells in rows.items():
        print(f"| {beta} | " + " | ".join(cells.get(name, "") for name in names) + " |")


def picture(found: dict[str, Comparison]) -> Figure:
    """Each figure against beta: mean, bars of two standard errors, seeds behind them."""
    shown = {
        data: [n for n in COLUMNS if n in comparison.metrics][:1]
        + [n for n in COLUMNS if n in comparison.metrics and n.startswith("measures.")]
        for data, comparison in found.items()
    }
    width = max(map(len, shown.values()))
    figure = Figure((1.9 * width, 2.2 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), width, squeeze=False)
    for line, (data, comparison) in zip(axes, found.items(), strict=True):
        for ax in line[len(shown[data]) :]:
            ax.set_visible(False)
        for ax, name, color in zip(line, shown[data], SITES, strict=False):
            curve(ax, comparison, name, color)
            ax.set_title(f"{data}\n{COLUMNS[name].removesuffix(', nats')}", fontsize=7.5)
            ax.set_xlabel("β")
    return figure


def curve(ax: Axes, comparison: Comparison, name: str, color: str) -> None:
    """One figure against the place of beta in the row of betas, for one of them is zero."""
    rows = comparison.rows()
    places = range(len(rows))
    means = [row.metrics[name].value for row in rows]
    errors = [2 * row.metrics[name].standard_error for row in rows]
    for record in comparison.records:
        place = [row.labels["schedule"] for row in rows].index(record.labels["schedule"])
        ax.plot(place, record.metric(name), ".", color=color, alpha=0.35, ms=4)
    ax.errorbar(places, means, errors, color=color, marker="o", ms=3, lw=1.2)
    short = {"0.25": "¼", "0.5": "½"}
    ax.set_xticks(places, [short.get(b, b) for b in (row.labels["schedule"] for row in rows)])
    ax.tick_params(labelsize=7)


def traversals(comparison: Comparison, folder: Path, betas: list[str]) -> Figure:
    """For some betas: a test picture, and what its five units of most KL do to it."""
    figure = Figure((2.3 * len(betas), 1.6), layout="constrained")
    axes = figure.subplots(1, len(betas), squeeze=False)[0]
    for ax, beta in zip(axes, betas, strict=True):
        record = next(r for r in comparison.records if r.labels["schedule"] == beta)
        run = load_run(folder / "cells" / Cell(record.labels, record.options).name)
        x = run.like(run.data().test[:1000])
        units = unit_kl(run.model, run.guide, x)["z"].argsort(descending=True)[:5].tolist()
        rows = traverse(run.model, run.guide, x[:1], "z", units, torch.linspace(-3, 3, 9))
        images = rows.reshape(len(units), 9, *x.shape[-2:]).permute(0, 2, 1, 3)
        ax.imshow(images.flatten(2).flatten(0, 1), cmap="gray_r", vmin=0, vmax=1)
        ax.set(title=f"β = {beta}", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
    return figure


def main() -> None:
    """Runs what is missing, prints the tables, and writes numbers and figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tier", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    tier = "smoke" if options.smoke else options.tier
    name = {"cpu": "results.json"}.get(tier, f"{tier}.json")
    out = options.out or Path(__file__).parent / name
    start, runs = time.monotonic(), out.with_suffix(".runs")
    sizes = settings(tier)
    workers = 2 if tier == "cpu" else 1
    found = {data: grid(data, how, runs, workers) for data, how in sizes.items()}
    tables = {data: table(comparison) for data, comparison in found.items()}
    seconds = round(sum(r.seconds for c in found.values() for r in c.records if r.is_done))
    results = {"settings": sizes, "tables": tables, "training_seconds": seconds}
    out.write_text(json.dumps(results, indent=1) + "\n")
    with look():
        save(picture(found), out.with_suffix(".png"))
        first = next(iter(found))
        betas = [b for b in ("0.25", "1", "4", "16") if b in tables[first]] or list(tables[first])
        save(
            traversals(found[first], runs / first, betas),
            out.with_name("traversals.png" if tier != "gpu" else "gpu_traversals.png"),
        )
    for data, rows in tables.items():
        report(data, rows)
    print(f"\n{seconds} s of training, {time.monotonic() - start:.0f} s now")


if __name__ == "__main__":
    main()
