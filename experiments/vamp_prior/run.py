"""Tomczak & Welling (2018): the standard normal prior against the VampPrior, one level and two.

    python experiments/vamp_prior/run.py             # MNIST, fixed and dynamic, a shorter schedule
    python experiments/vamp_prior/run.py --tier gpu  # the paper's sizes and schedule
    python experiments/vamp_prior/run.py --smoke     # seconds, on digits

Gated networks of 300-300, 40 latents a level; of two levels q(z2 | x) q(z1 | x, z2) and
p(x | z1, z2). Cells that are done are not run again.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae.evaluate import decode
from ppl_vae.guides import MeanFieldGuide, TopDownGuide
from ppl_vae.laboratory import Cell, Comparison, as_markdown, compare, table_of
from ppl_vae.models import VAE, GatedDecoder, GatedEncoder, HierarchicalVAE, VampPrior
from ppl_vae.plots.look import look, save
from ppl_vae.runs import load_run
from ppl_vae.schedules import Linear

# log p(x), nats, of Tomczak and Welling (2018), Table 1.
PAPER = {
    ("fixed", "one", "standard"): -88.56, ("fixed", "one", "VampPrior"): -85.57,
    ("fixed", "two", "standard"): -86.05, ("fixed", "two", "VampPrior"): -83.19,
    ("dynamic", "one", "standard"): -84.50, ("dynamic", "one", "VampPrior"): -82.38,
    ("dynamic", "two", "standard"): -82.40, ("dynamic", "two", "VampPrior"): -81.24,
}  # fmt: skip
METRICS = ["log_marginal", "elbo", "kl.z", "kl.z1", "kl.z2", "active_units.z", "active_units.z1",
           "active_units.z2", "seconds"]  # fmt: skip
DATA = {"fixed": {"data": "binarized_mnist", "binarize": None},
        "dynamic": {"data": "mnist", "binarize": "dynamic"}}  # fmt: skip
SMALL = {"digits": {"data": "digits", "binarize": "fixed"}}
TIERS: dict[str, dict[str, Any]] = {
    "smoke": {"data": SMALL, "steps": 40, "batch": 64, "dim": 4, "hidden": [16], "components": 5,
              "seeds": [0], "num_particles": 20, "num_data": 50, "patience": None},
    "cpu": {"data": DATA, "steps": 12_000, "batch": 100, "dim": 40, "hidden": [300, 300],
            "components": 100, "seeds": [0], "num_particles": 5000, "num_data": 1000,
            "patience": None},
    # 2,000 epochs at most in the paper; 500 pseudo-inputs; 50 epochs of patience.
    "gpu": {"data": DATA, "steps": 1_000_000, "batch": 100, "dim": 40, "hidden": [300, 300],
            "components": 500, "seeds": [0], "num_particles": 5000, "num_data": None,
            "patience": 50},
}  # fmt: skip


def axes(how: dict[str, Any]) -> dict[str, Any]:
    """Seeds, data, depths and priors."""
    parts = {"decoder": partial(GatedDecoder, hidden=how["hidden"])}
    encoder = {"encoder": partial(GatedEncoder, hidden=how["hidden"])}
    one = partial(VAE, latent_dim=how["dim"], **parts)
    two = partial(HierarchicalVAE, latent_dims=[how["dim"]] * 2, skip=True,
                  latent_hidden=how["hidden"], **parts)  # fmt: skip
    below = partial(TopDownGuide, latent_hidden=how["hidden"], **encoder)
    pairs = {"one": (one, partial(MeanFieldGuide, **encoder)), "two": (two, below)}
    ways = {
        f"{levels}, {prior}": {
            "model": model if prior == "standard" else partial(
                VampPrior, make=model, num_components=how["components"]
            ),
            "guide": guide,
        }
        for levels, (model, guide) in pairs.items()
        for prior in ("standard", "VampPrior")
    }  # fmt: skip
    return {"seed": how["seeds"], "binarized": how["data"], "way": ways}


def run(tier: str, out: Path) -> Comparison:
    """What is missing of the grid."""
    how = TIERS[tier]
    steps, epoch = how["steps"], 500
    every = epoch if how["patience"] else max(steps // 20, 1)
    # The paper's rate, held; of the short schedule a larger one, along a cosine.
    rate = {"optimizer": partial(Adam, lr=5e-4)} if tier == "gpu" else {
        "optimizer": partial(Adam, lr=1e-3), "lr_schedule": partial(CosineAnnealingLR, T_max=steps)
    }  # fmt: skip
    base = {
        **rate, "num_steps": steps, "batch_size": how["batch"], "log_every": every,
        "schedule": Linear(num_steps=100 * epoch if tier == "gpu" else steps // 4),
        "eval_every": every, "checkpoint_every": every, "patience": how["patience"],
        "tensorboard": False,
    }  # fmt: skip
    return compare(
        axes(how), base, out=out, num_particles=how["num_particles"], num_data=how["num_data"],
        num_workers=2 if tier == "cpu" else 1,
    )  # fmt: skip


def picture(found: Comparison, folder: Path) -> Figure:
    """Of each VampPrior with one level: pseudo-inputs, each above a decoded draw of its q."""
    shown = [r for r in found.records if r.is_done and r.labels["way"] == "one, VampPrior"]
    figure = Figure((4.2 * len(shown), 1.2), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, record in zip(panels, shown, strict=True):
        loaded = load_run(folder / "cells" / Cell(record.labels, record.options).name)
        inputs = loaded.model.pseudo_inputs[:10].detach()
        with torch.no_grad():
            draws = decode(loaded.model, {"z": loaded.guide(inputs)["z"]}, inputs)
        size = draws.shape[-1]
        rows = torch.stack([inputs.reshape(draws.shape), draws]).reshape(2, -1, size, size)
        ax.imshow(rows.permute(0, 2, 1, 3).flatten(2).flatten(0, 1), cmap="gray_r", vmin=0, vmax=1)
        ax.set(title=f"{record.labels['binarized']} binarization", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
    return figure


def main() -> None:
    """Runs what is missing, prints the table, and writes numbers and figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tier", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    tier = "smoke" if options.smoke else options.tier
    name = "results" if tier == "cpu" else tier
    out = options.out or Path(__file__).parent / f"{name}.json"
    start, runs = time.monotonic(), out.with_suffix(".runs")
    found = run(tier, runs)
    table = table_of(found, METRICS)
    papers = {", ".join(key): f"{value:.2f}" for key, value in PAPER.items()}
    rows = [[*row, papers.get(", ".join(row[:2]), "")] for row in table.rows]
    text = as_markdown(table._replace(headings=[*table.headings, "paper"], rows=rows))
    seconds = round(sum(record.seconds for record in found.records if record.is_done))
    results = {"settings": TIERS[tier], "training_seconds": seconds, "table": text.splitlines()}
    out.write_text(json.dumps(results, indent=1) + "\n")
    with look():
        save(picture(found, runs), out.with_suffix(".png"))
    print(text + f"\n{seconds} s of training, {time.monotonic() - start:.0f} s now")


if __name__ == "__main__":
    main()
