"""What does a run cost that is one of R?

    python experiments/replicas/run.py            # table and results.json
    python experiments/replicas/run.py --smoke    # seconds

R runs that differ in seed and learning rate: all in one step (`fit_replicas`), compiled or
interpreted, against the steps of `fit`, compiled or eager, of one run after the other. Contenders
take turns within a round; medians over rounds; time for a step of one run.

Shapes: R replicas, B data of a minibatch.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Adam

from ppl_vae.compiling import compile_loop
from ppl_vae.course import Course
from ppl_vae.estimators import Trace_ELBO
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.models import VAE
from ppl_vae.plan import Plan
from ppl_vae.progress import Progress
from ppl_vae.randomness import fork, seed_all, validation
from ppl_vae.recording import Recorder
from ppl_vae.replica import Replica
from ppl_vae.schedules import Constant
from ppl_vae.together import Together

Row = dict[str, Any]
Steps = Callable[[int], None]
# Data, hidden and latent units, batch.
NETWORKS = {
    "64-32-2": (64, 32, 2, 32),
    "64-128-8": (64, 128, 8, 64),
    "784-400-20": (784, 400, 20, 128),
}
HERE = Path(__file__).parent


def replicas(network: str, num: int) -> list[Replica]:
    """Runs at their first step, that neither write nor look at anything."""
    size, hidden, latent_dim, batch_size = NETWORKS[network]
    x = (torch.rand(4096, size, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    found = []
    for seed in range(num):
        never = 10**9
        rate = 1e-3 / (seed + 1)
        plan = Plan(
            estimator=Trace_ELBO(), schedule=Constant(), optimizer=partial(Adam, lr=rate),
            num_steps=never, batch_size=batch_size, seed=seed, device="cpu", compile=True,
            valid=None, lr_schedule=None, clip_grad_norm=None, freeze=(), patience=None,
            log_every=never, eval_every=never, checkpoint_every=never,
        )  # fmt: skip
        replica = Replica()
        with replica.awake():
            seed_all(seed)
            model = VAE((size,), latent_dim=latent_dim, hidden=(hidden,))
            loop = plan.begin(model, MeanFieldGuide(model, hidden=(hidden,)), x)
            recorder = Recorder(None, {}, resume=False, tensorboard=False)
            replica.course = Course(loop, recorder, Progress(never, False), plan)
            loop.step = 1  # Not a step that is logged.
        found.append(replica)
    return found


def together(network: str, num: int, *, lowered: bool) -> Steps:
    """All in one step."""
    runs = Together(replicas(network, num), lambda traced: lowered)

    def run(steps: int) -> None:
        for _ in range(steps):
            runs.advance()

    return run


def in_turn(network: str, num: int, *, lowered: bool) -> Steps:
    """A stretch of steps of each run, one run after the other."""
    runs = replicas(network, num)
    for replica in runs if lowered else ():
        with replica.awake():
            replica.course.steps = compile_loop(replica.course.loop, 1, asked_for=True)

    def run(steps: int) -> None:
        for replica in runs:
            with replica.awake():
                for _ in range(steps):
                    replica.course.steps.advance(log=False)

    return run


CONTENDERS = {
    "together, compiled": partial(together, lowered=True),
    "together, interpreted": partial(together, lowered=False),
    "in turn, compiled": partial(in_turn, lowered=True),
    "in turn, eager": partial(in_turn, lowered=False),
}


def race(network: str, num: int, rounds: int, seconds: float) -> Row:
    """Milliseconds for a step of one run: medians over rounds."""
    runs, steps = {}, {}
    for name, make in CONTENDERS.items():
        runs[name] = make(network, num)
        runs[name](3)
        start = time.perf_counter()
        runs[name](3)
        steps[name] = max(1, round(seconds / (time.perf_counter() - start) * 3))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(steps[name])
            times[name].append((time.perf_counter() - start) / steps[name] / num * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"network": network, "R": num, **medians}


def report(rows: Sequence[Row]) -> None:
    """The table."""
    names = list(CONTENDERS)
    print("| network | B | R | " + " | ".join(names) + " | gain |")
    print("|---|---|---|" + "---|" * (len(names) + 1))
    for row in rows:
        gain = row["in turn, compiled"] / row["together, compiled"]
        cells = " | ".join(f"{row[name]:.3f}" for name in names)
        batch = NETWORKS[row["network"]][3]
        print(f"| {row['network']} | {batch} | {row['R']} | {cells} | {gain:.2f} |")


def main() -> None:
    """Races, and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    networks, nums, rounds, seconds = list(NETWORKS), (4, 16), options.rounds, options.seconds
    if options.smoke:
        networks, nums, rounds, seconds = networks[:1], (2,), 1, 0.01
    warnings.filterwarnings("ignore")
    with fork(), validation(False):
        rows = [race(network, num, rounds, seconds) for network in networks for num in nums]
    report(rows)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
