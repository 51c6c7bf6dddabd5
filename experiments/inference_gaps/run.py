"""What does a guide lose by its family, what by its encoder, and how much do a few steps win back?

    python experiments/inference_gaps/run.py             # MNIST, table, results.json, results.png
    python experiments/inference_gaps/run.py --smoke     # seconds, on digits

Two models are trained, one with a mean-field guide and one with inverse autoregressive flows. Each
then gets, its own parameters frozen, a guide of the other family. After Cremer et al. (2018).
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import ppl_vae
from ppl_vae.evaluate import Estimate, InferenceGaps, average_terms, inference_gaps
from ppl_vae.guides import IAFGuide, MeanFieldGuide, SemiAmortizedGuide
from ppl_vae.models import VAE
from ppl_vae.plots.look import INK, SITES, TEXT_WIDTH, VERMILION, legend, look, save

PARTS = {"approximation_gap": SITES[0], "amortization_gap": VERMILION}


def settings(smoke: bool) -> dict[str, Any]:
    """Sizes, of the smoke tier or of the experiment."""
    if smoke:
        how = {"num_particles": 50, "num_draws": 5, "num_steps": 10, "step_particles": 2}
        return {"data": "digits", "hidden": [32], "latent_dim": 8, "steps": 60, "num_data": 12,
                "num_tuning": 5, "refinements": [1, 2], "step_sizes": [0.02, 0.05],
                "refined_draws": 2, "gaps": how}  # fmt: skip
    how = {"num_particles": 2000, "num_draws": 100, "num_steps": 500, "step_particles": 10}
    return {"data": "mnist", "hidden": [200], "latent_dim": 20, "steps": 4000, "num_data": 200,
            "num_tuning": 100, "refinements": [5, 20], "step_sizes": [0.005, 0.01, 0.02, 0.05, 0.1],
            "refined_draws": 30, "gaps": how}  # fmt: skip


def train(model: VAE, guide: Any, splits: Any, num_steps: int, freeze: tuple = ()) -> None:
    """Adam 1e-3, falling to 0; both programs are then in evaluation mode."""
    start = time.monotonic()
    ppl_vae.fit(
        model, guide, splits, num_steps=num_steps, optimizer=partial(Adam, lr=1e-3),
        lr_schedule=partial(CosineAnnealingLR, T_max=num_steps), freeze=freeze,
        log_every=num_steps, eval_every=num_steps, tensorboard=False, progress=False,
    )  # fmt: skip
    model.eval()
    guide.eval()
    print(f"{type(guide).__name__} {num_steps} steps {time.monotonic() - start:.0f} s", flush=True)


def best_step_size(model: VAE, guide: Any, x: Tensor, num_steps: int, sizes: list) -> float:
    """The step size of the highest ELBO on validation images."""

    def elbo(step_size: float) -> float:
        refined = refine(guide, num_steps, step_size)
        return average_terms(model, refined, x, num_particles=5).elbo.mean().item()

    return max(sizes, key=elbo)


def refine(guide: Any, num_steps: int, step_size: float) -> SemiAmortizedGuide:
    """The guide with a few gradient steps on each datum's own ELBO, as it is: nothing retrained."""
    return SemiAmortizedGuide(guide, num_steps, step_size, num_particles=4).eval()


def closed(before: InferenceGaps, after: InferenceGaps) -> Estimate:
    """Which share of the amortization gap is gone: a ratio of means, error by the delta method."""
    won, all_ = after.elbo - before.elbo, before.amortization_gap
    ratio = won.mean() / all_.mean()
    error = Estimate.of_mean(won - ratio * all_).standard_error / all_.mean()
    return Estimate(ratio.item(), error.item())


def run(how: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Trains, measures, and gives a row for each arm."""
    start = time.monotonic()
    splits = ppl_vae.data.load(how["data"], binarize="dynamic")
    chosen = torch.Generator().manual_seed(seed)

    def some(x: Tensor, number: int) -> Tensor:
        return x[torch.randperm(len(x), generator=chosen)[:number]]

    test, valid = some(splits.test, how["num_data"]), some(splits.valid, how["num_tuning"])
    # Training images are grey; here they are drawn once.
    seen = torch.bernoulli(some(splits.train, how["num_data"]), generator=chosen)
    rows = []

    def add(arm: str, gaps: InferenceGaps, **more: Any) -> None:
        summary = {k: [v.value, v.standard_error] for k, v in gaps.summary().items()}
        rows.append({"arm": arm, **more, **summary})
        print(f"{arm}: {time.monotonic() - start:.0f} s", flush=True)

    def measure(arm: str, model: VAE, guide: Any, x: Tensor) -> InferenceGaps:
        gaps = inference_gaps(model, guide, x, **how["gaps"], seed=seed)
        add(arm, gaps)
        return gaps

    def pair(make: Callable) -> tuple[VAE, Any]:
        torch.manual_seed(seed)
        model = VAE(splits.data_shape, latent_dim=how["latent_dim"], hidden=how["hidden"])
        return model, make(model, hidden=how["hidden"])

    model, guide = pair(MeanFieldGuide)
    train(model, guide, splits, how["steps"])
    before = measure("mean field", model, guide, test)
    for num_steps in how["refinements"]:
        size = best_step_size(model, guide, valid, num_steps, how["step_sizes"])
        terms = average_terms(
            model, refine(guide, num_steps, size), test,
            num_particles=how["refined_draws"], batch_size=100, seed=seed + 1,
        )  # fmt: skip
        # The family inside is the same, and so is what it can do.
        after = InferenceGaps(before.log_marginal, before.local_elbo, terms.elbo)
        share = closed(before, after)
        add(f"mean field + {num_steps} steps", after, step_size=size,
            closed=[share.value, share.standard_error])  # fmt: skip
    measure("mean field, training images", model, guide, seen)
    flow = IAFGuide(model, hidden=how["hidden"])
    train(model, flow, splits, how["steps"], ("model",))
    measure("flow on the mean field's model", model, flow, test)

    model, guide = pair(IAFGuide)
    train(model, guide, splits, how["steps"])
    measure("flow", model, guide, test)
    plain = MeanFieldGuide(model, hidden=how["hidden"])
    train(model, plain, splits, how["steps"], ("model",))
    measure("mean field on the flow's model", model, plain, test)
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    """The table: nats per image, mean ± standard error."""
    names = ("log_marginal", "elbo", "approximation_gap", "amortization_gap", "inference_gap")
    print("| arm | log p(x) | ELBO | approximation | amortization | both | closed |")
    print("|---|" + "---|" * 6)
    for row in rows:
        cells = [str(Estimate(*row[name])) for name in names]
        share = row.get("closed")
        cells.append(f"{100 * share[0]:.0f} ± {100 * share[1]:.0f} %" if share else "")
        print(f"| {row['arm']} | " + " | ".join(cells) + " |")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Stacked bars, one for each arm; an error bar of one standard error ends each part."""
    with look():
        figure = Figure((TEXT_WIDTH, 0.42 * len(rows) + 0.9), layout="constrained")
        axes = figure.subplots()
        left = [0.0] * len(rows)
        for part, color in PARTS.items():
            values = [row[part][0] for row in rows]
            axes.barh(range(len(rows)), values, left=left, color=color, height=0.62)
            left = [a + b for a, b in zip(left, values, strict=True)]
            errors = [row[part][1] for row in rows]
            axes.errorbar(left, range(len(rows)), xerr=errors, fmt="none", ecolor=INK,
                          elinewidth=1.0, capsize=2.5)  # fmt: skip
        axes.set_yticks(range(len(rows)), [row["arm"] for row in rows])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(left=0)
        axes.set_xlabel("nats per image between the ELBO and log p(x)")
        names = {part.replace("_", " "): color for part, color in PARTS.items()}
        legend(figure, names, loc="outside upper right", ncols=2)
    save(figure, path)


def main() -> None:
    """Runs all arms, prints the table, and writes numbers and figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args()
    start = time.monotonic()
    how = settings(options.smoke)
    rows = run(how, options.seed)
    report(rows)
    draw(rows, options.out.with_suffix(".png"))
    seconds = round(time.monotonic() - start)
    print(f"{seconds} s")
    found = {"settings": {**how, "seed": options.seed}, "seconds": seconds, "arms": rows}
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
