"""What an estimator's gradient is worth: closed forms, and every figure from the whole matrix.

The model of the closed forms: z ~ N(0, I), x ~ N(z + b, I), and q = N(loc, s^2 I). The ELBO's
pathwise gradients of K particles are then normals, for the loss summed over B data:

    of loc: mean sum_b (1 + beta) loc + b - x_b, variance B ((1 + beta) s)^2 / K at each entry
    of b: mean sum_b loc + b - x_b, variance B s^2 / K

Shapes: n draws, P entries, D dimensions, B data, K particles.
"""

import math
import random
import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from oracle import LOADING, NOISE, loc_scale, mean_field_elbo, one_level
from pyro.nn import PyroModule
from torch import nn

from ppl_vae import estimators as e
from ppl_vae.evaluate import Estimate, bound_at, gradient_signal, log_marginal, step_cost
from ppl_vae.evaluate.cost import saved_bytes
from ppl_vae.evaluate.draws import seeds
from ppl_vae.evaluate.moments import Moments
from ppl_vae.guides import FrozenGuide, MeanFieldGuide
from ppl_vae.handlers import scale_latents
from ppl_vae.models import VAE
from ppl_vae.schedules import Constant

X = torch.tensor([[1.0, -0.5, 2.0, 0.3, -1.0], [0.2, 0.4, 1.0, -0.8, 0.6]], dtype=torch.float64)
LOC = torch.tensor([0.9, 0.1, -0.2, 0.4, 0.5], dtype=torch.float64)
SHIFT = torch.tensor([0.3, 0.0, -0.4, 0.2, 0.1], dtype=torch.float64)
SCALE = math.sqrt(2 / 3)


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(SHIFT.clone())

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + self.shift, 1.0).to_event(1), obs=x)


class Around(nn.Module):
    """q = N(loc, s^2 I), the same for all data; `loc` may count how often it was used."""

    def __init__(self, loc=LOC, scale=SCALE, counts=False):
        super().__init__()
        self.loc, self.scale = nn.Parameter(loc.clone()), scale
        self.register_buffer("count", torch.zeros(()))
        self.counts = counts

    def forward(self, x):
        self.count += 1
        loc = self.loc * self.count if self.counts else self.loc
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, self.scale).to_event(1))


def pair_at(loc=LOC):
    return Shifted(), Around(loc)


def means(beta=1.0):
    """Of the gradients of loc and b."""
    off = SHIFT - X
    return ((1 + beta) * LOC + off).sum(0), (LOC + off).sum(0)


def variances(num_particles, beta=1.0):
    """Of one entry of either."""
    size = len(X) * SCALE**2 / num_particles
    return (1 + beta) ** 2 * size, size


def within(estimate, truth, times=5):
    assert estimate.standard_error > 0
    assert abs(estimate.value - truth) <= times * estimate.standard_error


# ------------------------------------------------------------------------------------ closed forms


def mean_directional(mean, sigma):
    """E|parallel| E[1 / |orthogonal|] for normals of one variance and the true direction."""
    a, k = mean.norm().item() / sigma, len(mean) - 1
    folded = math.sqrt(2 / math.pi) * math.exp(-(a**2) / 2) + a * math.erf(a / math.sqrt(2))
    return folded * math.exp(math.lgamma((k - 1) / 2) - math.lgamma(k / 2)) / math.sqrt(2)


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("num_particles", [1, 6])
def test_the_elbos_gradient_is_a_known_normal(num_particles, beta):
    n = 600
    truth = dict(zip(("guide.loc", "model.shift"), means(beta), strict=True))
    elbo = e.Trace_ELBO(num_particles)
    found = gradient_signal(*pair_at(), elbo, X, num_draws=n, reference=truth, weight=beta)
    assert list(found.groups) == ["model", "guide"] and found.num_draws == n
    for (name, mean), variance in zip(truth.items(), variances(num_particles, beta), strict=True):
        group = found[name.split(".")[0]]
        assert (group.num_entries, group.num_varying) == (5, 5)
        within(group.squared_norm, (mean**2).sum().item())
        within(group.norm, mean.norm().item())
        within(group.variance, 5 * variance)
        within(group.squared_snr, (mean**2).sum().item() / (5 * variance))
        within(group.snr, mean.norm().item() / math.sqrt(5 * variance))
        within(group.entry_snr, mean.abs().mean().item() / math.sqrt(variance))
        within(group.dsnr, mean_directional(mean, math.sqrt(variance)))
        within(group.squared_bias, 0.0)
        # The error of an error of n terms of kurtosis k is a share sqrt((k - 1) / 4 n) of it.
        error = math.sqrt(4 * variance * (mean**2).sum() / n + 2 * 5 * variance**2 / n**2)
        assert group.squared_norm.standard_error == pytest.approx(
            error, rel=5 * math.sqrt(2 / (4 * n))
        )
        error, kurtosis = variance * math.sqrt(2 * 5 / n), 3 + 12 / 5
        share = math.sqrt((kurtosis - 1) / (4 * n))
        assert group.variance.standard_error == pytest.approx(error, rel=5 * share)
        error = (found.mean[name] - mean).abs()
        assert (error <= 5 * math.sqrt(variance / n)).all()
        torch.testing.assert_close(found.variance[name], error.new_tensor([variance] * 5),
                                   rtol=5 * math.sqrt(2 / n), atol=0)  # fmt: skip


def test_what_is_squared_is_unbiased_where_there_is_nothing_to_find():
    """At the optimum of loc; with 4 draws the uncorrected norm is mostly noise."""
    optimum = (X.mean(0) - SHIFT) / 2
    model, guide = pair_at(optimum)
    norms, biases = [], []
    for seed in range(80):
        found = gradient_signal(
            model, guide, e.Trace_ELBO(), X, num_draws=4, seed=seed, groups=["guide"],
            reference=e.TraceIWAE_ELBO(1), reference_draws=3,
        )["guide"]  # fmt: skip
        norms.append(found.squared_norm.value)
        biases.append(found.squared_bias.value)
    noise = 5 * variances(1)[0]
    for values, own in ((norms, noise / 4), (biases, noise * (1 / 4 + 1 / 3))):
        estimate = Estimate.of_mean(torch.tensor(values))
        within(estimate, 0.0)
        assert own > 10 * estimate.standard_error
    assert min(norms) < 0 < max(norms)


def test_a_root_of_what_is_negative_is_zero():
    optimum = (X.mean(0) - SHIFT) / 2
    signals = (
        gradient_signal(*pair_at(optimum), e.Trace_ELBO(), X, num_draws=3, seed=seed)["guide"]
        for seed in range(20)
    )
    found = next(signal for signal in signals if signal.squared_norm.value < 0)
    for root in (found.norm, found.snr):
        assert root.value == 0.0 and math.isnan(root.standard_error)


# ------------------------------------------------------------------------- from the whole matrix


def matrix(model, guide, elbo, x, all_seeds, weight=None):
    """Gradients `[n, P]` by parameter, each from its seed, by `backward`."""
    leaves = {f"model.{n}": p for n, p in model.named_parameters()}
    leaves |= {f"guide.{n}": p for n, p in guide.named_parameters()}
    rows = {name: [] for name in leaves}
    for seed in all_seeds:
        torch.manual_seed(seed)
        with scale_latents(1.0 if weight is None else weight):
            elbo.loss_and_grads(model, guide, x)
        for name, leaf in leaves.items():
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            rows[name].append(grad.flatten().numpy().copy())
            leaf.grad = None
    return {name: np.stack(part) for name, part in rows.items()}


def jackknifed(figure, g):
    values = np.array([figure(np.delete(g, i, 0)) for i in range(len(g))])
    return math.sqrt((len(g) - 1) * values.var())


def squared_norm(g):
    return (g.mean(0) ** 2).sum() - g.var(0, ddof=1).sum() / len(g)


def entry_snr(g, varying):
    mean, deviation = g.mean(0)[varying], g.std(0, ddof=1)[varying]
    moves = deviation > 0
    return (np.abs(mean[moves]) / deviation[moves]).sum() / varying.sum()


def directional(g, direction=None):
    ratios = []
    for i, row in enumerate(g):
        u = np.delete(g, i, 0).mean(0) if direction is None else direction
        parallel = (row @ u) / (u @ u) * u
        ratios.append(np.linalg.norm(parallel) / np.linalg.norm(row - parallel))
    return np.array(ratios)


def assert_figures(found, g, r=None, theirs=None):
    """All figures of a group from its matrix, `[n, P]`, a reference r, `[P]`, and its own draws."""
    n, varying = len(g), g.std(0) > 0
    figures = {
        "squared_norm": squared_norm,
        "variance": lambda g: g.var(0, ddof=1).sum(),
        "squared_snr": lambda g: squared_norm(g) / g.var(0, ddof=1).sum(),
        "entry_snr": lambda g: entry_snr(g, varying),
    }
    assert (found.num_entries, found.num_varying) == (g.shape[1], varying.sum())
    for name, figure in figures.items():
        close(getattr(found, name), figure(g), jackknifed(figure, g))
    ratios = directional(g, r)
    close(found.dsnr, ratios.mean(), ratios.std(ddof=1) / math.sqrt(n))
    if r is None:
        assert found.squared_bias is None and found.bias is None
        return
    bias = squared_norm(g - r)
    error = jackknifed(lambda g: squared_norm(g - r), g)
    if theirs is not None:
        bias = bias - theirs.var(0, ddof=1).sum() / len(theirs)
        own = jackknifed(lambda h: ((g.mean(0) - h.mean(0)) ** 2).sum()
                         - h.var(0, ddof=1).sum() / len(h), theirs)  # fmt: skip
        error = math.hypot(error, own)
    close(found.squared_bias, bias, error)


def close(estimate, value, error):
    assert estimate.value == pytest.approx(value, rel=1e-11, abs=1e-13)
    assert estimate.standard_error == pytest.approx(error, rel=1e-9)


@pytest.fixture
def small():
    torch.manual_seed(3)
    model = VAE((6,), 2, (4,))
    return model, MeanFieldGuide(model, hidden=(5,)), torch.rand(3, 6).round()


@pytest.mark.parametrize("max_entries", [0, 10**6])
@pytest.mark.parametrize("kind", ["none", "exact", "sampled"])
def test_every_figure_is_that_of_the_whole_matrix(small, kind, max_entries):
    model, guide, x = small
    elbo, weight, n = e.TraceIWAESTL_ELBO(3), 0.7, 9
    g = matrix(*small[:2], elbo, x, seeds(4, n), weight)
    drawn = reference = None
    if kind == "exact":
        reference = {
            name: torch.randn(p.shape) for name, p in
            [(f"{k}.{a}", b) for k, m in (("model", model), ("guide", guide))
             for a, b in m.named_parameters()]
        }  # fmt: skip
        r = {name: value.flatten().numpy() for name, value in reference.items()}
    elif kind == "sampled":
        reference = e.TraceIWAE_ELBO(2)
        drawn = matrix(*small[:2], reference, x, seeds(4, 5, "reference"), weight)
        r = {name: rows.mean(0) for name, rows in drawn.items()}
    groups = ["model", "guide", "guide.heads.z", "guide.encoder.layers.0", ""]
    found = gradient_signal(
        model, guide, elbo, x, num_draws=n, groups=groups, reference=reference, weight=weight,
        reference_draws=5, seed=4, max_entries=max_entries,
    )  # fmt: skip
    assert list(found.groups) == groups
    for name, rows in g.items():
        for values, truth in ((found.mean, rows.mean(0)), (found.variance, rows.var(0, ddof=1))):
            np.testing.assert_allclose(
                values[name].flatten().numpy(), truth, rtol=1e-12, atol=1e-13
            )
    for group in groups:
        inside = [n for n in g if group == "" or n == group or n.startswith(group + ".")]
        assert inside

        def joined(rows, inside=inside):
            return np.concatenate([rows[name] for name in inside], -1)

        assert_figures(
            found[group], joined(g), None if reference is None else joined(r),
            None if drawn is None else joined(drawn),
        )  # fmt: skip


def test_moments_of_a_stream_are_those_of_the_matrix():
    values = 1e3 + torch.randn(1000, 7)
    moments = Moments()
    for row in values.float():
        moments.add(row)
    rows = values.float().double().numpy()
    np.testing.assert_allclose(moments.mean.numpy(), rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.variance.numpy(), rows.var(0, ddof=1), rtol=1e-12)


def test_an_entry_that_moves_in_one_draw_alone_has_no_ratio_without_it():
    """Rectified units do that; rounding is not to make it a signal."""

    class Rare(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc, self.rare = nn.Parameter(LOC.clone()), nn.Parameter(torch.ones(2))

        def forward(self, x):
            chosen = torch.rand(()) < 0.12
            loc = self.loc + (chosen * self.rare[0] / 3)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(loc, SCALE).to_event(1))

    model, guide = Shifted(), Rare()
    drawn = (matrix(model, guide, e.Trace_ELBO(), X, seeds(s, 9))["guide.rare"] for s in range(50))
    seed, g = next((s, g) for s, g in enumerate(drawn) if (g[:, 0] != 0).sum() == 1)
    assert not g[:, 1].any()
    found = gradient_signal(model, guide, e.Trace_ELBO(), X, num_draws=9, seed=seed,
                            groups=["guide.rare"])["guide.rare"]  # fmt: skip
    assert (found.num_entries, found.num_varying) == (2, 1)
    close(found.entry_snr, 1 / 3, math.sqrt(8 * np.array([0, *[1 / math.sqrt(8)] * 8]).var()))


def test_a_group_of_one_entry_has_no_other_direction():
    model, guide = Shifted(), Around(LOC[:1])
    model.shift = nn.Parameter(SHIFT[:1].clone())
    for seed in range(25):  # Rounding would leave some a part across, sooner or later.
        found = gradient_signal(model, guide, e.Trace_ELBO(), X[:, :1], num_draws=3, seed=seed)
        for group in found.groups.values():
            assert group.num_entries == 1 and group.dsnr.value == math.inf


# ------------------------------------------------------------------------------- signal along K


def test_iwaes_signal_falls_and_dregs_rises():
    """Near the optimum of the guide (Rainforth et al., 2018; Tucker et al., 2019)."""
    x = X[:1]
    model, guide = pair_at((x[0] - SHIFT) / 2 + 0.35)
    for make, sign, n in ((e.TraceIWAE_ELBO, -1, 400), (e.TraceDReG_ELBO, 1, 100)):
        few, many = (gradient_signal(model, guide, make(k), x, num_draws=n) for k in (2, 64))
        change = sign * (many["guide"].squared_snr.value - few["guide"].squared_snr.value)
        errors = [found["guide"].squared_snr.standard_error for found in (few, many)]
        assert change > 5 * math.hypot(*errors)
        # The model's rises for both.
        change = many["model"].squared_snr.value - few["model"].squared_snr.value
        errors = [found["model"].squared_snr.standard_error for found in (few, many)]
        assert change > 5 * math.hypot(*errors)


# ------------------------------------------------------------------------------------------ bias


def test_bias_is_found_where_there_is_one_and_nowhere_else():
    how = {"num_draws": 120, "reference_draws": 240}
    bound = e.TraceDReG_ELBO(4)
    honest = gradient_signal(*pair_at(), e.TraceIWAE_ELBO(4), X, reference=bound, **how)
    for group in ("model", "guide"):
        within(honest[group].squared_bias, 0.0)
    biased = gradient_signal(*pair_at(), e.TraceIWAESTL_ELBO(4), X, reference=bound, **how)
    within(biased["model"].squared_bias, 0.0)  # The model's gradient is that of the bound.
    found = biased["guide"]
    assert found.squared_bias.value > 5 * found.squared_bias.standard_error
    assert found.bias.value == math.sqrt(found.squared_bias.value)
    assert found.bias.standard_error == pytest.approx(
        found.squared_bias.standard_error / (2 * found.bias.value)
    )


def test_a_wrong_reference_is_as_far_as_it_is():
    wrong = {"guide.loc": means()[0] + torch.tensor([0.0, 2.0, 0.0, -1.0, 0.0])}
    found = gradient_signal(
        *pair_at(), e.Trace_ELBO(8), X, num_draws=300, reference=wrong, groups=["guide"]
    )["guide"]
    within(found.squared_bias, 5.0)
    assert found.squared_bias.value > 5 * found.squared_bias.standard_error


def test_the_references_draws_are_others():
    how = {"num_draws": 5, "reference_draws": 5}
    elbo = e.Trace_ELBO()
    found = gradient_signal(*pair_at(), elbo, X, reference=elbo, **how)["guide"]
    mean = gradient_signal(*pair_at(), elbo, X, num_draws=5)
    same = gradient_signal(*pair_at(), elbo, X, num_draws=5, reference=mean.mean)["guide"]
    # Of its own mean nothing is off but the noise that is taken away.
    assert same.squared_bias.value == pytest.approx(-same.variance.value / 5)
    assert found.squared_bias.value != pytest.approx(-same.variance.value / 5, rel=0.01)


def test_ten_times_the_draws_make_the_reference():
    elbo = e.Trace_ELBO()
    one, other, third = (
        gradient_signal(*pair_at(), elbo, X, num_draws=4, reference=elbo, **how)["guide"]
        for how in ({}, {"reference_draws": 40}, {"reference_draws": 39})
    )
    assert one == other and one != third


# ----------------------------------------------------------------------------------- seeds, groups


def test_draws_have_seeds_of_their_own():
    assert seeds(7, 50)[:3] == seeds(7, 3)
    every = [*seeds(7, 50), *seeds(8, 50), *seeds(7, 50, "reference"), *seeds(7 + 2**40, 50)]
    assert len({seed % 2**32 for seed in every}) == 200  # More of it the CPU does not look at.
    elbo = e.Trace_ELBO()
    one, two, other = (
        gradient_signal(*pair_at(), elbo, X, num_draws=5, seed=seed).mean["guide.loc"]
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_estimators_of_the_same_particles_see_the_same_samples(small):
    model, guide, x = small
    iwae, dreg = (
        gradient_signal(model, guide, make(4), x, num_draws=6)
        for make in (e.TraceIWAE_ELBO, e.TraceDReG_ELBO)
    )
    for name, mean in iwae.mean.items():
        if name.startswith("model"):
            torch.testing.assert_close(mean, dreg.mean[name], rtol=1e-10, atol=1e-12)


def test_groups_are_found_by_name():
    model, guide = zoo.pair("HierarchicalVAE", "TopDownGuide")
    x = zoo.batch(model)
    found = gradient_signal(model, guide, e.Trace_ELBO(), x, num_draws=3)
    heads = {f"guide.heads.{site}" for site in guide.latent_sites}
    assert list(found.groups)[:2] == ["model", "guide"] and set(list(found.groups)[2:]) == heads
    assert set(found.mean) == {
        f"{k}.{n}" for k, m in (("model", model), ("guide", guide)) for n, _ in m.named_parameters()
    }
    assert all(found.mean[f"model.{n}"].shape == p.shape for n, p in model.named_parameters())
    # Frozen parameters have no gradient, and a head within a head's guide is found.
    frozen = FrozenGuide(zoo.GUIDES["MeanFieldGuide"](model))
    found = gradient_signal(model, frozen, e.Trace_ELBO(), x, num_draws=3)
    assert {"guide.base.heads.z1", "guide.base.heads.z2"} < set(found.groups)
    assert not any("encoder" in name for name in found.mean)
    only = gradient_signal(model, frozen, e.Trace_ELBO(), x, num_draws=3, groups="guide.base")
    assert list(only.groups) == ["guide.base"] and not any("model" in name for name in only.mean)
    assert only["guide.base"].variance == found["guide"].variance


class Crowd(nn.Module):
    """An encoder with heads that are no site's."""

    def __init__(self, shape):
        super().__init__()
        self.heads = nn.ModuleDict({"left": nn.Linear(shape.numel(), 3)})

    def forward(self, x):
        return self.heads["left"](x)


def test_heads_of_something_else_are_no_group():
    model = VAE((6,), 2, (4,))
    guide = MeanFieldGuide(model, encoder=Crowd)
    found = gradient_signal(model, guide, e.Trace_ELBO(), torch.ones(2, 6), num_draws=3)
    assert list(found.groups) == ["model", "guide", "guide.heads.z"]


def test_parameters_of_plain_functions_are_a_group():
    def guide(x):
        loc = pyro.param("loc", LOC)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, SCALE).to_event(1))

    found = gradient_signal(Shifted(), guide, e.Trace_ELBO(), X, num_draws=200)
    assert list(found.groups) == ["model", "param"]
    within(found["param"].squared_norm, (means()[0] ** 2).sum().item())
    assert not list(pyro.get_param_store())


def test_pyros_own_estimators_are_taken():
    found = gradient_signal(*pair_at(), pyro.infer.Trace_ELBO(), X, num_draws=300)
    within(found["guide"].variance, 5 * variances(1)[0])


@pytest.mark.parametrize("name", zoo.ESTIMATORS)
def test_every_estimator_of_the_house_is_taken(name):
    """A model with a discrete latent where the estimator takes it."""
    taken = [t for t in zoo.along_the_axes() if t[1] == name and t[2] != "DeltaGuide"]
    model_name, _, guide_name = taken[-1]
    model, guide = zoo.pair(model_name, guide_name)
    elbo, x = zoo.estimator(name, 2), zoo.batch(model)
    found = gradient_signal(model, guide, elbo, x, num_draws=3)["guide"]
    assert found.variance.value > 0 and math.isfinite(found.squared_snr.standard_error)


# ------------------------------------------------------------------------------ nothing is changed


def everything(*modules):
    state = []
    for module in modules:
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            grad = None if value.grad is None else value.grad.clone()
            state.append((name, value, value.clone(), grad, value.requires_grad))
        state.append([part.training for part in module.modules()])
    return state


def assert_same(one, other):
    assert len(one) == len(other)
    for row, again in zip(one, other, strict=True):
        for a, b in zip(row, again, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def streams():
    return torch.get_rng_state(), torch.tensor(np.random.get_state()[1]), random.getstate()[1]


class Normalized(PyroModule):
    def __init__(self, shape):
        super().__init__()
        self.linear, self.norm = nn.Linear(shape.numel(), 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.linear(x))


def looks():
    """Each function, as one of model, guide, estimator, x."""
    return {
        "signal": lambda *p: gradient_signal(*p, num_draws=3, reference=e.TraceIWAE_ELBO(2)),
        "streamed": lambda *p: gradient_signal(*p, num_draws=3, max_entries=0),
        "bound": lambda *p: bound_at(*p, 3),
        "cost": lambda *p: step_cost(*p, num_repeats=2, num_warmup=1),
    }


@pytest.mark.parametrize("name", looks())
def test_nothing_is_changed(name):
    torch.manual_seed(0)
    model = VAE((6,), 2, (4,))
    guide, x = MeanFieldGuide(model, encoder=Normalized), torch.rand(6, 6).round()
    model.eval()
    guide.train()
    elbo = e.TraceScoreFunction_ELBO(e.DecayingAverage(), num_particles=3)
    elbo.differentiable_loss(model, guide, x).backward()
    elbo.max_plate_nesting = float("inf")
    pyro.clear_param_store()
    pyro.param("mine", torch.ones(2))
    before, kept, stood = everything(model, guide), everything(elbo.baseline), streams()
    assert elbo.baseline.average != 0
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            looks()[name](model, guide, elbo, x)
            assert torch.is_grad_enabled() == grad
    if name in ("signal", "cost"):
        bad = torch.full((2, 6), math.nan)
        with pytest.raises(ValueError):
            looks()[name](model, guide, e.Trace_ELBO(0) if name == "cost" else elbo, bad)
    assert_same(before, everything(model, guide))
    assert_same(kept, everything(elbo.baseline))
    assert elbo.max_plate_nesting == float("inf")
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
               for a, b in zip(stood, streams(), strict=True))  # fmt: skip
    assert list(pyro.get_param_store()) == ["mine"]


def test_each_draw_starts_from_the_estimators_state():
    model, guide = pair_at()
    elbo = e.TraceScoreFunction_ELBO(e.DecayingAverage(), num_particles=2)
    elbo.differentiable_loss(model, guide, X)
    state = {name: value.clone() for name, value in elbo.state_dict().items()}
    rows = []
    for seed in seeds(0, 4):
        elbo.load_state_dict({name: value.clone() for name, value in state.items()})
        torch.manual_seed(seed)
        loss = elbo.differentiable_loss(model, guide, X)
        rows.append(torch.autograd.grad(loss, guide.loc)[0])
    elbo.load_state_dict(state)
    for max_entries in (0, 100):
        found = gradient_signal(model, guide, elbo, X, num_draws=4, max_entries=max_entries)
        torch.testing.assert_close(found.mean["guide.loc"], torch.stack(rows).mean(0))


def test_each_draw_starts_from_the_buffers():
    """A guide that moves with every run would have gradients of another point each time."""
    guide = Around(counts=True)
    found = gradient_signal(Shifted(), guide, e.Trace_ELBO(), X, num_draws=300)
    within(found["guide"].squared_norm, (means()[0] ** 2).sum().item())
    assert guide.count == 0


def test_an_estimator_that_holds_the_guide_keeps_it():
    class Holding(e.Trace_ELBO):
        def differentiable_loss(self, model, guide, *args, **kwargs):
            assert guide is self.held
            return super().differentiable_loss(model, guide, *args, **kwargs)

    model, guide = pair_at()
    elbo = Holding()
    elbo.held = guide
    assert gradient_signal(model, guide, elbo, X, num_draws=3)["guide"].norm.value > 0


class Counting(e.Trace_ELBO):
    """Counts its runs, those of its copies too."""

    runs = 0

    def differentiable_loss(self, *args, **kwargs):
        Counting.runs += 1
        return super().differentiable_loss(*args, **kwargs)


@pytest.mark.parametrize("max_entries, runs", [(9 * 10, 10), (9 * 10 - 1, 19)])
def test_gradients_are_kept_as_far_as_they_may_be(max_entries, runs):
    Counting.runs = 0
    gradient_signal(*pair_at(), Counting(), X, num_draws=9, max_entries=max_entries)
    assert Counting.runs == runs  # One of them to look.


def test_a_pair_that_an_estimator_refuses_is_refused():
    """A density that differs from run to run is found where validation is on."""
    model = VAE((6,), 2, (4,))
    guide = MeanFieldGuide(model, encoder=nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5)))
    with (
        pytest.raises(
            ValueError, match="something in it is random besides its sites, such as dropout"
        ),
        pyro.validation_enabled(False),
    ):
        gradient_signal(model, guide.train(), e.TraceSTL_ELBO(), torch.ones(3, 6), num_draws=3)


# ------------------------------------------------------------------------------- bounds and costs


@pytest.fixture
def linear():
    """A linear-Gaussian pair off its optimum: x `[B, X]`, its ELBO and log p(x) by formula."""
    torch.manual_seed(1)
    model = one_level()
    guide = MeanFieldGuide(model, hidden=(4,))
    x = torch.randn(7, 2) @ LOADING.mT + NOISE * torch.randn(7, 3)
    with torch.no_grad():
        elbo = mean_field_elbo(x, *loc_scale(guide, x))
    return model, guide, x, elbo, model.log_marginal(x)


def test_a_bound_is_that_of_the_formula(linear):
    model, guide, x, elbo, truth = linear
    found = bound_at(model, guide, e.Trace_ELBO(2), x, 100, log_marginal=truth)
    within(found.value, elbo.mean().item())
    within(found.gap, (truth - elbo).mean().item())
    assert found.gap.standard_error == found.value.standard_error
    assert found.gap.value == pytest.approx(truth.mean().item() - found.value.value, rel=1e-12)
    assert bound_at(model, guide, e.Trace_ELBO(2), x, 3).gap is None
    mean = bound_at(model, guide, e.Trace_ELBO(2), x, 100, log_marginal=truth.mean().item())
    assert mean.gap.value == pytest.approx(found.gap.value, rel=1e-12)


def test_the_error_of_an_estimated_log_marginal_is_in_the_gap(linear):
    model, guide, x, *_ = linear
    known = log_marginal(model, guide, x, num_particles=200)
    found = bound_at(model, guide, e.TraceIWAE_ELBO(5), x, 50, log_marginal=known)
    own = known.standard_error.square().sum().sqrt().item() / len(x)
    assert found.gap.standard_error == pytest.approx(
        math.hypot(own, found.value.standard_error), rel=1e-10
    )
    assert found.gap.value == pytest.approx(known.value.mean().item() - found.value.value)


def test_a_bound_is_the_mean_of_losses_from_the_seeds(linear):
    model, guide, x, *_ = linear
    elbo, values = e.TraceDReG_ELBO(3), []
    for seed in seeds(5, 4):
        torch.manual_seed(seed)
        values.append(-elbo.loss(model, guide, x) / 7)
    found = bound_at(model, guide, elbo, x, 4, seed=5).value
    close(found, np.mean(values), np.std(values, ddof=1) / 2)


def test_a_bound_of_a_subsample_is_per_datum_of_all():
    def model(x):
        with pyro.plate("data", 20, subsample_size=len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", 20, subsample_size=len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)).to_event(1))

    truth = dist.Normal(0.0, math.sqrt(2.0)).log_prob(X).sum(1).mean().item()
    found = bound_at(model, guide, e.Trace_ELBO(), X, 3)  # The exact posterior.
    assert found.value.value == pytest.approx(truth, rel=1e-12)


def test_bytes_are_counted_once_and_without_what_is_there():
    w, x = torch.ones(10, requires_grad=True), torch.ones(10)

    def loss():
        y = (w * x).exp()  # Kept: x, which is there, and the result, 80 bytes each.
        return (y * y + y.square()).sum()  # The same storage thrice.

    assert saved_bytes(loss, [w, x]) == 80
    assert saved_bytes(loss, []) == 160


def test_a_step_costs_memory_for_its_particles(small):
    used = [step_cost(*small[:2], e.TraceIWAE_ELBO(k), small[2], num_repeats=1).peak_bytes
            for k in (10, 20, 30)]  # fmt: skip
    assert used[2] - used[1] == pytest.approx(used[1] - used[0], rel=0.02)
    # Of one particle and datum a hidden layer, and its input, are the least.
    assert used[1] - used[0] > 10 * 3 * 8 * (4 + 2)


def test_a_steps_time_is_a_median_of_warm_ones(small, monkeypatch):
    # Two warm: one of them for memory, untimed. Then 5 repeats.
    lengths = iter([100.0, 5.0, 1.0, 4.0, 2.0, 3.0])
    now, state = [0.0], {"running": False}

    def clock():
        if state["running"]:
            now[0] += next(lengths)
        state["running"] = not state["running"]
        return now[0]

    monkeypatch.setattr(time, "perf_counter", clock)
    found = step_cost(*small[:2], e.Trace_ELBO(), small[2], num_repeats=5, num_warmup=2)
    assert (found.seconds, found.quartiles, found.device) == (3.0, (2.0, 4.0), "cpu")


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"num_draws": 2}, "num_draws is 2; accepted is an integer >= 3"),
        ({"num_draws": 4.0}, "num_draws is 4.0; accepted is an integer >= 3"),
        ({"reference_draws": True}, "reference_draws is True; accepted is an integer >= 3"),
        ({"max_entries": -1}, "max_entries is -1; accepted is an integer >= 0"),
        ({"seed": -1}, "seed is -1; accepted is an integer >= 0"),
        ({"groups": ["guide", "gide"]}, "groups names 'gide', which no parameter's name begins"),
        ({"groups": []}, "there is no group; accepted are prefixes of the names of parameters"),
        ({"reference": {"guide.loc": LOC}}, "of 'model.shift' is missing; accepted is a tensor"),
        ({"reference": {"guide.loc": LOC[:2], "model.shift": SHIFT}},
         r"of 'guide.loc' is \(2,\); accepted is a tensor of the parameter's shape, \(5,\)"),
        ({"reference": 3}, "the estimator is 3; accepted is a pyro.infer.ELBO"),
        ({"estimator": "elbo"}, "the estimator is 'elbo'; accepted is a pyro.infer.ELBO"),
        ({"weight": -1.0}, "the KL weight is -1.0; accepted"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(bad, message):
    elbo = bad.pop("estimator", e.Trace_ELBO())
    with pytest.raises(ValueError, match=message):
        gradient_signal(*pair_at(), elbo, X, **{"num_draws": 3, **bad})


def test_a_gradient_that_is_not_finite_is_named():
    class Broken(Around):
        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(self.loc + (self.loc * 0).sqrt(), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"of 'guide.loc' is not finite in draw 0 \(seed \d+\)"):
        gradient_signal(Shifted(), Broken(), e.Trace_ELBO(), X, num_draws=3)


def test_a_pair_without_parameters_says_so():
    model, guide = (module.requires_grad_(False) for module in pair_at())
    with pytest.raises(ValueError, match="there is no group.*model and guide have 0"):
        gradient_signal(model, guide, e.Trace_ELBO(), X, num_draws=3)
    with pytest.raises(ValueError, match="neither model nor guide has a parameter"):
        step_cost(model, guide, e.Trace_ELBO(), X)


def test_what_is_no_bound_has_none():
    with pytest.raises(ValueError, match="the loss of TraceCapacity_ELBO is no bound of log p"):
        bound_at(*pair_at(), e.TraceCapacity_ELBO(gamma=3.0, capacity=Constant(0.5)), X)
    with pytest.raises(ValueError, match=r"log_marginal has shape \(3,\); accepted.*\[2\]"):
        bound_at(*pair_at(), e.Trace_ELBO(), X, log_marginal=torch.zeros(3))
    for call in (lambda: bound_at(*pair_at(), e.Trace_ELBO(), X, 0),
                 lambda: step_cost(*pair_at(), e.Trace_ELBO(), X, num_repeats=0),
                 lambda: step_cost(*pair_at(), e.Trace_ELBO(), X, num_warmup=0)):  # fmt: skip
        with pytest.raises(ValueError, match="is 0; accepted is an integer >= 1"):
            call()
