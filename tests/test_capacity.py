"""The capacity objective, and the KLs it is made of, against formulas written here.

Shapes: K particles, B data.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from oracle import loc_scale
from pyro import poutine
from torch.distributions import Normal, kl_divergence

from ppl_vae.estimators import TraceAnalyticKL_ELBO, TraceCapacity_ELBO
from ppl_vae.estimators.kl import site_kl
from ppl_vae.estimators.pair import trace_pair
from ppl_vae.guides import DeltaGuide, MeanFieldGuide
from ppl_vae.handlers import scale_latents
from ppl_vae.models import VAE, HierarchicalLinearGaussian, HierarchicalVAE
from ppl_vae.schedules import Constant, Linear

W1 = torch.tensor([[1.0, 0.5, -0.2], [0.3, -0.9, 0.4]], dtype=torch.float64)  # [X, D1]
W2 = torch.tensor([[0.8, 0.1], [-0.5, 0.6], [0.2, 0.7]], dtype=torch.float64)  # [D1, D2]
S1, SX = 0.6, 0.9


def gradients(*modules):
    found = [p.grad for module in modules for p in module.parameters()]
    for module in modules:
        module.zero_grad(set_to_none=True)
    return found


def bernoulli(logits, x):
    return (x * logits - torch.nn.functional.softplus(logits)).sum()


@pytest.mark.parametrize("capacity", [0.0, 0.3, 50.0])
@pytest.mark.parametrize("how", [(1, True), (4, True), (4, False)])
def test_one_level_is_the_formula(how, capacity):
    model = VAE((6,), 3, (5,))
    guide, x = MeanFieldGuide(model, hidden=(5,)), torch.rand(7, 6).round()
    elbo = TraceCapacity_ELBO(20.0, Constant(capacity), TraceAnalyticKL_ELBO(*how, 1))
    torch.manual_seed(3)
    value = elbo.loss_and_grads(model, guide, x)
    found = gradients(model, guide)
    loc, scale = loc_scale(guide, x)
    torch.manual_seed(3)
    shape = (how[0], 7, 3)
    noise = torch.randn(shape) if how[1] else torch.stack([torch.randn(7, 3) for _ in range(4)])
    reconstruction = bernoulli(model.decoder(loc + scale * noise), x) / how[0]
    kl = kl_divergence(Normal(loc, scale), Normal(0.0, 1.0)).sum() / 7
    assert kl != capacity
    expected = -reconstruction + 7 * 20.0 * (kl - capacity).abs()
    assert value == pytest.approx(expected.item(), rel=1e-10)
    expected.backward()
    for one, other in zip(found, gradients(model, guide), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_two_levels_take_the_conditional_kl_at_the_draw_from_above():
    model = HierarchicalVAE((6,), (3, 2), (5,), (4,))
    guide, x = MeanFieldGuide(model, hidden=(5,)), torch.rand(7, 6).round()
    torch.manual_seed(3)
    found = TraceCapacity_ELBO(20.0, Constant(0.3)).loss(model, guide, x)
    torch.manual_seed(3)
    z = guide(x)
    q1, q2 = (Normal(*loc_scale(guide, x, name)) for name in ("z1", "z2"))
    p1 = Normal(*model.priors[0](z["z2"]))
    kl = kl_divergence(q1, p1).sum() + kl_divergence(q2, Normal(0.0, 1.0)).sum()
    expected = -bernoulli(model.decoder(z["z1"]), x) + 7 * 20.0 * (kl / 7 - 0.3).abs()
    assert found == pytest.approx(expected.item(), rel=1e-10)


def test_a_subsample_stands_for_all_data():
    def model(x):
        with pyro.plate("data", 30, subsample=torch.arange(len(x)), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", 30, subsample=torch.arange(len(x)), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x, 0.3).to_event(1))

    x = torch.randn(6, 2)
    for how in ((1, True), (3, True), (3, False)):
        torch.manual_seed(3)
        elbo = TraceCapacity_ELBO(20.0, Constant(0.3), TraceAnalyticKL_ELBO(*how))
        found = elbo.loss(model, guide, x)
        torch.manual_seed(3)
        if how[1]:
            noise = torch.randn(how[0], 6, 2)
        else:
            noise = torch.stack([torch.randn(6, 2) for _ in range(3)])
        reconstruction = Normal(0.5 * x + 0.3 * noise, 1.0).log_prob(x).sum() / how[0]
        kl = kl_divergence(Normal(0.5 * x, torch.tensor(0.3)), Normal(0.0, 1.0)).sum() / 6
        expected = -5 * reconstruction + 30 * 20.0 * (kl - 0.3).abs()
        assert found == pytest.approx(expected.item(), rel=1e-10)


def test_the_capacity_grows_with_the_steps():
    elbo = TraceCapacity_ELBO(2.0, Linear(10, end=4.0))
    assert elbo.target.item() == 0.0
    for step, expected in ((5, 2.0), (10, 4.0), (99, 4.0), (0, 0.0)):
        elbo.set_step(step)
        assert elbo.target.item() == expected
    default = TraceCapacity_ELBO()
    default.set_step(50_000)
    assert default.gamma == 1000.0 and default.target.item() == 12.5


def test_the_step_reaches_the_loss_without_a_new_tensor():
    model = zoo.MODELS["VAE"]()
    guide, x = MeanFieldGuide(model, hidden=(4,)), zoo.batch(model)
    elbo = TraceCapacity_ELBO(2.0, Linear(10, end=1000.0))
    target, losses = elbo.target, []
    for step in (5, 10):
        elbo.set_step(step)
        torch.manual_seed(3)
        losses.append(elbo.loss(model, guide, x))
    # Far above the KL the loss is a straight line in C: B gamma C.
    assert losses[1] - losses[0] == pytest.approx(5 * 2.0 * 500.0, rel=1e-10)
    assert elbo.target is target


def test_below_the_capacity_the_kl_is_pushed_up_and_above_it_down():
    model = VAE((6,), 1, ())
    guide, x = MeanFieldGuide(model, hidden=()), torch.rand(7, 6).round()
    torch.nn.init.zeros_(model.decoder.layers[0].weight)  # nothing to reconstruct with
    torch.nn.init.constant_(guide.heads["z"].network.bias, 1.0)
    signs = []
    for capacity in (0.0, 100.0):
        TraceCapacity_ELBO(5.0, Constant(capacity)).loss_and_grads(model, guide, x)
        (_, bias_grad) = gradients(guide)
        signs.append(bias_grad[0].sign().item())
    assert signs == [1.0, -1.0]


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("weight", [0.5, 0.0, {"z": 2.0}, torch.tensor(0.5)])
def test_a_kl_weight_is_refused(weight):
    model = zoo.MODELS["VAE"]()
    guide, x = MeanFieldGuide(model, hidden=(4,)), zoo.batch(model)
    message = r"TraceCapacity_ELBO .* no KL weight; .*Constant.1.0"
    with scale_latents(weight), pytest.raises(ValueError, match=message):
        TraceCapacity_ELBO().loss(model, guide, x)


def test_a_point_mass_is_refused():
    model = zoo.MODELS["VAE"]()
    with pytest.raises(
        ValueError, match="TraceCapacity_ELBO needs the density.*DeltaGuide.*MeanField"
    ):
        TraceCapacity_ELBO().loss(model, DeltaGuide(model), zoo.batch(model))


def test_a_guide_that_is_not_reparameterized_is_refused():
    def program(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Bernoulli(0.5))

    def model(x):
        program(x)
        with pyro.plate("data_x", len(x), dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="needs reparameterized guides.*'k' from Bernoulli"):
        TraceCapacity_ELBO().loss(model, program, torch.zeros(3))


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.inf, math.nan])
def test_gamma_is_positive(gamma):
    with pytest.raises(ValueError, match=f"TraceCapacity_ELBO: gamma is {gamma}; accepted"):
        TraceCapacity_ELBO(gamma)


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan, None, {"z": 1.0}])
def test_a_capacity_is_a_number_of_nats(bad):
    with pytest.raises(ValueError, match=r"capacity\(0\) is .*; accepted are nats >= 0"):
        TraceCapacity_ELBO(capacity=lambda step: bad)


def test_it_is_no_bound():
    assert TraceCapacity_ELBO.is_bound is False


# ---------------------------------------------------------------------------------- KL of one site


def hierarchy():
    return HierarchicalLinearGaussian((W1, W2), (S1, SX))


def joint_kl(loc, covariance):
    """KL(N(loc, covariance) || p(z1, z2)) of a joint normal over (z1, z2)."""
    prior = torch.cat(
        [
            torch.cat([W2 @ W2.mT + S1**2 * torch.eye(3), W2], 1),
            torch.cat([W2.mT, torch.eye(2)], 1),
        ]
    )
    inverse = torch.linalg.inv(prior)
    quadratic = loc @ inverse @ loc
    logs = torch.logdet(prior) - torch.logdet(covariance)
    return 0.5 * ((inverse @ covariance).trace() + quadratic - 5 + logs)


M1 = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
M2 = torch.tensor([0.7, 0.2], dtype=torch.float64)
GAIN = torch.tensor([[0.5, -0.8, 0.1], [0.9, 0.4, -0.6]], dtype=torch.float64)  # [D2, D1]


def independent(order):
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            for name, loc in ((n, {"z1": M1, "z2": M2}[n]) for n in order):
                pyro.sample(name, dist.Normal(loc, 0.4).to_event(1))

    return guide, torch.cat([M1, M2]), 0.16 * torch.eye(5)


def bottom_up():
    """q(z1) q(z2 | z1): the prior of z1 depends on z2, which is drawn from z1."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(M1, 0.4).to_event(1))
            pyro.sample("z2", dist.Normal(M2 + (z1 - M1) @ GAIN.mT, 0.3).to_event(1))

    factor = torch.cat(
        [
            torch.cat([0.4 * torch.eye(3), torch.zeros(3, 2)], 1),
            torch.cat([0.4 * GAIN, 0.3 * torch.eye(2)], 1),
        ]
    )
    return guide, torch.cat([M1, M2]), factor @ factor.mT


def top_down():
    """q(z2) q(z1 | z2)."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(M2, 0.4).to_event(1))
            pyro.sample("z1", dist.Normal(M1 + (z2 - M2) @ GAIN, 0.3).to_event(1))

    factor = torch.cat(
        [
            torch.cat([0.3 * torch.eye(3), 0.4 * GAIN.mT], 1),
            torch.cat([torch.zeros(2, 3), 0.4 * torch.eye(2)], 1),
        ]
    )
    return guide, torch.cat([M1, M2]), factor @ factor.mT


GUIDES = {
    "independent, from the top": lambda: independent(["z2", "z1"]),
    "independent, from below": lambda: independent(["z1", "z2"]),
    "top-down": top_down,
    "bottom-up": bottom_up,
}


@pytest.mark.parametrize("name", GUIDES)
def test_the_sites_add_up_to_the_kl_of_the_joint(name):
    guide, loc, covariance = GUIDES[name]()
    x = torch.zeros(2000, 2)  # as many independent draws
    pair = trace_pair(hierarchy(), guide, (x,), {})
    draws = site_kl(pair, "z1") + site_kl(pair, "z2")
    assert draws.shape == (2000,)
    truth = joint_kl(loc, covariance)
    error = draws.std() / math.sqrt(2000)
    assert error > 0 and (draws.mean() - truth).abs() <= 5 * error


def test_a_closed_form_is_used_where_there_is_one():
    guide, _, _ = top_down()
    pair = trace_pair(hierarchy(), guide, (torch.zeros(7, 2),), {})
    top = kl_divergence(Normal(M2, torch.tensor(0.4)), Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(site_kl(pair, "z2"), top.expand(7), rtol=1e-12, atol=0)
    # Given the draw of z2 the KL of z1 is closed too.
    z2 = pair.guide_trace.nodes["z2"]["value"]
    q1, p1 = Normal(M1 + (z2 - M2) @ GAIN, torch.tensor(0.3)), Normal(z2 @ W2.mT, torch.tensor(S1))
    torch.testing.assert_close(site_kl(pair, "z1"), kl_divergence(q1, p1).sum(1))


def test_no_closed_form_is_used_where_it_would_be_wrong():
    guide, _, _ = bottom_up()
    pair = trace_pair(hierarchy(), guide, (torch.zeros(7, 2),), {})
    nodes = pair.guide_trace.nodes["z1"], pair.model_trace.nodes["z1"]
    torch.testing.assert_close(site_kl(pair, "z1"), nodes[0]["log_prob"] - nodes[1]["log_prob"])


@pytest.mark.parametrize("scaled", ["guide", "model", "both"])
def test_a_users_own_scale_counts_on_its_side_alone(scaled):
    def program(loc, factor):
        def run(x):
            with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=factor):
                pyro.sample("z", dist.Normal(loc, 1.0))

        return run

    model = program(0.0, 2.0 if scaled != "guide" else 1.0)
    guide = program(1.0, 2.0 if scaled != "model" else 1.0)
    pair = trace_pair(model, guide, (torch.zeros(7),), {})
    found = site_kl(pair, "z")
    if scaled == "both":
        torch.testing.assert_close(found, torch.full((7,), 2 * 0.5))
    else:
        ((_, p, q),) = pair.latents
        torch.testing.assert_close(found, q["log_prob"] - p["log_prob"])


def test_a_mask_and_a_plate_scale_count():
    mask = torch.tensor([True, False, True, True])

    def program(loc):
        def run(x):
            with pyro.plate("data", 40, subsample=torch.arange(4), dim=-1), poutine.mask(mask=mask):
                pyro.sample("z", dist.Normal(loc, 1.0))

        return run

    pair = trace_pair(program(0.0), program(1.0), (torch.zeros(4),), {})
    torch.testing.assert_close(site_kl(pair, "z"), 10 * 0.5 * mask.to(torch.float64))


def test_without_a_closed_form_the_kl_is_sampled():
    def program(fn):
        def run(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", fn)

        return run

    model, guide = program(dist.StudentT(3.0)), program(dist.Normal(0.5, 0.7))
    pair = trace_pair(model, guide, (torch.zeros(5000),), {})
    draws = site_kl(pair, "z")
    z = torch.linspace(-12, 12, 8001)
    q, p = torch.distributions.Normal(0.5, 0.7), torch.distributions.StudentT(3.0)
    integrand = q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))
    truth = torch.trapezoid(integrand, z)
    error = draws.std() / math.sqrt(5000)
    assert error > 0 and (draws.mean() - truth).abs() <= 5 * error
