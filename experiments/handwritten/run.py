"""Does `fit` train the 784-400-20 network as a loop written by hand in plain PyTorch does?

    python experiments/handwritten/run.py             # 10 epochs of MNIST, 3 seeds each
    python experiments/handwritten/run.py --smoke     # seconds, on digits

All arms: grey data, Bernoulli likelihood, batch 128, Adam 1e-3. The loop below uses nothing of
ppl_vae but the loaded tensors; every arm is judged by its own formula on the same test images.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn import functional as F

import ppl_vae

EPOCHS = (1, 5, 10)


def encode(net: dict[str, nn.Module], x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of q(z | x)."""
    h = F.relu(net["fc1"](x))
    return net["fc21"](h), net["fc22"](h)


def decode(net: dict[str, nn.Module], z: Tensor) -> Tensor:
    """Logits of p(x | z)."""
    return net["fc4"](F.relu(net["fc3"](z)))


def classic_loss(net: dict[str, nn.Module], x: Tensor) -> Tensor:
    """BCE + KL, summed over the batch."""
    mu, logvar = encode(net, x)
    z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
    bce = F.binary_cross_entropy_with_logits(decode(net, z), x, reduction="sum")
    return bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


def test_loss(net: dict[str, nn.Module], x: Tensor) -> float:
    """Minus the ELBO in nats per datum, with the same noise for everybody."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1234)
        return sum(classic_loss(net, part).item() for part in x.split(1000)) / len(x)


def by_hand(train: Tensor, test: Tensor, epochs: tuple[int, ...], seed: int) -> dict[int, float]:
    """The loop that everybody writes."""
    torch.manual_seed(seed)
    size = train.shape[1]
    net = nn.ModuleDict(
        {
            "fc1": nn.Linear(size, 400),
            "fc21": nn.Linear(400, 20),
            "fc22": nn.Linear(400, 20),
            "fc3": nn.Linear(20, 400),
            "fc4": nn.Linear(400, size),
        }
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = {}
    for epoch in range(1, max(epochs) + 1):
        for index in torch.randperm(len(train)).split(128):
            optimizer.zero_grad()
            classic_loss(net, train[index]).backward()
            optimizer.step()
        if epoch in epochs:
            losses[epoch] = test_loss(net, test)
    return losses


def by_fit(
    train: Tensor, test: Tensor, epochs: tuple[int, ...], seed: int, estimator: type[ELBO]
) -> dict[int, float]:
    """The same through ppl_vae, resumed from one count of epochs to the next."""
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        for epoch in epochs:
            torch.manual_seed(seed)
            model = ppl_vae.models.VAE(train.shape[1:], latent_dim=20, hidden=(400,))
            guide = ppl_vae.guides.MeanFieldGuide(model, hidden=(400,))
            steps = epoch * (len(train) // 128)
            ppl_vae.fit(
                model, guide, train, estimator=estimator(), num_steps=steps, batch_size=128,
                seed=seed, out=f"{folder}/run", resume=epoch != epochs[0], tensorboard=False,
                progress=False,
            )  # fmt: skip
            losses[epoch] = test_loss(as_plain(model, guide), test)
    return losses


def fit_analytic(*arguments: Any) -> dict[int, float]:
    """`fit` with the KL in closed form, as in the loop."""
    return by_fit(*arguments, estimator=TraceMeanField_ELBO)


def fit_sampled(*arguments: Any) -> dict[int, float]:
    """`fit` with its default estimator, every term sampled."""
    return by_fit(*arguments, estimator=ppl_vae.estimators.Trace_ELBO)


ARMS = (by_hand, fit_analytic, fit_sampled)


def as_plain(model: nn.Module, guide: nn.Module) -> dict[str, nn.Module]:
    """Our modules in the roles of the hand-written ones."""
    head = guide.heads["z"].network
    return {
        "fc1": guide.encoder.layers[0],
        "fc21": lambda h: head(h).chunk(2, -1)[0],
        "fc22": lambda h: head(h).chunk(2, -1)[1],
        "fc3": model.decoder.layers[0],
        "fc4": model.decoder.layers[2],
    }


def cell(losses: list[float]) -> str:
    """Mean and standard error over seeds."""
    if len(losses) == 1:
        return f"{losses[0]:.2f}"
    return f"{statistics.mean(losses):.2f} ± {statistics.stdev(losses) / len(losses) ** 0.5:.2f}"


def main() -> None:
    """Runs every arm for each seed, and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args()
    splits = ppl_vae.data.load("digits" if options.smoke else "mnist")
    train = torch.cat([splits.train, splits.valid]).flatten(1)
    test = splits.test.flatten(1)
    epochs = (1, 2) if options.smoke else EPOCHS
    rows = []
    for seed in range(1 if options.smoke else options.seeds):
        for arm in ARMS:
            start = time.monotonic()
            losses = arm(train, test, epochs, seed)
            rows.append({"arm": arm.__name__, "seed": seed, "loss": losses})
            print(arm.__name__, seed, losses, f"{time.monotonic() - start:.0f} s", flush=True)
    print("| epochs | " + " | ".join(arm.__name__ for arm in ARMS) + " |\n|---|---|---|---|")
    for epoch in epochs:
        cells = [cell([r["loss"][epoch] for r in rows if r["arm"] == a.__name__]) for a in ARMS]
        print(f"| {epoch} | " + " | ".join(cells) + " |")
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
