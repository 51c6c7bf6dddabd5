"""How long does a training step take, ours and everybody's?

    pip install -r experiments/throughput/requirements.txt   # the peers; without, they are left out
    python experiments/throughput/run.py                     # table, results.json, results.png
    python experiments/throughput/run.py --smoke             # seconds

Contenders take turns within one run, a few steps each, in another order every round; medians over
rounds, and the median of the ratios to Pyro's SVI of the same round. Times are noise on a shared
machine, ratios less so.
"""

import argparse
import importlib.util
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contenders
import torch
from contenders import Steps, Task
from matplotlib.figure import Figure

from ppl_vae.plots.look import FAINT, INK, SITES, look, save

Row = dict[str, Any]
REFERENCE, FLOOR = "Pyro SVI", "matrix products alone"
TASKS = [(b, k, levels) for levels in (1, 2) for k in (1, 50) for b in (32, 128, 1024)]
NUM_DATA = 4096


def all_contenders() -> dict[str, Callable[[Task], Steps]]:
    """Those whose libraries are installed."""
    found = dict(contenders.CONTENDERS)
    if importlib.util.find_spec("pythae") is None:
        del found["pythae"]
    if importlib.util.find_spec("numpyro") is not None:
        from contenders_jax import CONTENDERS

        found |= CONTENDERS
    return found


def starts(task: Task, names: list[str]) -> dict[str, Steps]:
    """Every contender, its first steps made; the floor has no K and pythae no second level."""
    if task.levels > 1 or task.num_particles > 1:
        names = [name for name in names if name != "pythae"]
    made = {}
    torch._dynamo.reset()  # torch.compile gives up on what was compiled for eight tasks before.
    for name in names:
        made[name] = all_contenders()[name](task)
        made[name](2)
    return made


def seconds(steps: Steps, num: int, synchronize: Callable[[], None]) -> float:
    """Of one step, of so many."""
    synchronize()
    start = time.perf_counter()
    steps(num)
    synchronize()
    return (time.perf_counter() - start) / num


def race(task: Task, names: list[str], budget: float) -> list[Row]:
    """Rounds of a few steps each, until the budget of seconds is spent."""
    made = starts(task, names)
    cuda = task.x.is_cuda
    synchronize = torch.cuda.synchronize if cuda else lambda: None
    slowest = max(seconds(steps, 1, synchronize) for steps in made.values())
    num = max(1, min(20, int(0.1 / slowest)))
    for steps in made.values():
        steps(num)  # NumPyro compiles anew for another number of steps.
    times: dict[str, list[float]] = {name: [] for name in made}
    order, start = list(made), time.perf_counter()
    while time.perf_counter() - start < budget or len(times[order[0]]) < 3:
        random.shuffle(order)
        for name in order:
            times[name].append(seconds(made[name], num, synchronize))
    reference = times[REFERENCE]
    where = {"batch_size": task.batch_size, "num_particles": task.num_particles,
             "levels": task.levels}  # fmt: skip
    return [
        {
            **where,
            "contender": name,
            "milliseconds": 1e3 * statistics.median(values),
            "speedup": statistics.median(r / v for r, v in zip(reference, values, strict=True)),
            "rounds": len(values),
        }
        for name, values in times.items()
    ]


def table(rows: list[Row]) -> None:
    """Milliseconds a step, and how many times faster than Pyro's SVI."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    tasks = list(dict.fromkeys(_task(row) for row in rows))
    found = {(_task(row), row["contender"]): row for row in rows}
    print("| levels | K | B | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 3) + "|")
    for task in tasks:
        cells = []
        for name in names:
            row = found.get((task, name))
            cells.append(f"{row['milliseconds']:.3g} ({row['speedup']:.2f}x)" if row else "")
        levels, particles, batch = task
        print(f"| {levels} | {particles} | {batch} | " + " | ".join(cells) + " |")


def _task(row: Row) -> tuple[int, int, int]:
    return row["levels"], row["num_particles"], row["batch_size"]


def _color(name: str) -> str:
    return FAINT if name == FLOOR else SITES[0 if name.startswith("ppl_vae") else 1]


@look()
def picture(rows: list[Row]) -> Figure:
    """A panel for each task: bars of the speedup over Pyro's SVI."""
    tasks = list(dict.fromkeys(_task(row) for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    names.sort(key=lambda name: name == FLOOR)
    columns = min(3, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = Figure(
        figsize=(3.6 * columns + 1.6, 0.26 * len(names) * lines + 1), layout="constrained"
    )
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for ax, task in zip(axes.flat, tasks, strict=False):
        here = {row["contender"]: row["speedup"] for row in rows if _task(row) == task}
        values = [here.get(name, 0.0) for name in names]
        colors = [_color(name) for name in names]
        ax.barh(names, values, color=colors)
        for i, value in enumerate(values):
            if value:
                box = {"facecolor": "white", "alpha": 0.7, "pad": 0, "linewidth": 0}
                ax.text(value, i, f" {value:.1f}", va="center", color=INK, fontsize=7, bbox=box)
        ax.axvline(1.0, color=INK, linewidth=0.8)
        levels, particles, batch = task
        ax.set_title(f"{levels} level{'s' * (levels > 1)}, K = {particles}, B = {batch}")
        ax.margins(x=0.15)
        ax.grid(False)
    axes[0][0].invert_yaxis()
    for ax in axes[-1]:
        ax.set_xlabel("times as fast as Pyro's SVI")
    return figure


def main() -> None:
    """Races all contenders through all tasks, prints the table, and draws."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each task")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    names = list(all_contenders())
    tasks, budget, num_data = TASKS, options.seconds, NUM_DATA
    if options.smoke:
        names = ["ppl_vae eager", REFERENCE, FLOOR]
        tasks, budget, num_data = [(8, 1, 1), (8, 2, 2)], 0.0, 64
    x = (torch.rand(num_data, contenders.SIZE) < 0.2).float().to(options.device)
    rows: list[Row] = []
    for batch_size, num_particles, levels in tasks:
        rows += race(Task(batch_size, num_particles, levels, x), names, budget)
        for row in rows[-len(names) :]:
            print(" ".join(f"{v:.4g}" if isinstance(v, float) else f"{v}" for v in row.values()),
                  flush=True)  # fmt: skip
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    table(rows)
    save(picture(rows), options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
