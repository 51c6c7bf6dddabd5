"""What does each half of the ELBO make of the latent space?

    python experiments/latent_space/run.py             # table, results.json, results.png
    python experiments/latent_space/run.py --smoke     # seconds, on digits

One encoder and one decoder, 784-400-2 and back; four objectives: the deterministic autoencoder,
reconstruction only, KL only, and both, which is the ELBO. Trainings go on where they stopped.
"""

import argparse
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import ppl_vae
from ppl_vae.evaluate import (
    Estimate,
    average_terms,
    decode,
    knn_accuracy,
    log_marginal,
    posterior_means,
)
from ppl_vae.guides import DeltaGuide, MeanFieldGuide
from ppl_vae.laboratory import mean_of
from ppl_vae.models import VAE
from ppl_vae.plots.look import CLASSES, GREY, INK, VERMILION, legend, look, save
from ppl_vae.randomness import fork
from ppl_vae.schedules import Constant

Row = dict[str, Any]
COLUMNS = {
    "autoencoder": "Autoencoder\n(no noise, no KL)",
    "reconstruction": "Reconstruction only\n(β = 0)",
    "kl": "KL only\n(no likelihood)",
    "both": "Both: the ELBO\n(β = 1)",
}
FIGURES = ("reconstruction", "kl", "elbo", "log_marginal", "code_sd", "knn")


class WithoutData(nn.Module):
    """A model whose observed site nobody sees: of the ELBO the KL is left."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Samples the latents; the likelihood is hidden from who traces."""
        with pyro.poutine.block(hide=["x"]):
            return self.model(x)


def settings(smoke: bool) -> Row:
    """Sizes, of the smoke tier or of the experiment."""
    if smoke:
        return {"data": "digits", "steps": 60, "hidden": [32], "seeds": [0], "num_data": 200,
                "num_particles": 20}  # fmt: skip
    return {"data": "mnist", "steps": 8_000, "hidden": [400], "seeds": [0, 1, 2],
            "num_data": 10_000, "num_particles": 200}  # fmt: skip


def trained(arm: str, seed: int, splits: Any, how: Row, folder: Path) -> tuple[VAE, nn.Module]:
    """The pair of one column; a run in `folder` is gone on with."""
    torch.manual_seed(seed)
    model = VAE(splits.data_shape, latent_dim=2, hidden=how["hidden"])
    kind = DeltaGuide if arm == "autoencoder" else MeanFieldGuide
    guide = kind(model, hidden=how["hidden"])
    ppl_vae.fit(
        WithoutData(model) if arm == "kl" else model, guide, splits, num_steps=how["steps"],
        schedule=Constant(0.0 if arm in ("autoencoder", "reconstruction") else 1.0),
        optimizer=partial(Adam, lr=1e-3), seed=seed, batch_size=128,
        lr_schedule=partial(CosineAnnealingLR, T_max=how["steps"]), log_every=how["steps"],
        eval_every=how["steps"], tensorboard=False, progress=False, device="cpu",
        out=folder / f"{arm}-{seed}", resume=True,
    )  # fmt: skip
    return model.eval(), guide.eval()


def measured(pair: tuple, x: Tensor, labels: Tensor, how: Row) -> Row:
    """Of test data: terms of the ELBO, log p(x), and what the codes are good for."""
    found = {
        name: float(value["z"].value if isinstance(value, Mapping) else value.value)
        for name, value in average_terms(*pair, x, num_particles=10).summary().items()
    }
    if "elbo" in found:
        each = log_marginal(*pair, x[:1000], num_particles=how["num_particles"])
        found["log_marginal"] = float(each.mean().value)
    codes = posterior_means(pair[1], x)["z"]
    found["code_sd"] = codes.std(0).square().mean().sqrt().item()
    found["knn"] = float(knn_accuracy(codes, labels).value)
    return found


def report(results: Row) -> None:
    """The table: means and standard errors over seeds."""
    titles = {"reconstruction": "E log p(x given z), nats", "kl": "KL, nats", "elbo": "ELBO, nats",
              "log_marginal": "log p(x), nats", "code_sd": "sd of the codes",
              "knn": "k-NN accuracy"}  # fmt: skip
    print("| objective | " + " | ".join(titles.values()) + " |\n|---" + "|---" * len(titles) + "|")
    for arm, title in COLUMNS.items():
        rows = [row for row in results["rows"] if row["arm"] == arm]
        cells = [
            _text(mean_of([row[name] for row in rows])) if name in rows[0] else ""
            for name in titles
        ]
        print(f"| {title.splitlines()[0]} | " + " | ".join(cells) + " |")
    print(f"\n{results['seconds']} s")


def _text(estimate: Estimate) -> str:
    return str(estimate)


def picture(pairs: dict[str, tuple], x: Tensor, labels: Tensor, prior: Tensor) -> Figure:
    """Columns: objectives. Rows: codes; prior draws decoded; paths between data decoded."""
    figure = Figure((8.6, 6.5), layout="constrained")
    axes = figure.subplots(3, len(pairs), height_ratios=[1, 1, 0.62])
    shown = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:4000]
    ends = [int((labels == digit).nonzero()[0]) for digit in (2, 7, 5, 3, 0, 6)]
    for column, (arm, pair) in zip(axes.T, pairs.items(), strict=True):
        codes = posterior_means(pair[1], x)["z"]
        scatter(column[0], codes[shown], labels[shown], COLUMNS[arm])
        tiles(column[1], decode(pair[0], {"z": prior}, x[: len(prior)]), 6)
        steps = torch.linspace(0, 1, 7, dtype=x.dtype)[:, None]
        paths = [
            (1 - steps) * codes[a] + steps * codes[b]
            for a, b in zip(ends[::2], ends[1::2], strict=True)
        ]
        path = torch.cat(paths)
        tiles(column[2], decode(pair[0], {"z": path}, x[: len(path)]), 7)
    for ax, text in zip(
        axes[:, 0],
        ("codes of test data", "decoded draws of the prior", "decoded paths\nbetween two codes"),
        strict=True,
    ):
        ax.set_ylabel(text, color=INK)
    legend(figure, dict(zip(map(str, range(10)), CLASSES, strict=True)), loc="outside lower center",
           ncols=10)  # fmt: skip
    return figure


def scatter(ax: Axes, codes: Tensor, labels: Tensor, title: str) -> None:
    """Codes by class, over the circle that holds 95 % of the prior."""
    z = codes.numpy()
    ax.scatter(*z.T, c=[CLASSES[label] for label in labels.tolist()], s=2.5, lw=0, alpha=0.8)
    limit = max(1.05 * np.abs(z).max(), 3.0)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
    ax.add_artist(Circle((0, 0), 2.448, fill=False, ec=VERMILION, lw=1.2, zorder=3))
    ax.tick_params(labelsize=7)


def tiles(ax: Axes, images: Tensor, columns: int) -> None:
    """Images in rows."""
    size = images.shape[-1] if images.dim() > 2 else round(images.shape[-1] ** 0.5)
    square = images.reshape(-1, columns, size, size).permute(0, 2, 1, 3)
    ax.imshow(square.reshape(-1, columns * size), cmap="gray_r", vmin=0, vmax=1)
    ax.grid(visible=False)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_facecolor(GREY)


def main() -> None:
    """Trains what is missing, prints the table, and writes numbers and figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, how = time.monotonic(), settings(options.smoke)
    splits = ppl_vae.data.load(how["data"], binarize="dynamic")
    chosen = torch.randperm(len(splits.test), generator=torch.Generator().manual_seed(0))
    chosen = chosen[: how["num_data"]]
    x, labels = splits.test[chosen], splits.labels["test"][chosen]
    rows, first = [], {}
    for seed in how["seeds"]:
        for arm in COLUMNS:
            pair = trained(arm, seed, splits, how, options.out.with_suffix(".runs"))
            rows.append({"arm": arm, "seed": seed, **measured(pair, x, labels, how)})
            first.setdefault(arm, pair)
            print(f"{arm}, seed {seed}: {time.monotonic() - start:.0f} s", flush=True)
    results = {"settings": how, "seconds": round(time.monotonic() - start), "rows": rows}
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    with fork(seed=0), look():
        save(picture(first, x, labels, torch.randn(36, 2)), options.out.with_suffix(".png"))
    report(results)


if __name__ == "__main__":
    main()
