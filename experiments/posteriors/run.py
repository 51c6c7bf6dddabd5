"""How much of mean field's gap do richer guides close where the posterior is bent, or a ring?

    python experiments/posteriors/run.py             # table, results.json, results.png
    python experiments/posteriors/run.py --smoke     # seconds

Two models of a plane z ~ N(0, I) and one number x, whose posteriors are known up to a constant; the
constant log p(x) comes by quadrature. KL(q || p(z | x)) = log p(x) - ELBO is the gap. Every guide
gets the same steps, particles, learning rates and seeds; its learning rate is the one with the
highest mean ELBO of its own. After Rezende and Mohamed (2015).

Shapes: B data, N points, G points along an axis of the grid.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import ppl_vae
from ppl_vae import guides as g
from ppl_vae.estimators import Trace_ELBO
from ppl_vae.evaluate import Estimate, average_terms
from ppl_vae.plots.look import INK, SITES, look, save

Row = dict[str, Any]
EDGE, BINS = 3.0, 150  # The window of the densities, and its squares along an axis.


class Posterior(NamedTuple):
    """p(z | x) of z ~ N(0, I), x ~ N(loc(z), scale^2), at one x.

    Attributes:
        loc: `[*batch, 2] -> [*batch]`.
        scale: > 0.
        x: What is observed.
    """

    loc: Callable[[Tensor], Tensor]
    scale: float
    x: float

    def model(self, x: Tensor) -> None:
        """The program; x is `[B, 1]`."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.loc(z), self.scale), obs=x.squeeze(-1))

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(x, z), `[N, 2] -> [N]`, by formula."""
        error = (self.x - self.loc(z)) / self.scale
        squares = z.square().sum(-1) + error.square()
        return -0.5 * squares - math.log(self.scale) - 1.5 * math.log(2 * math.pi)

    def data(self, num: int = 1) -> Tensor:
        """x, so many times, `[B, 1]`."""
        return torch.full((num, 1), self.x)

    def log_evidence(self) -> float:
        """log p(x), by quadrature: squares of which a scale has fifteen or more."""
        z, side = grid(7.0, 1400)
        return (self.log_joint(z).logsumexp(0) + 2 * math.log(side)).item()


POSTERIORS = {
    "banana": Posterior(lambda z: z[..., 1] + 0.5 * z[..., 0] ** 2, 0.15, 1.0),
    "ring": Posterior(lambda z: z.norm(dim=-1), 0.3, 2.0),
}
FIRST = "mean field"
NETS = {"hidden": (32,)}
# In two dimensions a flow is cheap; more maps than the guides' defaults, which are for many.
GUIDES: dict[str, Callable[[Any], g.FamilyGuide]] = {
    FIRST: partial(g.MeanFieldGuide, **NETS),
    "full rank": partial(g.FullRankGuide, **NETS),
    "mixture": partial(g.MixtureGuide, num_components=8, **NETS),
    "IAF": partial(g.IAFGuide, num_flows=6, flow_hidden=(32,), **NETS),
    "neural spline": partial(g.NeuralSplineGuide, num_flows=4, flow_hidden=(32,), **NETS),
    "planar": partial(g.PlanarGuide, num_flows=16, **NETS),
    "Sylvester": partial(g.SylvesterGuide, num_flows=8, **NETS),
}
FLOWS = ("IAF", "neural spline", "planar", "Sylvester")
LEARNING_RATES = (0.005, 0.02)


def grid(edge: float, num: int) -> tuple[Tensor, float]:
    """The middles of num x num squares from -edge to edge, `[num^2, 2]`, and their side."""
    side = 2 * edge / num
    line = (torch.arange(num, dtype=torch.float64) + 0.5) * side - edge
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2), side


def train(
    posterior: Posterior, name: str, lr: float, seed: int, num_steps: int, num_particles: int = 256
) -> g.FamilyGuide:
    """A fitted guide; the learning rate falls to 0."""
    torch.manual_seed(seed)
    guide = GUIDES[name](posterior.model)
    ppl_vae.fit(
        posterior.model, guide, posterior.data(), estimator=Trace_ELBO(num_particles), seed=seed,
        num_steps=num_steps, optimizer=partial(Adam, lr=lr), device="cpu",
        lr_schedule=partial(CosineAnnealingLR, T_max=num_steps), log_every=num_steps,
        progress=False,
    )  # fmt: skip
    return guide


def gap(posterior: Posterior, guide: g.FamilyGuide, num_draws: int) -> Estimate:
    """log p(x) - ELBO in nats, by so many thousand draws."""
    terms = average_terms(
        posterior.model, guide, posterior.data(1000), num_particles=num_draws, seed=1
    )
    elbo = terms.summary()["elbo"]
    return Estimate(posterior.log_evidence() - elbo.value, elbo.standard_error)


def density(posterior: Posterior, guide: g.FamilyGuide, num_draws: int) -> Tensor:
    """q(z | x) on the window, `[G, G]`; without a density at given points, from draws."""
    points, side = grid(EDGE, BINS)
    with torch.no_grad(), pyro.get_param_store().scope():
        fn = poutine.trace(guide).get_trace(posterior.data()).nodes["z"]["fn"]
        if guide.family.has_density:
            return fn.log_prob(points.to(posterior.data()).unsqueeze(1)).exp().reshape(BINS, BINS)
        draws = fn.sample((num_draws,)).squeeze(1)
    span = [-EDGE, EDGE, -EDGE, EDGE]
    counts = torch.histogramdd(draws.flip(-1), [BINS, BINS], range=span).hist
    # A kernel of one square's standard deviation.
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]).to(counts) / 16
    smooth = torch.nn.functional.conv2d(
        counts[None, None], kernel.outer(kernel)[None, None], padding=2
    )
    return smooth[0, 0] / (num_draws * side**2)


def work(task: Row) -> tuple[Row, np.ndarray]:
    """One fit: its row of results, and its density."""
    torch.set_num_threads(1)
    posterior, start = POSTERIORS[task["posterior"]], time.process_time()
    guide = train(posterior, task["guide"], task["lr"], task["seed"], task["num_steps"])
    seconds = time.process_time() - start
    found = gap(posterior, guide, task["num_draws"])
    picture = density(posterior, guide, 20_000 * task["num_draws"])
    row = {"gap": found.value, "standard_error": found.standard_error, "seconds": seconds}
    return {**task, **row}, picture.numpy()


def worked(tasks: list[Row], jobs: int) -> Iterator[tuple[Row, np.ndarray]]:
    """All of it, in order."""
    if jobs == 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, tasks)


def chosen(rows: list[Row], posterior: str, guide: str) -> list[Row]:
    """The fits of a guide at the learning rate of its highest mean ELBO, best first."""
    fits = [r for r in rows if r["posterior"] == posterior and r["guide"] == guide]
    by_rate = [[r for r in fits if r["lr"] == lr] for lr in sorted({r["lr"] for r in fits})]
    best = min(by_rate, key=lambda part: statistics.mean(r["gap"] for r in part))
    return sorted(best, key=lambda r: r["gap"])


def mean(values: list[float], digits: int) -> str:
    """Mean and standard error over seeds."""
    text = f"{round(statistics.mean(values), digits) + 0.0:.{digits}f}"  # Not "-0.0".
    if len(values) == 1:
        return text
    return f"{text} ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"


def report(rows: list[Row]) -> None:
    """The table. Mean field's gap is the least of all its fits, that none be flattered."""
    names = list(POSTERIORS)
    print("| guide | " + " | ".join(f"{n}: gap (nats) | closed" for n in names) + " |")
    print("|---|" + "---|---|" * len(names))
    for guide in GUIDES:
        cells = []
        for name in names:
            plain = name, "mean field"
            whole = min(r["gap"] for r in rows if (r["posterior"], r["guide"]) == plain)
            gaps = [r["gap"] for r in chosen(rows, name, guide)]
            shares = [100 * (1 - value / whole) for value in gaps]
            cells += [mean(gaps, 3), "" if guide == FIRST else f"{mean(shares, 1)} %"]
        print(f"| {guide} | " + " | ".join(cells) + " |")


@look()
def picture(rows: list[Row], densities: list[np.ndarray]) -> Figure:
    """True and fitted densities, a row a posterior; of each guide its fit in the middle."""
    colors = LinearSegmentedColormap.from_list("density", ["white", SITES[0], INK])
    figure = Figure(figsize=(10.4, 3.35), layout="constrained")
    axes = figure.subplots(len(POSTERIORS), len(GUIDES) + 1, sharex=True, sharey=True)
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.06)
    points, _ = grid(EDGE, BINS)
    for line, (name, posterior) in zip(axes, POSTERIORS.items(), strict=True):
        truth = (posterior.log_joint(points) - posterior.log_evidence()).exp()
        truth = truth.reshape(BINS, BINS).numpy()
        panels = [("truth", "", truth)]
        for guide in GUIDES:
            fits = chosen(rows, name, guide)
            row = fits[len(fits) // 2]
            panels.append((guide, f"{row['gap']:.2f} nats", densities[rows.index(row)]))
        for ax, (guide, text, values) in zip(line, panels, strict=True):
            # The root of the density, so that thin bridges show.
            ax.imshow(
                np.sqrt(values), cmap=colors, vmin=0, vmax=np.sqrt(truth.max()), origin="lower",
                extent=(-EDGE, EDGE, -EDGE, EDGE), interpolation="bilinear",
            )  # fmt: skip
            ax.set(title=f"{guide}\n{text}", xticks=(-2, 0, 2), yticks=(-2, 0, 2))
            ax.grid(False)
        line[0].set_ylabel(f"{name}\n\n$z_2$")
    for ax in axes[-1]:
        ax.set_xlabel("$z_1$")
    return figure


def main() -> None:
    """Fits every guide to either posterior, prints the table, and draws."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args()
    start = time.monotonic()
    small = options.smoke
    sizes = {"num_steps": 4 if small else options.steps, "num_draws": 1 if small else 50}
    tasks = [
        {"posterior": posterior, "guide": guide, "lr": lr, "seed": seed, **sizes}
        for posterior in POSTERIORS
        for guide in GUIDES
        for lr in (LEARNING_RATES[:1] if small else LEARNING_RATES)
        for seed in range(1 if small else options.seeds)
    ]
    rows, densities = [], []
    for row, values in worked(tasks, 1 if small else options.jobs):
        rows.append(row)
        densities.append(values)
        cells = (f"{v:.3g}" if isinstance(v, float) else f"{v}" for v in row.values())
        print(" ".join(cells), flush=True)
    report(rows)
    print(f"{time.monotonic() - start:.0f} s")
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    save(picture(rows, densities), options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
