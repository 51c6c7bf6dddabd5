"""Pairs that look right to an estimator and are not, or the other way round.

Shapes: K particles, B data.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from oracle import Leaves, assert_unbiased
from pyro import poutine
from pyro.distributions import transforms
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from ppl_vae import estimators as e
from ppl_vae.evaluate import bracket
from ppl_vae.guides import LadderGuide, MeanFieldGuide
from ppl_vae.handlers import scale_latents
from ppl_vae.models import VAE, HierarchicalVAE

WEIGHTED = [n for n, make in zoo.ESTIMATORS.items() if isinstance(make(), e.WeightEstimator)]
SAMPLED = [*WEIGHTED, "Trace_ELBO", "TraceSTL_ELBO"]


# ------------------------------------------------------------- a plate that draws its own subsample


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", SAMPLED)
def test_all_particles_are_of_the_subsample_that_a_plate_drew(name, vectorize):
    """At the exact posterior the bound is N/B log p(x) of some 10 of the data, whichever."""
    x = torch.linspace(-5, 5, 100)

    def model(x):
        with pyro.plate("data", 100, subsample_size=10, dim=-1) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    drawn = []

    def guide(x):
        with pyro.plate("data", 100, subsample_size=10, dim=-1) as rows:
            drawn.append(rows)
            pyro.sample("z", dist.Normal(x[rows] / 2, 0.5**0.5))

    elbo = zoo.estimator(name, 4, vectorize_particles=vectorize, max_plate_nesting=1)
    found = -elbo.loss(model, guide, x)
    assert all(torch.equal(rows, drawn[0]) for rows in drawn)
    truth = dist.Normal(0.0, 2**0.5).log_prob(x[drawn[0]]).sum().item()
    assert found == pytest.approx(10 * truth, rel=1e-9)
    elbo.loss(model, guide, x)
    assert not torch.equal(drawn[-1], drawn[0])  # Another evaluation has another subsample.


# ------------------------------------------------------------------------- autoguides of Pyro's own


def positive(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


@pytest.fixture(params=[AutoNormal, AutoMultivariateNormal])
def autoguide(request):
    x = torch.tensor([0.5, 1.5, 3.0])
    guide = request.param(positive)
    guide(x)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return guide, x


def test_the_jacobian_of_an_autoguide_is_part_of_its_kl(autoguide):
    guide, x = autoguide
    draws = torch.tensor([
        [make(500).loss(positive, guide, x) for make in (e.Trace_ELBO, e.TraceAnalyticKL_ELBO)]
        for _ in range(30)
    ])  # fmt: skip
    assert_unbiased((draws[:, 0] - draws[:, 1]).unsqueeze(1), torch.zeros(1))


def test_a_weight_by_site_does_not_reach_an_auxiliary_site(autoguide):
    guide, x = autoguide
    with (
        scale_latents({"z": 0.1}),
        pytest.raises(ValueError, match="names 'z', which the guide dr"),
    ):
        e.Trace_ELBO().loss(positive, guide, x)
    with scale_latents(0.1):
        assert math.isfinite(e.Trace_ELBO().loss(positive, guide, x))


def test_a_guide_of_auxiliary_draws_has_no_density_at_the_models(autoguide):
    guide, x = autoguide
    if isinstance(guide, AutoMultivariateNormal):
        return  # Its auxiliary site lies outside the plate, and is refused for that.
    with pytest.raises(ValueError, match="bracket needs the density .* auxiliary site 'z_unconst"):
        bracket(positive, guide, x)
    with pytest.raises(ValueError, match="sleep phase of TraceRWS_ELBO .* auxiliary site"):
        e.TraceRWS_ELBO(0.5).differentiable_loss(positive, guide, x)


# ------------------------------------------------------------------------- a density that is random


@pytest.mark.parametrize("name", ["TraceSTL_ELBO", "TraceDReG_ELBO", "TraceIWAESTL_ELBO"])
def test_dropout_in_the_density_is_found(name):
    model = VAE((6,), 2, (5,))
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.5))
    guide, x = MeanFieldGuide(model, encoder=encoder), torch.rand(9, 6).round()
    message = "density of 'z' came out another; .* such as dropout.*Trace_ELBO"
    with pytest.raises(ValueError, match=message):
        zoo.ESTIMATORS[name](num_particles=2).differentiable_loss(model, guide, x)
    guide.eval()
    zoo.ESTIMATORS[name](num_particles=2).differentiable_loss(model, guide, x).backward()


def test_fit_finds_it_before_a_run_begins(tmp_path):
    import ppl_vae

    model = VAE((6,), 2, (5,))
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.5))
    guide = MeanFieldGuide(model, encoder=encoder)
    with pytest.raises(ValueError, match="such as dropout"):
        ppl_vae.fit(
            model, guide, torch.rand(40, 6).round(), estimator=e.TraceDReG_ELBO(2), num_steps=2,
            out=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_second_run_does_not_move_batch_statistics_again():
    model = VAE((6,), 2, (5,))
    x, moved = torch.rand(9, 6).round(), []
    for elbo in (e.Trace_ELBO(), e.TraceSTL_ELBO(), e.TraceDReG_ELBO(3)):
        torch.manual_seed(0)
        norm = torch.nn.BatchNorm1d(8)
        guide = MeanFieldGuide(model, encoder=torch.nn.Sequential(torch.nn.Linear(6, 8), norm))
        elbo.loss_and_grads(model, guide, x)
        moved.append(norm.running_mean.clone())
        assert norm.num_batches_tracked == 1
    assert torch.equal(moved[0], moved[1]) and torch.equal(moved[0], moved[2])


def test_nor_does_it_move_those_of_a_model_that_the_guide_runs():
    counts = []
    for elbo in (e.Trace_ELBO(), e.TraceSTL_ELBO()):
        model = HierarchicalVAE((6,), (3, 2), (5,), (4,))
        norm = torch.nn.BatchNorm1d(2)
        model.priors[0].insert(0, norm)
        guide = LadderGuide(model, (5,), (4,))
        counts.append(-norm.num_batches_tracked)
        elbo.loss_and_grads(model, guide, torch.rand(9, 6).round())
        counts[-1] += norm.num_batches_tracked
    assert counts[0] == counts[1] == 2  # The guide's run of it, and its own.


# -------------------------------------------------------------------------------------------- flows


@pytest.mark.parametrize("make", [transforms.affine_autoregressive, transforms.affine_coupling])
@pytest.mark.parametrize("name", ["TraceSTL_ELBO", "TraceDReG_ELBO"])
def test_the_parameters_of_a_flow_are_stopped_too(name, make):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    flow = make(2, hidden_dims=[6])

    def guide(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x), dim=-1):
            base = dist.Normal(0.5 * x, 0.7).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    x, leaves = torch.randn(3, 2), list(flow.parameters())
    how = (1, 600) if name == "TraceSTL_ELBO" else (2, 300)
    found = []
    plain = e.Trace_ELBO if name == "TraceSTL_ELBO" else e.TraceIWAE_ELBO
    for cls in (plain, zoo.ESTIMATORS[name]):
        elbo, draws = cls(how[0], num_outer=how[1]), []
        for _ in range(30):
            loss = elbo.differentiable_loss(model, guide, x)
            draws.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)]))
        found.append(torch.stack(draws))
    one, other = found
    error = ((one.var(0) + other.var(0)) / 30).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() <= 5 * error + 1e-12).all()
    assert (one.mean(0).abs() > 5 * error).any()


@pytest.mark.parametrize("name", ["TraceSTL_ELBO", "TraceDReG_ELBO", "TraceVIMCO_ELBO"])
def test_a_flow_without_an_inverse_has_no_density_at_given_values(name):
    flow = transforms.planar(2)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x), dim=-1):
            base = dist.Normal(0.5 * x, 0.7).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    with pytest.raises(ValueError, match="a flow without an inverse.*Trace_ELBO, TraceIWAE_ELBO"):
        zoo.ESTIMATORS[name](num_particles=2).differentiable_loss(model, guide, torch.randn(3, 2))
    e.TraceIWAE_ELBO(2).differentiable_loss(model, guide, torch.randn(3, 2)).backward()


# ---------------------------------------------------------------------------- weights that are zero


@pytest.mark.parametrize("name", [n for n in WEIGHTED if n not in (
    "TraceScoreFunction_ELBO", "TraceTVO_ELBO", "TraceCIWAE_ELBO")])  # fmt: skip
def test_one_particle_of_weight_zero_is_no_harm(name):
    """Means of log w are truly minus infinity; sums of w are not."""
    shift = torch.tensor(0.2, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.factor("wall", torch.where(z > 0, 0.0, -math.inf))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(shift, 1.0).expand([len(x)]))

    awake = {"insomnia": 1.0} if name == "TraceRWS_ELBO" else {}
    elbo = zoo.estimator(name, 30, max_plate_nesting=1, **awake)
    loss = elbo.differentiable_loss(model, guide, torch.tensor([0.3, 1.0]))
    (gradient,) = torch.autograd.grad(loss, shift)
    assert loss.isfinite() and gradient.isfinite()


def test_a_baseline_forgets_what_is_not_finite():
    baseline = e.DecayingAverage(0.5)
    for value in (4.0, -math.inf, math.nan, 4.0):
        baseline(torch.full((1, 1, 2), value))
    assert baseline(torch.zeros(1, 1, 1)).item() == pytest.approx(4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_renyi_near_one_is_no_noise(dtype):
    log_w = (5 * torch.randn(1, 50, 2)).to(dtype)

    class Fixed:
        log_weights = log_w

    for gap in (1e-2, 1e-3, 1e-5, 1e-7, 1e-9):
        for alpha in (1 - gap, 1 + gap):
            found = e.TraceRenyi_ELBO(alpha)._bound(Fixed).double()
            exact = log_w.double()
            # To second order, the mean and half of (1 - alpha) times the variance.
            expected = exact.mean(1) + 0.5 * (1 - alpha) * exact.var(1, correction=0)
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=300 * gap**2 + 2e-6)


# ----------------------------------------------------------- what is not an observation of the data


def test_a_deterministic_site_is_no_observation():
    def model(x):
        weight = pyro.deterministic("w", torch.tensor(2.0), event_dim=0)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = pyro.deterministic("mean", weight * z, event_dim=0)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            loc = pyro.deterministic("loc", 0.4 * x, event_dim=0)
            pyro.sample("z", dist.Normal(loc, 0.2**0.5))

    x = torch.randn(5)
    truth = dist.Normal(0.0, 5**0.5).log_prob(x).sum().item()
    for name in SAMPLED:
        assert -zoo.estimator(name, 3).loss(model, guide, x) == pytest.approx(truth, rel=1e-9)
    e.TraceRWS_ELBO(0.5).differentiable_loss(model, guide, x)
    found = bracket(model, guide, x)
    torch.testing.assert_close(found.upper, found.lower, rtol=0, atol=1e-8)


def test_a_model_that_reads_its_data_cannot_be_simulated():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) + before, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.3 * x.sum(1), 1.0))

    x = torch.randn(5, 3)
    for call in (
        lambda: bracket(model, guide, x),
        lambda: e.TraceRWS_ELBO(0.5).differentiable_loss(model, guide, x),
    ):
        with pytest.raises(ValueError, match="distribution of 'x' depends on the data themselves"):
            call()


@pytest.mark.parametrize("of_z", ["rows", "columns"])
def test_of_several_plates_the_one_around_all_is_the_datas(of_z):
    def pair(rows_name, columns_name):
        def program(x, obs):
            rows = pyro.plate(rows_name, x.shape[0], dim=-2)
            columns = pyro.plate(columns_name, x.shape[1], dim=-1)
            with rows if of_z == "rows" else columns:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with rows, columns:
                if obs:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return (lambda x: program(x, True)), (lambda x: program(x, False))

    x, losses = torch.randn(4, 3), []
    elbo = e.TraceIWAE_ELBO(3, max_plate_nesting=2)
    named = ("data", "other") if of_z == "rows" else ("other", "data")
    for names in (named, ("one", "two")):
        torch.manual_seed(3)
        losses.append(elbo.loss(*pair(*names), x))
    assert losses[0] == losses[1]


def test_of_plates_that_are_all_around_everything_none_is_guessed():
    def program(x, obs):
        with pyro.plate("one", x.shape[0], dim=-2), pyro.plate("two", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if obs:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="plates 'one', 'two', and none of them is named 'data'"):
        e.TraceIWAE_ELBO(3).loss(
            lambda x: program(x, True), lambda x: program(x, False), torch.randn(4, 3)
        )


def test_bracket_refuses_a_global_latent():
    def model(x):
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(s, 1.0), obs=x)

    with pytest.raises(ValueError, match="bracket weighs each datum .* 's' lies outside"):
        bracket(model, lambda x: pyro.sample("s", dist.Normal(0.0, 1.0)), torch.randn(3))


def test_three_levels_have_their_weight_once():
    """DReG of z1 -> z2 -> z3 against the whole derivative."""
    scale = torch.tensor([0.8, 0.7, 0.6, 0.5])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z3 = pyro.sample("z3", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(0.9 * z3, scale[0]).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(1.1 * z2, scale[1]).to_event(1))
            pyro.sample("x", dist.Normal(z1, scale[2]).to_event(1), obs=x)

    loc = torch.tensor([[0.0] * 4])[0]
    # z3 = e3, z2 = .9 z3 + .8 e2, ...
    rows = [[0.99 * 1.0, 0.88, 0.7, 0], [0.9, 0.8, 0, 0], [1, 0, 0, 0], [0.99, 0.88, 0.7, 0.6]]
    factor = torch.tensor(rows)
    guide = Leaves(loc, factor @ factor.mT, {"z1": [0], "z2": [1], "z3": [2]}, 1)
    x, found = torch.randn(3, 1), []
    with torch.no_grad():
        for leaf in guide.leaves:
            leaf.add_(0.2 * torch.randn(leaf.shape))
    for cls in (e.TraceIWAE_ELBO, e.TraceDReG_ELBO):
        elbo, draws = cls(3, num_outer=3000, max_plate_nesting=1), []
        for _ in range(40):
            loss = elbo.differentiable_loss(model, guide, x)
            gradients = torch.autograd.grad(loss, guide.leaves)
            draws.append(torch.cat([g.flatten() for g in gradients]))
        found.append(torch.stack(draws))
    one, other = found
    error = ((one.var(0) + other.var(0)) / 40).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() <= 5 * error).all()
    assert (one.mean(0).abs() > 10 * error).any()


def test_a_users_scale_is_no_part_of_the_score():
    """1/N around everything, as is often done: the TVO of one partition is the ELBO."""
    loc = torch.tensor(0.5, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 1.0).expand([len(x)]))

    x, found = torch.tensor([1.0, 2.0]), []
    for elbo in (e.TraceTVO_ELBO(1, 0.5, 3000), e.TraceScoreFunction_ELBO(num_particles=3000)):
        draws = []
        for _ in range(30):
            with poutine.scale(scale=0.1):
                loss = elbo.differentiable_loss(model, guide, x)
            draws.append(torch.autograd.grad(loss, loc)[0])
        found.append(torch.stack(draws).unsqueeze(1))
    truth = torch.tensor([0.1 * (2 * 0.5 * 2 - 3.0)])
    for draws in found:
        assert_unbiased(draws, truth)
