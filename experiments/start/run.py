"""How long until training is under way, and how much memory does it take?

    python experiments/start/run.py            # table and results.json
    python experiments/start/run.py --smoke    # seconds
    python experiments/start/run.py --before REVISION    # imports and eager starts there, too

Each start is a process of its own: imports, then `fit` with 20 steps, timed apart. Compiled, once
with an empty cache and once with what the first has left there. Memory is the most that the process
ever had. Starts take turns; medians over rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAIRS = {
    "VAE, mean field": "VAE((784,), latent_dim=20, hidden=(400,)); "
    "g = MeanFieldGuide(m, hidden=(400,))",
    "two levels, top-down": "HierarchicalVAE((784,), latent_dims=(20, 10), hidden=(400,)); "
    "g = TopDownGuide(m, hidden=(400,))",
    "VAE, IAF": "VAE((784,), latent_dim=20, hidden=(400,)); g = IAFGuide(m, hidden=(400,))",
}
PROGRAM = """
import time
start = time.perf_counter()
import torch, ppl_vae
from ppl_vae import fit
from ppl_vae.models import *
from ppl_vae.guides import *
imported = time.perf_counter()
m = {pair}
options = dict(num_steps={num_steps}, log_every=10**6, eval_every=10**6, checkpoint_every=10**6)
fit(m, g, torch.rand(1024, 784).round(), progress=False, seed=0, **options{more})
done = time.perf_counter()
lines = open('/proc/self/status').read().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) / 1024
import json
print(json.dumps(dict(imported=imported - start, first=done - imported, MiB=peak)))
"""


def start(pair: str, more: str, cache: str, root: Path = ROOT, num_steps: int = 1) -> Row:
    """One start."""
    program = PROGRAM.format(pair=PAIRS[pair], more=more, num_steps=num_steps)
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=root
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def starts(pairs: list[str], rounds: int, before: Path | None) -> list[Row]:
    """All starts, in turns."""
    rows = []
    for _ in range(rounds):
        for pair in pairs:
            with tempfile.TemporaryDirectory() as cache:
                hows = [
                    ("eager", ", compile=False", ROOT),
                    ("compiled, empty cache", ", compile=True", ROOT),
                    ("compiled, filled cache", ", compile=True", ROOT),
                ]
                if before is not None:
                    hows.insert(0, ("eager, before", "", before))
                for how, more, root in hows:
                    rows.append({"pair": pair, "how": how, **start(pair, more, cache, root, 20)})
    return rows


def report(rows: list[Row]) -> None:
    """Medians."""
    print("| pair | | import, s | `fit` with 20 steps, s | peak, MiB |")
    print("|---|---|---|---|---|")
    for pair, how in dict.fromkeys((row["pair"], row["how"]) for row in rows):
        mine = [row for row in rows if (row["pair"], row["how"]) == (pair, how)]
        medians = [
            statistics.median(row[key] for row in mine) for key in ("imported", "first", "MiB")
        ]
        print(f"| {pair} | {how} | " + " | ".join(f"{value:.3g}" for value in medians) + " |")


def main() -> None:
    """Starts, and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", help="a commit")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    if options.smoke:
        pair = next(iter(PAIRS))
        row = {"pair": pair, "how": "eager"}
        row |= start(pair, ", compile=False", tempfile.gettempdir())
        report([row])
        options.out.write_text(json.dumps([row], indent=1) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        before = None
        if options.before:
            before = Path(folder)
            archive = subprocess.run(
                ["git", "archive", options.before, "ppl_vae"],
                cwd=ROOT,
                capture_output=True,
                check=True,
            )
            subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
        rows = starts(list(PAIRS), options.rounds, before)
    report(rows)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
