"""Errors of reconstructions, against closed forms of a linear-Gaussian model.

Shapes: N data, D latents, X features.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from oracle import BIAS, LOADING, NOISE, broad, condition, mean_field_elbo, one_level
from oracle import one_level_joint as joint
from pyro import poutine

from ppl_vae.evaluate import average_terms, elbo_terms, reconstruction_error
from ppl_vae.guides import DeltaGuide, MeanFieldGuide

NUM = 200


def known(x):
    """Of the guide `broad`: E and Var of the squared error, and E of -log p(x | z)."""
    loc, covariance = condition(*joint(), x, given=3)
    loc, scale = loc + 0.2, 2 * covariance.diagonal().sqrt()
    residual = x - BIAS - loc @ LOADING.mT
    spread = LOADING * scale  # W S^1/2, [X, D]
    gram = spread.mT @ spread
    mean = residual.square().sum(1) + gram.trace()
    variance = 2 * gram.square().sum() + 4 * (residual @ spread).square().sum(1)
    likelihood = mean_field_elbo(x, loc, scale.expand_as(loc), weight=0.0)
    return mean, variance, -likelihood


def within(z):
    """`z` is of N independent normals, or nearly so."""
    num = len(z)
    assert z.abs().max() < 5.5
    assert abs(z.mean()) <= 5 / math.sqrt(num)
    assert abs(z.std() - 1) <= 5 / math.sqrt(2 * num)


@pytest.mark.parametrize("batch_size", [1000, 70])
def test_both_errors_are_their_closed_forms(batch_size):
    x = 2 * torch.randn(NUM, 3)
    found = reconstruction_error(one_level(), broad, x, num_particles=400, batch_size=batch_size)
    mean, variance, minus_likelihood = known(x)
    square, minus = found.squared_error, found.negative_log_likelihood
    within((square.value - mean) / square.standard_error)
    within((minus.value - minus_likelihood) / minus.standard_error)
    # The standard errors themselves: of 400 draws known to some 6 % each.
    ratio = square.standard_error.square() / (variance / 400)
    assert abs(ratio.mean() - 1) <= 5 * ratio.std() / math.sqrt(NUM)
    assert square.mean().value == pytest.approx(square.value.mean().item())


def test_a_guide_that_is_sure_makes_no_noise():
    """At a point: the error of that reconstruction, without a standard error to speak of."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(torch.full((len(x), 2), 0.3)).to_event(1))

    x = torch.randn(6, 3)
    found = reconstruction_error(one_level(), guide, x, num_particles=3)
    residual = x - BIAS - torch.full((6, 2), 0.3) @ LOADING.mT
    torch.testing.assert_close(found.squared_error.value, residual.square().sum(1))
    density = -dist.Normal(0.0, NOISE).log_prob(residual).sum(1)
    torch.testing.assert_close(found.negative_log_likelihood.value, density)
    for each in (found.squared_error, found.negative_log_likelihood):
        torch.testing.assert_close(each.standard_error, torch.zeros(6), rtol=0, atol=1e-12)
    one = reconstruction_error(one_level(), guide, x, num_particles=1)
    assert one.squared_error.standard_error.isnan().all()


def test_the_standard_error_is_that_of_the_draws():
    x = torch.randn(6, 3)
    found = reconstruction_error(one_level(), broad, x, num_particles=3, seed=7)
    torch.manual_seed(7)
    draws = -torch.stack([elbo_terms(one_level(), broad, x).reconstruction for _ in range(3)])
    error = found.negative_log_likelihood.standard_error
    torch.testing.assert_close(error, draws.std(0) / math.sqrt(3))


@pytest.mark.parametrize("name, guide_name", zoo.PAIRS)
def test_every_pair_has_errors(name, guide_name):
    model, guide = zoo.pair(name, guide_name)
    x = zoo.batch(model)
    state = torch.get_rng_state()
    found = reconstruction_error(model, guide, x, num_particles=3, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    for each in (found.squared_error, found.negative_log_likelihood):
        assert each.value.shape == each.standard_error.shape == (len(x),)
        assert each.value.isfinite().all() and each.value.dtype == x.dtype
    assert (found.squared_error.value >= 0).all()
    # The same draws as those of the terms.
    terms = average_terms(model, guide, x, num_particles=3, seed=4)
    torch.testing.assert_close(found.negative_log_likelihood.value, -terms.reconstruction)


def test_pixels_in_further_plates_and_masks_count_once():
    keep = torch.tensor([[True, False, True], [False, True, True]])  # [part, B]

    def model(x):  # x is [B, part, 4]
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            with pyro.plate("part", 2, dim=-2), poutine.mask(mask=keep):
                loc = z[..., None].expand(2, -1, 4)
                pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x.movedim(1, 0))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(torch.tensor([0.1, 0.2, 0.3])))

    x = torch.randn(3, 2, 4)
    found = reconstruction_error(model, guide, x, num_particles=2)
    square = (x - torch.tensor([0.1, 0.2, 0.3])[:, None, None]).square().sum(2)
    expected = (square * keep.mT).sum(1)
    torch.testing.assert_close(found.squared_error.value, expected)


@pytest.mark.parametrize("batch_size", [2, 10])
def test_what_is_observed_of_no_datum_is_shared_out(batch_size):
    def model(x):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(3.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(x))

    x = torch.randn(5)
    found = reconstruction_error(model, guide, x, num_particles=2, batch_size=batch_size)
    constant = 0.5 * math.log(2 * math.pi)
    expected = torch.full((5,), constant + (constant + 4.5) / 5)
    torch.testing.assert_close(found.negative_log_likelihood.value, expected)
    assert (found.squared_error.value == 0).all()


def test_buffers_are_left_as_they_were():
    encoder = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 5))
    guide = MeanFieldGuide(one_level(), encoder=encoder)
    x = torch.randn(8, 3)
    guide.setup(x)
    guide.train()
    before = {name: value.clone() for name, value in guide.named_buffers()}
    reconstruction_error(one_level(), guide, x, num_particles=2)
    assert before and all(torch.equal(before[n], v) for n, v in guide.named_buffers())


def test_what_has_no_error_says_so():
    def classes(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Categorical(logits=z[:, None].expand(-1, 3)), obs=x)

    guide = DeltaGuide(one_level(), hidden=(4,))
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="at 'x' is Categorical, which has no mean that is known"):
        reconstruction_error(classes, lambda x: z_only(x), torch.tensor([0, 1, 2]))
    for option in ("num_particles", "batch_size"):
        with pytest.raises(ValueError, match=f"{option} is 0; accepted is an integer >= 1"):
            reconstruction_error(one_level(), guide, x, **{option: 0})
    with pytest.raises(ValueError, match=r"x has the shape \[0, 3\]; accepted is \[N, \*data_sh"):
        reconstruction_error(one_level(), guide, x[:0])


def z_only(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
