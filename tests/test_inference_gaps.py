"""Approximation and amortization gap, against closed forms; and what is left as it was.

Shapes: N data, D dimensions of all latents together.
"""

import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from oracle import condition, hierarchical_mean_field_elbo, two_level, two_level_joint
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import kl_divergence

from ppl_vae.estimators import Trace_ELBO
from ppl_vae.evaluate import Estimate, InferenceGaps, average_terms, inference_gaps, sample_prior
from ppl_vae.families import FullRankNormal
from ppl_vae.guides import (
    DeltaGuide,
    FamilyGuide,
    FrozenGuide,
    FullRankGuide,
    GaussianMixtureGuide,
    IAFGuide,
    MeanFieldGuide,
    PerDatumGuide,
    SemiAmortizedGuide,
)
from ppl_vae.models import VAE, GaussianMixtureVAE, LinearGaussian

LOADING = torch.tensor([[1.0, 0.8], [0.6, 0.9], [-0.7, -0.5]], dtype=torch.float64)
LINEAR = {"encoder": lambda shape: nn.Flatten()}
#: What Adam leaves, nats: a few thousandths in the cases below.
CLIMB = 0.02
ONE_CHUNK = {"num_steps": 150, "lr": 0.2, "chunk_size": 20_000}
QUICK = {"num_particles": 20, "num_draws": 3, "num_steps": 2, "step_particles": 2}


def correlated():
    """One level whose posterior is far from diagonal."""
    return LinearGaussian(LOADING, 0.4)


def correlated_joint():
    eye = torch.eye(2)
    x = LOADING @ LOADING.mT + 0.16 * torch.eye(3)
    return torch.zeros(5), torch.cat([torch.cat([eye, LOADING.mT], 1), torch.cat([LOADING, x], 1)])


def posterior(joint, x):
    """Mean `[N, D]` and precision `[D, D]` of all latents given x."""
    loc, covariance = condition(*joint, x, given=x.shape[1])
    return loc, torch.linalg.inv(covariance)


def best_gap(joint, given, blocks):
    """The least KL(q || p(z | x)) of a q that is independent between blocks, in nats."""
    _, p = posterior(joint, torch.zeros(1, given))
    apart = sum(p[b][:, b].logdet() for b in blocks)
    return 0.5 * (apart - p.logdet()).item()


ONE = (correlated, correlated_joint, 3)
TWO = (two_level, lambda: (torch.zeros(7), two_level_joint()), 2)
CASES = {
    "mean field": (ONE, MeanFieldGuide, [[0], [1]]),
    "full rank": (ONE, FullRankGuide, [[0, 1]]),
    "mean field, two levels": (TWO, MeanFieldGuide, [[0], [1], [2], [3], [4]]),
    "full rank by site, two levels": (
        TWO, lambda m, h: FamilyGuide(m, h, FullRankNormal()), [[0, 1, 2], [3, 4]]),
}  # fmt: skip


def drawn(model, num_data, num_features):
    return sample_prior(model, torch.zeros(num_data, num_features), seed=1)


def within(found, truth, *, above=0.0, below=0.0):
    """The mean difference from the truth is 0 up to 5 standard errors and what is allowed."""
    difference = found - truth
    error = difference.std().item() / math.sqrt(len(difference))
    assert -below - 5 * error <= difference.mean().item() <= above + 5 * error
    return error


@pytest.mark.parametrize("case", CASES)
def test_the_approximation_gap_is_that_of_the_family(case):
    (make_model, joint, num_features), make_guide, blocks = CASES[case]
    model = make_model()
    x = drawn(model, 200, num_features)
    found = inference_gaps(model, make_guide(model, (5,)), x, **ONE_CHUNK)
    best = best_gap(joint(), num_features, blocks)
    assert best == pytest.approx(0, abs=1e-9) or best > 0.1  # There is something to tell apart.
    error = within(found.approximation_gap, best, above=CLIMB)
    assert error < 0.02
    within(found.log_marginal, model.log_marginal(x), below=0.002)
    # The guide is untrained: most of what it loses is the encoder's.
    assert found.amortization_gap.mean() > 1


def off(model, joint, x, shift, factor):
    """A mean-field guide whose means are moved and stretched, its deviations those of the optimum.

    With shift 0 and factor 1 it is the optimum of its family for every datum. Gives KL(q || p) too.
    """
    guide = MeanFieldGuide(model, **LINEAR)
    num_features = x.shape[1]
    loc, precision = posterior(joint, x)
    gain = posterior(joint, torch.eye(num_features))[0].mT  # [D, X]
    scale = precision.diagonal() ** -0.5
    start = 0
    for name in ("z",) if "z" in guide.heads else ("z1", "z2"):
        linear = guide.heads[name].network
        stop = start + linear.out_features // 2
        with torch.no_grad():
            linear.weight.copy_(
                torch.cat([factor * gain[start:stop], torch.zeros(stop - start, num_features)])
            )
            linear.bias.copy_(
                torch.cat([torch.full((stop - start,), shift), 2 * scale[start:stop].log()])
            )
        start = stop
    q = dist.MultivariateNormal(factor * loc + shift, scale_tril=scale.diag_embed())
    p = dist.MultivariateNormal(loc, precision_matrix=precision)
    return guide, kl_divergence(q, p)


@pytest.mark.parametrize("two", [False, True])
def test_the_amortization_gap_is_what_the_encoder_is_off(two):
    make_model, joint, num_features = TWO if two else ONE
    model = make_model()
    x = drawn(model, 200, num_features)
    guide, kl = off(model, joint(), x, 0.3, 0.7)
    best = best_gap(joint(), num_features, [[d] for d in range(5 if two else 2)])
    found = inference_gaps(model, guide, x, **ONE_CHUNK)
    error = within(found.amortization_gap, kl - best, below=CLIMB)
    within(found.inference_gap, kl)
    assert (kl - best).mean() > 10 * error and (kl - best).std() > 0.1
    if two:  # The same by the oracle's ELBO.
        heads = (guide.heads[name].network(x).chunk(2, -1) for name in ("z1", "z2"))
        q = [(loc, (0.5 * log_variance).exp()) for loc, log_variance in heads]
        elbo = hierarchical_mean_field_elbo(x, *q)
        torch.testing.assert_close(model.log_marginal(x) - elbo, kl)
        within(found.elbo, elbo)


def test_at_the_optimum_of_the_family_nothing_is_amortized():
    model = correlated()
    x = drawn(model, 200, 3)
    guide, kl = off(model, correlated_joint(), x, 0.0, 1.0)
    best = best_gap(correlated_joint(), 3, [[0], [1]])
    torch.testing.assert_close(kl, torch.full((200,), best))
    found = inference_gaps(model, guide, x, **ONE_CHUNK)
    error = within(found.amortization_gap, 0.0, below=CLIMB)
    # Both ELBOs see the same noise: less is left in the difference than two noises would leave.
    _, p = posterior(correlated_joint(), x)
    rest = p / p.diagonal() - torch.eye(2)
    variance = 0.5 * (rest @ rest).trace() / 100  # of log p - log q, over 100 draws
    assert error < 0.5 * math.sqrt(2 * variance / 200)
    within(found.approximation_gap, best, above=CLIMB)


def test_a_flow_is_climbed_too():
    model = correlated()
    x = drawn(model, 50, 3)
    guide = IAFGuide(model, (5,), context_dim=3, flow_hidden=(8,))
    found = inference_gaps(model, guide, x, **ONE_CHUNK)
    best = best_gap(correlated_joint(), 3, [[0], [1]])
    # Its untrained network is shared, so it stays near the mean field from which it starts.
    within(found.approximation_gap, best, above=0.1, below=best)
    assert found.amortization_gap.mean() > 1


@pytest.mark.parametrize("chunk_size", [60, 150, 100_000])
def test_data_stay_in_their_order(chunk_size):
    model = correlated()
    x = 2 * drawn(model, 7, 3)
    guide, kl = off(model, correlated_joint(), x, 1.0, 0.5)
    found = inference_gaps(model, guide, x, num_steps=50, num_particles=500, chunk_size=chunk_size)
    truth = model.log_marginal(x)
    assert truth.std() > 1
    torch.testing.assert_close(found.log_marginal, truth, rtol=0, atol=0.5)
    # Of log p - log q, a quadratic in the noise of q: the part that is linear in it, and the rest.
    loc, p = posterior(correlated_joint(), x)
    moved = (1.0 - 0.5 * loc) @ p
    rest = p / p.diagonal() - torch.eye(2)
    variance = (moved**2 / p.diagonal()).sum(1) + 0.5 * (rest @ rest).trace()
    assert ((found.elbo - (truth - kl)).abs() < 5 * (variance / 100).sqrt()).all()


@pytest.mark.parametrize("guide_name", [g for m, g in zoo.PAIRS if m == "HierarchicalVAE"])
def test_every_guide_with_a_density_has_gaps(guide_name):
    model, guide = zoo.pair("HierarchicalVAE", guide_name)
    x = zoo.batch(model)
    before = everything(model, guide)
    if guide_name == "DeltaGuide":
        with pytest.raises(ValueError, match="a point mass .DeltaGuide. has none"):
            inference_gaps(model, guide, x, **QUICK)
        return
    found = inference_gaps(model, guide, x, **{**QUICK, "num_steps": 30, "num_draws": 20})
    assert all(value.isfinite().all() for value in vars(found).values())
    if guide_name != "SemiAmortizedGuide":  # Two steps of it are as good as untrained.
        assert found.amortization_gap.mean() > 0
    assert_same(before, everything(model, guide))


# --------------------------------------------------------------------------------------- wrappers


def test_a_wrapper_is_measured_by_its_own_elbo_and_by_the_family_inside():
    model = correlated()
    x = drawn(model, 20, 3)
    base, _ = off(model, correlated_joint(), x, 0.5, 0.5)
    how = {"num_steps": 20, "num_particles": 50}
    alone = inference_gaps(model, base, x, **how)
    refined = SemiAmortizedGuide(base, num_steps=3, step_size=0.02)
    for guide in (refined, FrozenGuide(base), FrozenGuide(SemiAmortizedGuide(base, 3, 0.02), [""])):
        found = inference_gaps(model, guide, x, **how)
        assert torch.equal(found.local_elbo, alone.local_elbo)
        assert torch.equal(found.log_marginal, alone.log_marginal)
        if isinstance(guide, FrozenGuide) and guide.base is base:
            assert torch.equal(found.elbo, alone.elbo)
        else:
            assert found.amortization_gap.mean() < 0.8 * alone.amortization_gap.mean()
    elbo = average_terms(model, refined, x, num_particles=100).elbo
    within(inference_gaps(model, refined, x, **how).elbo, elbo)


# ------------------------------------------------------------------------------ nothing is changed


class Normalized(PyroModule):
    """An encoder with buffers that move in training mode, and a part that does not train."""

    def __init__(self, shape):
        super().__init__()
        self.linear, self.norm = nn.Linear(shape.numel(), 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.linear(x))


def everything(*modules):
    """What a call could change, by value."""
    state = {}
    for module in modules:
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            grad = None if value.grad is None else value.grad.clone()
            state[type(module), name] = (value, value.clone(), grad, value.requires_grad)
        for name, part in module.named_modules():
            pyros = (part._pyro_name, part._pyro_context) if isinstance(part, PyroModule) else ()
            state[type(module), name, "mode"] = (part.training, list(part._modules), *pyros)
    return state


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, values in one.items():
        for a, b in zip(values, other[key], strict=True):
            same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
            assert same, key


@pytest.mark.parametrize("wrap", [lambda g: g, SemiAmortizedGuide, FrozenGuide])
def test_nothing_is_changed(wrap):
    model = VAE((6,), 2, (4,))
    base = MeanFieldGuide(model, encoder=Normalized)
    x = torch.rand(6, 6).round()
    guide = wrap(base)
    model.eval()
    guide.train()
    base.heads.requires_grad_(False).eval()
    model.decoder.requires_grad_(False)
    model.decoder.layers[0].weight.requires_grad_(True)
    Trace_ELBO().differentiable_loss(model, guide, x).backward()
    pyro.clear_param_store()
    pyro.param("mine", torch.ones(2))
    before = everything(model, guide, base)
    streams = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with torch.no_grad():
        inference_gaps(model, guide, x, **QUICK, chunk_size=150)
        with pytest.raises(ValueError, match="do not stay finite"):
            inference_gaps(model, guide, x, **QUICK, lr=1e300)
        assert not torch.is_grad_enabled()
    assert_same(before, everything(model, guide, base))
    assert torch.equal(streams[0], torch.get_rng_state())
    assert np.array_equal(streams[1], np.random.get_state()[1]) and streams[2] == random.getstate()
    assert list(pyro.get_param_store()) == ["mine"]


def test_a_guide_trains_on_under_its_own_names():
    model = VAE((6,), 2, (4,))
    guide, x = MeanFieldGuide(model, (3,)), torch.rand(5, 6).round()
    names = []
    for _ in range(2):
        with pyro.get_param_store().scope() as store:
            Trace_ELBO().loss(model, guide, x)
            names.append(sorted(pyro.get_param_store()))
        del store
        inference_gaps(model, guide, x, **QUICK)
    assert names[0] == names[1] and any(name.startswith("guide.encoder") for name in names[0])


def test_parameters_of_plain_functions_are_read_and_left():
    def model(x):
        loc = pyro.param("loc", lambda: torch.zeros(2))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = torch.randn(20, 2) + 3
    guide = MeanFieldGuide(model, (3,))
    guide.setup(x)
    pyro.clear_param_store()
    pyro.param("loc", torch.full((2,), 3.0))
    found = inference_gaps(model, guide, x, **ONE_CHUNK)
    truth = dist.Normal(3.0, math.sqrt(2.0)).log_prob(x).sum(-1)
    within(found.log_marginal, truth, below=0.002)
    within(found.approximation_gap, 0.0, above=CLIMB)
    assert list(pyro.get_param_store()) == ["loc"] and (pyro.param("loc") == 3).all()


def test_the_seed_is_all_there_is_to_it():
    model = correlated()
    guide, x = MeanFieldGuide(model, (3,)), torch.randn(4, 3)
    one = inference_gaps(model, guide, x, **QUICK, seed=1)
    torch.manual_seed(9)
    two, other = (inference_gaps(model, guide, x, **QUICK, seed=s) for s in (1, 2))
    for name in ("log_marginal", "local_elbo", "elbo"):
        values = [getattr(gaps, name) for gaps in (one, two, other)]
        assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
        assert values[0].shape == (4,) and not values[0].requires_grad


def test_data_of_one_chunk_and_of_another_see_other_noise():
    model = correlated()
    guide, x = MeanFieldGuide(model, (3,)), torch.randn(1, 3).expand(2, 3).contiguous()
    found = inference_gaps(model, guide, x, **QUICK, chunk_size=1)
    for values in (found.log_marginal, found.local_elbo, found.elbo):
        assert values[0] != values[1]


def test_a_summary_pairs_what_is_of_one_datum():
    log_p, local, elbo = torch.tensor([[-1.0, -10.0, -4.0], [-2.0, -11.5, -5.0], [-4.0, -12, -9]])
    gaps = InferenceGaps(log_p, local, elbo)
    found = gaps.summary()
    assert list(found) == [
        "log_marginal", "local_elbo", "elbo",
        "approximation_gap", "amortization_gap", "inference_gap",
    ]  # fmt: skip
    assert found["approximation_gap"] == Estimate.of_mean(torch.tensor([1.0, 1.5, 1.0]))
    assert found["amortization_gap"] == Estimate.of_mean(torch.tensor([2.0, 0.5, 4.0]))
    assert found["inference_gap"] == Estimate.of_mean(torch.tensor([3.0, 2.0, 5.0]))
    assert found["elbo"].standard_error > 2 * found["approximation_gap"].standard_error


# ----------------------------------------------------------------------------------------- errors


def plain_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def counting(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("count", dist.Bernoulli(x.new_tensor(0.3)))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([len(x), 3]).to_event(1), obs=x)


def shared(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([len(x), 3]).to_event(1), obs=x)


def subsampling(x):
    with pyro.plate("data", len(x), subsample_size=2, dim=-1) as index:
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[index, 0])


def made(kind, model, x):
    guide = kind(model)
    guide.setup(x)
    return guide


X = torch.zeros(4, 3, dtype=torch.float64)
REFUSED = {
    "a function": (correlated, lambda m: plain_guide, "the guide is plain_guide; accepted is an A"),
    "not amortized": (
        lambda: GaussianMixtureVAE((3,), 2, 2, (3,)), lambda m: GaussianMixtureGuide(m, (3,)),
        "the guide is GaussianMixtureGuide; accepted is an AmortizedGuide, as MeanFieldGuide"),
    "per datum": (correlated, lambda m: PerDatumGuide(MeanFieldGuide(m, (3,)), X),
                  "the guide is PerDatumGuide; accepted is an AmortizedGuide"),
    "a point": (correlated, lambda m: DeltaGuide(m, (3,)),
                "inference_gaps needs the density of the guide, and a point mass .DeltaGuide."),
    "a frozen point": (correlated, lambda m: FrozenGuide(DeltaGuide(m, (3,))), "a point mass"),
    "discrete": (lambda: counting, lambda m: made(MeanFieldGuide, m, X),
                 r"the model's site 'count' is discrete \(Bernoulli\).*accepted are continuous"),
    "global": (lambda: shared, lambda m: made(MeanFieldGuide, m, X),
               "the site 'w' lies outside the plate 'data'"),
    "subsampling": (lambda: subsampling, lambda m: made(MeanFieldGuide, m, X),
                    r"of 4 data the model takes a subsample of 2 in the plate 'data'; accepted"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_gaps_says_so(case):
    make_model, make_guide, message = REFUSED[case]
    model = make_model()
    with pytest.raises(ValueError, match=message):
        inference_gaps(model, make_guide(model), X, **QUICK)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"num_particles": 0}, "num_particles is 0; accepted is an integer >= 1"),
        ({"num_draws": 2.5}, "num_draws is 2.5; accepted is an integer >= 1"),
        ({"num_steps": True}, "num_steps is True; accepted is an integer >= 1"),
        ({"step_particles": -1}, "step_particles is -1; accepted is an integer >= 1"),
        ({"chunk_size": 0}, "chunk_size is 0; accepted is an integer >= 1"),
        ({"lr": 0.0}, "lr is 0.0; accepted is a number > 0"),
        ({"lr": math.nan}, "lr is nan; accepted is a number > 0"),
        ({"lr": "fast"}, "lr is 'fast'; accepted is a number > 0"),
        ({"seed": -1}, "seed is -1; accepted is an integer >= 0"),
        ({"x": X[:0]}, r"x has the shape \[0, 3\]; accepted is \[N, \*data_shape\], N >= 1"),
    ],
)
def test_bad_numbers_are_named(bad, message):
    model = correlated()
    x = bad.pop("x", X)
    with pytest.raises(ValueError, match=message):
        inference_gaps(model, MeanFieldGuide(model, (3,)), x, **bad)


def test_a_guide_that_is_not_set_up_says_so():
    with pytest.raises(RuntimeError, match="MeanFieldGuide has no networks yet"):
        inference_gaps(shared, MeanFieldGuide(shared), X)
