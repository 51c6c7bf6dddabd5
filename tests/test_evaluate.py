"""Evaluation against closed forms: the terms of the ELBO, and what the latents do.

Shapes: B data, X dimensions of x, D of a latent.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from oracle import loc_scale
from pyro import poutine

from ppl_vae.estimators import Trace_ELBO
from ppl_vae.evaluate import (
    Estimate,
    active_units,
    aggregate_posterior,
    average_terms,
    class_probabilities,
    decode,
    elbo_terms,
    log_marginal,
    posterior_means,
    reconstruct,
    sample_prior,
    traverse,
    unit_kl,
)
from ppl_vae.guides import DeltaGuide, MeanFieldGuide
from ppl_vae.models import HierarchicalLinearGaussian, LinearGaussian

W = torch.tensor([[1.2, -0.3], [0.4, 0.9], [-0.7, 0.2]], dtype=torch.float64)  # [X, D]
BIAS = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
W1 = torch.tensor([[1.0, 0.5, -0.2], [0.3, -0.9, 0.4]], dtype=torch.float64)  # [X, D1]
W2 = torch.tensor([[0.8, 0.1], [-0.5, 0.6], [0.2, 0.7]], dtype=torch.float64)  # [D1, D2]
A = torch.tensor([[0.5, 0.0, 2.0], [-1.0, 0.0, 0.3]], dtype=torch.float64)  # [D, X]


def one_level():
    return LinearGaussian(W, 0.7, BIAS)


def two_level():
    return HierarchicalLinearGaussian((W1, W2), (0.6, 0.9))


def linear_guide(x):
    """q(z | x) = N(A x, 0.5^2)."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x @ A.mT, 0.5).to_event(1))


def within(samples, truth):
    """`samples` is `[N, ...]`: every mean within 5 standard errors of the truth."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert (error > 0).all()
    assert ((samples.mean(0) - truth).abs() <= 5 * error).all()


# ------------------------------------------------------------------------------------------- terms


@pytest.mark.parametrize(
    "name, guide_name", [names for names in zoo.PAIRS if names[1] != "DeltaGuide"]
)
def test_the_terms_sum_to_the_elbo(name, guide_name):
    model, guide = zoo.pair(name, guide_name)
    x = zoo.batch(model)
    torch.manual_seed(3)
    terms = elbo_terms(model, guide, x)
    torch.manual_seed(3)
    loss = zoo.any_estimator(name).loss(model, guide, x)
    assert terms.elbo.sum().item() == pytest.approx(-loss, rel=1e-10)
    torch.testing.assert_close(
        terms.elbo, terms.reconstruction - sum(terms.kl.values()), rtol=1e-12, atol=0
    )
    assert set(terms.kl) == set(terms.log_prior) == set(guide(x))
    values = (terms.reconstruction, *terms.kl.values(), *terms.log_prior.values())
    assert all(v.shape == (5,) and not v.requires_grad for v in values)


def test_the_terms_are_those_of_the_datum():
    model, x = one_level(), torch.randn(5, 3)
    torch.manual_seed(3)
    terms = elbo_terms(model, linear_guide, x)
    torch.manual_seed(3)
    z = poutine.trace(linear_guide).get_trace(x).nodes["z"]["value"]
    constant = 0.5 * math.log(2 * math.pi)
    residual = (x - z @ W.mT - BIAS) / 0.7
    reconstruction = (-0.5 * residual**2 - math.log(0.7) - constant).sum(1)
    prior = (-0.5 * z**2 - constant).sum(1)
    posterior = (-0.5 * ((z - x @ A.mT) / 0.5) ** 2 - math.log(0.5) - constant).sum(1)
    torch.testing.assert_close(terms.reconstruction, reconstruction, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(terms.log_prior["z"], prior, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(terms.kl["z"], posterior - prior, rtol=1e-10, atol=1e-10)


def test_the_kl_of_a_site_is_its_closed_form_on_average():
    x = torch.randn(4, 3)
    draws = torch.stack([elbo_terms(one_level(), linear_guide, x).kl["z"] for _ in range(300)])
    loc = x @ A.mT
    within(draws, 0.5 * (loc**2 + 0.25 - 1 - math.log(0.25)).sum(1))


def test_the_kl_of_each_level_is_its_closed_form_on_average():
    x = torch.randn(4, 2)
    loc1, loc2 = torch.randn(4, 3), torch.randn(4, 2)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z1", dist.Normal(loc1, 0.4).to_event(1))
            pyro.sample("z2", dist.Normal(loc2, 0.3).to_event(1))

    terms = [elbo_terms(two_level(), guide, x) for _ in range(300)]
    within(
        torch.stack([t.kl["z2"] for t in terms]),
        0.5 * (loc2**2 + 0.09 - 1 - math.log(0.09)).sum(1),
    )
    # E over z2 of KL(N(loc1, 0.4^2) || N(W2 z2, 0.6^2))
    spread = (loc1 - loc2 @ W2.mT) ** 2 + 0.09 * (W2**2).sum(1)
    expected = (math.log(0.6 / 0.4) + (0.16 + spread) / (2 * 0.36) - 0.5).sum(1)
    within(torch.stack([t.kl["z1"] for t in terms]), expected)


def test_a_global_latent_is_shared_out_over_the_data():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample=torch.arange(len(x)), dim=-1):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) + 0 * x, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0.5, 0.3))
        with pyro.plate("data", 20, subsample=torch.arange(len(x)), dim=-1):
            pyro.sample("z", dist.Normal(x[:, 0], 0.3))

    x = torch.randn(4, 2)
    torch.manual_seed(3)
    terms = elbo_terms(model, guide, x)
    torch.manual_seed(3)
    loss = Trace_ELBO().loss(model, guide, x)
    # 4 of 20 data: the mean over them stands for the mean over all.
    assert 20 * terms.elbo.mean().item() == pytest.approx(-loss, rel=1e-10)
    assert (terms.kl["w"] == terms.kl["w"][0]).all() and terms.kl["w"].shape == (4,)


def test_a_point_mass_has_no_elbo():
    model = zoo.MODELS["VAE"]()
    guide, x = DeltaGuide(model, hidden=(4,)), zoo.batch(model)
    terms = elbo_terms(model, guide, x)
    assert terms.elbo is None and terms.kl == {}
    z = guide(x)["z"]
    prior = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(1)
    torch.testing.assert_close(terms.log_prior["z"], prior, rtol=1e-10, atol=1e-10)
    assert set(terms.summary()) == {"reconstruction", "log_prior"}
    assert average_terms(model, guide, x, num_particles=3).elbo is None
    with pytest.raises(ValueError, match="needs the density of the guide.*DeltaGuide"):
        log_marginal(model, guide, x)


def test_log_marginal_refuses_latents_that_are_no_datums_own():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(w + 0 * x, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'w' lies outside the plate 'data'"):
        log_marginal(model, guide, torch.randn(3, 2))


def test_average_terms_are_the_mean_of_many_draws():
    model, x = one_level(), torch.randn(7, 3)
    state = torch.get_rng_state()
    found = average_terms(model, linear_guide, x, num_particles=3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    draws = [elbo_terms(model, linear_guide, x) for _ in range(3)]
    expected = torch.stack([t.elbo for t in draws]).mean(0)
    torch.testing.assert_close(found.elbo, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.log_prior["z"], sum(t.log_prior["z"] for t in draws) / 3)
    other = average_terms(model, linear_guide, x, num_particles=3, seed=6)
    assert not torch.equal(found.elbo, other.elbo)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_average_terms_keep_the_order_of_the_data(batch_size):
    model = zoo.MODELS["HierarchicalVAE"]()
    guide, x = DeltaGuide(model, hidden=(4,)), zoo.batch(model, 7)
    found = average_terms(model, guide, x, batch_size=batch_size)
    whole = elbo_terms(model, guide, x)
    torch.testing.assert_close(found.reconstruction, whole.reconstruction, rtol=1e-12, atol=0)
    for name, value in whole.log_prior.items():
        torch.testing.assert_close(found.log_prior[name], value, rtol=1e-12, atol=0)


def test_the_summary_has_a_standard_error_for_every_number():
    terms = elbo_terms(one_level(), linear_guide, torch.randn(7, 3))
    summary = terms.summary()
    assert list(summary) == ["elbo", "reconstruction", "kl"]
    for estimate, values in (
        (summary["elbo"], terms.elbo),
        (summary["reconstruction"], terms.reconstruction),
        (summary["kl"]["z"], terms.kl["z"]),
    ):
        assert estimate.value == pytest.approx(values.mean().item(), rel=1e-12)
        assert estimate.standard_error == pytest.approx(values.std().item() / math.sqrt(7))


# --------------------------------------------------------------------------------------- estimates


def test_an_estimate_of_a_mean():
    found = Estimate.of_mean(torch.tensor([1.0, 2.0, 6.0]))
    assert found.value == pytest.approx(3.0)
    assert found.standard_error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    alone = Estimate.of_mean(torch.tensor([2.0]))
    assert alone.value == 2.0 and math.isnan(alone.standard_error)
    data = Estimate(torch.tensor([1.0, 2.0, 6.0]), torch.zeros(3)).mean()
    assert data == found


@pytest.mark.parametrize(
    "value, error, text",
    [
        (-87.12345, 0.0312, "-87.123 ± 0.031"),
        (-87.12345, 3.12, "-87.1 ± 3.1"),
        (-87.12345, 31.2, "-87 ± 31"),
        (0.000123456, 0.0000021, "0.0001235 ± 0.0000021"),
        (2.5, 0.0, "2.5"),
        (2.5, math.nan, "2.5"),
    ],
)
def test_an_estimate_is_written_with_two_digits_of_its_error(value, error, text):
    assert str(Estimate(value, error)) == text


# ----------------------------------------------------------------------------------------- latents


def test_posterior_means_of_a_linear_guide_are_exact():
    x = torch.randn(7, 3)
    state = torch.get_rng_state()
    for batch_size in (1, 3, 1000):
        (found,) = posterior_means(linear_guide, x, batch_size=batch_size).values()
        torch.testing.assert_close(found, x @ A.mT, rtol=1e-10, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), state)


def test_posterior_means_of_a_conditional_site_average_over_the_sites_before_it():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(x @ A.mT, 0.5).to_event(1))
            pyro.sample("z1", dist.Normal(3 * z2, 0.1).to_event(1))

    x = torch.randn(4, 3)
    found = posterior_means(guide, x, num_particles=400)
    torch.testing.assert_close(found["z2"], x @ A.mT, rtol=1e-10, atol=1e-10)
    # The mean of 400 draws of 3 z2, of standard deviation 1.5.
    assert ((found["z1"] - 3 * x @ A.mT).abs() <= 5 * 1.5 / 20).all()
    assert not torch.equal(found["z1"], 3 * found["z2"])


def test_posterior_means_without_a_closed_form_are_means_of_draws():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) + 0 * x, 1.0).to_event(1), obs=x)

    guide, x = MeanFieldGuide(model, hidden=(4,)), torch.randn(3, 2)
    guide.setup(x)
    found = posterior_means(guide, x, num_particles=500)["z"]
    loc, scale = loc_scale(guide, x)
    truth = (loc + 0.5 * scale**2).exp()
    deviation = truth * (scale**2).expm1().sqrt()
    assert found.shape == (3, 1)
    assert ((found - truth).abs() <= 5 * deviation / math.sqrt(500)).all()


def test_posterior_means_flatten_events_and_further_plates():
    loc = torch.randn(4, 5, 2, 3)  # [part, B, *event]

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("part", 4, dim=-2):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(2))

    found = posterior_means(guide, torch.zeros(5, 1))["z"]
    torch.testing.assert_close(found, loc.movedim(1, 0).reshape(5, 24), rtol=1e-12, atol=0)


def test_active_units_of_a_linear_guide():
    x = torch.randn(50, 3)
    loading = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.05, 0.0], [0.0, 0.0, 0.0]])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(1 + x @ loading.mT, 3.0).to_event(1))

    found = active_units(guide, x)
    expected = torch.stack([4 * x[:, 0].var(), 0.0025 * x[:, 1].var(), torch.tensor(0.0)])
    # The noise of the guide does not count, only its mean.
    torch.testing.assert_close(found.variance["z"], expected, rtol=1e-10, atol=1e-20)
    assert found.threshold == 0.01 and found.count == {"z": 1}
    assert active_units(guide, x, threshold=1e-4).count == {"z": 2}
    assert active_units(guide, x, threshold=100.0).count == {"z": 0}


def test_the_aggregate_posterior_of_a_linear_guide():
    x = torch.randn(3000, 3)
    state = torch.get_rng_state()
    mean, deviation = aggregate_posterior(linear_guide, x, batch_size=700)["z"]
    assert torch.equal(torch.get_rng_state(), state)
    # A x_n plus noise of deviation 1/2, over the data: the noise is what is left to chance.
    loc = x @ A.mT
    assert ((mean - loc.mean(0)).abs() <= 5 * 0.5 / math.sqrt(3000)).all()
    spread = loc.var(0, correction=0)
    # Var of the sample variance, given x: (4 * spread * 0.25 + 2 * 0.25**2) / N.
    error = ((spread + 0.125) / 3000).sqrt()
    assert ((deviation**2 - (spread + 0.25)).abs() <= 5 * error).all()


def test_the_kl_of_each_unit_is_its_closed_form():
    x = torch.randn(7, 3)
    (found,) = unit_kl(one_level(), linear_guide, x).values()
    expected = 0.5 * ((x @ A.mT) ** 2 + 0.25 - 1 - math.log(0.25)).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_kl_of_each_unit_of_a_lower_level_is_taken_at_draws_from_above():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z2", dist.Normal(0.4, 0.3).expand([2]).to_event(1))
            pyro.sample("z1", dist.Normal(0.1, 0.5).expand([3]).to_event(1))

    x = torch.randn(4000, 2)
    found = unit_kl(two_level(), guide, x)
    top = 0.5 * (0.16 + 0.09 - 1 - math.log(0.09))
    torch.testing.assert_close(found["z2"], torch.full((2,), top), rtol=1e-10, atol=0)
    # E KL(N(0.1, 0.5^2) || N(W2 z2, 0.6^2)) per unit, over z2 ~ N(0.4, 0.3^2)
    gap, spread = 0.1 - 0.4 * W2.sum(1), 0.09 * (W2**2).sum(1)
    expected = math.log(0.6 / 0.5) + (0.25 + gap**2 + spread) / 0.72 - 0.5
    # Var of (gap - W2 e)^2 is 4 gap^2 spread + 2 spread^2.
    error = ((4 * gap**2 * spread + 2 * spread**2) / 4000).sqrt() / 0.72
    assert ((found["z1"] - expected).abs() <= 5 * error).all()


def test_evaluation_leaves_the_parameter_store_empty():
    model = zoo.MODELS["HierarchicalVAE"]()
    guide, x = MeanFieldGuide(model, hidden=(4,)), zoo.batch(model)
    average_terms(model, guide, x)
    log_marginal(model, guide, x, num_particles=3)
    posterior_means(guide, x)
    reconstruct(model, guide, x)
    sample_prior(model, x)
    traverse(model, guide, x[:1], "z2", [0], [1.0])
    assert list(pyro.get_param_store()) == []


def test_decode_gives_the_mean_of_x():
    z, like = torch.randn(5, 2), torch.zeros(5, 3)
    state = torch.get_rng_state()
    found = decode(one_level(), {"z": z}, like)
    torch.testing.assert_close(found, z @ W.mT + BIAS, rtol=1e-12, atol=1e-12)
    # What is not given takes the mean of its prior, here 0.
    torch.testing.assert_close(decode(one_level(), {}, like), BIAS.expand(5, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_decode_follows_the_hierarchy():
    z1, z2, like = torch.randn(5, 3), torch.randn(5, 2), torch.zeros(5, 2)
    model = two_level()
    torch.testing.assert_close(decode(model, {"z2": z2}, like), z2 @ W2.mT @ W1.mT)
    torch.testing.assert_close(decode(model, {"z1": z1}, like), z1 @ W1.mT)
    torch.testing.assert_close(decode(model, {"z1": z1, "z2": z2}, like), z1 @ W1.mT)


def test_the_means_of_a_vae_are_probabilities():
    model = zoo.MODELS["VAE"]()
    x, z = zoo.batch(model), torch.randn(5, 3)
    torch.testing.assert_close(decode(model, {"z": z}, x), torch.sigmoid(model.decoder(z)))


def test_traverse_moves_only_the_unit_that_was_chosen():
    x, values = torch.randn(1, 3), [-3.0, 0.0, 1.5]
    found = traverse(one_level(), linear_guide, x, "z", units=[1, 0], values=values)
    assert found.shape == (2, 3, 3)  # [U, S, X]
    for row, unit in enumerate([1, 0]):
        for column, value in enumerate(values):
            z = (x @ A.mT)[0].clone()
            z[unit] = value
            torch.testing.assert_close(found[row, column], W @ z + BIAS, rtol=1e-12, atol=1e-12)


def test_traverse_takes_values_of_its_own_for_each_unit():
    x, values = torch.randn(1, 3), torch.randn(2, 4)
    found = traverse(one_level(), linear_guide, x, "z", units=[1, 0], values=values)
    for row, unit in enumerate([1, 0]):
        alone = traverse(one_level(), linear_guide, x, "z", [unit], values[row].tolist())
        torch.testing.assert_close(found[row], alone[0], rtol=1e-12, atol=1e-12)


def test_traverse_of_the_top_moves_what_lies_below():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(x, 0.5).to_event(1))
            pyro.sample("z1", dist.Normal(z2 @ W2.mT + 100, 0.5).to_event(1))

    x = torch.randn(1, 2)
    found = traverse(two_level(), guide, x, "z2", units=[0], values=[2.0])
    z2 = torch.stack([torch.tensor(2.0), x[0, 1]])
    torch.testing.assert_close(found[0, 0], W1 @ W2 @ z2, rtol=1e-12, atol=1e-12)


def test_traverse_keeps_the_shape_of_images():
    model = zoo.MODELS["VAE-conv"]()
    guide, x = MeanFieldGuide(model, hidden=(4,)), zoo.batch(model, 1)
    found = traverse(model, guide, x, "z", units=[0, 2], values=[-1.0, 0.0, 1.0, 2.0])
    assert found.shape == (2, 4, *zoo.IMAGE)


def test_sample_prior_draws_from_the_model():
    like = torch.zeros(4000, 3)
    state = torch.get_rng_state()
    x = sample_prior(one_level(), like, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    covariance = W @ W.mT + 0.49 * torch.eye(3)
    error = (covariance.diagonal() / 4000).sqrt()
    assert ((x.mean(0) - BIAS).abs() <= 5 * error).all()
    centred = x - BIAS
    within(centred.unsqueeze(2) * centred.unsqueeze(1), covariance)
    assert torch.equal(sample_prior(one_level(), like, seed=1), x)
    assert not torch.equal(sample_prior(one_level(), like, seed=2), x)


def test_the_mean_of_a_prior_draw_has_no_noise_of_x():
    means = sample_prior(one_level(), torch.zeros(1000, 3), mean=True)
    # Means lie in the plane b + W z.
    normal = torch.linalg.cross(W[:, 0], W[:, 1])
    assert ((means - BIAS) @ normal).abs().max() < 1e-12
    within((means - BIAS).unsqueeze(2) * (means - BIAS).unsqueeze(1), W @ W.mT)


def test_prior_draws_of_a_vae_are_binary_and_their_means_are_not():
    model = zoo.MODELS["VAE"]()
    like = torch.zeros(20, *zoo.IMAGE)
    assert set(sample_prior(model, like).unique().tolist()) == {0.0, 1.0}
    means = sample_prior(model, like, mean=True)
    assert means.shape == like.shape and ((means > 0) & (means < 1)).all()


def test_reconstructions_are_the_mean_of_x_at_a_draw_of_the_guide():
    x = torch.randn(4, 3)
    state = torch.get_rng_state()
    draws = torch.stack([reconstruct(one_level(), linear_guide, x, seed=s) for s in range(200)])
    assert torch.equal(torch.get_rng_state(), state)
    normal = torch.linalg.cross(W[:, 0], W[:, 1])
    assert ((draws - BIAS) @ normal).abs().max() < 1e-12
    within(draws, x @ A.mT @ W.mT + BIAS)


def test_a_model_that_observes_something_else_is_refused():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.zeros(len(x)))

    with pytest.raises(ValueError, match=r"the model observes \['y'\]; .* a site named 'x'"):
        decode(model, {}, torch.zeros(3, 1))

    def named(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=x)

    assert torch.equal(decode(named, {"z": torch.ones(3)}, torch.zeros(3)), torch.ones(3))


# ---------------------------------------------------------------------------------- discrete sites

P = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)  # p(y)
LOC = torch.tensor([[-2.0, 0.0], [1.0, 1.5], [3.0, -1.0]], dtype=torch.float64)  # [C, D]
V = torch.tensor([[1.0, 0, -1], [0.5, 0.5, 0], [0, -2, 1]], dtype=torch.float64)  # [X, C]


def mixture(x):
    """y and a count k, z | y, x | z: the mean of x is W z + b."""
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.Categorical(P))
        pyro.sample("k", dist.Poisson(2.5))
        z = pyro.sample("z", dist.Normal(LOC[y], 0.5).to_event(1))
        pyro.sample("x", dist.Normal(z @ W.mT + BIAS, 0.7).to_event(1), obs=x)


def mixture_guide(x):
    """q(y | x) = softmax(V x), q(z | x, y) = N(A x + LOC[y], 0.5^2)."""
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.Categorical(logits=x @ V))
        pyro.sample("k", dist.Poisson(1.5))
        pyro.sample("z", dist.Normal(x @ A.mT + LOC[y], 0.5).to_event(1))


def test_units_are_those_of_real_valued_sites():
    x = torch.randn(6, 3)
    found = posterior_means(mixture_guide, x, num_particles=400)
    assert set(found) == {"z"}
    q = (x @ V).softmax(1)
    truth = x @ A.mT + q @ LOC
    deviation = (q @ LOC**2 - (q @ LOC) ** 2).sqrt()
    assert ((found["z"] - truth).abs() <= 5 * deviation / 20).all()
    assert set(active_units(mixture_guide, x).count) == {"z"}
    assert set(aggregate_posterior(mixture_guide, x)) == {"z"}
    assert set(unit_kl(mixture, mixture_guide, x)) == {"z"}


def test_a_guide_of_classes_alone_has_no_units():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Categorical(logits=x @ V))

    x = torch.randn(6, 3)
    assert posterior_means(guide, x) == aggregate_posterior(guide, x) == {}
    assert active_units(guide, x).count == {}


def test_the_moments_of_a_mixture_are_those_of_its_draws():
    x = torch.randn(1, 3).expand(4000, 3)
    mean, deviation = aggregate_posterior(mixture_guide, x)["z"]
    q = (x[0] @ V).softmax(0)
    truth = A @ x[0] + q @ LOC
    # z is bounded by its classes up to noise, so its fourth moment is no larger than this.
    spread = q @ LOC**2 - (q @ LOC) ** 2 + 0.25
    fourth = q @ ((LOC - q @ LOC) ** 4 + 6 * 0.25 * (LOC - q @ LOC) ** 2 + 3 * 0.0625)
    assert ((mean - truth).abs() <= 5 * (spread / 4000).sqrt()).all()
    assert ((deviation**2 - spread).abs() <= 5 * ((fourth - spread**2) / 4000).sqrt()).all()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_class_probabilities_are_those_of_the_guide(batch_size):
    x = torch.randn(6, 3)
    state = torch.get_rng_state()
    found = class_probabilities(mixture_guide, x, batch_size=batch_size)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(found) == ["y"]
    weights = (x @ V).exp()
    torch.testing.assert_close(found["y"], weights / weights.sum(1, keepdim=True))
    assert class_probabilities(linear_guide, x) == {}


def test_class_probabilities_average_over_the_sites_before():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            b = pyro.sample("b", dist.Normal(x[:, 0], 1.5))
            logits = torch.stack([b, torch.zeros_like(b)], -1)
            pyro.sample("y", dist.Categorical(logits=logits).mask(x[:, 1] > 0))

    x = torch.randn(5, 3)
    found = class_probabilities(guide, x, num_particles=400)["y"]
    grid = torch.linspace(-12, 12, 4001)
    density = (-0.5 * ((grid - x[:, :1]) / 1.5) ** 2).exp()
    density = density / density.sum(1, keepdim=True)
    first = (density * grid.sigmoid()).sum(1)
    deviation = ((density * grid.sigmoid() ** 2).sum(1) - first**2).sqrt()
    assert ((found[:, 0] - first).abs() <= 5 * deviation / 20).all()
    torch.testing.assert_close(found.sum(1), torch.ones(5))


def test_classes_in_further_plates_have_no_row_for_each_datum():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Categorical(P))
            with pyro.plate("part", 4, dim=-2):
                pyro.sample("parts", dist.Categorical(P))
        pyro.sample("shared", dist.Categorical(P))

    assert list(class_probabilities(guide, torch.randn(5, 3))) == ["y"]


def test_decode_takes_the_mode_of_classes():
    like = torch.zeros(4, 3)
    # The mean of what is above: y is 1, the most probable, and z its mean given that.
    torch.testing.assert_close(decode(mixture, {}, like), (W @ LOC[1] + BIAS).expand(4, 3))
    y = torch.tensor([0, 2, 1, 0])
    torch.testing.assert_close(decode(mixture, {"y": y}, like), LOC[y] @ W.mT + BIAS)
    z = torch.randn(4, 2)
    torch.testing.assert_close(decode(mixture, {"z": z}, like), z @ W.mT + BIAS)


@pytest.mark.parametrize(
    ("fn", "centre"),
    [
        (dist.Bernoulli(0.5), 0.0),
        (dist.Bernoulli(0.7), 1.0),
        (dist.Poisson(2.5), 2.0),
        (dist.Cauchy(1.5, 1.0), 1.5),
        (dist.Gamma(2.0, 4.0), 0.5),
    ],
    ids=["fair coin", "coin", "count", "no mean", "mean"],
)
def test_decode_takes_a_value_that_the_site_can_have(fn, centre):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", fn)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    # The distributions were made before the tests' floating type was set.
    assert decode(model, {}, torch.zeros(3)).tolist() == [pytest.approx(centre)] * 3


def test_data_without_a_mean_are_shown_by_their_mode():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            return pyro.sample("x", dist.Categorical(logits=z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(10.0 * torch.eye(3)[x], 0.1).to_event(1))

    x = torch.tensor([2, 0, 1, 2])
    assert torch.equal(reconstruct(model, guide, x), x.to(torch.float64))
    assert torch.equal(decode(model, {"z": torch.eye(3)[x]}, x), x.to(torch.float64))
    assert set(sample_prior(model, torch.zeros(200).long(), mean=True).tolist()) == {0, 1, 2}


def test_traverse_moves_units_of_a_mixture_and_refuses_its_classes():
    x = torch.randn(1, 3)
    found = traverse(mixture, mixture_guide, x, "z", units=[1], values=[-1.0, 2.0])
    z = posterior_means(mixture_guide, x)["z"].expand(2, 2).clone()
    z[:, 1] = torch.tensor([-1.0, 2.0])
    torch.testing.assert_close(found[0], z @ W.mT + BIAS)
    for site in ("y", "k", "w"):
        with pytest.raises(ValueError, match=rf"site is '{site}'; accepted .* \['z'\]"):
            traverse(mixture, mixture_guide, x, site, units=[0], values=[1.0])


def test_traverse_moves_a_scalar_and_units_in_further_plates():
    weight = torch.randn(4, 2)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("part", 4, dim=-2):
                b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))  # [4, N, 2]
            loc = a + (b * weight.unsqueeze(1)).sum((0, 2))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("a", dist.Normal(x, 1.0))
            with pyro.plate("part", 4, dim=-2):
                loc = x.unsqueeze(-1) + weight.unsqueeze(1)
                pyro.sample("b", dist.Normal(loc, 1.0).to_event(1))

    x, values = torch.randn(1), torch.tensor([-1.0, 0.0, 3.0])
    torch.testing.assert_close(traverse(model, guide, x, "a", [0], values), values[None])
    found = traverse(model, guide, x, "b", [5, 0], values)
    for row, unit in enumerate([5, 0]):
        for column, value in enumerate(values):
            b = (x + weight).clone()
            b[divmod(unit, 2)] = value
            torch.testing.assert_close(found[row, column], (b * weight).sum())


def test_sample_prior_given_the_class():
    y = torch.arange(3).repeat_interleave(3000)
    like = torch.zeros(len(y), 3)
    state = torch.get_rng_state()
    means = sample_prior(mixture, like, mean=True, latents={"y": y})
    draws = sample_prior(mixture, like, latents={"y": y})
    assert torch.equal(torch.get_rng_state(), state)
    for component in range(3):
        centre = LOC[component] @ W.mT + BIAS
        given, drawn = means[y == component] - centre, draws[y == component] - centre
        within(given, torch.zeros(3))
        within(given.unsqueeze(2) * given.unsqueeze(1), 0.25 * W @ W.mT)
        within(drawn.unsqueeze(2) * drawn.unsqueeze(1), 0.25 * W @ W.mT + 0.49 * torch.eye(3))
    z = torch.randn(5, 2)
    found = sample_prior(mixture, like[:5], mean=True, latents={"z": z})
    torch.testing.assert_close(found, z @ W.mT + BIAS)


def test_values_for_sites_that_are_not_there_are_refused():
    match = r"latents names \['w'\]; the model samples \['k', 'x', 'y', 'z'\]"
    for function in (decode, lambda m, v, x: sample_prior(m, x, latents=v)):
        with pytest.raises(ValueError, match=match):
            function(mixture, {"w": torch.zeros(2), "y": torch.zeros(2).long()}, torch.zeros(2, 3))


def test_the_standard_error_is_that_of_the_weights(monkeypatch):
    log_w = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("ppl_vae.evaluate.weights.Weights.chunks", lambda *args: iter([log_w]))
    found = log_marginal(None, None, torch.zeros(3, 2), num_particles=5)
    weights = log_w.exp()
    expected = weights.std(0) / weights.mean(0) / 5**0.5
    torch.testing.assert_close(found.value, weights.mean(0).log())
    torch.testing.assert_close(found.standard_error, expected)
