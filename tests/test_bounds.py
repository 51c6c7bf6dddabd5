"""The values of the bounds: against formulas, each other, and log p(x) where it is known.

Shapes: M outer samples, K particles, B data.
"""

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from oracle import (
    BIAS,
    EXACT,
    LOADING,
    NOISE,
    LinearGaussian,
    assert_unbiased,
    broad,
    draws,
    hierarchical_mean_field_elbo,
    log_p,
    mean_field_elbo,
    one_level,
    two_level,
)

from ppl_vae import estimators as e
from ppl_vae.estimators.particles import exclusive_logsumexp
from ppl_vae.handlers import scale_latents

SAMPLED = [
    name
    for name in zoo.ESTIMATORS
    if name not in ("TraceAnalyticKL_ELBO", "TraceCapacity_ELBO", "TraceFreeBits_ELBO")
]
"""Every estimator whose value is a sampled lower bound of log p(x)."""


@pytest.fixture(params=EXACT)
def exact(request):
    make_model, guide, num_features = EXACT[request.param]
    return make_model(), guide, torch.randn(4, num_features) * 1.5


# --------------------------------------------------------------------------- at the exact posterior


@pytest.mark.parametrize("how", [(1, True), (2, True), (7, True), (3, False)])
@pytest.mark.parametrize("name", SAMPLED)
def test_every_sampled_bound_is_log_p_for_every_draw(exact, name, how):
    model, guide, x = exact
    elbo = zoo.estimator(name, how[0], vectorize_particles=how[1])
    truth = log_p(model, x).sum().item()
    for seed in range(3):
        torch.manual_seed(seed)
        assert -elbo.loss(model, guide, x) == pytest.approx(truth, abs=1e-8)


def test_the_one_with_analytic_kl_is_log_p_in_mean(exact):
    model, guide, x = exact
    losses = torch.tensor([e.TraceAnalyticKL_ELBO(100).loss(model, guide, x) for _ in range(50)])
    assert_unbiased(-losses, log_p(model, x).sum())


# --------------------------------------------------------------- one-sample bounds: the closed form

ONE_SAMPLE = {
    "Trace_ELBO": e.Trace_ELBO,
    "TraceAnalyticKL_ELBO": e.TraceAnalyticKL_ELBO,
    "TraceSTL_ELBO": e.TraceSTL_ELBO,
    "TraceDReG_ELBO": lambda k: e.TraceDReG_ELBO(1, num_outer=k),
    "TraceIWAE_ELBO": lambda k: e.TraceIWAE_ELBO(1, num_outer=k),
    "TraceRenyi_ELBO": lambda k: e.TraceRenyi_ELBO(1.0, k),
    "TraceCIWAE_ELBO": lambda k: e.TraceCIWAE_ELBO(1.0, k),
    "TraceScoreFunction_ELBO": lambda k: e.TraceScoreFunction_ELBO(num_particles=k),
}
"""Estimators of the ELBO, or what is one at an edge, from so many draws."""


@pytest.mark.parametrize("weight", [None, 0.3, 0.0])
@pytest.mark.parametrize("name", ONE_SAMPLE)
def test_the_elbo_and_its_gradients_are_the_closed_form(name, weight):
    loading = torch.nn.Parameter(LOADING.clone())
    model = LinearGaussian(loading, NOISE, BIAS)
    x = torch.randn(3, 3)
    loc = torch.randn(3, 2).requires_grad_()
    log_scale = (0.5 * torch.randn(3, 2) - 0.5).requires_grad_()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    leaves = [loc, log_scale, loading]
    elbo = ONE_SAMPLE[name](20)
    losses, gradients = draws(elbo, model, guide, x, leaves, 100, weight)
    mine = LOADING.clone().requires_grad_()
    residual = (x - BIAS - loc @ mine.mT) ** 2 + log_scale.exp() ** 2 @ (mine**2).mT
    of_loading = (0.5 * residual / NOISE**2).sum()
    truth = -mean_field_elbo(x, loc, log_scale.exp(), 1.0 if weight is None else weight).sum()
    expected = [*torch.autograd.grad(truth, leaves[:2]), torch.autograd.grad(of_loading, mine)[0]]
    assert_unbiased(losses, truth.detach())
    assert_unbiased(gradients, torch.cat([g.flatten() for g in expected]))


@pytest.mark.parametrize("name", ONE_SAMPLE)
def test_the_elbo_of_two_levels_and_its_gradients_are_the_closed_form(name):
    x = torch.randn(3, 2)
    leaves = [torch.randn(3, 3), 0.3 * torch.randn(3, 3) - 0.5]
    leaves += [torch.randn(3, 2), 0.3 * torch.randn(3, 2) - 0.5]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z1", dist.Normal(leaves[0], leaves[1].exp()).to_event(1))
            pyro.sample("z2", dist.Normal(leaves[2], leaves[3].exp()).to_event(1))

    losses, gradients = draws(ONE_SAMPLE[name](20), two_level(), guide, x, leaves, 100)
    q1, q2 = (leaves[0], leaves[1].exp()), (leaves[2], leaves[3].exp())
    truth = -hierarchical_mean_field_elbo(x, q1, q2).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(truth, leaves)])
    assert_unbiased(losses, truth.detach())
    assert_unbiased(gradients, expected)


# --------------------------------------------------------------------------- K-sample bounds: order


def mean_and_error(elbo, model, guide, x, num_draws=100):
    values = -torch.tensor([elbo.loss(model, guide, x) for _ in range(num_draws)])
    return values.mean(), values.std() / math.sqrt(num_draws)


def test_the_bounds_rise_with_k_and_stay_below_log_p():
    x = torch.randn(4, 3)
    truth = log_p(one_level(), x).sum()
    found = [
        mean_and_error(e.TraceIWAE_ELBO(k, num_outer=400), one_level(), broad, x)
        for k in (1, 2, 4, 8, 16)
    ]
    elbo = mean_and_error(e.Trace_ELBO(400), one_level(), broad, x)
    assert (elbo[0] - found[0][0]).abs() <= 5 * math.hypot(elbo[1], found[0][1])
    for (low, error), (high, other) in pairwise(found):
        assert high - low > 5 * math.hypot(error, other)  # They differ, and this way round.
        assert high <= truth + 5 * other
    assert truth - found[0][0] > 5 and truth - found[-1][0] < 0.3


@pytest.mark.parametrize("name", ["TraceRenyi_ELBO", "TraceCIWAE_ELBO", "TraceTVO_ELBO"])
def test_those_in_between_lie_between_the_elbo_and_iwae(name):
    x = torch.randn(4, 3)
    make = {
        "TraceRenyi_ELBO": lambda: e.TraceRenyi_ELBO(0.5, 6),
        "TraceCIWAE_ELBO": lambda: e.TraceCIWAE_ELBO(0.5, 6),
        "TraceTVO_ELBO": lambda: e.TraceTVO_ELBO(4, 0.05, 6),
    }[name]
    for seed in range(20):  # For every draw, since all have the same particles.
        values = []
        for elbo in (e.TraceRenyi_ELBO(1.0, 6), make(), e.TraceIWAE_ELBO(6)):
            torch.manual_seed(seed)
            values.append(-elbo.loss(one_level(), broad, x))
        assert values[0] < values[1] < values[2]


def test_a_negative_alpha_is_no_bound():
    assert e.TraceRenyi_ELBO(0.0).is_bound and not e.TraceRenyi_ELBO(-1.0).is_bound
    x = torch.randn(4, 3)
    value, error = mean_and_error(e.TraceRenyi_ELBO(-1.0, 500), one_level(), broad, x)
    assert value > log_p(one_level(), x).sum() + 5 * error


# --------------------------------------------------------------------------- K-sample bounds: edges


def iwae_of(k, m=1):
    return lambda: e.TraceIWAE_ELBO(k, num_outer=m)


def elbo_of(k):
    return lambda: e.Trace_ELBO(k)


EDGES = {
    "IWAE(1) is the ELBO": (iwae_of(1), elbo_of(1)),
    "IWAE(1), M = 6, is the ELBO": (iwae_of(1, 6), elbo_of(6)),
    "Renyi(0) is IWAE": (lambda: e.TraceRenyi_ELBO(0.0, 6), iwae_of(6)),
    "Renyi(1) is the ELBO": (lambda: e.TraceRenyi_ELBO(1.0, 6), elbo_of(6)),
    "MIWAE, M = 1, is IWAE": (lambda: e.TraceMIWAE_ELBO(6, num_outer=1), iwae_of(6)),
    "MIWAE, K = 1, is the ELBO": (lambda: e.TraceMIWAE_ELBO(1, num_outer=6), elbo_of(6)),
    "MIWAE is IWAE, M outer": (lambda: e.TraceMIWAE_ELBO(3, num_outer=2), iwae_of(3, 2)),
    "PIWAE, M = 1, is IWAE": (lambda: e.TracePIWAE_ELBO(6, num_outer=1), iwae_of(6)),
    "CIWAE(0) is IWAE": (lambda: e.TraceCIWAE_ELBO(0.0, 6), iwae_of(6)),
    "CIWAE(1) is the ELBO": (lambda: e.TraceCIWAE_ELBO(1.0, 6), elbo_of(6)),
    "DReG(1) is STL": (lambda: e.TraceDReG_ELBO(1, num_outer=6), lambda: e.TraceSTL_ELBO(6)),
    "IWAE-STL(1) is STL": (
        lambda: e.TraceIWAESTL_ELBO(1, num_outer=6),
        lambda: e.TraceSTL_ELBO(6),
    ),
    "the ELBO of M times K is that of M K": (lambda: e.Trace_ELBO(2, num_outer=3), elbo_of(6)),
    "STL of M times K is that of M K": (
        lambda: e.TraceSTL_ELBO(2, num_outer=3),
        lambda: e.TraceSTL_ELBO(6),
    ),
    "free bits of M times K are those of M K": (
        lambda: e.TraceFreeBits_ELBO(0.1, estimator=e.Trace_ELBO(2, num_outer=3)),
        lambda: e.TraceFreeBits_ELBO(0.1, estimator=e.Trace_ELBO(6)),
    ),
    "no free bits is the ELBO": (
        lambda: e.TraceFreeBits_ELBO(0.0, estimator=e.TraceAnalyticKL_ELBO(6)),
        lambda: e.TraceAnalyticKL_ELBO(6),
    ),
}


@pytest.mark.parametrize("model_name", ["VAE", "HierarchicalVAE"])
@pytest.mark.parametrize("edge", EDGES)
def test_at_the_edges_an_estimator_is_its_parent(edge, model_name):
    """In value and gradient, at the same noise."""
    model = zoo.MODELS[model_name]()
    guide, x = zoo.GUIDES["MeanFieldGuide"](model), zoo.batch(model)
    found = []
    for make in EDGES[edge]:
        torch.manual_seed(3)
        value = make().loss_and_grads(model, guide, x)
        gradients = [p.grad.clone() for m in (model, guide) for p in m.parameters()]
        found.append((value, gradients))
        model.zero_grad(set_to_none=True), guide.zero_grad(set_to_none=True)
    (value, gradients), (expected, others) = found
    assert value == pytest.approx(expected, rel=1e-12)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("partitions, smallest, parent", [(1, 0.5, "elbo"), (3000, 1e-4, "iwae")])
def test_the_thermodynamic_objective_goes_from_the_elbo_to_iwae(partitions, smallest, parent):
    x = torch.randn(2, 3)
    parents = {"elbo": e.TraceRenyi_ELBO(1.0, 6), "iwae": e.TraceIWAE_ELBO(6)}
    values = []
    for elbo in (e.TraceTVO_ELBO(partitions, smallest, 6), parents[parent]):
        torch.manual_seed(3)
        values.append(elbo.loss(one_level(), broad, x))
    assert values[0] == pytest.approx(values[1], abs=1e-10 if parent == "elbo" else 0.02)


# ------------------------------------------------------------------- values: formulas, term by term


def log_weights(seed, m, k, weight=1.0):
    """The log weights of the one-level model under a guide of known noise, `[M, K, B]`."""
    torch.manual_seed(seed)
    noise = torch.randn(m * k, 3, 2)
    z = LOC + SCALE * noise
    log_x = -0.5 * ((X - BIAS - z @ LOADING.mT) / NOISE) ** 2 - NOISE.log()
    log_x = (log_x - 0.5 * math.log(2 * math.pi)).sum(-1)
    log_ratio = (-0.5 * z**2 + 0.5 * noise**2 + SCALE.log()).sum(-1)
    return (log_x + weight * log_ratio).reshape(m, k, 3)


_generator = torch.Generator().manual_seed(0)
X, LOC = (torch.randn(3, n, generator=_generator, dtype=torch.float64) for n in (3, 2))
SCALE = torch.rand(3, 2, generator=_generator, dtype=torch.float64) + 0.3


def known(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(LOC, SCALE).to_event(1))


def iwae(w):
    return w.mean(1).log().mean(0)


def tvo(w):
    total = 0.0
    for low, high in ((0.0, 0.1), (0.1, 0.1**0.5), (0.1**0.5, 1.0)):
        power = w**low
        total += (high - low) * (power * w.log()).sum(1) / power.sum(1)
    return total.mean(0)


FORMULAS = {
    "TraceIWAE_ELBO": (e.TraceIWAE_ELBO, iwae),
    "TraceMIWAE_ELBO": (e.TraceMIWAE_ELBO, iwae),
    "TracePIWAE_ELBO": (e.TracePIWAE_ELBO, lambda w: w.mean((0, 1)).log()),
    "TraceDReG_ELBO": (e.TraceDReG_ELBO, iwae),
    "TraceIWAESTL_ELBO": (e.TraceIWAESTL_ELBO, iwae),
    "TraceVIMCO_ELBO": (e.TraceVIMCO_ELBO, iwae),
    "TraceOVIS_ELBO": (e.TraceOVIS_ELBO, iwae),
    "TraceRWS_ELBO": (e.TraceRWS_ELBO, iwae),
    "TraceScoreFunction_ELBO": (e.TraceScoreFunction_ELBO, lambda w: w.log().mean((0, 1))),
    "TraceCIWAE_ELBO": (
        lambda **how: e.TraceCIWAE_ELBO(0.25, **how),
        lambda w: 0.25 * w.log().mean((0, 1)) + 0.75 * iwae(w),
    ),
    "TraceRenyi_ELBO": (
        lambda **how: e.TraceRenyi_ELBO(0.4, **how),
        lambda w: (w**0.6).mean(1).log().mean(0) / 0.6,
    ),
    "TraceTVO_ELBO": (lambda **how: e.TraceTVO_ELBO(3, 0.1, **how), tvo),
}
REFUSE_A_WEIGHT = ["TraceOVIS_ELBO", "TraceRWS_ELBO"]


@pytest.mark.parametrize("weight", [None, 0.3, 0.0])
@pytest.mark.parametrize("m, k", [(1, 2), (3, 4)])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_value_is_the_formula(name, m, k, weight):
    make, formula = FORMULAS[name]
    elbo = make(num_particles=k, num_outer=m)
    if weight is not None and name in REFUSE_A_WEIGHT:
        with scale_latents(weight), pytest.raises(ValueError, match=f"{name} takes no KL weight"):
            elbo.loss(one_level(), known, X)
        return
    elbo.loss(one_level(), known, X)  # finds the plate nesting
    expected = formula(log_weights(5, m, k, 1.0 if weight is None else weight).exp()).sum()
    torch.manual_seed(5)
    if weight is None:
        found = elbo.loss(one_level(), known, X)
    else:
        with scale_latents(weight):
            found = elbo.loss(one_level(), known, X)
    assert -found == pytest.approx(expected.item(), rel=1e-10)


def test_every_estimator_of_weights_has_its_formula():
    classes = {
        name for name, make in zoo.ESTIMATORS.items() if isinstance(make(), e.WeightEstimator)
    }
    assert classes == set(FORMULAS)


@pytest.mark.parametrize("spread", [1.0, 30.0, 500.0])
def test_the_sum_of_the_others_is_exact_even_beside_a_giant(spread):
    log_w = spread * torch.randn(2, 6, 3)
    found = exclusive_logsumexp(log_w)
    for k in range(6):
        others = torch.cat([log_w[:, :k], log_w[:, k + 1 :]], 1)
        torch.testing.assert_close(found[:, k], others.logsumexp(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: e.TraceCIWAE_ELBO(-0.1), "elbo_weight is -0.1; accepted is a number from 0 to 1"),
        (lambda: e.TraceCIWAE_ELBO(math.nan), "elbo_weight is nan"),
        (lambda: e.TraceRenyi_ELBO(math.inf), "alpha is inf; accepted is a finite number"),
        (lambda: e.TraceTVO_ELBO(0), "num_partitions is 0; accepted is an integer >= 1"),
        (lambda: e.TraceTVO_ELBO(3, 1.0), "smallest is 1.0; accepted is a number between 0 and 1"),
        (lambda: e.TraceTVO_ELBO(num_particles=1), "num_particles is 1; accepted is >= 2"),
        (lambda: e.TraceVIMCO_ELBO(1), "TraceVIMCO_ELBO: num_particles is 1; accepted is >= 2"),
        (lambda: e.TraceOVIS_ELBO(1.1), "gamma is 1.1; accepted is a number from 0 to 1"),
        (lambda: e.TraceOVIS_ELBO(num_particles=1), "num_particles is 1; accepted is >= 2"),
        (lambda: e.TraceRWS_ELBO(2.0), "insomnia is 2.0; accepted is a number from 0 to 1"),
        (lambda: e.TraceIWAE_ELBO(2, num_outer=0), "num_outer is 0; accepted is >= 1"),
        (lambda: e.TraceIWAE_ELBO(2.5), "num_particles is 2.5; accepted is >= 1"),
        (lambda: e.DecayingAverage(1.0), r"decay is 1.0; accepted is a number in \[0, 1\)"),
        (
            lambda: e.TraceScoreFunction_ELBO(e.LeaveOneOut()),
            "baseline LeaveOneOut needs 2 particles, and num_particles is 1; .*DecayingAverage",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
