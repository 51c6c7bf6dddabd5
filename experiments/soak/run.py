"""Does a long training hold its memory and its course?

    python experiments/soak/run.py            # 200,000 steps, eager and compiled; table, figure
    python experiments/soak/run.py --smoke    # seconds

Trainings on digits, with logs, validations and checkpoints, each in a process of its own; beside
each, another that is ended half-way and gone on with in a new process. The memory is the process's
own (`RssAnon`), its slope that of a line through means of consecutive samples, which are nearly
independent, with a 95 % interval.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

import ppl_vae
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.models import VAE
from ppl_vae.plots.look import SITES, look, save
from ppl_vae.runs import load_run

NUM_BLOCKS = 20
# Of the steps, after which caches are filled.
WARM = 0.2


def train(how: dict[str, Any]) -> dict[str, Any]:
    """A training in this process, and its memory: `[step, bytes]`, sampled by a thread."""
    splits = ppl_vae.data.load("digits", binarize="dynamic")
    torch.manual_seed(0)
    model = VAE(splits.data_shape, latent_dim=8, hidden=(64,))
    guide = MeanFieldGuide(model, hidden=(64,))
    samples: list[tuple[int, int]] = []
    over = threading.Event()
    metrics = Path(how["out"]) / "metrics.jsonl"

    def watch() -> None:
        while not over.wait(how["period"]):
            if metrics.is_file() and (lines := metrics.read_text().splitlines()):
                samples.append((json.loads(lines[-1])["step"], own_memory()))

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    try:
        ppl_vae.fit(
            model, guide, splits, num_steps=how["steps"], batch_size=64, compile=how["compiled"],
            out=how["out"], resume=how["resume"], log_every=how["every"] // 20,
            eval_every=how["every"], checkpoint_every=how["every"], tensorboard=False,
            progress=False,
        )  # fmt: skip
    finally:
        over.set()
        thread.join()
    return {"seconds": time.perf_counter() - start, "memory": samples}


def own_memory() -> int:
    """Bytes of this process that no file stands for."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status says nothing of RssAnon")


def trained(**how: Any) -> dict[str, Any]:
    """`train` in a process of its own."""
    command = [sys.executable, __file__, "--train", json.dumps(how)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def slope(samples: list[list[int]], steps: int) -> dict[str, float]:
    """Kilobytes in 100,000 steps, and the half width of the 95 % interval."""
    late = np.array([sample for sample in samples if sample[0] >= WARM * steps], dtype=float)
    blocks = [b.mean(axis=0) for b in np.array_split(late, min(NUM_BLOCKS, len(late))) if len(b)]
    x, y = np.array(blocks).T
    line = stats.linregress(x / 1e5, y / 1e3)
    half = stats.t.ppf(0.975, len(x) - 2) * line.stderr
    return {"kB": float(line.slope), "half width": float(half)}


def parameters(out: Path) -> dict[str, Tensor]:
    """All of a run's parameters."""
    run = load_run(out)
    return {
        **run.model.state_dict(),
        **{f"guide.{k}": v for k, v in run.guide.state_dict().items()},
    }


def difference(one: Path, other: Path) -> float:
    """The largest absolute difference of two runs' parameters."""
    theirs = parameters(other)
    return max((v - theirs[k]).abs().max().item() for k, v in parameters(one).items())


def soak(folder: Path, *, compiled: bool, steps: int, period: float) -> dict[str, Any]:
    """One training in one go, and one in two."""
    every = max(steps // 20, 20)
    how = {"compiled": compiled, "every": every, "period": period}
    whole, parts = folder / f"whole-{compiled}", folder / f"parts-{compiled}"
    found = trained(out=str(whole), steps=steps, resume=False, **how)
    for part, resume in ((steps // 2, False), (steps, True)):
        trained(out=str(parts), steps=part, resume=resume, **how)
    last = load_run(whole).metrics[-1]
    size = max(value.abs().max().item() for value in parameters(whole).values())
    return {
        **found, "slope": slope(found["memory"], steps), "elbo": last["elbo"],
        "restarted": load_run(parts).metrics[-1]["elbo"],
        "difference": difference(whole, parts), "largest parameter": size,
    }  # fmt: skip


def report(found: dict[str, Any], steps: int) -> None:
    """The table."""
    columns = ("steps", "seconds", "own MB at the end", "kB in 100,000 steps",
               "parameters against a restarted run", "ELBO of both")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, row in found.items():
        kilo = f"{row['slope']['kB']:.0f} ± {row['slope']['half width']:.0f}"
        both = f"{row['elbo']:.6f}, {row['restarted']:.6f}"
        megabytes = row["memory"][-1][1] / 1e6
        print(
            f"| {steps:,} {name} | {row['seconds']:.0f} | {megabytes:.0f} | {kilo} | "
            f"{row['difference']:.1e} | {both} |"
        )


def picture(found: dict[str, Any]) -> Figure:
    """Memory against steps."""
    figure = Figure((6, 2.6), layout="constrained")
    ax = figure.subplots()
    for (name, row), color in zip(found.items(), SITES, strict=False):
        steps, memory = np.array(row["memory"]).T
        ax.plot(steps, memory / 1e6, color=color, lw=1, label=name)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("step")
    ax.set_ylabel("MB of the process's own")
    ax.legend()
    return figure


def main() -> None:
    """Trains, and writes table, numbers and figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--train", type=json.loads, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args()
    if options.train is not None:
        print(json.dumps(train(options.train)))
        return
    steps, period = (600, 0.02) if options.smoke else (200_000, 0.5)
    # Compiling takes longer than the rest of the smoke tier.
    ways = {"eager": False} if options.smoke else {"eager": False, "compiled": True}
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: soak(Path(folder), compiled=compiled, steps=steps, period=period)
            for name, compiled in ways.items()
        }
    report(found, steps)
    about = {"torch": torch.__version__, "python": platform.python_version()}
    options.out.write_text(json.dumps({"about": about, "steps": steps, **found}) + "\n")
    with look():
        save(picture(found), options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
