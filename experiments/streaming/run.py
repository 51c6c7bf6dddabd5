"""What does it cost to train on data that do not fit into memory?

    python experiments/streaming/run.py            # 11 GB of disk, minutes; table and results.json
    python experiments/streaming/run.py --smoke    # seconds

Grey images of 784 bytes, random and without holes, in a folder that is deleted afterwards. Training
on `Shards` against training on as many of the same rows in memory as fit: contenders take turns
within a round; medians over rounds. Memory is that of a process for each size, from
/proc/self/status: `RssAnon` is the process's own; pages of the file that it has mapped count in
`VmRSS` as well, though the kernel takes them back whenever it needs them.

Shapes: N images, B images of a minibatch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Adam

from ppl_vae.ahead import Ahead
from ppl_vae.compiling import compile_loop
from ppl_vae.data import Blocks, Shards, Splits
from ppl_vae.data.order import Shuffle
from ppl_vae.estimators import Trace_ELBO
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.loop import Loop
from ppl_vae.models import VAE
from ppl_vae.plan import Plan
from ppl_vae.randomness import fork, seed_all, validation
from ppl_vae.schedules import Constant

HERE = Path(__file__).parent
SIZE, BATCH, HIDDEN, LATENT = 784, 128, 400, 20
MB = 10**6


def write(path: Path, num: int) -> None:
    """N random images; every block of the file is written."""
    generator = np.random.default_rng(num)
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (num, SIZE))
    for start in range(0, num, 2**16):
        stop = min(num, start + 2**16)
        array[start:stop] = generator.integers(0, 256, (stop - start, SIZE), dtype=np.uint8)
    array.flush()


def training(data: Any, *, compiled: bool) -> Ahead | Loop:
    """A training at its first step, that neither writes nor looks at anything."""
    never = 10**9
    plan = Plan(
        estimator=Trace_ELBO(), schedule=Constant(), optimizer=partial(Adam, lr=1e-3),
        num_steps=never, batch_size=BATCH, seed=0, device="cpu", compile=True, valid=None,
        lr_schedule=None, clip_grad_norm=None, freeze=(), patience=None, log_every=never,
        eval_every=never, checkpoint_every=never,
    )  # fmt: skip
    seed_all(0)
    model = VAE((SIZE,), latent_dim=LATENT, hidden=(HIDDEN,))
    loop = plan.begin(model, MeanFieldGuide(model, hidden=(HIDDEN,)), data)
    return compile_loop(loop, 1, asked_for=True) if compiled else loop


def rows_of(path: Path, **options: Any) -> Splits:
    return Splits(Shards(path, divide_by=255, **options), binarize="dynamic")


def in_memory(path: Path, num: int) -> Splits:
    rows = np.load(path, mmap_mode="r")[:num].astype(np.float32)
    return Splits(torch.from_numpy(rows).div_(255), binarize="dynamic")


def race(
    path: Path, *, resident: int, rounds: int, steps: int, compiled: bool, evicted: bool
) -> dict[str, float]:
    """Milliseconds a step: medians over rounds, in which the contenders take turns.

    The file is evicted before each turn, or all of it is in the kernel's cache.
    """
    contenders = {
        "in memory": training(in_memory(path, resident), compiled=compiled),
        "rows, read ahead": training(rows_of(path), compiled=compiled),
        "rows, not read ahead": training(rows_of(path, num_ahead=0), compiled=compiled),
        "blocks, read ahead": training(rows_of(path, blocks=Blocks()), compiled=compiled),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            evict(path) if evicted else read(path)
            start = time.perf_counter()
            for _ in range(steps):
                run.advance(log=False)
            times[name].append((time.perf_counter() - start) / steps * 1e3)
            # Nothing is read in the turns of the others.
            loop = run if isinstance(run, Loop) else run._loop
            loop.prepared.stream.close()
    # The first round warms up.
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def read(path: Path) -> None:
    """Reads all of a file, so that it is in the kernel's cache."""
    with path.open("rb") as file:
        while file.read(2**22):
            pass


def cold(path: Path, num_batches: int) -> dict[str, float]:
    """Milliseconds to read a minibatch that the kernel has let go of, by the order of rows."""
    found = {}
    for name, blocks in (("rows", None), ("blocks", Blocks())):
        evict(path)
        shards = Shards(path, divide_by=255, blocks=blocks)
        shuffle = Shuffle(len(shards), 1, blocks)
        start = time.perf_counter()
        for number in range(num_batches):
            shards.take(shuffle(0, number * BATCH, BATCH))
        found[name] = (time.perf_counter() - start) / num_batches * 1e3
    return found


def evict(path: Path) -> None:
    """Asks the kernel to forget the file's pages; what lies below the kernel may remember them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory() -> dict[str, float]:
    """Megabytes of this process: resident at all, its own, and of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"VmRSS": "resident", "RssAnon": "own", "RssFile": "of files"}
    return {to: int(lines[name].split()[0]) * 1024 / MB for name, to in names.items()}


def watch(path: Path, num_steps: int) -> dict[str, float]:
    """The most memory in training, and how much of it came after the first steps."""
    run = training(rows_of(path), compiled=False)
    start, most = {}, {}
    for step in range(num_steps):
        run.advance(log=False)
        if step == 20:
            start = memory()
        if step >= 20 and step % 5 == 0:
            most = {k: max(v, most.get(k, 0.0)) for k, v in memory().items()}
    run.prepared.stream.close()
    grown = {f"{name}, grown": most[name] - start[name] for name in most}
    return most | grown | {"GB": path.stat().st_size / 1e9}


def watched(path: Path, num_steps: int) -> dict[str, float]:
    """`watch` in a process of its own."""
    command = [sys.executable, __file__, "--watch", str(path), "--steps", str(num_steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(found: dict[str, Any]) -> None:
    """The tables."""
    print("| file | training step | ms | of in memory |\n|---|---|---|---|")
    for file, times in found["ms a step"].items():
        for name, value in times.items():
            print(f"| {file} | {name} | {value:.2f} | {value / times['in memory']:.3f} |")
    print("\n| order, file not in memory | ms to read a minibatch |\n|---|---|")
    for name, value in found["cold ms"].items():
        print(f"| {name} | {value:.2f} |")
    print("\n| GB | own MB | its growth | resident MB | of which files |\n|---|---|---|---|---|")
    for row in found["memory"]:
        columns = (row["own"], row["own, grown"], row["resident"], row["of files"])
        print(f"| {row['GB']:.2f} | " + " | ".join(f"{value:.0f}" for value in columns) + " |")


def main() -> None:
    """Writes the data, races, watches, and prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=None, help="where there is room for 11 GB")
    parser.add_argument("--watch", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    with fork(), validation(False):
        if options.watch is not None:
            print(json.dumps(watch(options.watch, options.steps)))
            return
        gigabytes, rounds, steps, compiled = (1.0, 10.0), options.rounds, options.steps, True
        if options.smoke:
            gigabytes, rounds, steps, compiled = (0.002, 0.02), 1, 10, False
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            paths = [Path(folder) / f"{size:g}.npy" for size in gigabytes]
            for path, size in zip(paths, gigabytes, strict=True):
                write(path, int(size * 1e9 / SIZE))
            how = {"rounds": rounds, "steps": steps, "compiled": compiled}
            how["resident"] = min(200_000, int(gigabytes[0] * 1e9 / SIZE))
            found = {
                "cold ms": cold(paths[-1], 20 if options.smoke else 200),
                "memory": [watched(path, 40 if options.smoke else 2000) for path in paths],
                "ms a step": {
                    f"{gigabytes[0]:g} GB, cached": race(paths[0], evicted=False, **how),
                    f"{gigabytes[1]:g} GB, evicted": race(paths[1], evicted=True, **how),
                },
            }
    report(found)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
