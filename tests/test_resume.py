"""Resuming: bit for bit, after any kill, and never from half a checkpoint."""

import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import ppl_vae
from ppl_vae import CheckpointError, fit, load_run
from ppl_vae.data import Splits
from ppl_vae.directory import RunDirectory
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.models import VAE
from ppl_vae.schedules import Linear

LR_SCHEDULE = partial(OneCycleLR, max_lr=1e-2, total_steps=400)


def data() -> Splits:
    generator = torch.Generator().manual_seed(5)
    grey = torch.rand(64, 6, generator=generator)
    return Splits(grey, valid=grey[:16].round(), binarize="dynamic")


def train(out=None, *, num_steps=30, resume=False, stop_after=None, source=None):
    torch.manual_seed(11)
    model = VAE((6,), latent_dim=2, hidden=(8,))
    if stop_after is not None:
        stop_at(model, stop_after)
    guide = MeanFieldGuide(model, hidden=(8,))
    return fit(
        model, guide, source if source is not None else data(), num_steps=num_steps, out=out,
        resume=resume, schedule=Linear(20), lr_schedule=LR_SCHEDULE, log_every=3, eval_every=7,
        checkpoint_every=4, batch_size=None if source is not None else 16, tensorboard=False,
    )  # fmt: skip


class Stop(Exception):  # noqa: N818
    pass


def stop_at(model, calls):
    count = [0]

    def hook(module, args):
        count[0] += 1
        if count[0] > calls:
            raise Stop

    model.register_forward_pre_hook(hook)


def everything(result):
    """All that a training leaves: parameters, and metrics but for the time they took."""
    values = [v for p in (result.model, result.guide) for v in p.state_dict().values()]
    metrics = [{k: v for k, v in line.items() if k != "seconds"} for line in result.metrics]
    return values, metrics


def same(result, other):
    ours, theirs = everything(result), everything(other)
    return all(map(torch.equal, ours[0], theirs[0])) and ours[1] == theirs[1]


@pytest.mark.parametrize("stop_after", [3, 11, 24, 40])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, stop_after):
    whole = train(tmp_path / "whole")
    with pytest.raises(Stop):
        train(tmp_path / "cut", stop_after=stop_after)
    # What happens in between must not matter.
    torch.randn(17), random.random(), np.random.rand()
    resumed = train(tmp_path / "cut", resume=True)
    assert same(whole, resumed)
    ours, theirs = (RunDirectory(tmp_path / n).load() for n in ("whole", "cut"))
    assert equal_trees(ours, theirs)
    for name in ("model", "guide", "optimizer", "random"):
        file = f"checkpoint/{name}.safetensors"
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()


def equal_trees(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_trees(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal_trees, a, b))
    return a == b


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_loader_resumes_in_the_middle_of_its_epoch(tmp_path, shuffle):
    def source():
        dataset = TensorDataset(data().train.round())
        return DataLoader(dataset, batch_size=10, shuffle=shuffle)

    whole = train(tmp_path / "whole", source=source())
    with pytest.raises(Stop):
        train(tmp_path / "cut", source=source(), stop_after=19)
    assert same(whole, train(tmp_path / "cut", source=source(), resume=True))


def test_more_steps_go_on_where_the_run_ended(tmp_path):
    train(tmp_path / "run", num_steps=20)
    longer = train(tmp_path / "run", num_steps=30, resume=True)
    assert longer.num_steps == 30
    whole = train(num_steps=30)
    assert all(map(torch.equal, everything(whole)[0], everything(longer)[0]))


def test_resume_where_nothing_was_saved_starts(tmp_path):
    assert same(train(), train(tmp_path / "new", resume=True))


def test_a_run_is_not_overwritten_nor_resumed_as_another(tmp_path):
    train(tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="holds a run already; resume it"):
        train(tmp_path / "run")
    model = VAE((6,), latent_dim=3, hidden=(8,))
    with pytest.raises(ValueError, match="was made with"):
        fit(model, MeanFieldGuide(model), data(), num_steps=5, out=tmp_path / "run", resume=True)
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_ctrl_c_leaves_a_run_that_resumes(tmp_path):
    class Interrupting(VAE):
        calls = 0

        def forward(self, x):
            Interrupting.calls += 1
            if Interrupting.calls == 15:
                signal.raise_signal(signal.SIGINT)
            return super().forward(x)

    torch.manual_seed(11)
    model = Interrupting((6,), latent_dim=2, hidden=(8,))
    guide = MeanFieldGuide(model, hidden=(8,))
    options = {"num_steps": 30, "out": tmp_path / "run", "checkpoint_every": 1000}
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped at step"):
        fit(model, guide, data(), **options)
    assert signal.getsignal(signal.SIGINT) is handler
    step = RunDirectory(tmp_path / "run").load()["progress"]["step"]
    assert 0 < step < 30
    resumed = fit(model, guide, data(), **options, resume=True)
    assert resumed.num_steps == 30


def test_a_damaged_checkpoint_is_refused(tmp_path):
    train(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        train(tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        load_run(tmp_path / "run")


def test_load_run_gives_the_trained_pair_and_its_best(tmp_path):
    result = train(tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.step == 30
    for ours, theirs in zip(run.model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    best = load_run(tmp_path / "run", checkpoint="best")
    assert best.step == result.best_step
    x = data().valid
    terms = ppl_vae.evaluate.average_terms(best.model, best.guide, x, seed=0)
    assert terms.elbo.mean().item() == pytest.approx(result.best_elbo, rel=1e-12)


def test_a_run_of_plain_functions_asks_for_them(tmp_path):
    import pyro
    import pyro.distributions as dist

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    guide = MeanFieldGuide(model, hidden=(4,))
    fit(model, guide, data().train, num_steps=2, out=tmp_path / "run")
    with pytest.raises(ppl_vae.ConfigError, match=r"no class for its model.*model=\.\.\."):
        load_run(tmp_path / "run")
    run = load_run(tmp_path / "run", model=model)
    assert torch.equal(run.guide.heads["z"].network.weight, guide.heads["z"].network.weight)


KILLED = """
import sys, torch
sys.path.insert(0, {here!r})
from test_resume import train
torch.set_default_dtype(torch.float64)
train(num_steps=2)  # what torch does once, so that the kills fall into the training
print("started", flush=True)
train({out!r}, num_steps=400, resume=True)
"""


@pytest.mark.slow
def test_kill_at_random_moments_then_resume_gives_the_uninterrupted_run(tmp_path):
    here = str(Path(__file__).parent)

    def start(out):
        code = KILLED.format(here=here, out=str(tmp_path / out))
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"started\n"
        return process

    process = start("whole")
    begun = time.monotonic()
    assert process.communicate() and process.returncode == 0
    # Ten kills spread over the run.
    longest = (time.monotonic() - begun) / 6
    generator = random.Random(7)
    steps = []
    while len(steps) < 10:
        process = start("cut")
        time.sleep(generator.uniform(0.0, longest))
        assert process.poll() is None
        process.kill()
        process.communicate()
        state = RunDirectory(tmp_path / "cut").load()
        steps.append(0 if state is None else state["progress"]["step"])
    process = start("cut")
    assert process.communicate() and process.returncode == 0
    print(f"killed 10 times, with checkpoints at steps {steps}")
    assert steps == sorted(steps)
    assert steps[-1] > 0
    trees = [RunDirectory(tmp_path / name).load() for name in ("whole", "cut")]
    assert trees[0]["progress"]["step"] == 400
    assert equal_trees(*trees)
    metrics = [RunDirectory(tmp_path / name).metrics() for name in ("whole", "cut")]
    for line in (*metrics[0], *metrics[1]):
        del line["seconds"]
    assert metrics[0] == metrics[1]


def test_no_pickle_is_written_or_read(tmp_path, monkeypatch):
    import pickle

    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    train(tmp_path / "run")
    load_run(tmp_path / "run")
    train(tmp_path / "run", num_steps=32, resume=True)
    suffixes = {p.suffix for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert suffixes == {".yaml", ".jsonl", ".json", ".safetensors"}


def test_the_config_names_every_part(tmp_path):
    train(tmp_path / "run")
    config = RunDirectory(tmp_path / "run").config()
    assert config["optimizer"] == {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}
    assert config["lr_schedule"]["class_path"] == "torch.optim.lr_scheduler.OneCycleLR"
    assert config["schedule"] == {
        "class_path": "ppl_vae.schedules.Linear",
        "init_args": {"num_steps": 20},
    }
