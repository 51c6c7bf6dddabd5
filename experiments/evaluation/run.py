"""How long does log p(x) with 5,000 samples take, and how much memory?

    pip install pythae                              # the peer; without, it is left out
    python experiments/evaluation/run.py            # table and results.json
    python experiments/evaluation/run.py --smoke    # seconds

The 784-400-20 network, untrained: the time does not hang on what it has learned. Test images of
binarized MNIST if `$PPL_VAE_DATA` has them, else noise; the contenders take turns on a few of them,
and the first does all 10,000 once. Memory is the most that the process had on top of what it had
before, each contender in a process of its own.

Shapes: B images at once, K particles.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ppl_vae
from ppl_vae.evaluate import log_marginal

Row = dict[str, Any]
SIZE, HIDDEN, D = 784, 400, 20


def pair() -> tuple[nn.Module, nn.Module]:
    """Model and guide, always the same."""
    torch.manual_seed(0)
    model = ppl_vae.models.VAE((SIZE,), latent_dim=D, hidden=(HIDDEN,))
    return model, ppl_vae.guides.MeanFieldGuide(model, hidden=(HIDDEN,))


def ours(x: Tensor, num_particles: int, *, compile: bool) -> Tensor:
    """`ppl_vae.evaluate.log_marginal`."""
    return log_marginal(*pair(), x, num_particles=num_particles, compile=compile).value


def by_hand(x: Tensor, num_particles: int) -> Tensor:
    """The loop that everybody writes: 100 images and 50 particles at once."""
    model, guide = pair()
    values = []
    with torch.no_grad():
        for part in x.split(100):
            loc, logvar = guide.heads["z"].network(guide.encoder(part)).chunk(2, -1)
            scale, total = (0.5 * logvar).exp(), []
            for size in _sizes(num_particles, 50):
                noise = torch.randn(size, *loc.shape)
                z = loc + scale * noise
                logits = model.decoder(z)
                target = part.expand_as(logits)
                log_p = -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(
                    -1
                )
                ratio = 0.5 * (noise.square() + logvar - z.square()).sum(-1)
                total.append((log_p + ratio).logsumexp(0))
            values.append(torch.stack(total).logsumexp(0) - math.log(num_particles))
    return torch.cat(values)


def pythaes(x: Tensor, num_particles: int) -> Tensor:
    """pythae's `get_nll`, image by image; the mean, which is all that it gives."""
    from pythae import models as theirs
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    model, guide = pair()

    class Encoder(BaseEncoder):
        def forward(self, x: Tensor) -> Any:
            loc, logvar = guide.heads["z"].network(guide.encoder(x)).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=model.decoder(z).sigmoid())

    config = theirs.VAEConfig(input_dim=(SIZE,), latent_dim=D, reconstruction_loss="bce")
    net = theirs.VAE(config, encoder=Encoder(), decoder=Decoder())
    with torch.no_grad():
        return torch.tensor([net.get_nll(x, n_samples=num_particles, batch_size=1000)])


def _sizes(num: int, at_once: int) -> list[int]:
    return [min(at_once, num - done) for done in range(0, num, at_once)]


CONTENDERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "ppl_vae compiled": lambda x, k: ours(x, k, compile=True),
    "ppl_vae eager": lambda x, k: ours(x, k, compile=False),
    "by hand": by_hand,
    "pythae": pythaes,
}


def images(num: int) -> Tensor:
    """Test images, the labels mixed."""
    try:
        test = ppl_vae.data.load("binarized_mnist").test.flatten(1)
    except (ValueError, OSError):
        test = (torch.rand(10_000, SIZE) < 0.2).float()
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    return test[order[:num]]


def resident(*, peak: bool = False) -> float:
    """Memory of this process in MiB, now or at most since the last call that asked for now."""
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")
    name = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measured(name: str, num: int, num_particles: int, times: int, queue: Any) -> None:
    """Time of the last run, the first having compiled, and the peak of memory."""
    warnings.filterwarnings("ignore")
    x = images(num)
    before = resident()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        value = CONTENDERS[name](x, num_particles)
        seconds.append(time.perf_counter() - start)
    peak = resident(peak=True) - before
    mean = abs(value.double().mean().item())
    queue.put({"contender": name, "images": num, "first": seconds[0],
               "seconds": seconds[-1], "MiB": peak, "nll": mean})  # fmt: skip


def run_alone(name: str, num: int, num_particles: int, times: int = 2) -> Row:
    """In a process of its own, for the sake of the memory."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measured, args=(name, num, num_particles, times, queue))
    process.start()
    row = queue.get()
    process.join()
    return row


def report(rows: list[Row], num_particles: int) -> None:
    """Medians over rounds."""
    print(f"K = {num_particles}")
    print("| | images | seconds | images a second | ratio to by hand | MiB | -log p(x) |")
    print("|---|---|---|---|---|---|---|")
    rates = {}
    for name in dict.fromkeys(row["contender"] for row in rows):
        mine = [row for row in rows if row["contender"] == name]
        rates[name] = statistics.median(row["images"] / row["seconds"] for row in mine)
    for name, rate in rates.items():
        mine = [row for row in rows if row["contender"] == name]
        seconds, peak, nll = (
            statistics.median(r[k] for r in mine) for k in ("seconds", "MiB", "nll")
        )
        cells = [f"{mine[0]['images']}", f"{seconds:.1f}", f"{rate:.1f}",
                 f"{rate / rates['by hand']:.2f}", f"{peak:.0f}", f"{nll:.2f}"]  # fmt: skip
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Measures, prints the table, and does all images once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--all", action="store_true", help="all 10,000 once, compiled")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args()
    names = [n for n in CONTENDERS if n != "pythae" or find_spec("pythae") is not None]
    num, num_particles, rounds = options.images, 5000, options.rounds
    if options.smoke:
        names, num, num_particles, rounds = ["ppl_vae eager", "by hand"], 4, 60, 1
    rows = [run_alone(name, num, num_particles) for _ in range(rounds) for name in names]
    report(rows, num_particles)
    if options.all:
        row = run_alone("ppl_vae compiled", 10_000, num_particles, times=1)
        print(f"all 10,000, the first run: {row['first']:.0f} s, {row['MiB']:.0f} MiB")
        rows.append(row)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
