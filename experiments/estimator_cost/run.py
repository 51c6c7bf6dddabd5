"""What does the Pyro layer cost, and each estimator, against tensors written by hand?

    python experiments/estimator_cost/run.py             # 784-400-20, K = 1, 5, 50, 500
    python experiments/estimator_cost/run.py --smoke     # seconds

Loss and gradients of one minibatch. Arms are interleaved; a cell is the median over rounds of the
time of an arm over that of the hand-written one of the same round. Memory is what autograd keeps
for the backward pass, counted byte by byte.
"""

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.nn import functional as F

import ppl_vae
from ppl_vae import estimators as e

BY_HAND = ("ELBO by hand", "IWAE by hand")
OURS: dict[str, tuple[str, Callable[[int], ELBO]]] = {
    "Trace_ELBO": ("ELBO by hand", e.Trace_ELBO),
    "TraceAnalyticKL_ELBO": ("ELBO by hand", e.TraceAnalyticKL_ELBO),
    "TraceSTL_ELBO": ("ELBO by hand", e.TraceSTL_ELBO),
    "TraceIWAE_ELBO": ("IWAE by hand", e.TraceIWAE_ELBO),
    "TraceDReG_ELBO": ("IWAE by hand", e.TraceDReG_ELBO),
    "TraceVIMCO_ELBO": ("IWAE by hand", e.TraceVIMCO_ELBO),
    "TraceTVO_ELBO": ("IWAE by hand", lambda k: e.TraceTVO_ELBO(num_particles=k)),
    "TraceRWS_ELBO": ("IWAE by hand", lambda k: e.TraceRWS_ELBO(num_particles=k)),
}


class ByHand:
    """The 784-400-20 network and its bounds as plain tensors, with the weights of our modules."""

    def __init__(self, model: nn.Module, guide: nn.Module) -> None:
        self.encoder, self.head = guide.encoder.layers, guide.heads["z"]
        self.decoder = model.decoder.layers

    def log_weights(self, x: Tensor, num_particles: int) -> Tensor:
        """`[K, B]`."""
        loc, log_variance = self.head(self.encoder(x)).chunk(2, -1)
        scale = (0.5 * log_variance).exp()
        noise = torch.randn(num_particles, *loc.shape, device=x.device)
        z = loc + scale * noise
        logits = self.decoder(z)
        target = x.expand_as(logits)
        log_x = -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
        log_prior = -0.5 * z.square().sum(-1)
        log_q = -0.5 * noise.square().sum(-1) - scale.log().sum(-1)
        return log_x + log_prior - log_q

    def elbo(self, x: Tensor, num_particles: int) -> Tensor:
        """Minus the ELBO, summed over the batch."""
        return -self.log_weights(x, num_particles).mean(0).sum()

    def iwae(self, x: Tensor, num_particles: int) -> Tensor:
        """Minus the importance-weighted bound, summed over the batch."""
        log_w = self.log_weights(x, num_particles)
        return -(log_w.logsumexp(0) - math.log(num_particles)).sum()


def saved_bytes(loss: Callable[[], Tensor]) -> int:
    """How many bytes a loss keeps for its backward pass; storages are counted once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # Held, so that no address serves twice.
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = loss()
    del kept
    return sum(storage.nbytes() for storage in storages.values())


def synchronize(device: torch.device) -> None:
    """Waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Times every arm for every K, and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    shape = (64,) if options.smoke else (784,)
    torch.manual_seed(0)
    model = ppl_vae.models.VAE(shape, latent_dim=20, hidden=(400,)).to(device)
    guide = ppl_vae.guides.MeanFieldGuide(model, hidden=(400,))
    x = torch.rand(options.batch, *shape, device=device).round()
    plain, parameters = ByHand(model, guide), [*model.parameters(), *guide.parameters()]
    rows = []
    with ppl_vae.randomness.validation(False):
        for k in (1, 5) if options.smoke else (1, 5, 50, 500):
            losses: dict[str, Callable[[], Tensor]] = {
                "ELBO by hand": lambda k=k: plain.elbo(x, k),
                "IWAE by hand": lambda k=k: plain.iwae(x, k),
            }
            for name, (_, make) in OURS.items():
                elbo = make(max(k, 2) if name in ("TraceVIMCO_ELBO", "TraceTVO_ELBO") else k)
                losses[name] = lambda elbo=elbo: elbo.differentiable_loss(model, guide, x)
            times: dict[str, list[float]] = {name: [] for name in losses}
            rounds = 2 if options.smoke else options.rounds
            # Short ones many times over, so that a cell is not one tick of the clock.
            repeats = max(1, 40 // k)
            for turn in range(rounds + 1):
                for name, loss in losses.items():
                    gc.collect()
                    synchronize(device)
                    start = time.perf_counter()
                    for _ in range(repeats):
                        torch.autograd.grad(loss(), parameters)
                    synchronize(device)
                    if turn:  # The first warms up.
                        times[name].append((time.perf_counter() - start) / repeats)
            for name in losses:
                base = OURS[name][0] if name in OURS else name
                ratios = [a / b for a, b in zip(times[name], times[base], strict=True)]
                rows.append(
                    {
                        "arm": name,
                        "num_particles": k,
                        "ratio": statistics.median(ratios),
                        "milliseconds": 1e3 * statistics.median(times[name]),
                        "megabytes": saved_bytes(losses[name]) / 1e6,
                    }
                )
            print(f"K = {k} done", flush=True)
    report(rows)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


def report(rows: list[dict]) -> None:
    """The table: ratio to the hand-written arm, milliseconds, megabytes kept."""
    counts = sorted({row["num_particles"] for row in rows})
    print("| arm | " + " | ".join(f"K = {k}" for k in counts) + " |")
    print("|---|" + "---|" * len(counts))
    for arm in (*BY_HAND, *OURS):
        cells = []
        for k in counts:
            (row,) = (r for r in rows if r["arm"] == arm and r["num_particles"] == k)
            text = f"{row['milliseconds']:.1f} ms, {row['megabytes']:.1f} MB"
            cells.append(text if arm in BY_HAND else f"{row['ratio']:.2f}x, {text}")
        print(f"| {arm} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
