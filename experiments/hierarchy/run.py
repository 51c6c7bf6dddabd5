"""When does the upper level of a hierarchy collapse, and what prevents it?

    python experiments/hierarchy/run.py             # table, results.json, results.png
    python experiments/hierarchy/run.py --tier gpu  # ten times the steps, all test images
    python experiments/hierarchy/run.py --smoke     # seconds, on digits

One level against two; of two, four guides; each with no cure, with warm-up and with free bits.
Cells that are done are not run again. After Sonderby et al. (2016) and Kingma et al. (2016).
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae.estimators import TraceFreeBits_ELBO
from ppl_vae.guides import BottomUpGuide, LadderGuide, MeanFieldGuide, TopDownGuide
from ppl_vae.laboratory import Cell, Comparison, Row, as_markdown, compare, table_of
from ppl_vae.models import VAE, HierarchicalVAE
from ppl_vae.plots.look import INK, SITES, legend, look, save
from ppl_vae.runs import load_run
from ppl_vae.schedules import Linear

LEVELS = ("z1", "z2", "z")
COLORS = {"z": SITES[5], "z1": SITES[0], "z2": SITES[1]}
LINES = {"independent": SITES[4], "bottom-up": SITES[3], "top-down": SITES[2], "ladder": SITES[1]}
METRICS = ["log_marginal", "elbo", "kl.z", "kl.z1", "kl.z2", "active_units.z", "active_units.z1",
           "active_units.z2", "seconds"]  # fmt: skip


def settings(tier: str) -> dict[str, Any]:
    """The sizes of a tier; on a GPU ten times the steps, and all test images."""
    if tier == "smoke":
        return {"data": "digits", "binarize": "fixed", "steps": 40, "batch": 64, "seeds": [0],
                "dims": [6, 3], "hidden": [16], "latent_hidden": [8], "nats": 1.0,
                "num_particles": 20, "num_data": 50, "workers": 1}  # fmt: skip
    found = {"data": "binarized_mnist", "binarize": None, "steps": 10_000, "batch": 100,
            "seeds": [0, 1, 2], "dims": [40, 20], "hidden": [200, 200], "latent_hidden": [100],
            "nats": 3.0, "num_particles": 500, "num_data": 1000, "workers": 2}  # fmt: skip
    longer = {"steps": 100_000, "num_particles": 5000, "num_data": None, "workers": 1}
    return {**found, **longer} if tier == "gpu" else found


def grid(how: dict[str, Any], out: Path) -> Comparison:
    """Seeds, pairs and cures; a seed is done with before the next begins."""
    two = partial(HierarchicalVAE, latent_dims=how["dims"], hidden=how["hidden"],
                  latent_hidden=how["latent_hidden"])  # fmt: skip
    widths = {"hidden": how["hidden"]}
    between = {**widths, "latent_hidden": how["latent_hidden"]}
    pairs = {
        "one level": {"model": partial(VAE, latent_dim=how["dims"][0], **widths),
                      "guide": partial(MeanFieldGuide, **widths)},
        "independent": {"model": two, "guide": partial(MeanFieldGuide, **widths)},
        "bottom-up": {"model": two, "guide": partial(BottomUpGuide, **between)},
        "top-down": {"model": two, "guide": partial(TopDownGuide, **between)},
        "ladder": {"model": two, "guide": partial(LadderGuide, **between)},
    }  # fmt: skip
    steps = how["steps"]
    cures = {
        "none": {},
        "warm-up": {"schedule": Linear(num_steps=steps // 2)},
        "free bits": {"estimator": TraceFreeBits_ELBO(nats=how["nats"])},
    }
    every = max(steps // 20, 1)
    base = {
        "data": how["data"], "binarize": how["binarize"], "num_steps": steps,
        "batch_size": how["batch"], "optimizer": partial(Adam, lr=1e-3),
        "lr_schedule": partial(CosineAnnealingLR, T_max=steps), "log_every": every,
        "eval_every": every, "tensorboard": False,
    }  # fmt: skip
    return compare(
        {"seed": how["seeds"], "pair": pairs, "cure": cures}, base, out=out,
        baseline={"pair": "one level", "cure": "none"}, num_particles=how["num_particles"],
        num_data=how["num_data"], num_workers=how["workers"],
    )  # fmt: skip


def picture(found: Comparison, folder: Path) -> Figure:
    """A line for each cure: nats of KL in each level; log p(x); the upper level's KL in time."""
    rows = found.rows()
    cures = list(dict.fromkeys(row.labels["cure"] for row in rows))
    figure = Figure((8.4, 1.9 * len(cures) + 0.4), layout="constrained")
    axes = figure.subplots(len(cures), 3, squeeze=False, sharex="col", width_ratios=[1.1, 1, 1.2])
    for line, cure in zip(axes, cures, strict=True):
        mine = [row for row in rows if row.labels["cure"] == cure]
        bars(line[0], mine)
        dots(line[1], mine)
        courses(line[2], found, folder, cure)
        line[0].set_title(f"cure: {cure}")
        line[1].tick_params(labelleft=False)
    for ax, title in zip(axes[-1], ("KL, nats, and active units", "log p(x), nats", "step"),
                         strict=True):  # fmt: skip
        ax.set_xlabel(title)
    axes[0][1].set_title("test images")
    axes[0][2].set_title("KL of z2, validation images, nats")
    axes[-1][2].legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.25),
                       handlelength=1, columnspacing=1)  # fmt: skip
    legend(figure, {"one level's z": COLORS["z"], "z1": COLORS["z1"], "z2": COLORS["z2"]},
           loc="outside lower left", ncols=3)  # fmt: skip
    return figure


def bars(ax: Axes, rows: list[Row]) -> None:
    """KL by level, the lower first, and behind them how many units of each are active."""
    names = [row.labels["pair"] for row in rows]
    for y, row in enumerate(rows):
        left, active = 0.0, []
        for site in LEVELS:
            if f"kl.{site}" not in row.metrics or np.isnan(row.metrics[f"kl.{site}"].value):
                continue
            width = row.metrics[f"kl.{site}"].value
            ax.barh(y, width, left=left, color=COLORS[site], height=0.65)
            left += width
            active.append(f"{row.metrics[f'active_units.{site}'].value:.0f}")
        ax.text(left, y, "  " + " + ".join(active), va="center", fontsize=7)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.22)


def dots(ax: Axes, rows: list[Row]) -> None:
    """log p(x): mean and two standard errors over seeds."""
    for y, row in enumerate(rows):
        value = row.metrics["log_marginal"]
        error = 0.0 if np.isnan(value.standard_error) else 2 * value.standard_error
        ax.errorbar(value.value, y, xerr=error, fmt="o", ms=4, color=INK, lw=1)
    ax.set_yticks(range(len(rows)), [])
    ax.set_ylim(len(rows) - 0.5, -0.5)


def courses(ax: Axes, found: Comparison, folder: Path, cure: str) -> None:
    """The upper level's KL along the training, each seed a line."""
    for record in found.records:
        pair = record.labels["pair"]
        if record.labels["cure"] != cure or pair not in LINES or not record.is_done:
            continue
        run = load_run(folder / "cells" / Cell(record.labels, record.options).name)
        lines = [m for m in run.metrics if m["split"] == "valid"]
        label = pair if record.labels["seed"] == found.records[0].labels["seed"] else None
        ax.plot([m["step"] for m in lines], [m["kl"]["z2"] for m in lines], color=LINES[pair],
                lw=1, label=label)  # fmt: skip
    ax.set_ylim(bottom=-0.2)


def main() -> None:
    """Runs what is missing, prints the table, and writes numbers and figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tier", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    tier = "smoke" if options.smoke else options.tier
    name = {"cpu": "results.json"}.get(tier, f"{tier}.json")
    out = options.out or Path(__file__).parent / name
    start, how = time.monotonic(), settings(tier)
    runs = out.with_suffix(".runs")
    found = grid(how, runs)
    table = as_markdown(table_of(found, METRICS))
    seconds = round(sum(record.seconds for record in found.records if record.is_done))
    results = {"settings": how, "training_seconds": seconds, "table": table.splitlines()}
    out.write_text(json.dumps(results, indent=1) + "\n")
    with look():
        save(picture(found, runs), out.with_suffix(".png"))
    print(table + f"\n{seconds} s of training, {time.monotonic() - start:.0f} s now")


if __name__ == "__main__":
    main()
