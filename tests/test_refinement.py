"""Refinement step by step: its length, its mean, its plate, and a datum that has no gradient.

Shapes: B data, D dimensions.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from ppl_vae import guides
from ppl_vae.models import LinearGaussian

LOADING = torch.tensor([[1.0, 0.8], [0.6, 0.9], [-0.7, -0.5]], dtype=torch.float64)
NOISE = 0.4


def base_for(model, x):
    torch.manual_seed(0)
    guide = guides.MeanFieldGuide(model, encoder=torch.nn.Flatten())
    guide.setup(x)
    return guide


def numbers(guide, x):
    """Locations and log-variances of z, `[B, 2 D]`."""
    fn = poutine.trace(guide).get_trace(x).nodes["z"]["fn"].base_dist
    return torch.cat([fn.loc, fn.scale.log() * 2], -1).detach()


def test_a_step_is_no_longer_than_the_clip():
    x = torch.randn(5, 3)
    x[0] *= 1e4
    base = base_for(LinearGaussian(LOADING, NOISE), x)
    with torch.no_grad():
        base.heads["z"].network.weight[2:] = 0.0  # A scale of its own would be 0 or infinite.
    guide = guides.SemiAmortizedGuide(base, 1, step_size=0.01, clip=1000.0)
    lengths = (numbers(guide, x) - numbers(base, x)).norm(dim=-1)
    # The outlier's is cut, and no other's for its sake.
    torch.testing.assert_close(lengths[0], torch.tensor(0.01 * 1000))
    assert (lengths[1:] < 0.99 * 0.01 * 1000).all() and (lengths[1:] > 0).all()


def test_particles_are_averaged():
    """The gradient in the location, W'(x - W mu) / s^2 - mu on average, in one step."""
    count, x = 64, torch.randn(6, 3)
    base = base_for(LinearGaussian(LOADING, NOISE), x)
    guide = guides.SemiAmortizedGuide(base, 1, step_size=0.01, clip=1e9, num_particles=count)
    before = numbers(base, x)
    loc, scale = before[:, :2], (before[:, 2:] / 2).exp()
    found = (numbers(guide, x)[:, :2] - loc) / 0.01
    expected = (x - loc @ LOADING.mT) @ LOADING / NOISE**2 - loc
    # A draw z = mu + sigma e moves it by the precision times sigma e.
    precision = LOADING.mT @ LOADING / NOISE**2 + torch.eye(2)
    error = ((precision * scale.unsqueeze(-2)).square().sum(-1) / count).sqrt()
    assert ((found - expected).abs() < 5 * error).all()


def test_a_step_is_as_long_under_a_plate_of_more_data_than_the_batch():
    def model_of(size):
        def model(x):
            with pyro.plate("data", size or len(x), subsample=torch.arange(len(x)), dim=-1):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ LOADING.mT, NOISE).to_event(1), obs=x)

        return model

    x, found = torch.randn(4, 3), []
    for size in (None, 1000):
        base = base_for(model_of(size), x)
        found.append(numbers(guides.SemiAmortizedGuide(base, 3), x))
    assert (found[0] - numbers(base, x)).abs().min() > 0
    torch.testing.assert_close(found[1], found[0])


def test_a_datum_without_a_gradient_stays_where_it_is():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            # At x = 0 the value is finite, and its derivative 0 times infinity.
            pyro.sample("x", dist.Normal((x * z).abs().sqrt(), 1.0).to_event(1), obs=x)

    x = torch.randn(5, 3)
    x[2] = 0.0
    base = base_for(model, x)
    moved = (numbers(guides.SemiAmortizedGuide(base, 3), x) - numbers(base, x)).abs()
    assert moved.isfinite().all()
    # A location's gradient passes through z alone, as does a scale's.
    assert (moved[2] == 0).all()
    assert (moved[[0, 1, 3, 4]] > 0).all()
