"""The oracle: linear-Gaussian models, where log p(x) and the posterior are known.

What is expected is worked out in this file, by quadrature or by conditioning a joint normal.
Shapes: K particles, B data, X dimensions of x, D of a latent.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import (
    BIAS,
    EXACT,
    LOADING,
    NOISE,
    W1,
    W2,
    assert_unbiased,
    broad,
    condition,
    draws,
    exact_one_level,
    log_p,
    mean_field_elbo,
    normal_log_density,
    one_level,
    one_level_joint,
    two_level_joint,
)
from pyro import poutine

from ppl_vae.estimators import Trace_ELBO
from ppl_vae.evaluate import log_marginal
from ppl_vae.models import HierarchicalLinearGaussian, LinearGaussian


@pytest.fixture(params=EXACT)
def exact(request):
    make_model, guide, num_features = EXACT[request.param]
    return make_model(), guide, torch.randn(4, num_features) * 1.5


# ---------------------------------------------------------------------------------- closed forms


def test_log_marginal_is_the_integral_over_one_latent():
    model = LinearGaussian([[1.7]], 0.6, [0.4])
    x = torch.tensor([[-2.0], [0.3], [3.0]])
    z = torch.linspace(-12, 12, 4001)
    joint = torch.exp(-0.5 * z**2 - 0.5 * ((x - 1.7 * z - 0.4) / 0.6) ** 2) / (2 * math.pi * 0.6)
    integral = torch.trapezoid(joint, z)
    torch.testing.assert_close(model.log_marginal(x), integral.log(), rtol=1e-10, atol=1e-10)


def test_hierarchical_log_marginal_is_the_integral_over_two_latents():
    model = HierarchicalLinearGaussian(([[1.3]], [[-0.8]]), (0.7, 0.5))
    x = torch.tensor([[-1.0], [0.2], [2.5]])
    z1 = torch.linspace(-12, 12, 1201).unsqueeze(1)
    z2 = torch.linspace(-10, 10, 801)
    inner = torch.exp(-0.5 * z2**2 - 0.5 * ((z1 + 0.8 * z2) / 0.7) ** 2)
    prior = torch.trapezoid(inner, z2) / (2 * math.pi * 0.7)
    z1 = z1.squeeze(1)
    likelihood = torch.exp(-0.5 * ((x - 1.3 * z1) / 0.5) ** 2) / (0.5 * math.sqrt(2 * math.pi))
    integral = torch.trapezoid(prior * likelihood, z1)
    torch.testing.assert_close(model.log_marginal(x), integral.log(), rtol=1e-10, atol=1e-10)


def test_log_marginal_is_that_of_the_dense_covariance(exact):
    model, _, x = exact
    torch.testing.assert_close(model.log_marginal(x), log_p(model, x), rtol=1e-11, atol=1e-11)


def test_a_scalar_noise_and_no_bias_are_the_vectors_they_stand_for():
    x = torch.randn(4, 3)
    short = LinearGaussian(LOADING, 0.7)
    long = LinearGaussian(LOADING, [0.7, 0.7, 0.7], [0.0, 0.0, 0.0])
    torch.testing.assert_close(short.log_marginal(x), long.log_marginal(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(short.posterior(x).mean, long.posterior(x).mean)


def test_posterior_is_the_joint_conditioned_on_x(exact):
    model, _, x = exact
    if isinstance(model, LinearGaussian):
        loc, covariance = condition(*one_level_joint(), x, given=3)
    else:
        loc, covariance = condition(torch.zeros(7), two_level_joint(), x, given=2)
    found = model.posterior(x)
    torch.testing.assert_close(found.mean, loc, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        found.covariance_matrix, covariance.expand(4, -1, -1), rtol=1e-10, atol=1e-12
    )


def test_bayes_rule_holds_at_any_latents(exact):
    model, _, x = exact
    trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    joint = sum(
        s["log_prob"]
        for s in trace.nodes.values()
        if s["type"] == "sample" and type(s["fn"]).__name__ != "_Subsample"
    )
    names = ["z"] if isinstance(model, LinearGaussian) else ["z1", "z2"]
    z = torch.cat([trace.nodes[name]["value"] for name in names], -1)
    log_x = joint - model.posterior(x).log_prob(z)
    torch.testing.assert_close(log_x, log_p(model, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LinearGaussian([[1.0], [2.0]], 0.0), "noise_scale is 0.0; .* finite scales > 0"),
        (lambda: LinearGaussian([[1.0], [2.0]], -1.0), "noise_scale is -1.0"),
        (lambda: LinearGaussian([[1.0], [2.0]], float("inf")), "noise_scale is inf"),
        (lambda: LinearGaussian([1.0, 2.0], 1.0), r"loading has shape \(2,\).*a matrix"),
        (lambda: LinearGaussian([[float("nan")]], 1.0), "loading holds values that are not finite"),
        (
            lambda: LinearGaussian([[1.0], [2.0]], 1.0, [1.0, 2.0, 3.0]),
            r"bias has shape \(3,\), the loading \(2, 1\)",
        ),
        (
            lambda: LinearGaussian([[1.0], [2.0]], [1.0, 2.0, 3.0]),
            r"noise_scale has shape \(3,\), the loading \(2, 1\)",
        ),
        (
            lambda: HierarchicalLinearGaussian((W1, W2.mT), (1.0, 1.0)),
            r"shapes \(2, 3\) and \(2, 3\); accepted are \[X, D1\] and \[D1, D2\]",
        ),
        (lambda: HierarchicalLinearGaussian((W1, W2), (1.0, 0.0)), r"scales\[1\] is 0.0"),
        (lambda: HierarchicalLinearGaussian((W1, W2), (-1.0, 1.0)), r"scales\[0\] is -1.0"),
        (lambda: HierarchicalLinearGaussian((W1,), (1.0, 1.0)), "given were 1 and 2"),
    ],
)
def test_arguments_that_make_no_model_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_parameter_is_learned_and_a_tensor_is_not():
    model = LinearGaussian(torch.nn.Parameter(LOADING.clone()), 0.5, [0.0, 0.0, 0.0])
    assert [name for name, _ in model.named_parameters()] == ["loading"]
    assert [name for name, _ in one_level().named_parameters()] == []
    x = torch.randn(4, 3)
    model.log_marginal(x).sum().backward()
    closed = normal_log_density  # d/dW log N(x; 0, WW^T + s^2 I), by differentiating our own form
    mine = LOADING.clone().requires_grad_()
    closed(x, torch.zeros(3), mine @ mine.mT + 0.25 * torch.eye(3)).sum().backward()
    torch.testing.assert_close(model.loading.grad, mine.grad, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------- at the exact posterior


@pytest.mark.parametrize("how", [(1, True), (5, True), (5, False)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_elbo_of_the_exact_posterior_is_log_p_for_every_draw(exact, how, seed):
    model, guide, x = exact
    elbo = Trace_ELBO(num_particles=how[0], vectorize_particles=how[1])
    torch.manual_seed(seed)
    loss = elbo.loss(model, guide, x)
    assert loss == pytest.approx(-log_p(model, x).sum().item(), abs=1e-8)


@pytest.mark.parametrize("num_particles, chunk_size", [(1, 5000), (7, 5000), (50, 8), (50, 1)])
def test_log_marginal_of_the_exact_posterior_has_no_error(exact, num_particles, chunk_size):
    model, guide, x = exact
    found = log_marginal(model, guide, x, num_particles=num_particles, chunk_size=chunk_size)
    assert found.value.shape == found.standard_error.shape == (4,)
    torch.testing.assert_close(found.value, log_p(model, x), rtol=0, atol=1e-8)
    if num_particles == 1:
        assert found.standard_error.isnan().all()
    else:
        assert (found.standard_error >= 0).all() and (found.standard_error < 1e-6).all()


# ------------------------------------------------------------- a diagonal guide, in closed form


@pytest.mark.parametrize("how", [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("weight", [None, 0.3, 0.0])
def test_trace_elbo_and_its_gradient_are_unbiased(how, weight):
    x = torch.randn(3, 3)
    loc = torch.randn(3, 2).requires_grad_()
    log_scale = (0.5 * torch.randn(3, 2) - 0.5).requires_grad_()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    elbo = Trace_ELBO(num_particles=how[0], vectorize_particles=how[1])
    leaves = [loc, log_scale]
    losses, gradients = draws(elbo, one_level(), guide, x, leaves, 100, weight)
    beta = 1.0 if weight is None else weight
    truth = -mean_field_elbo(x, loc, log_scale.exp(), beta).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(truth, leaves)])
    assert_unbiased(losses, truth.detach())
    assert_unbiased(gradients, expected)
    # The bound is one: strictly below log p(x).
    assert mean_field_elbo(x, loc, log_scale.exp()).sum() < log_p(one_level(), x).sum()


# --------------------------------------------------------------------- log p(x) by sampling


def test_log_marginal_is_within_its_standard_error_of_the_truth():
    x = torch.randn(6, 3)
    found = log_marginal(one_level(), broad, x, num_particles=20_000)
    assert (found.standard_error > 0).all() and (found.standard_error < 0.02).all()
    assert ((found.value - log_p(one_level(), x)).abs() <= 5 * found.standard_error).all()


def test_the_standard_error_of_log_marginal_covers():
    x = torch.randn(4, 3)
    truth = log_p(one_level(), x)
    scores = []
    for seed in range(50):
        found = log_marginal(one_level(), broad, x, num_particles=2000, seed=seed)
        scores.append((found.value - truth) / found.standard_error)
    scores = torch.cat(scores)
    # Mean square of n standard normals: 1, give or take sqrt(2 / n).
    assert abs((scores**2).mean() - 1) <= 5 * math.sqrt(2 / len(scores))
    assert abs(scores.mean()) <= 5 / math.sqrt(len(scores))


class Taped(dist.Normal):
    """A normal whose draws come from a tape; one particle alone reads none of it."""

    tape: torch.Tensor
    taken = 0

    def rsample(self, sample_shape=()):
        if self.loc.dim() == 2:
            return self.loc
        num = self.loc.shape[0]
        noise = Taped.tape[Taped.taken : Taped.taken + num]
        Taped.taken += num
        return self.loc + self.scale * noise


@pytest.mark.parametrize("chunk_size", [10_000, 60, 51])
def test_chunks_add_up_to_the_formula(chunk_size):
    num_particles, x = 17, torch.randn(3, 3)
    loc, scale = torch.randn(3, 2), torch.rand(3, 2) + 0.5
    Taped.tape, Taped.taken = torch.randn(num_particles, 3, 2), 0

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Taped(loc, scale).to_event(1))

    found = log_marginal(one_level(), guide, x, num_particles=num_particles, chunk_size=chunk_size)
    assert Taped.taken == num_particles
    z = loc + scale * Taped.tape
    log_w = (
        (-0.5 * ((x - BIAS - z @ LOADING.mT) / NOISE) ** 2 - NOISE.log()).sum(-1)
        - 1.5 * math.log(2 * math.pi)
        - 0.5 * (z**2).sum(-1)
        + (0.5 * Taped.tape**2 + scale.log()).sum(-1)
    )
    w = log_w.exp()
    expected = w.mean(0).log()
    torch.testing.assert_close(found.value, expected, rtol=1e-10, atol=1e-10)
    error = w.std(0) / w.mean(0) / math.sqrt(num_particles)
    torch.testing.assert_close(found.standard_error, error, rtol=1e-8, atol=0)


@pytest.mark.parametrize("how", [(6, None), (100, range(6))])
@pytest.mark.parametrize("num_particles, chunk_size", [(5, 5000), (5, 7)])
def test_log_marginal_is_each_datums_own_whatever_the_plates(how, num_particles, chunk_size):
    """Further plates are summed over, and a subsample's N/B is no part of log p(x)."""
    full_size, rows = how

    def plates(x):
        rows_now = None if rows is None else torch.arange(len(x))
        size = len(x) if rows is None else full_size
        return pyro.plate("data", size, subsample=rows_now, dim=-1), pyro.plate("part", 3, dim=-2)

    def model(x):
        data, part = plates(x)
        with data, part:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x.mT)

    def guide(x):
        data, part = plates(x)
        with data, part:
            pyro.sample("z", dist.Normal(x.mT / 1.25, math.sqrt(0.25 / 1.25)))

    x = torch.randn(6, 3)
    found = log_marginal(model, guide, x, num_particles=num_particles, chunk_size=chunk_size)
    truth = (-0.5 * x**2 / 1.25 - 0.5 * math.log(2 * math.pi * 1.25)).sum(1)
    torch.testing.assert_close(found.value, truth, rtol=0, atol=1e-10)
    loss = Trace_ELBO(num_particles=3).loss(model, guide, x)
    assert loss == pytest.approx(-full_size / 6 * truth.sum().item(), rel=1e-10)


def test_log_marginal_leaves_the_random_stream_alone_and_repeats_itself():
    x = torch.randn(4, 3)
    state = torch.get_rng_state()
    one, two, other = (
        log_marginal(one_level(), broad, x, num_particles=20, seed=s) for s in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.value, two.value) and not torch.equal(one.value, other.value)


def test_log_marginal_needs_a_particle():
    with pytest.raises(ValueError, match="num_particles is 0; accepted is >= 1"):
        log_marginal(one_level(), exact_one_level, torch.randn(2, 3), num_particles=0)
