"""Annealed importance sampling and its parts, against closed forms and quadrature.

Shapes: T steps, C chains, B data, D dimensions of all latents of a datum together.
"""

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import (
    assert_unbiased,
    exact_one_level,
    exact_top_down,
    linear,
    linear_log_p,
    log_p,
    off_posterior,
    one_level,
    two_level,
)
from pyro import poutine
from torch import nn

from ppl_vae.evaluate import ais, bdmc, sample_prior
from ppl_vae.evaluate.annealing import Annealer, betas
from ppl_vae.evaluate.hamiltonian import leapfrog, transition
from ppl_vae.evaluate.unconstrained import Unconstrained
from ppl_vae.guides import DeltaGuide, PlanarGuide
from ppl_vae.models import VAE, GaussianMixtureVAE
from ppl_vae.randomness import validation

SETTINGS = {"num_chains": 16, "num_leapfrog": 10, "step_size": 0.25, "adapt": True,
            "schedule": "sigmoid"}  # fmt: skip


def drawn(model, num_data, seed=1):
    return sample_prior(model, torch.zeros(num_data, *model.data_shape), seed=seed)


# ------------------------------------------------------------------------------------- leapfrog


def quartic(u):
    """log pi = -sum(u^4 / 4) - u0 u1, and its gradient; differentiable once more."""
    swapped = torch.cat([u[..., 1:2], u[..., :1], torch.zeros_like(u[..., 2:])], -1)
    return -(u**4 / 4).sum(-1) - u[..., 0] * u[..., 1], -(u**3) - swapped


def energy(u, momentum):
    return 0.5 * momentum.square().sum(-1) - quartic(u)[0]


def follow(u, momentum, step, num_steps):
    return leapfrog(quartic, u, momentum, quartic(u)[1], torch.full(u.shape[1:2], step), num_steps)


def test_leapfrog_is_reversible():
    u, momentum = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    there, moved, log_density = follow(u, momentum, 0.1, 13)
    assert (there - u).abs().mean() > 0.1
    torch.testing.assert_close(log_density, quartic(there)[0])
    back, turned, _ = follow(there, -moved, 0.1, 13)
    torch.testing.assert_close(back, u, rtol=0, atol=1e-12)
    torch.testing.assert_close(turned, -momentum, rtol=0, atol=1e-12)


def test_leapfrog_keeps_energy_to_second_order():
    u, momentum = torch.randn(200, 5, 3), torch.randn(200, 5, 3)
    errors = []
    for num_steps in (40, 80, 160):
        end, moved, _ = follow(u, momentum, 1 / num_steps, num_steps)
        errors.append((energy(end, moved) - energy(u, momentum)).abs().mean().item())
    assert errors[0] > 1e-5
    for one, other in pairwise(errors):
        assert one / other == pytest.approx(4, rel=0.02)


def test_leapfrog_keeps_volume():
    def flow(state):
        u, momentum = state.reshape(2, 1, 1, 3)
        return torch.cat([part.flatten() for part in follow(u, momentum, 0.3, 4)[:2]])

    jacobian = torch.autograd.functional.jacobian(flow, torch.randn(6))
    assert (jacobian - torch.eye(6)).abs().max() > 0.5
    torch.testing.assert_close(torch.linalg.det(jacobian), torch.tensor(1.0))


def test_leapfrog_is_kick_drift_kick():
    u, momentum = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    found, moved, _ = follow(u, momentum, 0.2, 3)
    for _ in range(3):
        momentum = momentum + 0.1 * quartic(u)[1]
        u = u + 0.2 * momentum
        momentum = momentum + 0.1 * quartic(u)[1]
    torch.testing.assert_close(found, u)
    torch.testing.assert_close(moved, momentum)


def test_step_sizes_are_a_datums_own():
    u, momentum = torch.randn(3, 2, 3), torch.randn(3, 2, 3)
    both = leapfrog(quartic, u, momentum, quartic(u)[1], torch.tensor([0.1, 0.2]), 3)[0]
    for i, step in enumerate((0.1, 0.2)):
        one = slice(i, i + 1)
        alone = follow(u[:, one], momentum[:, one], step, 3)[0]
        torch.testing.assert_close(both[:, one], alone)


# ------------------------------------------------------------------------------------ transition


def gamma(u):
    """A gamma of shape 3 and rate 1, of e^u."""
    return (3 * u - u.exp()).sum(-1), 3 - u.exp()


def correlated(u):
    precision = torch.tensor([[2.0, -1.2], [-1.2, 1.5]])
    return -0.5 * (u @ precision * u).sum(-1), -u @ precision


@pytest.mark.parametrize("num_leapfrog", [1, 5])
@pytest.mark.parametrize("step", [0.5, 1.1])
def test_a_transition_leaves_its_target_as_it_is(num_leapfrog, step):
    num = 20_000
    covariance = torch.linalg.inv(torch.tensor([[2.0, -1.2], [-1.2, 1.5]]))
    start = torch.randn(num, 1, 2) @ torch.linalg.cholesky(covariance).mT
    targets = {
        correlated: (start, lambda u: torch.stack(
            [u[..., 0], u[..., 1], u[..., 0] ** 2, u[..., 1] ** 2, u[..., 0] * u[..., 1],
             u[..., 0] ** 4], -1), [0, 0, *covariance.diagonal(), covariance[0, 1],
                                   3 * covariance[0, 0] ** 2]),
        gamma: (dist.Gamma(3.0, 1.0).sample((num, 1, 1)).log(), lambda u: torch.cat(
            [u.exp(), u.exp() ** 2, (-u).exp(), u], -1), [3, 12, 0.5, torch.digamma(
                torch.tensor(3.0))]),
    }  # fmt: skip
    for density, (u, moments, truth) in targets.items():
        before = u
        for _ in range(5):
            u, probability = transition(density, u, torch.full((1,), step), num_leapfrog)
        assert 0.2 < probability.mean() < 0.999
        assert (u != before).any(-1).double().mean() > 0.5
        assert_unbiased(moments(u)[:, 0], torch.tensor([float(value) for value in truth]))


def test_chains_find_their_target():
    u = torch.full((4000, 1, 1), 4.0)
    for _ in range(40):
        u, _ = transition(gamma, u, torch.full((1,), 0.4), 5)
    assert_unbiased(torch.cat([u.exp(), u.exp() ** 2], -1)[:, 0], torch.tensor([3.0, 12.0]))


def test_what_is_not_finite_is_not_entered():
    def half(u):
        """A normal where u < 1, and nothing that is a number elsewhere."""
        hole = torch.where(u < 1, 0.0, math.nan)
        return (hole - 0.5 * u**2).sum(-1), hole - u

    u = torch.zeros(500, 2, 1)
    for _ in range(20):
        u, probability = transition(half, u, torch.tensor([0.5, 1.0]), 3)
        assert ((probability >= 0) & (probability <= 1)).all()
    assert (u < 1).all() and (u > 0.5).any() and (probability == 0).any()


# --------------------------------------------------------------------------------- unconstrained


def gamma_poisson(x):
    with pyro.plate("data", len(x), dim=-1):
        rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def beta_binomial(x):
    with pyro.plate("data", len(x), dim=-1):
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        pyro.sample("x", dist.Binomial(6, p), obs=x)


def dirichlet_multinomial(x):
    with pyro.plate("data", len(x), dim=-1):
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.5, 2.0, 4.0])))
        pyro.sample("x", dist.Multinomial(6, p, validate_args=False), obs=x)


def nested(x):
    """Parts and data, an event, and a latent of the datum alone; x is `[B, 3]`."""
    data, part = pyro.plate("data", len(x), dim=-1), pyro.plate("part", 3, dim=-2)
    with data:
        top = pyro.sample("top", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with part:
            z = pyro.sample("z", dist.Normal(top.sum(-1), 0.5))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x.mT)


def chained(x):
    """A support that depends on a site above."""
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
        b = pyro.sample("b", dist.Uniform(-a, 2 * a))
        pyro.sample("x", dist.Normal(b, 0.7), obs=x)


def chained_log_p(x):
    """By quadrature over a; of b the integral is a difference of normal distribution functions."""
    t = torch.linspace(-4, 4, 4001)
    a, weight = (0.5 * t).exp(), dist.Normal(0.0, 1.0).log_prob(t).exp() * (t[1] - t[0])
    normal = dist.Normal(0.0, 1.0)
    inside = normal.cdf((x[:, None] + a) / 0.7) - normal.cdf((x[:, None] - 2 * a) / 0.7)
    return (weight * inside / (3 * a)).sum(1).log()


def nested_log_p(x):
    covariance = 2 * torch.ones(3, 3) + (0.25 + 0.64) * torch.eye(3)
    return dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)


PLATES = ("data", "part")
CLOSED = {
    "one level": (
        one_level, lambda x: log_p(one_level(), x),
        [[0.5, -1.0, 0.3], [1.5, 0.2, -0.8], [-0.4, 0.9, 2.0]]),
    "two levels": (
        two_level, lambda x: log_p(two_level(), x), [[0.5, -1.2], [1.8, 0.4], [-0.3, 0.1]]),
    "gamma-Poisson": (
        lambda: gamma_poisson,
        lambda x: dist.NegativeBinomial(3.0, torch.tensor(1 / 3)).log_prob(x), [0.0, 2.0, 6.0]),
    "beta-binomial": (
        lambda: beta_binomial, lambda x: dist.BetaBinomial(2.0, 3.0, 6).log_prob(x),
        [0.0, 3.0, 6.0]),
    "Dirichlet-multinomial": (
        lambda: dirichlet_multinomial,
        lambda x: dist.DirichletMultinomial(torch.tensor([1.5, 2.0, 4.0]), 6).log_prob(x),
        [[1.0, 0.0, 5.0], [2.0, 2.0, 2.0], [6.0, 0.0, 0.0]]),
    "nested plates": (lambda: nested, nested_log_p, [[1.0, 0.5, -1.0], [2.0, 3.0, 1.0]]),
    "a support that moves": (lambda: chained, chained_log_p, [0.5, -1.5, 3.0]),
}  # fmt: skip


def closed(name):
    """A model, its log p(x), and data."""
    make_model, truth, x = CLOSED[name]
    return make_model(), truth, torch.tensor(x)


SUPPORTS = {
    "positive": lambda: dist.Gamma(2.5, 1.5),
    "unit interval": lambda: dist.Beta(2.0, 1.5),
    "interval": lambda: dist.Uniform(-1.0, 3.0),
    "above": lambda: dist.Pareto(2.0, 3.0),
    "real": lambda: dist.Laplace(1.0, 2.0),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_the_prior_integrates_to_one_over_u(name):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", SUPPORTS[name]())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    target = Unconstrained(model, None, torch.zeros(1), "here")
    target.draw(1)
    u = torch.linspace(-60, 60, 120_001)
    base = target.densities(u.reshape(-1, 1, 1))[0]
    assert base.exp().sum() * (u[1] - u[0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", CLOSED)
def test_densities_are_the_models_own(name):
    model, _, x = closed(name)
    target = Unconstrained(model, None, x, "here")
    trace = poutine.trace(model).get_trace(x)
    u = target.at(trace, 4)
    assert u.shape[:2] == (4, len(x)) and not torch.equal(u, target.draw(4))
    base, ratio = target.densities(u)
    trace.compute_log_prob()

    def over_plates(log_prob):
        return log_prob if log_prob.dim() == 1 else log_prob.sum(0)

    expected = torch.zeros(len(x))
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site["is_observed"] and site["name"] not in PLATES:
            transform = torch.distributions.biject_to(site["fn"].support)
            inverse = transform.inv(site["value"])
            expected += over_plates(site["log_prob"])
            expected += over_plates(transform.log_abs_det_jacobian(inverse, site["value"]))
    torch.testing.assert_close(base, expected.expand(4, -1))
    likelihood = over_plates(trace.nodes["x"]["log_prob"])
    torch.testing.assert_close(ratio, likelihood.expand(4, -1))
    # With a guide it is the same sum, split elsewhere.
    other = Unconstrained(model, wide(model), x, "here")
    assert torch.equal(other.at(trace, 4), u)
    base_too, rest = other.densities(u)
    torch.testing.assert_close(base_too, base)
    torch.testing.assert_close(rest, ratio)


def test_the_gradient_is_that_of_the_tempered_density():
    model, _, x = closed("nested plates")
    target = Unconstrained(model, None, x, "here")
    u = target.draw(3)
    assert u.shape == (3, 2, 5)
    value, gradient = target.tempered(0.3)(u)
    base, ratio = target.densities(u)
    torch.testing.assert_close(value, base + 0.3 * ratio)
    for d in range(5):
        moved = torch.zeros_like(u)
        moved[..., d] = 1e-5
        slope = (target.tempered(0.3)(u + moved)[0] - target.tempered(0.3)(u - moved)[0]) / 2e-5
        torch.testing.assert_close(gradient[..., d], slope, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------- annealing


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_betas(num_steps):
    assert betas(num_steps, "linear") == pytest.approx(
        [t / num_steps for t in range(num_steps + 1)]
    )
    s = [1 / (1 + math.exp(-4 * (2 * t / num_steps - 1))) for t in range(num_steps + 1)]
    expected = [(value - s[0]) / (s[-1] - s[0]) for value in s]
    found = betas(num_steps, "sigmoid")
    assert found == pytest.approx(expected) and (found[0], found[-1]) == (0, 1)


@pytest.mark.parametrize("with_guide", [False, True])
@pytest.mark.parametrize("name", CLOSED)
def test_weights_are_unbiased(name, with_guide):
    model, truth, x = closed(name)
    guide = wide(model) if with_guide else None
    annealer = Annealer(
        "here", **{**SETTINGS, "num_leapfrog": 3, "adapt": not with_guide}, num_steps=5
    )
    with validation(False):
        target = Unconstrained(model, guide, x, "here")
        u = target.draw(4000)
        steps = annealer.step_sizes(target, len(x), u)
        log_w, acceptance = annealer.forward(target, u, steps)
    assert_unbiased((log_w - truth(x)).exp(), torch.ones(len(x)))
    assert acceptance.shape == (4, len(x)) and 0.4 < acceptance.mean() < 1


def wide(model):
    """The model's prior as a guide of its own."""
    return poutine.block(model, hide=["x"])


@pytest.mark.parametrize("dim, schedule", [(2, "sigmoid"), (10, "linear"), (50, "sigmoid")])
def test_log_p_is_within_its_standard_error(dim, schedule):
    model = linear(dim, noise=1.0)
    x = drawn(model, 4)
    how = {"num_steps": 100, "num_leapfrog": 3, "step_size": 0.4, "schedule": schedule}
    found = ais(model, x, num_chains=30, adapt=dim == 50, **how)
    assert (found.standard_error < (0.3 if dim < 50 else 0.8)).all()
    assert ((found.value - linear_log_p(model, x)).abs() <= 5 * found.standard_error).all()
    w = found.log_weights.exp()
    torch.testing.assert_close(found.value, w.mean(0).log())
    torch.testing.assert_close(found.standard_error, w.std(0) / w.mean(0) / math.sqrt(30))


def test_the_exact_posterior_needs_no_annealing():
    for model, guide, x in (
        (one_level(), exact_one_level, torch.randn(3, 3)),
        (two_level(), exact_top_down, torch.randn(3, 2)),
    ):
        found = ais(model, x, guide=guide, num_steps=4, num_chains=3, num_leapfrog=2, adapt=False)
        torch.testing.assert_close(found.value, log_p(model, x), rtol=0, atol=1e-8)
        assert (found.standard_error < 1e-6).all()


def test_a_guide_is_a_better_beginning():
    model = linear(10)
    x = drawn(model, 20)
    truth = linear_log_p(model, x)
    how = {"num_steps": 10, "num_chains": 10, "num_leapfrog": 3, "step_size": 0.3, "adapt": False}
    begun, alone = (ais(model, x, guide=g, **how) for g in (off_posterior(model, 1.5), None))
    assert begun.log_weights.var(0).mean() < 0.2 * alone.log_weights.var(0).mean()
    error = begun.value - truth
    assert abs(error.mean()) <= 5 * error.std() / math.sqrt(20) + 0.02


def test_one_step_is_importance_sampling():
    x = torch.randn(2, 3)
    found = ais(one_level(), x, num_steps=1, num_chains=20_000, chunk_size=10**6)
    assert found.acceptance.shape == (0, 2)
    assert ((found.value - log_p(one_level(), x)).abs() <= 5 * found.standard_error).all()


def test_more_steps_bring_more():
    model = linear(10)
    x = drawn(model, 100)
    how = {"num_chains": 2, "num_leapfrog": 3, "step_size": 0.3, "adapt": False}
    lost = [linear_log_p(model, x) - ais(model, x, num_steps=t, **how).value for t in (4, 16, 64)]
    means = [gap.mean().item() for gap in lost]
    assert means[0] > 2 * means[1] > 4 * means[2] and 0 < means[2] < 2


@pytest.mark.parametrize("step_size", [1e-2, 30.0])
def test_step_sizes_come_to_an_acceptance_of_065(step_size):
    model = linear(10)
    x = drawn(model, 5)
    how = {"num_chains": 20, "num_leapfrog": 3, "step_size": step_size}
    for num_steps in (6, 100):  # Set in equilibrium, which short chains are not in.
        found = ais(model, x, num_steps=num_steps, **how)
        assert found.acceptance.shape == (num_steps - 1, 5)
        assert abs(found.acceptance.mean() - 0.65) < (0.15 if num_steps == 6 else 0.05)
        assert ((found.acceptance > 0.3) & (found.acceptance < 0.95)).double().mean() > 0.9
    left = ais(model, x, num_steps=6, **how, adapt=False).acceptance
    assert (left > 0.95).all() if step_size < 1 else (left < 0.05).all()


def test_both_directions_use_the_step_size_of_their_temperature():
    model = linear(10, noise=0.1)
    annealer = Annealer("here", **{**SETTINGS, "num_leapfrog": 2}, num_steps=20)
    x = drawn(model, 5)
    with validation(False):
        target = Unconstrained(model, None, x, "here")
        steps = annealer.step_sizes(target, 5, target.draw(1))
        _, forward = annealer.forward(target, target.draw(20), steps)
        _, reverse = annealer.reverse(target, model.posterior(x).sample((20,)), steps)
    assert (steps[0] > 3 * steps[-1]).all()
    for acceptance in (forward.mean(1), reverse.mean(1)):
        assert ((acceptance > 0.35) & (acceptance < 0.97)).all()


@pytest.mark.parametrize("chunk_size", [10, 45, 5000])
def test_data_stay_in_their_order(chunk_size):
    x = 3 * drawn(one_level(), 7)
    truth = log_p(one_level(), x)
    how = {"num_steps": 40, "num_chains": 15, "num_leapfrog": 3, "step_size": 0.4, "adapt": False}
    found = ais(one_level(), x, chunk_size=chunk_size, **how)
    assert truth.std() > 3 and found.acceptance.shape == (39, 7)
    assert found.log_weights.shape == (15, 7)
    assert ((found.value - truth).abs() <= 5 * found.standard_error).all()
    assert found.standard_error.max() < 0.7


# ------------------------------------------------------------------------------------------ bdmc


FAST = {"num_chains": 2, "num_leapfrog": 3, "step_size": 0.3, "adapt": False}


def sides(model, num_data, **how):
    found = bdmc(model, torch.zeros(num_data, *model.data_shape), **how)
    truth = linear_log_p(model, found.x)
    torch.testing.assert_close(found.gap, found.upper - found.lower)
    return truth - found.lower, found.upper - truth, found.gap


def test_the_bracket_holds_log_p_and_closes():
    gaps = []
    for num_steps in (4, 16, 64):
        lower, upper, gap = sides(linear(10), 200, num_steps=num_steps, **FAST)
        for side in (lower, upper):
            assert side.mean() > 5 * side.std() / math.sqrt(200)
        gaps.append(gap.mean())
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] and gaps[2] < 3


@pytest.mark.slow
@pytest.mark.parametrize("dim, last", [(2, 0.1), (10, 0.5), (50, 2.5)])
def test_twenty_brackets_hold_log_p_and_close(dim, last):
    model, gaps = linear(dim, noise=1.0), []
    for num_steps in (4, 16, 64):
        found = [sides(model, 20, seed=s, num_steps=num_steps, **FAST) for s in range(20)]
        lower, upper, gap = (
            torch.stack([part.mean() for part in parts]) for parts in zip(*found, strict=True)
        )
        for side in (lower, upper):
            assert side.mean() >= -5 * side.std() / math.sqrt(20)
        gaps.append(gap.mean())
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] and gaps[2] < last


@pytest.mark.parametrize("name", ["gamma-Poisson", "Dirichlet-multinomial", "two levels"])
def test_brackets_of_other_models_hold_too(name):
    model, truth, x = closed(name)
    how = {**FAST, "num_steps": 4, "num_chains": 1, "chunk_size": 10_000}
    found = bdmc(model, x[:1].expand(1500, *x.shape[1:]), **how)
    lower, upper = truth(found.x) - found.lower, found.upper - truth(found.x)
    for side in (lower, upper):
        assert side.mean() > 5 * side.std() / math.sqrt(1500)
    # And in their own measure they are unbiased: E[w] / p(x) = E[p(x) / w'] = 1.
    assert_unbiased(torch.stack([(-lower).exp(), (-upper).exp()], -1), torch.ones(2))


def test_at_the_exact_posterior_the_bracket_is_a_point():
    how = {**FAST, "guide": exact_one_level, "num_steps": 3, "chunk_size": 8}
    found = bdmc(one_level(), torch.zeros(7, 3), **how)
    truth = log_p(one_level(), found.x)
    assert found.x.shape == (7, 3) and truth.std() > 0.1
    for side in (found.lower, found.upper):
        torch.testing.assert_close(side, truth, rtol=0, atol=1e-8)
    summary = found.summary()
    assert summary["gap"].value == pytest.approx(0, abs=1e-8)
    assert summary["lower"].value == pytest.approx(truth.mean().item())
    assert found.acceptance.shape == (7,)


# -------------------------------------------------------------------------------------- the rest


def test_nothing_is_changed_and_it_repeats_itself():
    model = VAE((4,), 2, (3,)).train()
    x = torch.rand(3, 4).round()
    state, store = torch.get_rng_state(), dict(pyro.get_param_store())
    how = {"num_steps": 3, "num_chains": 2, "num_leapfrog": 1}
    one, two, other = (ais(model, x, seed=s, **how) for s in (1, 1, 2))
    assert torch.equal(one.value, two.value) and not torch.equal(one.value, other.value)
    found = bdmc(model, x, **how)
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(pyro.get_param_store()) == store
    assert all(p.grad is None for p in model.parameters()) and model.training
    for value in (one.value, one.log_weights, one.acceptance, found.lower, found.upper):
        assert not value.requires_grad


def test_buffers_stay():
    norm = nn.BatchNorm1d(2).train()

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = norm(z.reshape(-1, 2)).reshape(z.shape)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            return model(x)

    ais(Held(), torch.randn(4, 2), num_steps=3, num_chains=2, num_leapfrog=2, adapt=False)
    assert torch.equal(norm.running_mean, torch.zeros(2)) and norm.num_batches_tracked == 0


def refuse(model, x, match, **how):
    for call in (ais, bdmc):
        with pytest.raises(ValueError, match=f"^{call.__name__}[: ].*{match}"):
            call(model, x, **{"num_steps": 2, "num_chains": 2, "num_leapfrog": 1, **how})


def test_what_cannot_be_annealed_says_so():
    x = torch.randn(4, 3)
    refuse(GaussianMixtureVAE((4,), 2, 3, (3,)), torch.rand(2, 4).round(), "'y' is discrete")

    def site(fn):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", fn)
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        return model

    sphere = dist.ProjectedNormal(torch.ones(3))
    refuse(site(sphere), x, r"'z' \(ProjectedNormal\) has the support Sphere")
    refuse(site(dist.Delta(torch.zeros(3), event_dim=1)), x, "'z' is a point mass")
    normal = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    refuse(site(normal.mask(False)), x, "'z' is masked or scaled")
    refuse(poutine.mask(site(normal), mask=torch.tensor(False)), x, "'z' is masked or scaled")
    refuse(poutine.scale(site(normal), scale=2.0), x, "'z' is masked or scaled")

    def global_site(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(w, 1.0).expand([3]).to_event(1), obs=x)

    refuse(global_site, x, "'w' lies outside")

    def subsampled(x):
        with pyro.plate("data", len(x), subsample_size=2, dim=-1) as rows:
            z = pyro.sample("z", normal)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[rows])

    with pytest.raises(ValueError, match="ais: of 4 data the model takes a subsample of 2"):
        ais(subsampled, x)


@pytest.mark.parametrize(
    "how, match",
    [
        ({"num_steps": 0}, "num_steps is 0; accepted is an integer >= 1"),
        ({"num_chains": 1.5}, "num_chains is 1.5"),
        ({"num_leapfrog": 0}, "num_leapfrog is 0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"step_size": 0.0}, "step_size is 0.0; accepted is a number > 0"),
        ({"step_size": math.inf}, "step_size is inf"),
        ({"schedule": "cosine"}, "schedule is 'cosine'; accepted are 'sigmoid', 'linear'"),
    ],
)
def test_numbers_that_are_none(how, match):
    refuse(one_level(), torch.randn(2, 3), match, **how)
    with pytest.raises(ValueError, match=r"ais: x has the shape \[0, 3\]"):
        ais(one_level(), torch.randn(0, 3))


def test_guides_without_a_density_are_refused():
    model = VAE((4,), 2, (3,))
    x = torch.zeros(2, 4)
    refuse(model, x, "needs the density of the guide", guide=DeltaGuide(model))
    with pytest.raises(ValueError, match="a flow without an inverse"):
        ais(model, x, guide=PlanarGuide(model, (3,)), num_steps=2)
    auto = pyro.infer.autoguide.AutoDiagonalNormal(one_level())
    auto(torch.zeros(2, 3))
    refuse(one_level(), torch.zeros(2, 3), "makes its latents of the auxiliary site", guide=auto)
