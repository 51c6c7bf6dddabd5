"""Ways to make training steps of one network: ours, Pyro's, by hand, pythae's.

One level: 784-400-20 and back. Two: 784-400-20, 20-200-10 and back, bottom-up. Every step gathers a
batch of a fresh permutation, and moves all parameters by Adam.

Shapes: N data, B data of a batch, K particles, D latent.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import SVI, JitTrace_ELBO
from pyro.infer import Trace_ELBO as PyroTrace_ELBO
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from ppl_vae.compiling import compile_loop
from ppl_vae.estimators import Trace_ELBO
from ppl_vae.guides import BottomUpGuide, MeanFieldGuide
from ppl_vae.loop import Loop
from ppl_vae.models import VAE, HierarchicalVAE
from ppl_vae.optimizers import Optimizers, named_parameters
from ppl_vae.preparation import prepare
from ppl_vae.randomness import validation
from ppl_vae.schedules import Constant
from ppl_vae.stopping import Stopping

Steps = Callable[[int], Any]  # Makes so many steps.
SIZE, HIDDEN, BETWEEN, D1, D2, LR = 784, 400, 200, 20, 10, 1e-3


@dataclass(frozen=True)
class Task:
    """What is to be done.

    Attributes:
        batch_size: B.
        num_particles: K.
        levels: 1 or 2.
        x: The data, `[N, 784]`, zeros and ones.
    """

    batch_size: int
    num_particles: int
    levels: int
    x: Tensor

    def batches(self) -> Iterator[Tensor]:
        """Batches of permutations, for ever."""
        while True:
            order = torch.randperm(len(self.x), device=self.x.device)
            for index in order.split(self.batch_size):
                if len(index) == self.batch_size:
                    yield self.x[index]


def _pair(task: Task) -> tuple[nn.Module, nn.Module]:
    if task.levels == 1:
        model = VAE((SIZE,), latent_dim=D1, hidden=(HIDDEN,))
        return model, MeanFieldGuide(model, hidden=(HIDDEN,))
    model = HierarchicalVAE((SIZE,), (D1, D2), (HIDDEN,), (BETWEEN,))
    return model, BottomUpGuide(model, (HIDDEN,), (BETWEEN,))


@contextmanager
def _own_store(state: dict) -> Iterator[None]:
    with validation(False), pyro.get_param_store().scope(state):
        yield


def ours(task: Task, *, compile: bool) -> Steps:
    """The loop of `ppl_vae.fit`, between log lines."""
    model, guide = _pair(task)
    estimator, state = Trace_ELBO(task.num_particles), pyro.get_param_store().get_state()
    with _own_store(state):
        prepared = prepare(model, guide, task.x, None, task.batch_size, 0, task.x.device)
        estimator.loss(model, guide, *prepared.first)
        optimizers = Optimizers(named_parameters(model, guide), partial(Adam, lr=LR))
        loop = Loop(
            model, guide, prepared, estimator, Constant(), optimizers,
            seed=0, clip_grad_norm=None, stopping=Stopping(None, 1.0),
        )  # fmt: skip
        steps = compile_loop(loop, 1, asked_for=True) if compile else loop

    def run(num: int) -> None:
        last = loop.step + num
        with _own_store(state):
            while loop.step < last:
                steps.advance(log=False, most=last - loop.step)

    return run


def pyros(task: Task, elbo: Callable[..., Any]) -> Steps:
    """Pyro's own SVI of the same programs."""
    model, guide = _pair(task)
    state, batches = pyro.get_param_store().get_state(), task.batches()
    how = {"num_particles": task.num_particles, "vectorize_particles": task.num_particles > 1}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": LR}), elbo(max_plate_nesting=1, **how))

    def run(num: int) -> None:
        with _own_store(state):
            for _ in range(num):
                svi.step(next(batches))

    return run


class ByHand(nn.Module):
    """Everybody's VAE in PyTorch, on one level or two; minus the ELBO, summed over the batch."""

    def __init__(self, levels: int, num_particles: int) -> None:
        super().__init__()
        self.levels, self.num_particles = levels, num_particles
        self.encoder = nn.Sequential(nn.Linear(SIZE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * D1))
        self.decoder = nn.Sequential(nn.Linear(D1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, SIZE))
        if levels == 2:
            self.up = nn.Sequential(nn.Linear(D1, BETWEEN), nn.ReLU(), nn.Linear(BETWEEN, 2 * D2))
            self.down = nn.Sequential(nn.Linear(D2, BETWEEN), nn.ReLU(), nn.Linear(BETWEEN, 2 * D1))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 784]` to a number; particles are a leading dimension."""
        loc, logvar = self.encoder(x).chunk(2, -1)
        shape = (self.num_particles, *loc.shape) if self.num_particles > 1 else loc.shape
        noise = torch.randn(shape, device=x.device)
        z1 = loc + noise * (0.5 * logvar).exp()
        target = x.expand(*shape[:-1], SIZE)
        bce = F.binary_cross_entropy_with_logits(self.decoder(z1), target, reduction="sum")
        if self.levels == 1:
            kl = self._log_ratio(noise, logvar, z1, None)
            return (bce + kl) / self.num_particles
        loc2, logvar2 = self.up(z1).chunk(2, -1)
        noise2 = torch.randn(loc2.shape, device=x.device)
        z2 = loc2 + noise2 * (0.5 * logvar2).exp()
        kl = self._log_ratio(noise2, logvar2, z2, None)
        kl = kl + self._log_ratio(noise, logvar, z1, self.down(z2).chunk(2, -1))
        return (bce + kl) / self.num_particles

    @staticmethod
    def _log_ratio(noise: Tensor, logvar: Tensor, z: Tensor, prior: Any) -> Tensor:
        """log q - log p at the draw, summed."""
        log_q = -0.5 * (noise.square() + logvar)
        if prior is None:
            return (log_q + 0.5 * z.square()).sum()
        loc, log_prior = prior
        return (log_q + 0.5 * ((z - loc).square() * (-log_prior).exp() + log_prior)).sum()


def by_hand(task: Task, *, compile: bool) -> Steps:
    """A loop in plain PyTorch; compiled with torch's fused Adam, the best that it can have."""
    net, batches = ByHand(task.levels, task.num_particles).to(task.x.device), task.batches()
    optimizer = Adam(net.parameters(), lr=LR, fused=compile or None)
    loss = torch.compile(net) if compile else net

    def run(num: int) -> None:
        for _ in range(num):
            optimizer.zero_grad()
            loss(next(batches)).backward()
            optimizer.step()

    return run


def pythaes(task: Task) -> Steps:
    """pythae's VAE, with its own loss; it draws one particle, on one level."""
    from pythae import models as theirs
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(SIZE, HIDDEN)
            self.loc, self.log_var = nn.Linear(HIDDEN, D1), nn.Linear(HIDDEN, D1)

        def forward(self, x: Tensor) -> Any:
            h = F.relu(self.first(x))
            return ModelOutput(embedding=self.loc(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(D1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, SIZE))

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    config = theirs.VAEConfig(input_dim=(SIZE,), latent_dim=D1, reconstruction_loss="bce")
    net = theirs.VAE(config, encoder=Encoder(), decoder=Decoder()).to(task.x.device)
    optimizer, batches = Adam(net.parameters(), lr=LR), task.batches()

    def run(num: int) -> None:
        for _ in range(num):
            optimizer.zero_grad()
            net({"data": next(batches)}).loss.backward()
            optimizer.step()

    return run


def floor(task: Task) -> Steps:
    """The matrix products of a step, forwards and backwards, into memory that is there."""
    rows = task.batch_size
    layers = [(rows, SIZE, HIDDEN, False), (rows, HIDDEN, 2 * D1, True)]
    many = rows * task.num_particles
    layers += [(many, D1, HIDDEN, True), (many, HIDDEN, SIZE, True)]
    if task.levels == 2:
        layers += [(many, D1, BETWEEN, True), (many, BETWEEN, 2 * D2, True)]
        layers += [(many, D2, BETWEEN, True), (many, BETWEEN, 2 * D1, True)]
    products = []
    for rows, before, after, has_input_gradient in layers:
        x, w, y = (torch.randn(s, device=task.x.device) for s in
                   ((rows, before), (before, after), (rows, after)))  # fmt: skip
        products += [(x, w, torch.empty_like(y)), (x.T, y, torch.empty_like(w))]
        if has_input_gradient:
            products.append((y, w.T, torch.empty_like(x)))

    def run(num: int) -> None:
        for _ in range(num):
            for one, other, out in products:
                torch.mm(one, other, out=out)

    return run


CONTENDERS: dict[str, Callable[[Task], Steps]] = {
    "ppl_vae compiled": partial(ours, compile=True),
    "ppl_vae eager": partial(ours, compile=False),
    "Pyro SVI": partial(pyros, elbo=PyroTrace_ELBO),
    "Pyro SVI, jit": partial(pyros, elbo=partial(JitTrace_ELBO, ignore_jit_warnings=True)),
    "PyTorch by hand": partial(by_hand, compile=False),
    "PyTorch by hand, torch.compile": partial(by_hand, compile=True),
    "pythae": pythaes,
    "matrix products alone": floor,
}
