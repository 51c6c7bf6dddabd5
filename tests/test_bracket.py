"""Bounds of log p(x) from both sides, on simulated data, where log p(x) is known."""

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import EXACT, broad, log_p, one_level, two_level

from ppl_vae.evaluate import bracket, log_marginal
from ppl_vae.guides import DeltaGuide
from ppl_vae.models import VAE


def differences(one, other):
    """Mean of the paired difference, and 5 standard errors."""
    difference = (other - one).double()
    return difference.mean().item(), 5 * difference.std().item() / math.sqrt(len(difference))


@pytest.mark.parametrize("num_particles", [1, 2, 10, 100])
def test_the_bracket_holds_log_p(num_particles):
    found = bracket(one_level(), broad, torch.zeros(2000, 3), num_particles=num_particles)
    truth = log_p(one_level(), found.x)
    order = [found.elbo, found.lower, truth, found.upper, found.eubo]
    for low, high in pairwise(order):
        mean, error = differences(low, high)
        assert mean >= -error
    if num_particles > 1:
        for low, high in ((found.elbo, found.lower), (found.upper, found.eubo)):
            mean, error = differences(low, high)
            assert mean > error
    if num_particles <= 10:
        mean, error = differences(found.lower, found.upper)
        assert mean > error


def test_it_closes_as_k_grows():
    gaps = []
    for k in (1, 10, 100, 1000):
        found = bracket(one_level(), broad, torch.zeros(1000, 3), num_particles=k)
        gaps.append((found.upper - found.lower).mean().item())
    assert gaps[0] > 5 * gaps[1] > 20 * gaps[2] and gaps[3] < 0.02


@pytest.mark.parametrize("name", EXACT)
def test_at_the_exact_posterior_it_is_a_point(name):
    make_model, guide, num_features = EXACT[name]
    found = bracket(make_model(), guide, torch.zeros(50, num_features), num_particles=3)
    truth = log_p(make_model(), found.x)
    for bound in (found.elbo, found.lower, found.upper, found.eubo):
        torch.testing.assert_close(bound, truth, rtol=0, atol=1e-8)


def test_the_data_are_the_models_own_draws():
    model = two_level()
    found = bracket(model, EXACT["two levels, top-down"][1], torch.zeros(20_000, 2))
    covariance = model.loading1 @ (
        model.loading2 @ model.loading2.mT + 0.36 * torch.eye(3)
    ) @ model.loading1.mT + 0.81 * torch.eye(2)
    scatter = found.x.mT @ found.x / len(found.x)
    # Of a normal: var(x_i x_j) = S_ii S_jj + S_ij^2
    spread = torch.outer(covariance.diagonal(), covariance.diagonal()) + covariance**2
    assert ((scatter - covariance).abs() <= 5 * (spread / len(found.x)).sqrt()).all()


def test_it_leaves_the_random_stream_alone_and_repeats_itself():
    state = torch.get_rng_state()
    one, two, other = (
        bracket(one_level(), broad, torch.zeros(5, 3), num_particles=4, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.upper, two.upper) and not torch.equal(one.x, other.x)
    again = log_marginal(one_level(), broad, one.x, num_particles=4, seed=2).value
    assert torch.equal(one.lower, again)


def test_what_has_no_bracket_says_so():
    with pytest.raises(ValueError, match="num_particles is 0; accepted is >= 1"):
        bracket(one_level(), broad, torch.zeros(5, 3), num_particles=0)
    vae = VAE((4,), 2, (3,))
    with pytest.raises(ValueError, match="needs the density of the guide, and a point mass"):
        bracket(vae, DeltaGuide(vae), torch.zeros(5, 4))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=2 * x)

    with pytest.raises(ValueError, match="observes at 'x' is none of its arguments"):
        bracket(model, broad, torch.zeros(5, 3))
