"""Burda et al. (2016), Table 1: one level and two, k particles, the ELBO, IWAE and DReG.

    python experiments/iwae_table/run.py             # fixed binarized MNIST, a shorter schedule
    python experiments/iwae_table/run.py --tier gpu  # the paper's data, batches and stages
    python experiments/iwae_table/run.py --smoke     # seconds, on digits

Cells that are done are not run again, and one under way goes on from its checkpoint.
"""

import argparse
import json
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from ppl_vae import estimators as e
from ppl_vae.evaluate import Estimate, log_marginal
from ppl_vae.guides import BottomUpGuide, MeanFieldGuide
from ppl_vae.laboratory import Cell, Record, compare
from ppl_vae.models import VAE, HierarchicalVAE
from ppl_vae.plots.look import SITES, look, save
from ppl_vae.runs import load_run
from ppl_vae.schedules import Constant, Linear

# log p(x) of Burda et al. (2016), Table 1, and, binarized once and for all, of their appendix D.
PAPER = {
    "gpu": {"one, VAE 1": -86.76, "one, VAE 5": -86.47, "one, VAE 50": -86.35,
            "one, IWAE 5": -85.54, "one, IWAE 50": -84.78, "two, VAE 1": -85.33,
            "two, VAE 5": -85.01, "two, VAE 50": -84.78, "two, IWAE 5": -83.89,
            "two, IWAE 50": -82.90},
    "cpu": {"one, VAE 1": -88.71, "one, IWAE 5": -87.63, "one, IWAE 50": -87.10},
}  # fmt: skip
# Of two levels tanh networks, the paper's, are still collapsed when the short schedule ends.
TIERS: dict[str, dict[str, Any]] = {
    "smoke": {"data": "digits", "binarize": "fixed", "steps": 40, "batch": 64, "counts": [1, 2],
              "one": [8, [16]], "two": [[8, 4], [16], [8]],
              "two_activation": "relu", "two_warm_up": 10, "num_particles": 20, "num_data": 50,
              "whole": ["one, DReG 2"]},
    "cpu": {"data": "binarized_mnist", "binarize": None, "steps": 40_000, "batch": 100,
            "counts": [1, 5], "one": [50, [200, 200]], "two": [[100, 50], [200, 200], [100, 100]],
            "two_activation": "relu", "two_warm_up": 10_000,
            "num_particles": 5000, "num_data": 1000,
            "whole": ["one, VAE 1", "one, DReG 5", "two, DReG 5"]},
    "gpu": {"data": "mnist", "binarize": "dynamic", "steps": 320_000, "batch": 100,
            "counts": [1, 5, 50], "one": [50, [200, 200]],
            "two": [[100, 50], [200, 200], [100, 100]], "two_activation": "tanh",
            "two_warm_up": 0, "num_particles": 5000, "num_data": None, "whole": []},
}  # fmt: skip


def falling(tier: str, steps: int) -> Any:
    """Learning rates along a cosine; of the GPU tier in the paper's stages, 1, 3, 9, ... long."""
    if tier != "gpu":
        return partial(CosineAnnealingLR, T_max=steps)
    ends = [round(steps * (3**i - 1) / (3**8 - 1)) for i in range(1, 8)]
    return partial(MultiStepLR, milestones=ends, gamma=10 ** (-1 / 7))


def axes(how: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Depths, and estimators with their particles; of one particle all three are one."""
    latent, hidden = how["one"]
    latents, hiddens, between = how["two"]
    two = {
        "model": partial(HierarchicalVAE, latent_dims=latents, hidden=hiddens,
                         latent_hidden=between, activation=how["two_activation"]),
        "guide": partial(BottomUpGuide, hidden=hiddens, latent_hidden=between,
                         activation=how["two_activation"]),
        "schedule": Linear(num_steps=how["two_warm_up"]) if how["two_warm_up"] else Constant(),
    }  # fmt: skip
    one = {
        "model": partial(VAE, latent_dim=latent, hidden=hidden, activation="tanh"),
        "guide": partial(MeanFieldGuide, hidden=hidden, activation="tanh"),
    }
    kinds = {"VAE": e.Trace_ELBO, "IWAE": e.TraceIWAE_ELBO, "DReG": e.TraceDReG_ELBO}
    arms = {
        f"{name} {k}": kind(k)
        for k in how["counts"]
        for name, kind in kinds.items()
        if k > 1 or name == "VAE"
    }
    return {"levels": {"one": one, "two": two}, "estimator": arms}


def main() -> None:
    """Runs what is missing, and writes numbers, the figure and the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tier", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    tier = "smoke" if options.smoke else options.tier
    out = options.out or Path(__file__).parent / (
        "results.json" if tier == "cpu" else f"{tier}.json"
    )
    how = TIERS[tier]
    steps = how["steps"]
    every = max(steps // 20, 1)
    base = {
        "data": how["data"], "binarize": how["binarize"], "num_steps": steps,
        "batch_size": how["batch"], "optimizer": partial(Adam, lr=1e-3),
        "lr_schedule": falling(tier, steps), "log_every": every, "eval_every": every,
        "checkpoint_every": every, "tensorboard": False,
    }  # fmt: skip
    start = time.monotonic()
    # On a GPU one training after the other.
    found = compare(
        axes(how), base, out=out.with_suffix(".runs"), num_particles=how["num_particles"],
        num_data=how["num_data"], num_workers=2 if tier == "cpu" else 1,
    )  # fmt: skip
    rows = [row_of(record, tier) for record in found.records]
    before = json.loads(out.read_text()) if out.is_file() else {"whole": {}, "seconds": 0}
    whole = before["whole"]
    for record, row in zip(found.records, rows, strict=True):
        name = f"{row['levels']}, {row['estimator']}"
        if record.is_done and name in how["whole"] and name not in whole:
            cell = Cell(record.labels, record.options)
            run = load_run(out.with_suffix(".runs") / "cells" / cell.name)
            x = run.like(run.data().test)
            found_here = log_marginal(run.model, run.guide, x, num_particles=how["num_particles"])
            whole[name] = {"num_data": len(x), **numbers(found_here.mean())}
    seconds = round(before["seconds"] + time.monotonic() - start)
    results = {"tier": tier, "seconds": seconds, "rows": rows, "whole": whole}
    out.write_text(json.dumps(results, indent=1) + "\n")
    with look():
        save(picture(results), out.with_suffix(".png"))
    report(results)


def numbers(estimate: Estimate) -> dict[str, float]:
    """An estimate, as JSON has it."""
    return {"value": float(estimate.value), "standard_error": float(estimate.standard_error)}


def row_of(record: Record, tier: str) -> dict[str, Any]:
    """What a cell came to."""
    labels = record.labels
    paper = PAPER.get(tier, {}).get(f"{labels['levels']}, {labels['estimator']}")
    return {**labels, "error": record.error, "results": record.results, "paper": paper,
            "seconds": record.seconds, "num_steps": record.num_steps}  # fmt: skip


def report(results: dict[str, Any]) -> None:
    """The table."""
    titles = ["levels", "estimator", "log p(x), nats", "of all test data", "paper", "ELBO",
              "KL, nats", "active", "training, s"]  # fmt: skip
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for row in results["rows"]:
        if row["error"]:
            print(f"| {row['levels']} | {row['estimator']} | failed: {row['error']} |")
            continue
        found = row["results"]
        units = found["active_units"].values()
        whole = results["whole"].get(f"{row['levels']}, {row['estimator']}")
        cells = [
            row["levels"], row["estimator"], text(found["log_marginal"]), text(whole),
            f"{row['paper']:.2f}" if row["paper"] else "", text(found["elbo"]),
            " + ".join(f"{v['value']:.1f}" for v in found["kl"].values()),
            " + ".join(str(unit["active"]) for unit in units), f"{row['seconds']:.0f}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    print(f"\n{results['seconds']} s")


def picture(results: dict[str, Any]) -> Figure:
    """By depth and estimator: log p(x) with two standard errors, the ELBO below it, the paper's."""
    figure = Figure((6.4, 2.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for ax, levels in zip(panels, ("one", "two"), strict=True):
        rows = [r for r in results["rows"] if r["levels"] == levels and not r["error"]]
        for place, row in enumerate(reversed(rows)):
            found = {key: row["results"][key] for key in ("elbo", "log_marginal")}
            whole = results["whole"].get(f"{levels}, {row['estimator']}")
            drawn = [(found["elbo"], "none", "ELBO"), (found["log_marginal"], SITES[0], "log p(x)"),
                     (whole, SITES[1], "log p(x), all test data")]  # fmt: skip
            for entry, face, name in drawn:
                if entry:
                    error = 2 * entry["standard_error"]
                    color = SITES[1] if face == SITES[1] else SITES[0]
                    shift = 0.18 if face == SITES[1] else 0.0
                    ax.errorbar(entry["value"], place + shift, xerr=error, fmt="o", ms=4, lw=1,
                                color=color, mfc=face, label=name)  # fmt: skip
            if row["paper"]:
                ax.plot(row["paper"], place, "k|", ms=12, mew=1.5, label="paper")
        names = [re.sub(r"^VAE", "ELBO", row["estimator"]) for row in reversed(rows)]
        ax.set_yticks(range(len(rows)), names)
        ax.set_title(f"{levels} level{'s' if levels == 'two' else ''}")
        ax.set_xlabel("nats per image")
        ax.margins(y=0.15)
    known: dict[str, Any] = {}
    for ax in panels:
        handles, labels = ax.get_legend_handles_labels()
        known.update(zip(labels, handles, strict=True))
    figure.legend(known.values(), known, loc="outside lower center", ncols=4)
    return figure


def text(entry: dict[str, float] | None) -> str:
    """Value and standard error, as a cell of a table has them."""
    return str(Estimate(entry["value"], entry["standard_error"])) if entry else ""


if __name__ == "__main__":
    main()
