"""Discrete latents: score functions against enumeration, and pairs that do not go together.

A mixture: y of C classes, x | y normal; q(y | x) a linear classifier. Every expectation over y, or
over a K-tuple of them, is a finite sum.
Shapes: M outer samples, K particles, B data, C classes.
"""

import math
from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from oracle import assert_unbiased
from pyro.infer import TraceEnum_ELBO
from torch.distributions import Normal

import ppl_vae
from ppl_vae import estimators as e
from ppl_vae.guides import GaussianMixtureGuide
from ppl_vae.handlers import scale_latents
from ppl_vae.models import Gaussian, GaussianMixtureVAE

X = torch.tensor([-1.2, 0.3, 2.0], dtype=torch.float64)
C, M = 3, 1000


class Mixture:
    """p(y) p(x | y) and q(y | x); `leaves` are the model's two and the guide's two."""

    def __init__(self):
        self.logits, self.loc, self.slope, self.bias = (
            torch.tensor(v, requires_grad=True)
            for v in ([0.2, -0.4, 0.5], [-1.0, 0.5, 1.4], [-0.8, 0.3, 0.6], [0.1, 0.4, -0.2])
        )
        self.leaves = [self.logits, self.loc, self.slope, self.bias]

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            pyro.sample("x", dist.Normal(self.loc[y], 0.8), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            logits = x.unsqueeze(-1) * self.slope + self.bias
            pyro.sample("y", dist.Categorical(logits=logits))

    def log_q(self, x=X):
        """`[C, B]`."""
        return (x.unsqueeze(-1) * self.slope + self.bias).log_softmax(-1).mT

    def log_p(self, x=X):
        """log p(x, y), `[C, B]`."""
        log_x = Normal(self.loc.unsqueeze(1), 0.8).log_prob(x)
        return self.logits.log_softmax(0).unsqueeze(1) + log_x

    def log_w(self, weight=1.0):
        log_prior = self.logits.log_softmax(0).unsqueeze(1)
        return self.log_p() - log_prior + weight * (log_prior - self.log_q())


def enumerated(objective, k, weight=1.0):
    """The gradient of minus E[objective(log w)], summed over all C^K tuples of y."""
    pair = Mixture()
    log_w, log_q = pair.log_w(weight), pair.log_q()
    total = 0.0
    for classes in product(range(C), repeat=k):
        index = list(classes)
        total = total - (log_q[index].sum(0).exp() * objective(log_w[index])).sum()
    return flat(torch.autograd.grad(total, pair.leaves))


def iwae(log_w):
    return log_w.logsumexp(0) - math.log(len(log_w))


def elbo(log_w):
    return log_w.mean(0)


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def gradients_of(estimator, pair, num_draws=60, weight=1.0, x=X):
    found = []
    for _ in range(num_draws):
        with scale_latents(weight) if weight != 1.0 else torch.enable_grad():
            loss = estimator.differentiable_loss(pair.model, pair.guide, x)
        found.append(flat(torch.autograd.grad(loss, pair.leaves)))
    return torch.stack(found)


CASES = {
    "score function, a decaying average": (
        lambda: e.TraceScoreFunction_ELBO(num_outer=3 * M), elbo, 1),
    "score function, a slow average": (
        lambda: e.TraceScoreFunction_ELBO(e.DecayingAverage(0.99), num_outer=3 * M), elbo, 1),
    "score function, leave one out": (
        lambda: e.TraceScoreFunction_ELBO(num_particles=3, num_outer=M), elbo, 1),
    "VIMCO of two": (lambda: e.TraceVIMCO_ELBO(2, num_outer=M), iwae, 2),
    "VIMCO of three": (lambda: e.TraceVIMCO_ELBO(3, num_outer=M), iwae, 3),
    "VIMCO, what is not reparameterized": (
        lambda: e.TraceVIMCO_ELBO(3, pathwise=True, num_outer=M), iwae, 3),
    "VIMCO, looped": (
        lambda: e.TraceVIMCO_ELBO(3, vectorize_particles=False, num_outer=4), iwae, 3),
}  # fmt: skip


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_enumerated_ones_in_mean(case, weight):
    make, objective, k = CASES[case]
    found = gradients_of(make(), Mixture(), weight=weight)
    assert_unbiased(found, enumerated(objective, k, weight))


def test_optimal_control_variates_are_unbiased_at_gamma_zero():
    pair, truth = Mixture(), enumerated(iwae, 3)
    found = gradients_of(e.TraceOVIS_ELBO(0.0, 3, num_outer=M), pair)
    assert_unbiased(found, truth)
    found = gradients_of(e.TraceOVIS_ELBO(1.0, 3, num_outer=5 * M), pair)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - truth).abs() > 5 * error)[-6:].any()


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_the_control_variates_are_equation_17(gamma):
    log_w, k = torch.randn(1, 4, 2), 4
    found = e.TraceOVIS_ELBO(gamma, k)._signal(log_w)
    w = log_w.exp()
    for i in range(k):
        others = w[:, [j for j in range(k) if j != i]].mean(1).log()
        share = w[:, i] / w.sum(1)
        control = others - gamma * share + (1 - gamma) * math.log(1 - 1 / k)
        # d_k - c_k, of which the value's own derivative has the - share.
        expected = w.mean(1).log() - share - control
        torch.testing.assert_close(found[:, i] - share, expected, rtol=1e-10, atol=1e-12)


def test_vimcos_signal_is_against_the_geometric_mean_of_the_others():
    log_w, k = torch.randn(2, 4, 3), 4
    found = e.TraceVIMCO_ELBO(k)._signal(log_w)
    w = log_w.exp()
    for i in range(k):
        others = w[:, [j for j in range(k) if j != i]]
        replaced = (others.sum(1) + others.prod(1) ** (1 / (k - 1))) / k
        torch.testing.assert_close(found[:, i], w.mean(1).log() - replaced.log())


def test_the_variates_of_vimco_and_ovis_lower_the_variance():
    pair = Mixture()
    plain = gradients_of(NoBaseline(num_particles=3), pair, 400).var(0)[-6:].sum()
    for estimator in (e.TraceScoreFunction_ELBO(num_particles=3), e.TraceVIMCO_ELBO(3)):
        assert gradients_of(estimator, pair, 400).var(0)[-6:].sum() < 0.7 * plain


class NoBaseline(e.TraceScoreFunction_ELBO):
    def _signal(self, log_w):
        return log_w / self.num_particles


# ----------------------------------------------------------------------- both kinds of site at once


class Both(Mixture):
    """y, and z | y normal, x | z normal; q(y | x), q(z | x, y): seven leaves in all."""

    def __init__(self):
        super().__init__()
        self.shift, self.log_s = (
            torch.tensor(v, requires_grad=True) for v in ([-0.5, 0.2, 0.7], -0.4)
        )
        self.leaves += [self.shift, self.log_s]

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            z = pyro.sample("z", dist.Normal(self.loc[y], 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            logits = x.unsqueeze(-1) * self.slope + self.bias
            y = pyro.sample("y", dist.Categorical(logits=logits))
            pyro.sample("z", dist.Normal(0.6 * x + self.shift[y], self.log_s.exp()))

    def log_w_at(self, y, noise):
        """At classes `[K]` and noise `[Q, K, 1]`: `[Q, K, B]`."""
        z = 0.6 * X + self.shift[y].unsqueeze(1) + self.log_s.exp() * noise
        log_p = self.logits.log_softmax(0)[y].unsqueeze(1)
        log_p = log_p + Normal(self.loc[y].unsqueeze(1), 1.0).log_prob(z)
        log_p = log_p + Normal(z, 0.8).log_prob(X)
        log_q = self.log_q()[y] + Normal(0.0, 1.0).log_prob(noise) - self.log_s
        return log_p - log_q


def summed_and_integrated(k):
    """The gradient of minus E[IWAE_K]: over all tuples of y, and all z by quadrature."""
    pair = Both()
    points, weights = np.polynomial.hermite_e.hermegauss(60 if k == 2 else 200)
    points, weights = torch.tensor(points), torch.tensor(weights / math.sqrt(2 * math.pi))
    grid = torch.cartesian_prod(*[points] * k).reshape(-1, k, 1)
    probability = torch.cartesian_prod(*[weights] * k).reshape(-1, k).prod(1, keepdim=True)
    total = 0.0
    for classes in product(range(C), repeat=k):
        log_w = pair.log_w_at(torch.tensor(classes), grid)
        value = (probability * (log_w.logsumexp(1) - math.log(k))).sum(0)  # [B]
        total = total - (pair.log_q()[list(classes)].sum(0).exp() * value).sum()
    return flat(torch.autograd.grad(total, pair.leaves))


@pytest.mark.parametrize("pathwise", [True, False])
@pytest.mark.parametrize("make, k", [
    (lambda pathwise: e.TraceScoreFunction_ELBO(pathwise=pathwise, num_outer=4000), 1),
    (lambda pathwise: e.TraceScoreFunction_ELBO(None, 2, pathwise, num_outer=2000), 1),
    (lambda pathwise: e.TraceVIMCO_ELBO(2, pathwise, num_outer=2000), 2),
])  # fmt: skip
def test_sites_of_both_kinds_are_right_together(make, k, pathwise):
    assert_unbiased(gradients_of(make(pathwise), Both()), summed_and_integrated(k))


def gaussian_mixture(**how):
    model = GaussianMixtureVAE((4,), 3, 2, (5,), likelihood=Gaussian(0.5))
    return model, GaussianMixtureGuide(model, (6,), **how)


def test_the_score_function_of_the_library_is_enumeration_in_mean():
    model, guide = gaussian_mixture(enumerate=True)
    x, leaves = torch.randn(4, 4), None
    leaves = [*model.parameters(), *guide.parameters()]
    found = {}
    for name, elbo in (
        ("enumerated", TraceEnum_ELBO(100, vectorize_particles=True, max_plate_nesting=1)),
        ("sampled", e.TraceScoreFunction_ELBO(num_particles=100, pathwise=True)),
    ):
        draws = []
        for _ in range(60):
            loss = elbo.differentiable_loss(model, guide, x)
            draws.append(flat(torch.autograd.grad(loss, leaves)))
        found[name] = torch.stack(draws)
    one, other = found.values()
    error = ((one.var(0) + other.var(0)) / 60).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() <= 5 * error + 1e-12).all()
    assert (one.mean(0).abs() > 10 * error).any()


# ------------------------------------------------------------------ wake, sleep, and thermodynamics


def test_wakefulness_follows_the_posterior():
    """Self-normalized, so up to 1 / K; with K = 4000 that is below the noise."""
    pair = Mixture()
    found = gradients_of(e.TraceRWS_ELBO(num_particles=4000), pair, 100)
    log_p, log_q = pair.log_p(), pair.log_q()
    posterior = log_p.softmax(0).detach()
    of_model = torch.autograd.grad(-(posterior * log_p).sum(), pair.leaves[:2])
    of_guide = torch.autograd.grad(-(posterior * log_q).sum(), pair.leaves[2:])
    assert_unbiased(found, flat([*of_model, *of_guide]))


def test_sleep_follows_the_models_own_draws():
    pair = Mixture()
    x = X.repeat(200)
    found = gradients_of(e.TraceRWS_ELBO(0.0, num_particles=2), pair, 100, x=x)[:, -6:]
    grid = torch.linspace(-9, 9, 2001)
    joint = pair.log_p(grid).exp().detach()  # [C, grid]
    value = -torch.trapezoid((joint * pair.log_q(grid)).sum(0), grid)
    expected = flat(torch.autograd.grad(value, pair.leaves[2:])) * len(x)
    assert_unbiased(found, expected)


def test_insomnia_mixes_the_two():
    pair, found = Mixture(), {}
    for insomnia in (0.0, 0.25, 1.0):
        elbo = e.TraceRWS_ELBO(insomnia, max_plate_nesting=1)
        torch.manual_seed(3)
        value = elbo.loss(pair.model, pair.guide, X)
        torch.manual_seed(3)
        loss = elbo.differentiable_loss(pair.model, pair.guide, X)
        assert loss.item() == value
        found[insomnia] = flat(torch.autograd.grad(loss, pair.leaves))
    expected = 0.75 * found[0.0] + 0.25 * found[1.0]
    torch.testing.assert_close(found[0.25], expected, rtol=1e-10, atol=1e-12)
    assert (found[0.0] - found[1.0])[-6:].abs().min() > 1e-6
    assert torch.equal(found[0.0][:6], found[1.0][:6])


def test_only_arguments_can_be_dreamt():
    pair = Mixture()

    def model(x):
        return pair.model(x + 0.0)

    with pytest.raises(ValueError, match="observes at 'x' is none of its arguments.*obs=x"):
        e.TraceRWS_ELBO(0.5).differentiable_loss(model, pair.guide, X)
    e.TraceRWS_ELBO(1.0).differentiable_loss(model, pair.guide, X).backward()


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_thermodynamic_gradient_is_that_of_its_integral(weight):
    pair = Mixture()
    found = gradients_of(e.TraceTVO_ELBO(3, 0.1, 4000), pair, 100, weight)
    log_w, log_q, total = pair.log_w(weight), pair.log_q(), 0.0
    for low, high in ((0.0, 0.1), (0.1, 0.1**0.5), (0.1**0.5, 1.0)):
        between = (log_q + low * log_w).softmax(0)
        total = total - (high - low) * (between * log_w).sum()
    assert_unbiased(found, flat(torch.autograd.grad(total, pair.leaves)))


# ---------------------------------------------------------------------------------------- baselines


def test_a_decaying_average_is_the_one_of_the_steps_before():
    baseline, average = e.DecayingAverage(0.8), 0.0
    for step in range(1, 6):
        log_w = torch.randn(2, 1, 3) + 5.0
        expected = average / (1 - 0.8 ** (step - 1)) if step > 1 else 0.0
        with torch.no_grad():
            assert baseline(log_w).item() == pytest.approx(expected)  # a look moves nothing
        assert baseline(log_w).item() == pytest.approx(expected, rel=1e-12)
        average = 0.8 * average + 0.2 * log_w.mean().item()


def test_what_a_baseline_remembers_goes_into_the_checkpoint(tmp_path):
    def run(num_steps, out, resume=False):
        torch.manual_seed(0)
        model, guide = gaussian_mixture()
        data = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
        estimator = e.TraceScoreFunction_ELBO(e.DecayingAverage(0.9))
        ppl_vae.fit(
            model, guide, data, estimator=estimator, num_steps=num_steps, batch_size=10, out=out,
            resume=resume, tensorboard=False,
        )  # fmt: skip
        return estimator, [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]

    whole, expected = run(12, tmp_path / "whole")
    run(5, tmp_path / "parts")
    resumed, found = run(12, tmp_path / "parts", resume=True)
    assert whole.state_dict()["average"] != 0
    # Twelve steps, and nothing else: neither the try before them nor a logged line counts.
    assert whole.state_dict()["missing"].item() == pytest.approx(0.9**12)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    ours = ppl_vae.load_run(tmp_path / "whole").config["estimator"]
    assert "DecayingAverage" in str(ours)


# -------------------------------------------------------------------- pairs that do not go together

REPARAMETERIZED = [
    n for n, make in zoo.ESTIMATORS.items()
    if not isinstance(make(), e.ScoreEstimator | e.TraceTVO_ELBO | e.TraceRWS_ELBO)
]  # fmt: skip


@pytest.mark.parametrize("how", [(3, True), (3, False)])
@pytest.mark.parametrize("name", REPARAMETERIZED)
def test_a_discrete_guide_is_refused_by_name_with_the_way_out(name, how):
    pair = Mixture()
    elbo = zoo.estimator(name, how[0], vectorize_particles=how[1])
    message = "_ELBO needs reparameterized guides, and the guide samples 'y' from Categorical"
    with pytest.raises(ValueError, match=f"{message}.*TraceVIMCO_ELBO.*TraceEnum_ELBO"):
        elbo.differentiable_loss(pair.model, pair.guide, X)


@pytest.mark.parametrize("name", ["TraceScoreFunction_ELBO", "TraceVIMCO_ELBO", "TraceOVIS_ELBO"])
def test_a_pathwise_score_of_nothing_is_refused(name):
    model = zoo.MODELS["VAE"]()
    guide, x = zoo.GUIDES["MeanFieldGuide"](model), zoo.batch(model)
    elbo = zoo.ESTIMATORS[name](num_particles=3, pathwise=True)
    with pytest.raises(ValueError, match=f"{name}: pathwise is true, and every.*pathwise=False"):
        elbo.loss(model, guide, x)


@pytest.mark.parametrize("weight", [0.3, {"y": 0.5}, torch.tensor(0.3)])
@pytest.mark.parametrize("name", ["TraceRWS_ELBO", "TraceOVIS_ELBO"])
def test_a_weight_without_a_derivation_is_refused(name, weight):
    pair = Mixture()
    with scale_latents(weight), pytest.raises(ValueError, match=f"{name} takes no KL weight"):
        zoo.estimator(name, 3).loss(pair.model, pair.guide, X)


@pytest.mark.parametrize("schedule", [None, ppl_vae.schedules.Constant(0.3)])
def test_enumeration_in_the_model_is_refused_in_words_of_our_own(schedule):
    model, _ = gaussian_mixture()

    def only_z(x):
        with pyro.plate("data", len(x), dim=-1):
            scale = pyro.param("s", torch.tensor(0.5))
            pyro.sample("z", dist.Normal(torch.zeros(2), scale).to_event(1))

    message = "'y' which the guide does not; the model enumerates 'y' itself, where a KL weight"
    with pytest.raises(ValueError, match=message):
        ppl_vae.fit(
            pyro.infer.config_enumerate(model), only_z, torch.randn(20, 4), num_steps=2,
            schedule=schedule, estimator=TraceEnum_ELBO(max_plate_nesting=1),
        )  # fmt: skip
