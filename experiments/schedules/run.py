"""What does the weight of the KL along the training do to what is learned?

    python experiments/schedules/run.py             # table, results.json, results.png
    python experiments/schedules/run.py --tier gpu  # ten times the steps, all test images
    python experiments/schedules/run.py --smoke     # seconds, on digits

Constant, linear, sigmoid and cyclical weights, a capacity and free bits; one level and two. Done
cells are not run again. After Bowman et al. (2016), Fu et al. (2019) and Burgess et al. (2018).
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae.estimators import TraceCapacity_ELBO, TraceFreeBits_ELBO
from ppl_vae.guides import BottomUpGuide, MeanFieldGuide
from ppl_vae.laboratory import Cell, Comparison, as_markdown, compare, table_of
from ppl_vae.models import VAE, HierarchicalVAE
from ppl_vae.plots.look import GREY, SITES, look, save
from ppl_vae.runs import load_run
from ppl_vae.schedules import Constant, Cyclical, Linear, Sigmoid

METRICS = ["log_marginal", "elbo", "reconstruction", "kl.z", "kl.z1", "kl.z2", "active_units.z",
           "active_units.z1", "active_units.z2"]  # fmt: skip
COLORS = (GREY, *SITES[:5])


def settings(tier: str) -> dict[str, Any]:
    """The sizes of a tier; on a GPU ten times the steps, and all test images."""
    if tier == "smoke":
        return {"data": "digits", "binarize": "fixed", "steps": 40, "batch": 64, "seeds": [0],
                "dims": [6, 3], "hidden": [16], "latent_hidden": [8], "nats": 1.0, "capacity": 3.0,
                "num_particles": 20, "num_data": 50, "workers": 1}  # fmt: skip
    found = {"data": "binarized_mnist", "binarize": None, "steps": 10_000, "batch": 100,
            "seeds": [0, 1, 2], "dims": [40, 20], "hidden": [200, 200], "latent_hidden": [100],
            "nats": 3.0, "capacity": 22.0, "num_particles": 500, "num_data": 1000,
            "workers": 2}  # fmt: skip
    longer = {"steps": 100_000, "num_particles": 5000, "num_data": None, "workers": 1}
    return {**found, **longer} if tier == "gpu" else found


def ways(how: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Weights that have reached 1 after half of the steps, and two other ways to hold a KL."""
    half = how["steps"] // 2
    capacity = Linear(num_steps=half, end=how["capacity"])
    return {
        "constant": {"schedule": Constant()},
        "linear": {"schedule": Linear(num_steps=half)},
        "sigmoid": {"schedule": Sigmoid(num_steps=half)},
        "cyclical": {"schedule": Cyclical(num_cycles=4, num_steps=how["steps"])},
        "capacity": {"estimator": TraceCapacity_ELBO(gamma=10.0, capacity=capacity)},
        "free bits": {"estimator": TraceFreeBits_ELBO(nats=how["nats"])},
    }


def grid(how: dict[str, Any], out: Path) -> Comparison:
    """Seeds, depths and ways; a seed is done with before the next begins."""
    widths = {"hidden": how["hidden"]}
    between = {**widths, "latent_hidden": how["latent_hidden"]}
    levels = {
        "one": {"model": partial(VAE, latent_dim=how["dims"][0], **widths),
                "guide": partial(MeanFieldGuide, **widths)},
        "two": {"model": partial(HierarchicalVAE, latent_dims=how["dims"], **between),
                "guide": partial(BottomUpGuide, **between)},
    }  # fmt: skip
    steps = how["steps"]
    every = max(steps // 40, 1)
    base = {
        "data": how["data"], "binarize": how["binarize"], "num_steps": steps,
        "batch_size": how["batch"], "optimizer": partial(Adam, lr=1e-3),
        "lr_schedule": partial(CosineAnnealingLR, T_max=steps), "log_every": every,
        "eval_every": every, "tensorboard": False,
    }  # fmt: skip
    return compare(
        {"seed": how["seeds"], "levels": levels, "way": ways(how)}, base, out=out,
        num_particles=how["num_particles"], num_data=how["num_data"], num_workers=how["workers"],
    )  # fmt: skip


def picture(found: Comparison, folder: Path) -> Figure:
    """Along the training, for each depth: the weight, the validation ELBO, and each site's KL."""
    figure = Figure((8.4, 3.8), layout="constrained")
    axes = figure.subplots(2, 4)
    sites = {"one": ["z"], "two": ["z1", "z2"]}
    names = list(dict.fromkeys(record.labels["way"] for record in found.records))
    colors = dict(zip(names, COLORS, strict=True))
    for line, (levels, shown) in zip(axes, sites.items(), strict=True):
        for record in found.records:
            if record.labels["levels"] == levels and record.is_done:
                run = load_run(folder / "cells" / Cell(record.labels, record.options).name)
                course(line, run.metrics, shown, record.labels["way"], colors)
        titles = ["weight of the KL", "ELBO, nats", *(f"KL of {s}, nats" for s in shown)]
        for ax, title in zip(line, titles, strict=False):
            ax.set_title(title)
        line[1].set_ylim(bottom=_low(found, levels))
        line[0].set_ylabel(f"{levels} level{'s' if levels == 'two' else ''}")
    axes[0][3].axis("off")
    for name, color in colors.items():
        axes[0][3].plot([], [], color=color, label=name)
    axes[0][3].legend(loc="center", frameon=False)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    return figure


def course(
    line: list[Axes], metrics: list[dict], sites: list[str], way: str, colors: dict[str, str]
) -> None:
    """One training in its row of panels."""
    color = colors[way]
    trained = [m for m in metrics if m["split"] == "train"]
    valid = [m for m in metrics if m["split"] == "valid"]
    if way not in ("capacity", "free bits"):  # these weigh nothing
        weights = [m["weight"] for m in trained]
        line[0].plot([m["step"] for m in trained], weights, color=color, lw=1)
    steps = [m["step"] for m in valid]
    line[1].plot(steps, [m["elbo"] for m in valid], color=color, lw=0.8)
    for ax, site in zip(line[2:], sites, strict=False):
        ax.plot(steps, [m["kl"][site] for m in valid], color=color, lw=0.8)


def _low(found: Comparison, levels: str) -> float:
    """Where the ELBO's axis ends: a little below the worst end of a training."""
    ends = [r.metric("elbo") for r in found.records if r.is_done and r.labels["levels"] == levels]
    return min(ends) - 0.6 * abs(max(ends) - min(ends)) - 5


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
