"""Training by several processes, against one process that sees the whole minibatch.

Noise is a function of each datum where trainings are to be equal to rounding, and drawn where they
are to be equal in distribution.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader

import ppl_vae
from ppl_vae import estimators as e
from ppl_vae.checkpoint import from_bytes, to_bytes
from ppl_vae.compiled.lowering import missing_compiler
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.models import VAE, Gaussian
from ppl_vae.ranks import Ranks
from ppl_vae.schedules import Constant

N, D = 24, 4
# How long a step is: of SGD, whose steps show gradients as they are.
STEP = partial(SGD, lr=1e-3)


class Model(nn.Module):
    """One latent each, and, where the plate is told of all data, a common one."""

    def __init__(self, num_data=None):
        super().__init__()
        self.num_data, self.decoder = num_data, nn.Linear(2, D, dtype=torch.double)

    def forward(self, x):
        shift = 0.0
        if self.num_data is not None:
            shift = pyro.sample("shift", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", self.num_data or len(x), subsample=x, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = self.decoder(z) + shift
            pyro.sample("x", dist.Normal(loc, 0.7).to_event(1), obs=x)


class Fixed(dist.Normal):
    """A normal whose draws hang on a given noise alone."""

    def __init__(self, loc, scale, noise):
        super().__init__(loc, scale)
        self.noise = noise

    def expand(self, batch_shape, _instance=None):
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return Fixed(loc, scale, self.noise.expand(batch_shape))

    def rsample(self, sample_shape=()):
        drawn = self.loc + self.scale * self.noise
        return drawn.expand(torch.Size(sample_shape) + self.batch_shape)


class Guide(nn.Module):
    """Noise of each datum by its own numbers."""

    def __init__(self, num_data=None):
        super().__init__()
        self.num_data, self.encoder = num_data, nn.Linear(D, 4, dtype=torch.double)
        self.shift = nn.Parameter(torch.zeros(2, dtype=torch.double))

    def forward(self, x):
        if self.num_data is not None:
            loc, scale = self.shift[0], self.shift[1].exp()
            pyro.sample("shift", Fixed(loc, scale, x.new_tensor(0.3)))
        with pyro.plate("data", self.num_data or len(x), subsample=x, dim=-1):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            noise = torch.sin(1e3 * x[..., :2])
            pyro.sample("z", Fixed(loc, log_scale.exp(), noise).to_event(1))


ESTIMATORS = {
    "elbo": e.Trace_ELBO,
    # The floor, and the capacity, lie between the two ranks' own KLs in some of the steps, and are
    # the same in every floating type.
    "free bits": partial(e.TraceFreeBits_ELBO, nats=0.25, per="unit"),
    "capacity": partial(e.TraceCapacity_ELBO, gamma=3.0, capacity=Constant(0.25)),
    "global latent": e.Trace_ELBO,
}


def train(name, ranks, num_steps=4, **how):
    """Parameters after a few steps, by name."""
    torch.manual_seed(0)
    num_data = N if name == "global latent" else None
    model, guide = Model(num_data), Guide(num_data)
    x = torch.linspace(-1, 1, N * D, dtype=torch.double).reshape(N, D) ** 3
    how = {"optimizer": STEP, "compile": False, **how}
    result = ppl_vae.fit(
        model, guide, x, estimator=ESTIMATORS[name](),
        num_steps=num_steps, batch_size=8, ranks=ranks, tensorboard=False, log_every=1, **how,
    )  # fmt: skip
    parameters = {f"model.{n}": p for n, p in model.named_parameters()}
    parameters |= {f"guide.{n}": p for n, p in guide.named_parameters()}
    # What is read only for the losses of the lines.
    losses = torch.tensor([line["loss"] for line in result.metrics], dtype=torch.double)
    return {**{n: p.detach().clone() for n, p in parameters.items()}, "losses": losses}


def learn(ranks, seed, num_steps=300):
    """The validation elbo of a VAE on digits."""
    torch.set_default_dtype(torch.float32)
    data = ppl_vae.data.load("digits", binarize="dynamic")
    torch.manual_seed(seed)
    model = VAE(data.data_shape, 4, (32,))
    result = ppl_vae.fit(
        model, MeanFieldGuide(model, (32,)), data, num_steps=num_steps, batch_size=64, seed=seed,
        optimizer=partial(Adam, lr=3e-3), ranks=ranks, compile=False, tensorboard=False,
    )  # fmt: skip
    return torch.tensor(result.best_elbo)


def everything(ranks, folder):
    """All that several ranks are tried on, in one start of theirs."""
    found = {name: train(name, ranks) for name in ESTIMATORS}
    clipped = {"clip_grad_norm": 0.5, "optimizer": partial(Adam, lr=0.1)}
    found["clipped"] = train("elbo", ranks, **clipped)
    found["half"] = train("elbo", ranks, num_steps=2, out=folder / "run")
    found["elbos"] = {str(seed): learn(ranks, seed) for seed in range(4)}
    ranks.seed(0, 7)
    found["noise"] = {"noise": torch.randn(3)}
    model = VAE((D,), 2, (3,), likelihood=Gaussian())
    x = torch.randn(N, D)
    refused = [
        lambda: ppl_vae.fit(model, MeanFieldGuide(model), DataLoader(x, batch_size=4),
                            num_steps=1, ranks=ranks),
        lambda: ppl_vae.fit(model, MeanFieldGuide(model), x, num_steps=1, batch_size=5,
                            ranks=ranks),
        lambda: ppl_vae.fit(_shifted, _shifting, x, num_steps=1, batch_size=4, ranks=ranks),
    ]  # fmt: skip
    messages = {}
    for i, attempt in enumerate(refused):
        with pytest.raises(ValueError) as info:
            attempt()
        messages[str(i)] = str(info.value)
    tree = {"a": [1, {"b": torch.full((2,), float(ranks.rank))}], "c": None}
    assert ranks.tree_from_first(tree)["a"][1]["b"].tolist() == [0.0, 0.0]
    assert ranks.average({"a": float(ranks.rank), "b": {"c": 2.0}, "n": 3}) == {
        "a": 0.5, "b": {"c": 2.0}, "n": 3,
    }  # fmt: skip
    assert ranks.any(ranks.rank == 1, 16) and not ranks.any(True, 17)
    return found, messages


def _shifted(x):
    shift = pyro.sample("shift", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(shift, 1.0).expand([D]).to_event(1), obs=x)


def _shifting(x):
    loc = pyro.param("loc", torch.zeros(()))
    pyro.sample("shift", dist.Normal(loc, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pass


def work(rank, folder):
    """What each of the two processes does."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    found, messages = everything(Ranks(), folder)
    (folder / f"{rank}.bin").write_bytes(to_bytes({"found": found, "messages": messages}))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two ranks has found, and where it was written."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return [from_bytes((folder / f"{rank}.bin").read_bytes()) for rank in (0, 1)], folder


@pytest.mark.parametrize("name", [*ESTIMATORS, "clipped"])
def test_two_ranks_make_the_steps_of_one_process(two, name):
    ranks, _ = two
    more = {"clip_grad_norm": 0.5, "optimizer": partial(Adam, lr=0.1)} if name == "clipped" else {}
    alone = train("elbo" if name == "clipped" else name, None, **more)
    begun = train("elbo" if name == "clipped" else name, None, num_steps=1, optimizer=_still)
    for found in ranks:
        for key, value in alone.items():
            torch.testing.assert_close(found["found"][name][key], value, rtol=1e-10, atol=1e-12)
    moved = [key for key in begun if key != "losses" and not torch.equal(alone[key], begun[key])]
    assert {"model.decoder.weight", "guide.encoder.weight"} <= set(moved)


def _still(parameters):
    return SGD(parameters, lr=0.0)


def test_a_run_of_two_ranks_goes_on_with_one(two):
    _, folder = two
    resumed = train("elbo", None, out=folder / "run", resume=True)
    whole = train("elbo", None)
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=1e-10, atol=1e-12)


def test_each_rank_has_noise_of_its_own(two):
    first, second = (found["found"]["noise"]["noise"] for found in two[0])
    assert not torch.isclose(first, second).any()


def test_two_ranks_learn_as_much_as_one_process(two):
    ours = torch.stack(list(two[0][0]["found"]["elbos"].values()))
    others = torch.stack(list(two[0][1]["found"]["elbos"].values()))
    assert torch.equal(ours, others)  # all ranks go by the first one's validation
    alone = torch.stack([learn(None, seed) for seed in range(4)])
    difference = ours - alone
    error = difference.std() / 2
    assert difference.mean().abs() < 5 * error
    assert ours.min() > -30  # and they have learned: at the start it is -45


def test_what_ranks_cannot_share_is_refused(two):
    for found in two[0]:
        loader, size, outside = found["messages"].values()
        assert (
            loader.startswith("the data are a DataLoader")
            and "give a dataset with a length" in loader
        )
        assert "batch_size is 5" in size and "multiple of their number, 2" in size
        assert "'shift' lies outside the plate 'data'" in outside and "subsample=x" in outside


def test_without_torch_distributed_there_are_no_ranks():
    with pytest.raises(ValueError, match="not initialized.*torchrun"):
        Ranks()


def launch(folder, rank, port):
    """A rank as torchrun would start it."""
    env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
           "OMP_NUM_THREADS": "1"}  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "ppl_vae", "train", "--num_steps", "100000", "--out", "run",
         "--checkpoint_every", "20", "--report", "false", "--compile", "false"],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def killed_and_heard(folder, both, killed):
    """What the other rank says when one is killed in the midst of training."""
    state, metrics = folder / "run" / "checkpoint" / "state.json", folder / "run" / "metrics.jsonl"
    end = time.monotonic() + 300
    while not (state.is_file() and metrics.stat().st_size):
        assert time.monotonic() < end and all(p.poll() is None for p in both)
        time.sleep(0.1)
    both[killed].send_signal(signal.SIGKILL)
    _, err = both[1 - killed].communicate(timeout=120)
    return [line for line in err.splitlines() if line.startswith("ppl-vae:")], err


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_one_clear_error_and_the_run_goes_on(tmp_path, killed):
    port = free_port()
    both = [launch(tmp_path, rank, port) for rank in (0, 1)]
    try:
        lines, err = killed_and_heard(tmp_path, both, killed)
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert both[1 - killed].returncode == 1 and "Traceback" not in err
    assert len(lines) == 1 and f"rank {1 - killed}: another rank of the training is gone" in err
    step = ppl_vae.load_run(tmp_path / "run", checkpoint="last").step
    done = subprocess.run(
        [sys.executable, "-m", "ppl_vae", "train", "--num_steps", str(step + 40), "--out", "run",
         "--checkpoint_every", "20", "--report", "false", "--compile", "false", "--resume"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ppl_vae.load_run(tmp_path / "run", checkpoint="last").step == step + 40


def compiled_and_eager(rank, folder):
    """Both on each of two ranks."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    ranks = Ranks()
    x = torch.rand(64, 6).round()
    found = {}
    for compile in (True, False):
        torch.manual_seed(0)
        model = VAE((6,), 2, (8,))
        guide = MeanFieldGuide(model, (8,))
        result = ppl_vae.fit(model, guide, x, num_steps=30, batch_size=16, compile=compile,
                             ranks=ranks, log_every=10, tensorboard=False)  # fmt: skip
        assert result.compiled is compile
        found[str(compile)] = {n: p.detach() for n, p in model.named_parameters()}
    (folder / f"{rank}.bin").write_bytes(to_bytes(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_compiled_ranks_make_the_steps_of_eager_ones(tmp_path):
    if missing_compiler(torch.device("cpu")):
        pytest.skip("there is no C++ compiler")
    torch.multiprocessing.spawn(compiled_and_eager, (tmp_path,), nprocs=2)
    first, second = (from_bytes((tmp_path / f"{rank}.bin").read_bytes()) for rank in (0, 1))
    for name, value in first["True"].items():
        torch.testing.assert_close(value, first["False"][name], rtol=1e-3, atol=1e-5)
        assert torch.equal(value, second["True"][name])
