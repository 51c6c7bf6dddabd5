"""The gradients of the estimators, against truth: closed forms, quadrature, a million samples.

Shapes: M outer samples, K particles, B data, Q nodes of a quadrature, R draws of an estimator.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from oracle import LEAVES, assert_unbiased, bottom_up_leaves, top_down_leaves, two_level
from torch.distributions import Normal

from ppl_vae import estimators as e
from ppl_vae.estimators.paths import trace_path_pair, trace_stopped_pair
from ppl_vae.handlers import scale_latents
from ppl_vae.models import LinearGaussian

PATH = ["TraceSTL_ELBO", "TraceDReG_ELBO", "TraceIWAESTL_ELBO"]


def gradients_of(elbo, model, guide, x, leaves, num_draws, weight=1.0):
    """`[R, number of all entries of the leaves]`."""
    found = []
    for _ in range(num_draws):
        with scale_latents(weight) if weight != 1.0 else torch.enable_grad():
            loss = elbo.differentiable_loss(model, guide, x)
        gradients = torch.autograd.grad(loss, leaves)
        found.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(found)


# ------------------------------------------------------------------- zero variance at the posterior


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("how", LEAVES)
@pytest.mark.parametrize("name", PATH)
def test_path_derivatives_vanish_at_the_exact_posterior(name, how, vectorize):
    make_model, make_guide, num_features = LEAVES[how]
    model, guide, x = make_model(), make_guide(), torch.randn(4, num_features)
    elbo = zoo.ESTIMATORS[name](num_particles=3, vectorize_particles=vectorize)
    found = gradients_of(elbo, model, guide, x, guide.leaves, 5)
    assert found.abs().max() < 1e-10
    # With the score in, they have mean zero and a variance.
    whole = gradients_of(e.TraceIWAE_ELBO(3), model, guide, x, guide.leaves, 5)
    assert whole.abs().max() > 0.1


@pytest.mark.parametrize("make_guide", [top_down_leaves, bottom_up_leaves])
def test_the_path_through_an_earlier_site_stays(make_guide):
    """Parameters are stopped, not distributions: log q(z2 | z1) still depends on z1."""
    guide, x = make_guide(), torch.randn(4, 2)
    pair = trace_path_pair(two_level(), guide, (x,), {})
    first, second = guide.names
    log_q = pair.guide_trace.nodes[second]["log_prob"].sum()
    (found,) = torch.autograd.grad(log_q, pair.aliases[first], retain_graph=True)
    assert found.abs().min() > 1e-6
    # Through the samples, and through nothing else.
    for name in guide.names:
        log_q = pair.guide_trace.nodes[name]["log_prob"].sum()
        aliases = list(pair.aliases.values())
        flow = torch.autograd.grad(log_q, aliases, retain_graph=True, allow_unused=True)
        path = sum((g * z).sum() for g, z in zip(flow, aliases, strict=True) if g is not None)
        whole = torch.autograd.grad(log_q, guide.leaves, retain_graph=True, allow_unused=True)
        expected = torch.autograd.grad(path, guide.leaves, retain_graph=True, allow_unused=True)
        for one, other in zip(whole, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# ----------------------------------------------------------------- quadrature, one latent dimension

X = torch.tensor([[-1.0], [0.4], [2.0]], dtype=torch.float64)
NOISE = 0.7


class OneDimension:
    """x | z ~ N(w z, 0.7^2), q = N(a x + b, s^2): all four numbers are leaves."""

    def __init__(self):
        self.w, self.a, self.b, self.log_s = (
            torch.tensor(v, requires_grad=True) for v in (1.3, 0.3, 0.2, -0.3)
        )
        self.leaves = [self.w, self.a, self.b, self.log_s]
        self.of_guide = self.leaves[1:]

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.w * z, NOISE).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.a * x + self.b, self.log_s.exp()).to_event(1))

    def log_w(self, z, weight=1.0):
        """At `[..., B]`."""
        x = X.squeeze(1)
        log_x = Normal(self.w * z, NOISE).log_prob(x)
        log_q = Normal(self.a * x + self.b, self.log_s.exp()).log_prob(z)
        return log_x + weight * (Normal(0.0, 1.0).log_prob(z) - log_q)

    def z(self, noise):
        return self.a * X.squeeze(1) + self.b + self.log_s.exp() * noise


def expectation(k, nodes=None):
    """Nodes `[Q, K, 1]` and weights `[Q, 1]` of a product Gauss-Hermite rule."""
    nodes = nodes or {1: 200, 2: 90, 3: 44, 4: 22}[k]
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    points, weights = torch.tensor(points), torch.tensor(weights / math.sqrt(2 * math.pi))
    grid = torch.cartesian_prod(*[points] * k).reshape(-1, k, 1)
    return grid, torch.cartesian_prod(*[weights] * k).reshape(-1, k).prod(1, keepdim=True)


def truth_of(objective, k, weight=1.0, nodes=None):
    """The gradient of minus E[objective(log w)], `[K, B] -> [B]`, with respect to all leaves."""
    pair, (grid, probability) = OneDimension(), expectation(k, nodes)
    log_w = pair.log_w(pair.z(grid), weight)  # [Q, K, B]
    value = -(probability * objective(log_w)).sum()
    return torch.stack(torch.autograd.grad(value, pair.leaves))


def iwae(log_w):
    return log_w.logsumexp(1) - math.log(log_w.shape[1])


def elbo(log_w):
    return log_w.mean(1)


def test_the_quadrature_has_converged():
    for k in (2, 3):
        fine = truth_of(iwae, k)
        torch.testing.assert_close(fine, truth_of(iwae, k, nodes=36), rtol=0, atol=1e-4)


M = 400
CASES = {
    "IWAE": (lambda: e.TraceIWAE_ELBO(3, num_outer=M), iwae, 3),
    "MIWAE": (lambda: e.TraceMIWAE_ELBO(2, num_outer=M), iwae, 2),
    "DReG": (lambda: e.TraceDReG_ELBO(3, num_outer=M), iwae, 3),
    "DReG, looped": (
        lambda: e.TraceDReG_ELBO(3, num_outer=4, vectorize_particles=False), iwae, 3),
    "CIWAE": (
        lambda: e.TraceCIWAE_ELBO(0.3, 3, num_outer=M),
        lambda log_w: 0.3 * elbo(log_w) + 0.7 * iwae(log_w), 3),
    "Renyi": (
        lambda: e.TraceRenyi_ELBO(0.4, 3, num_outer=M),
        lambda log_w: iwae(0.6 * log_w) / 0.6, 3),
    "VIMCO": (lambda: e.TraceVIMCO_ELBO(3, num_outer=M), iwae, 3),
    "score function, a decaying average": (
        lambda: e.TraceScoreFunction_ELBO(num_outer=3 * M), elbo, 1),
    "score function, leave one out": (
        lambda: e.TraceScoreFunction_ELBO(num_particles=3, num_outer=M), elbo, 1),
}  # fmt: skip


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_bound(case, weight):
    make, objective, k = CASES[case]
    pair, elbo = OneDimension(), make()
    found = gradients_of(elbo, pair.model, pair.guide, X, pair.leaves, 60, weight)
    assert_unbiased(found, truth_of(objective, k, weight))


def test_optimal_control_variates_are_unbiased_for_small_effective_samples_only():
    truth, pair = truth_of(iwae, 2), OneDimension()
    how = {"num_particles": 2, "num_outer": 2000}
    zero = e.TraceOVIS_ELBO(0.0, **how)
    assert_unbiased(gradients_of(zero, pair.model, pair.guide, X, pair.leaves, 60), truth)
    one = gradients_of(e.TraceOVIS_ELBO(1.0, **how), pair.model, pair.guide, X, pair.leaves, 60)
    assert biased_entries(one, truth).any()


def biased_entries(samples, truth, times=5):
    error = samples.std(0) / math.sqrt(len(samples))
    return (samples.mean(0) - truth).abs() > times * error


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_piwae_climbs_two_bounds(weight):
    pair = OneDimension()
    elbo = e.TracePIWAE_ELBO(2, num_outer=2)
    x = X.repeat(200, 1)  # Data in place of outer samples, which here make another bound.
    found = gradients_of(elbo, pair.model, pair.guide, x, pair.leaves, 60, weight) / 200
    of_model, of_guide = truth_of(iwae, 4, weight), truth_of(iwae, 2, weight)
    assert_unbiased(found, torch.cat([of_model[:1], of_guide[1:]]))
    assert (of_model[1:] - of_guide[1:]).abs().max() > 0.01  # They are two.


# -------------------------------------------------------------------------- what is biased is shown


def test_sticking_the_landing_with_several_particles_is_biased():
    truth, pair = truth_of(iwae, 3), OneDimension()
    elbo = e.TraceIWAESTL_ELBO(3, num_outer=M)
    found = gradients_of(elbo, pair.model, pair.guide, X, pair.leaves, 60)
    assert_unbiased(found[:, :1], truth[:1])  # The model's is right, and
    assert biased_entries(found, truth)[1:].all()


class NaiveDReG(e.TraceDReG_ELBO):
    """With the square of the weights whatever the KL weight."""

    def _bound(self, particles):
        log_w = particles.log_weights
        w = log_w.detach().softmax(1)
        return particles.climb(log_w.logsumexp(1), model=w, path=w**2)


def test_under_a_weight_the_naive_square_is_biased():
    truth, pair = truth_of(iwae, 3, 0.3), OneDimension()
    found = gradients_of(NaiveDReG(3, num_outer=M), pair.model, pair.guide, X, pair.leaves, 60, 0.3)
    assert biased_entries(found, truth)[1:].sum() >= 2
    # At weight 1 it is the right one.
    found = gradients_of(NaiveDReG(3, num_outer=M), pair.model, pair.guide, X, pair.leaves, 60)
    assert_unbiased(found, truth_of(iwae, 3))


def test_a_users_own_scale_counts_as_a_weight():
    pair = OneDimension()

    def scaled(program):
        return lambda x: pyro.poutine.scale(program, scale=0.3)(x)

    def objective(log_w):  # All of log w times 0.3, what is observed too.
        return iwae(0.3 * log_w)

    elbo = e.TraceDReG_ELBO(3, num_outer=M)
    found = gradients_of(elbo, scaled(pair.model), scaled(pair.guide), X, pair.leaves, 60)
    assert_unbiased(found, truth_of(objective, 3))


# ----------------------------------------------------------------------------- the model's gradient


@pytest.mark.parametrize("name", ["TraceDReG_ELBO", "TraceIWAESTL_ELBO"])
@pytest.mark.parametrize("model_name", ["VAE", "HierarchicalVAE"])
def test_the_models_gradient_is_that_of_iwae(name, model_name):
    model = zoo.MODELS[model_name]()
    guide, x = zoo.GUIDES["MeanFieldGuide"](model), zoo.batch(model)
    found = []
    for elbo in (zoo.ESTIMATORS[name](num_particles=4), e.TraceIWAE_ELBO(4)):
        torch.manual_seed(3)
        loss = elbo.differentiable_loss(model, guide, x)
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------ two levels and more


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("make_guide", [top_down_leaves, bottom_up_leaves])
def test_dreg_of_two_levels_is_the_gradient_of_iwae(make_guide, weight):
    """Against the whole derivative, from more than a million samples."""
    model, guide, x = two_level(), make_guide(), torch.randn(2, 2)
    with torch.no_grad():
        for leaf in guide.leaves:
            leaf.add_(0.2 * torch.randn(leaf.shape))
    draws = 60
    how = {"num_particles": 4, "num_outer": 4500}  # 60 x 4 x 4500 = 1,080,000
    naive = gradients_of(e.TraceIWAE_ELBO(**how), model, guide, x, guide.leaves, draws, weight)
    found = gradients_of(e.TraceDReG_ELBO(**how), model, guide, x, guide.leaves, draws, weight)
    # What lies above the diagonal of a factor is no parameter.
    used = naive.abs().max(0).values > 0
    assert torch.equal(used, found.abs().max(0).values > 0)
    error = ((naive.var(0) + found.var(0)) / draws).sqrt()[used]
    assert ((naive.mean(0) - found.mean(0)).abs()[used] <= 5 * error).all()
    assert (found.mean(0).abs()[used] > 10 * error).any()  # There is something to agree on.


def test_weights_that_differ_between_sites_have_no_square():
    model = two_level()
    guide, x = top_down_leaves(), torch.randn(2, 2)
    with (
        scale_latents({"z1": 0.3, "z2": 1.0}),
        pytest.raises(ValueError, match="DReG. need one KL weight for all.*TraceIWAE_ELBO"),
    ):
        e.TraceDReG_ELBO(2).loss(model, guide, x)
    one = torch.tensor(0.3)
    losses = []
    for weight in (0.3, one, {"z1": one, "z2": one}, {"z1": 0.3, "z2": 0.3}):
        torch.manual_seed(3)
        with scale_latents(weight):
            losses.append(e.TraceDReG_ELBO(2, max_plate_nesting=1).loss(model, guide, x))
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-12)


# --------------------------------------------------------------------------- programs of every make


def guides_of_every_make():
    """The same guide four times: its parameters in a closure, a module, `param`, `pyro.module`."""
    weight, log_scale = torch.tensor([[0.3, -0.2, 0.1]]), torch.tensor([-0.4])

    def program(w, s):
        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x @ w().mT, s().exp()).to_event(1))

        return guide

    closure = [weight.clone().requires_grad_(), log_scale.clone().requires_grad_()]
    yield program(lambda: closure[0], lambda: closure[1]), closure

    module = torch.nn.ParameterList([weight.clone(), log_scale.clone()])
    yield program(lambda: module[0], lambda: module[1]), list(module)

    stored = [weight.clone().requires_grad_(), log_scale.clone().requires_grad_()]
    yield program(lambda: pyro.param("w", stored[0]), lambda: pyro.param("s", stored[1])), stored

    net = torch.nn.Linear(3, 1, bias=False)
    net.weight.data.copy_(weight)
    own = log_scale.clone().requires_grad_()

    def with_module(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(net(x), own.exp()).to_event(1))

    yield with_module, [net.weight, own]


@pytest.mark.parametrize("name", zoo.ESTIMATORS)
def test_it_is_all_the_same_where_a_guide_has_its_parameters(name):
    model = LinearGaussian([[1.0], [0.5], [-1.0]], 0.7)
    x, found = torch.randn(4, 3), []
    for guide, leaves in guides_of_every_make():
        elbo = zoo.estimator(name, 3)
        torch.manual_seed(3)
        value = elbo.loss_and_grads(model, guide, x)
        found.append((value, [leaf.grad.clone() for leaf in leaves]))
    for value, gradients in found[1:]:
        assert value == found[0][0]
        for one, other in zip(gradients, found[0][1], strict=True):
            assert one.abs().max() > 0
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PATH)
def test_a_density_that_cannot_be_stopped_is_refused(name):
    log_scale = torch.tensor([-0.4], requires_grad=True)
    scale = log_scale.exp()  # outside of the guide

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, :1], scale).to_event(1))

    model, x = LinearGaussian([[1.0], [0.5], [-1.0]], 0.7), torch.randn(4, 3)
    elbo = zoo.ESTIMATORS[name](num_particles=2)
    with pytest.raises(ValueError, match="density of 'z' depends on a tensor .* before the guide"):
        elbo.differentiable_loss(model, guide, x)


@pytest.mark.parametrize("name", ["TraceRWS_ELBO", "TraceTVO_ELBO"])
def test_samples_are_constants_where_the_score_is_all(name):
    """Even on a chain of reparameterized sites no gradient runs through a sample."""
    model = zoo.MODELS["HierarchicalVAE"]()
    guide, x = zoo.GUIDES["MeanFieldGuide"](model), zoo.batch(model)
    elbo = zoo.ESTIMATORS[name](num_particles=3)
    (pair,) = elbo._pairs(model, guide, (x,), {})
    assert not any(site["value"].requires_grad for _, _, site in pair.latents)


@pytest.mark.parametrize("make_guide", [top_down_leaves, bottom_up_leaves])
def test_a_stopped_sample_is_a_constant_to_the_guides_next_site_too(make_guide):
    guide = make_guide()
    pair = trace_stopped_pair(two_level(), guide, (torch.randn(4, 2),), {})
    first, second = guide.names
    log_q = pair.guide_trace.nodes[second]["log_prob"].sum()
    of_first, of_second = guide.parameters[first], guide.parameters[second]
    gradients = torch.autograd.grad(log_q, [*of_first, *of_second], allow_unused=True)
    assert gradients[:3] == (None, None, None) and all(g.abs().max() > 0 for g in gradients[3:])


@pytest.mark.parametrize("name", ["TraceScoreFunction_ELBO", "TraceVIMCO_ELBO"])
@pytest.mark.parametrize("make_guide", [top_down_leaves, bottom_up_leaves])
def test_the_score_of_two_levels_is_the_gradient_of_the_bound(make_guide, name):
    model, guide, x = two_level(), make_guide(), torch.randn(2, 2)
    with torch.no_grad():
        for leaf in guide.leaves:
            leaf.add_(0.2 * torch.randn(leaf.shape))
    how = {"num_particles": 4, "num_outer": 2000}
    pathwise = e.TraceSTL_ELBO if name == "TraceScoreFunction_ELBO" else e.TraceDReG_ELBO
    truth = gradients_of(pathwise(**how), model, guide, x, guide.leaves, 40)
    found = gradients_of(zoo.ESTIMATORS[name](**how), model, guide, x, guide.leaves, 40)
    error = ((truth.var(0) + found.var(0)) / 40).sqrt()
    assert ((truth.mean(0) - found.mean(0)).abs() <= 5 * error).all()
    assert (truth.mean(0).abs() > 10 * error).any()
