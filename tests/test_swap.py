"""Swapping the guide changes one word: guides side by side in a process, and each alone."""

import json
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam

import ppl_vae
from ppl_vae import guides
from ppl_vae.estimators import TraceIWAE_ELBO
from ppl_vae.models import HierarchicalVAE

NAMES = ["MeanFieldGuide", "FullRankGuide", "MixtureGuide", "IAFGuide", "TopDownGuide",
         "BottomUpGuide", "LadderGuide"]  # fmt: skip


def made(name):
    torch.manual_seed(0)
    model = HierarchicalVAE((6,), (3, 2), (5,), (4,))
    return model, getattr(guides, name)(model, (5,))


def data():
    return torch.rand(60, 6, generator=torch.Generator().manual_seed(1)).round()


def numbers(model, guide):
    return [p.double().sum().item() for p in (*model.parameters(), *guide.parameters())]


def script(name):
    """The script; its one word is the guide's name."""
    torch.set_num_threads(1)
    model, guide = made(name)
    result = ppl_vae.fit(
        model, guide, data(), estimator=TraceIWAE_ELBO(3), num_steps=12, batch_size=20, log_every=4
    )
    return [line["loss"] for line in result.metrics] + numbers(model, guide)


def plain(name):
    """The same in plain Pyro."""
    torch.set_num_threads(1)
    with pyro.get_param_store().scope():
        model, guide = made(name)
        svi = SVI(model, guide, Adam({"lr": 1e-3}), loss=TraceIWAE_ELBO(3))
        return [svi.step(data()) for _ in range(6)] + numbers(model, guide)


# A process that has imported everything and run nothing makes one child for each guide.
ALONE = """
import json, os, sys, torch
import test_swap as t
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
for name in sys.argv[1:]:
    if os.fork() == 0:
        print(json.dumps({name: [t.script(name), t.plain(name)]}), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def alone():
    """Each guide in a process of its own."""
    done = subprocess.run([sys.executable, "-c", ALONE, *NAMES], cwd=Path(__file__).parent,
                          text=True, stdout=subprocess.PIPE, timeout=300, check=True)  # fmt: skip
    return {
        name: runs for line in done.stdout.splitlines() for name, runs in json.loads(line).items()
    }


def test_side_by_side_is_as_alone(alone):
    for order in (NAMES, NAMES[::-1]):
        for name in order:
            assert script(name) == alone[name][0], name
    assert len({tuple(run[:3]) for run, _ in alone.values()}) == len(NAMES)


def test_plain_svi_side_by_side_is_as_alone(alone):
    for name in NAMES:
        assert plain(name) == alone[name][1], name


def test_steps_of_seven_guides_in_turns_are_those_of_each(alone):
    """Interleaved step by step, each with a store and a random state of its own."""
    running = {}
    for name in NAMES:
        with pyro.get_param_store().scope() as store:
            model, guide = made(name)
            svi = SVI(model, guide, Adam({"lr": 1e-3}), loss=TraceIWAE_ELBO(3))
        running[name] = [model, guide, svi, store, torch.get_rng_state(), []]
    for _ in range(6):
        for one in running.values():
            torch.set_rng_state(one[4])
            with pyro.get_param_store().scope(one[3]) as one[3]:
                one[5].append(one[2].step(data()))
            one[4] = torch.get_rng_state()
    for name, (model, guide, _, _, _, losses) in running.items():
        assert losses + numbers(model, guide) == alone[name][1], name
