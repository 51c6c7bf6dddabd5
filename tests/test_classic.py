"""Against what is known from elsewhere: the classic loss in plain torch, and Pyro's estimators."""

import math

import pyro
import pyro.infer
import pytest
import torch
import zoo
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch.nn import functional as F

from ppl_vae.estimators import Trace_ELBO
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.handlers import scale_latents
from ppl_vae.models import VAE, Bernoulli, ContinuousBernoulli, Gaussian, Laplace


def classic(model, guide, x, noise):
    """Kingma and Welling's loss of a 784-400-20 network, `(reconstruction, kl)`, both summed."""
    ((w1, b1),) = linears(guide.encoder)
    ((w2, b2),) = linears(guide.heads)
    (w3, b3), (w4, b4) = linears(model.decoder)
    h = torch.relu(x @ w1.T + b1)
    mu, logvar = (h @ w2.T + b2).split(20, dim=1)
    z = mu + noise * torch.exp(0.5 * logvar)
    y = torch.sigmoid(torch.relu(z @ w3.T + b3) @ w4.T + b4)
    reconstruction = F.binary_cross_entropy(y, x, reduction="sum")
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return reconstruction, kl


def linears(module):
    return [(m.weight, m.bias) for m in module.modules() if isinstance(m, torch.nn.Linear)]


def seed_network():
    torch.set_default_dtype(torch.float32)
    model = VAE((784,), latent_dim=20, hidden=(400,))
    return model, MeanFieldGuide(model, hidden=(400,))


def gradients(*modules):
    found = [p.grad for module in modules for p in module.parameters()]
    for module in modules:
        module.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("binary", [True, False])
def test_pyros_mean_field_elbo_of_our_pair_is_the_classic_loss(binary):
    model, guide = seed_network()
    x = torch.rand(64, 784)
    x = x.round() if binary else x
    torch.manual_seed(3)
    noise = torch.randn(64, 20)
    loss = sum(classic(model, guide, x, noise))
    loss.backward()
    expected = gradients(model, guide)
    torch.manual_seed(3)
    found = TraceMeanField_ELBO().loss(model, guide, x)
    assert found == pytest.approx(loss.item(), rel=1e-5)
    torch.manual_seed(3)
    TraceMeanField_ELBO().differentiable_loss(model, guide, x).backward()
    for one, other in zip(gradients(model, guide), expected, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


def test_our_trace_elbo_is_the_classic_loss_in_expectation():
    model, guide = seed_network()
    model, guide = model.double(), guide.double()
    x = torch.rand(16, 784, dtype=torch.float64).round()
    differences = []
    for seed in range(200):
        torch.manual_seed(seed)
        noise = torch.randn(16, 20, dtype=torch.float64)
        expected = sum(classic(model, guide, x, noise)).item()
        torch.manual_seed(seed)
        # The same draw: what is left is the noise of the sampled KL.
        differences.append(Trace_ELBO().loss(model, guide, x) - expected)
    differences = torch.tensor(differences)
    error = differences.std() / math.sqrt(len(differences))
    assert 0 < error < 1
    assert differences.mean().abs() <= 5 * error


def test_our_trace_elbo_is_the_classic_loss_with_the_kl_sampled():
    model, guide = seed_network()
    model, guide = model.double(), guide.double()
    x = torch.rand(16, 784, dtype=torch.float64).round()
    torch.manual_seed(3)
    noise = torch.randn(16, 20, dtype=torch.float64)
    reconstruction, _ = classic(model, guide, x, noise)
    features = torch.relu(F.linear(x, *linears(guide.encoder)[0]))
    mu, logvar = F.linear(features, *linears(guide.heads)[0]).split(20, dim=1)
    z = mu + noise * torch.exp(0.5 * logvar)
    # log q - log p: the constants of the two normals cancel.
    kl = 0.5 * (z**2 - noise**2 - logvar).sum()
    for weight in (0.0, 0.3, 1.0, 4.0):
        torch.manual_seed(3)
        with scale_latents(weight):
            found = Trace_ELBO().loss(model, guide, x)
        expected = (reconstruction + weight * kl).item()
        assert found == pytest.approx(expected, rel=1e-10)


# ------------------------------------------------------------------------------- Pyro's Trace_ELBO


@pytest.mark.parametrize("weight", [None, 0.3, 0.0, {"z2": 0.5, "z": 2.0}])
@pytest.mark.parametrize("how", [(1, False), (7, False), (7, True)])
@pytest.mark.parametrize("name", ["VAE", "VAE-Laplace", "HierarchicalVAE", "HierarchicalVAE-3"])
def test_our_trace_elbo_is_pyros_given_the_same_noise(name, how, weight):
    model = zoo.MODELS[name]()
    guide, x = MeanFieldGuide(model, hidden=(5,)), zoo.batch(model)
    found = {}
    for make in (Trace_ELBO, pyro.infer.Trace_ELBO):
        # Pyro's own guess of the nesting would draw from the stream.
        elbo = make(num_particles=how[0], vectorize_particles=how[1], max_plate_nesting=1)
        torch.manual_seed(3)
        if weight is None:
            loss = elbo.loss_and_grads(model, guide, x)
        else:
            with scale_latents(weight):
                loss = elbo.loss_and_grads(model, guide, x)
        found[make] = loss, gradients(model, guide)
    (ours, our_gradients), (theirs, their_gradients) = found.values()
    assert ours == pytest.approx(theirs, rel=1e-10)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["VAE", "HierarchicalVAE"])
def test_the_loss_is_a_straight_line_in_the_weight(name):
    model = zoo.MODELS[name]()
    guide, x = MeanFieldGuide(model, hidden=(5,)), zoo.batch(model)

    def loss(weight):
        torch.manual_seed(3)
        with scale_latents(weight):
            return Trace_ELBO(num_particles=3).loss(model, guide, x)

    zero, one = loss(0.0), loss(1.0)
    assert zero != one
    for weight in (0.3, 2.5, torch.tensor(0.7)):
        assert loss(weight) == pytest.approx(zero + float(weight) * (one - zero), rel=1e-10)
    # At weight 0 only -log p(x | z) is left.
    torch.manual_seed(3)
    guide_trace = poutine.trace(guide).get_trace(x)
    replayed = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    replayed.compute_log_prob()
    torch.manual_seed(3)
    with scale_latents(0.0):
        single = Trace_ELBO().loss(model, guide, x)
    assert single == pytest.approx(-replayed.nodes["x"]["log_prob_sum"].item(), rel=1e-10)


# --------------------------------------------------------------------------------- the likelihoods


def test_bernoulli_takes_grey_pixels_and_says_that_they_are_no_data():
    model = VAE((4,), latent_dim=2, hidden=(3,))
    grey, binary = torch.rand(5, 4), torch.rand(5, 4).round()
    model.check(grey)
    model.check(binary)
    assert model.is_proper(binary) is True and model.is_proper(grey) is False
    trace = poutine.trace(model).get_trace(grey)
    trace.compute_log_prob()
    p = torch.sigmoid(model.decoder(trace.nodes["z"]["value"]))
    expected = (grey * p.log() + (1 - grey) * (1 - p).log()).sum(1)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected, rtol=1e-10, atol=1e-12)
    assert Trace_ELBO(num_particles=3).loss(model, MeanFieldGuide(model), grey) > 0


@pytest.mark.parametrize("likelihood", [Bernoulli(), ContinuousBernoulli()])
@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan")])
def test_values_outside_the_unit_interval_are_refused(likelihood, bad):
    model = VAE((4,), latent_dim=2, hidden=(3,), likelihood=likelihood)
    x = torch.full((5, 4), 0.5)
    model.check(x)
    x[3, 1] = bad
    kind = type(likelihood).__name__
    message = rf"1 value.s. outside \[0, 1\], the first is {bad:g}; a {kind} likelihood"
    with pytest.raises(ValueError, match=message):
        model.check(x)


@pytest.mark.parametrize("make", [Gaussian, Laplace])
def test_real_likelihoods_take_any_number_but_nan(make):
    model = VAE((4,), latent_dim=2, hidden=(3,), likelihood=make(0.5))
    x = 100 * torch.randn(5, 4)
    model.check(x)
    assert model.is_proper(x) is True
    x[0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 value.s. outside .* the first is nan"):
        model.check(x)


@pytest.mark.parametrize("logit", [-6.0, -0.5, 0.0, 1e-4, 0.003, 2.0])
def test_the_continuous_bernoulli_is_normalized(logit):
    x = torch.linspace(0, 1, 2001).unsqueeze(1)
    fn = ContinuousBernoulli()(torch.tensor([logit]), 1)
    integral = torch.trapezoid(fn.log_prob(x).exp(), x.squeeze(1))
    # The trapezoid rule is off by f'' / 12 n^2; torch's expansion at 1/2 by 1e-7.
    assert integral.item() == pytest.approx(1, abs=1e-6)
    # It is no Bernoulli: the densities differ by the normalizer.
    assert fn.log_prob(torch.tensor([0.3])) > Bernoulli()(torch.tensor([logit]), 1).log_prob(
        torch.tensor([0.3])
    )


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("make, constant", [(Gaussian, 0.5 * math.log(2 * math.pi)), (Laplace, 0)])
def test_location_scale_densities(make, constant, learn):
    likelihood = make(0.4, learn_scale=learn)
    loc, x = torch.randn(3, 2, 2), torch.randn(3, 2, 2)
    fn = likelihood(loc, 2)
    assert fn.batch_shape == (3,) and fn.event_shape == (2, 2)
    u = (x - loc) / 0.4
    if make is Gaussian:
        expected = (-0.5 * u**2 - math.log(0.4) - constant).sum((1, 2))
    else:
        expected = (-u.abs() - math.log(2 * 0.4)).sum((1, 2))
    torch.testing.assert_close(fn.log_prob(x), expected, rtol=1e-10, atol=1e-12)
    assert [n for n, _ in likelihood.named_parameters()] == (["log_scale"] if learn else [])
    assert "log_scale" in likelihood.state_dict()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_is_positive(scale):
    with pytest.raises(ValueError, match=f"Gaussian: scale is {scale}; accepted is a number > 0"):
        Gaussian(scale)
