"""What an estimator costs in runs of the encoder and in memory; never in time."""

import pytest
import torch
import zoo

from ppl_vae import estimators as e
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.models import VAE


@pytest.fixture
def pair():
    torch.manual_seed(0)
    model = VAE((12,), 3, (16,))
    return model, MeanFieldGuide(model, hidden=(16,)), torch.rand(5, 12).round()


def saved_bytes(elbo, model, guide, x):
    """Bytes that autograd keeps for the backward pass, each storage counted once."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # Held, so that no address serves twice.
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = elbo.differentiable_loss(model, guide, x)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("name", zoo.ESTIMATORS)
def test_memory_is_linear_in_the_particles(pair, name):
    elbos = [zoo.estimator(name, k, **how_of(name)) for k in (20, 40, 60, 80)]
    used = [saved_bytes(elbo, *pair) for elbo in elbos]
    steps = torch.tensor(used, dtype=torch.float64).diff()
    # One particle of one datum goes through about 50 numbers of 8 bytes, and no K x K matrix.
    assert (steps - steps[0]).abs().max() <= 0.02 * steps[0]
    assert steps[0] / (20 * 5 * 8) < 130


def how_of(name):
    """One outer sample where there would be several."""
    return {"num_outer": 1} if name in ("TraceMIWAE_ELBO", "TracePIWAE_ELBO") else {}


TWICE = ["TraceSTL_ELBO", "TraceDReG_ELBO", "TraceIWAESTL_ELBO", "TraceRWS_ELBO"]
"""Those that run the guide a second time: its parameters stopped, or on a dream."""


@pytest.mark.parametrize("num_particles", [2, 30])
@pytest.mark.parametrize("name", zoo.ESTIMATORS)
def test_a_run_of_the_guide_encodes_each_datum_once(pair, name, num_particles):
    model, guide, x = pair
    elbo = zoo.estimator(name, num_particles)
    elbo.loss(model, guide, x)  # finds the plate nesting
    rows = []
    guide.encoder.register_forward_hook(lambda _, args, out: rows.append(tuple(args[0].shape)))
    elbo.differentiable_loss(model, guide, x)
    assert rows == [x.shape] * (2 if name in TWICE else 1)
    rows.clear()
    with torch.no_grad():
        elbo.differentiable_loss(model, guide, x)
    assert rows == [x.shape]  # Without gradients there is nothing to stop, and no dream.


def test_batch_statistics_are_those_of_the_batch_however_often_the_guide_runs():
    model = VAE((12,), 3, (16,))
    encoder = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8))
    guide, x = MeanFieldGuide(model, encoder=encoder), torch.rand(9, 12).round()
    values = []
    for elbo in (e.Trace_ELBO(), e.TraceSTL_ELBO()):
        torch.manual_seed(3)
        values.append(elbo.differentiable_loss(model, guide, x).item())
    assert values[0] == pytest.approx(values[1], rel=1e-10)
