"""Families and structures of guides: what they can represent, against closed forms.

Shapes: N data, D dimensions of all latents together.
"""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import condition, two_level, two_level_joint
from pyro import poutine
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import ppl_vae
from ppl_vae import families, guides
from ppl_vae.estimators import Trace_ELBO, TraceSTL_ELBO
from ppl_vae.evaluate import average_terms
from ppl_vae.handlers import scale_latents
from ppl_vae.models import LinearGaussian, Model
from ppl_vae.testing import check_guide

# --------------------------------------------------------------------------- what can be reached


def precision(joint, given):
    """Of the posterior of all latents given x."""
    loc, covariance = joint
    _, covariance = condition(loc, covariance, torch.zeros(given), given)
    return torch.linalg.inv(covariance)


def best_gap(joint, given, blocks):
    """The least KL(q || p(z | x)) of a q that is independent between blocks, in nats."""
    p = precision(joint, given)
    apart = sum(p[b][:, b].logdet() for b in blocks)
    return 0.5 * (apart - p.logdet()).item()


def trained_gap(model, guide, num_features, num_steps=800, estimator=TraceSTL_ELBO):
    """log p(x) minus the ELBO of a guide trained with a decaying learning rate, and its error."""
    prior = torch.zeros(1000, num_features)
    x = ppl_vae.evaluate.sample_prior(model, prior, seed=1)
    ppl_vae.fit(
        model, guide, x, estimator=estimator(4), num_steps=num_steps, batch_size=200,
        optimizer=partial(Adam, lr=3e-2), lr_schedule=partial(CosineAnnealingLR, T_max=num_steps),
        log_every=num_steps,
    )  # fmt: skip
    terms = average_terms(model, guide, x, num_particles=50)
    gap = model.log_marginal(x) - terms.elbo
    return gap.mean().item(), gap.std().item() / math.sqrt(len(x))


LINEAR = {"encoder": lambda shape: torch.nn.Flatten()}
FULL = families.FullRankNormal
LOADING = torch.tensor([[1.0, 0.8], [0.6, 0.9], [-0.7, -0.5]], dtype=torch.float64)


def correlated():
    """One level whose posterior is far from diagonal."""
    return LinearGaussian(LOADING, 0.4)


def correlated_joint():
    eye = torch.eye(2)
    x = LOADING @ LOADING.mT + 0.16 * torch.eye(3)
    return torch.zeros(5), torch.cat([torch.cat([eye, LOADING.mT], 1), torch.cat([LOADING, x], 1)])


ONE = (correlated, correlated_joint, 3)
TWO = (two_level, lambda: (torch.zeros(7), two_level_joint()), 2)

CASES = {
    "mean field": (ONE, lambda m: guides.MeanFieldGuide(m, **LINEAR), [[0], [1]]),
    "diagonal family": (
        ONE, lambda m: guides.FamilyGuide(m, (), families.DiagonalNormal(), **LINEAR), [[0], [1]]),
    "full rank": (ONE, lambda m: guides.FullRankGuide(m, **LINEAR), [[0, 1]]),
    "low rank": (ONE, lambda m: guides.LowRankGuide(m, rank=1, **LINEAR), [[0, 1]]),
    "inverse autoregressive": (
        ONE, lambda m: guides.IAFGuide(m, flow_hidden=(8,), **LINEAR), [[0, 1]]),
    "neural spline": (
        ONE, lambda m: guides.NeuralSplineGuide(m, flow_hidden=(8,), **LINEAR), [[0, 1]]),
    "independent heads": (
        TWO, lambda m: guides.FamilyGuide(m, (), FULL(), **LINEAR), [[0, 1, 2], [3, 4]]),
    "bottom-up": (
        TWO, lambda m: guides.BottomUpGuide(m, (), (), FULL(), **LINEAR), [[0, 1, 2, 3, 4]]),
    "top-down": (
        TWO, lambda m: guides.TopDownGuide(m, (), (), FULL(), **LINEAR), [[0, 1, 2, 3, 4]]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_trained_guide_reaches_the_optimum_of_its_family(case):
    (make_model, joint, num_features), make_guide, blocks = CASES[case]
    model = make_model()
    # Far from the optimum the path derivative of a spline, whose slope may be any, is all noise.
    how = {"estimator": Trace_ELBO} if case == "neural spline" else {}
    gap, error = trained_gap(model, make_guide(model), num_features, **how)
    best = best_gap(joint(), num_features, blocks)
    assert best == pytest.approx(0, abs=1e-9) or best > 0.1  # There is something to tell apart.
    assert best - 5 * error - 1e-9 <= gap <= best + 0.03 + 5 * error


class ThreeLevels(Model):
    """A linear-Gaussian chain of three.

    The loadings have orthogonal columns: what x says of a level is diagonal, and so is what the
    model says of it.
    """

    def __init__(self):
        super().__init__((3,))
        self.w1 = torch.tensor([[1.0, 0.0], [0.0, 0.8], [0.5, 0.0]])
        self.w2, self.w3 = torch.tensor([[0.9, 0.0], [0.0, -0.7]]), torch.tensor([[0.8], [-0.6]])

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z3 = pyro.sample("z3", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(z3 @ self.w3.mT, 0.7).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2 @ self.w2.mT, 0.6).to_event(1))
            return pyro.sample("x", dist.Normal(z1 @ self.w1.mT, 0.5).to_event(1), obs=x)

    def log_marginal(self, x):
        c2 = self.w3 @ self.w3.mT + 0.7**2 * torch.eye(2)
        c1 = self.w2 @ c2 @ self.w2.mT + 0.6**2 * torch.eye(2)
        c0 = self.w1 @ c1 @ self.w1.mT + 0.5**2 * torch.eye(3)
        return dist.MultivariateNormal(torch.zeros(3), c0).log_prob(x)


STRUCTURED = {
    "ladder": lambda m: guides.LadderGuide(m, (), (), **LINEAR),
    "top-down": lambda m: guides.TopDownGuide(m, (), (), FULL(), **LINEAR),
    "bottom-up": lambda m: guides.BottomUpGuide(m, (), (), FULL(), **LINEAR),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_three_levels_are_exact_where_the_posterior_factorizes_so(name):
    model = ThreeLevels()
    guide = STRUCTURED[name](model)
    assert sorted(guide.latent_sites) == ["z1", "z2", "z3"]
    gap, error = trained_gap(model, guide, 3, num_steps=600)
    assert -5 * error - 1e-9 <= gap <= 0.03 + 5 * error
    # Levels that do not see each other cannot.
    apart = guides.FamilyGuide(model, (), FULL(), **LINEAR)
    gap, error = trained_gap(model, apart, 3, num_steps=200)
    assert gap > 0.1 + 5 * error


def test_a_ladder_merges_two_normals():
    """One level of two: the density proportional to the product, by hand."""
    model = ppl_vae.models.HierarchicalVAE((6,), (3, 2), (5,), (4,))
    guide, x = guides.LadderGuide(model, (5,), (4,)), torch.rand(7, 6)
    trace = poutine.trace(guide).get_trace(x)
    features = guide.encoder(x)
    z2 = trace.nodes["z2"]["value"]
    for name, seen in (("z1", features), ("z2", guide.upwards[0](features))):
        loc, log_variance = guide.heads[name](seen).chunk(2, -1)
        found = trace.nodes[name]["fn"].base_dist
        if name == "z2":
            torch.testing.assert_close(found.loc, loc)
            torch.testing.assert_close(found.variance, log_variance.exp())
            continue
        own, above = 1 / log_variance.exp(), 1 / model.priors[0](z2)[1] ** 2
        torch.testing.assert_close(found.variance, 1 / (own + above))
        mean = (loc * own + model.priors[0](z2)[0] * above) / (own + above)
        torch.testing.assert_close(found.loc, mean)


def test_a_ladder_runs_no_decoder_and_hides_what_the_model_observes():
    model = ppl_vae.models.HierarchicalVAE((6,), (3, 2), (5,), (4,))
    guide, x = guides.LadderGuide(model, (5,), (4,)), torch.rand(7, 6)
    model.decoder.register_forward_hook(lambda *_: pytest.fail("the decoder ran"))
    trace = poutine.trace(guide).get_trace(x)
    assert set(trace.nodes) & {"x", "z1", "z2"} == {"z1", "z2"}
    for elbo in (Trace_ELBO(), TraceSTL_ELBO()):
        model.decoder._forward_hooks.clear()
        model.zero_grad()
        elbo.loss_and_grads(model, guide, x)
        assert (model.priors[0][-1].linear.weight.grad != 0).any()


def test_a_ladder_refuses_what_it_cannot_merge():
    for program in (three_sites, nested):
        with pytest.raises(ValueError, match="LadderGuide: the model's site .*; accepted are"):
            guides.LadderGuide(program).setup(torch.rand(5, 3))


# ------------------------------------------------------------------------- beyond amortization


def test_refinement_closes_an_amortization_gap_and_leaves_the_approximation_gap():
    """Numbers off the optimum by a bias: the steps bring them back, each datum by itself."""
    model = correlated()
    guide = guides.MeanFieldGuide(model, **LINEAR)
    x = ppl_vae.evaluate.sample_prior(model, torch.zeros(200, 3), seed=1)
    best = best_gap(correlated_joint(), 3, [[0], [1]])
    truth, gaps = model.log_marginal(x), []
    for steps in (0, 3, 40):
        q = guide if steps == 0 else guides.SemiAmortizedGuide(
            guide, steps, step_size=0.05, momentum=0.5, num_particles=2)  # fmt: skip
        terms = average_terms(model, q, x, num_particles=20)
        gaps.append((truth - terms.elbo).mean().item())
    assert gaps[0] > gaps[1] + 0.2 and gaps[1] > gaps[2] + 0.2  # The encoder is not trained at all.
    # Steps of one size end in their own noise; nine tenths of the way is what they are for.
    assert best - 0.05 < gaps[2] < best + 0.1 * (gaps[0] - best)


def test_refinement_climbs_under_the_weight_in_force():
    """With weight 0 on the KL nothing holds the numbers back but the reconstruction."""
    model = correlated()
    guide = guides.SemiAmortizedGuide(
        guides.MeanFieldGuide(model, **LINEAR), 40, step_size=0.05, num_particles=4
    )
    x = ppl_vae.evaluate.sample_prior(model, torch.zeros(50, 3), seed=1)
    scales = []
    for weight in (0.0, 1.0, 20.0):
        with scale_latents(weight):
            scales.append(poutine.trace(guide).get_trace(x).nodes["z"]["fn"].stddev.mean().item())
    assert scales[0] < 0.8 * scales[1] and scales[1] < 0.8 * scales[2]


def test_second_order_is_the_gradient_through_the_steps():
    """Central differences in a bias of the head; first order is another gradient."""
    model = correlated()
    base = guides.MeanFieldGuide(model, **LINEAR)
    x = ppl_vae.evaluate.sample_prior(model, torch.zeros(5, 3), seed=1)
    bias = base.heads["z"].network.bias

    def value(second_order):
        guide = guides.SemiAmortizedGuide(base, 3, clip=1e9, second_order=second_order)
        torch.manual_seed(5)
        return Trace_ELBO().differentiable_loss(model, guide, x)

    numeric = torch.zeros_like(bias)
    for i in range(len(bias)):
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                bias[i] += step
            ends.append(value(True).item())
            with torch.no_grad():
                bias[i] -= step
        numeric[i] = (ends[0] - ends[1]) / 2e-5
    through, past = (torch.autograd.grad(value(order), bias)[0] for order in (True, False))
    torch.testing.assert_close(through, numeric, rtol=1e-5, atol=1e-5)
    assert (past - numeric).abs().max() > 0.1


def test_a_per_datum_guide_serves_its_data_alone():
    model = correlated()
    x = torch.randn(4, 3)
    guide = guides.PerDatumGuide(guides.MeanFieldGuide(model, **LINEAR), x)
    assert [tuple(p.shape) for p in guide.free_parameters()] == [(4, 4)]
    guide(x.clone())
    with pytest.raises(ValueError, match=r"the 4 data .* given others, of shape \[2, 3\]"):
        guide(x[:2])
    with pytest.raises(ValueError, match="PerDatumGuide: the guide is function"):
        guides.PerDatumGuide(lambda x: None, x)


def test_wrappers_of_one_guide_leave_it_and_each_other_alone():
    model = ppl_vae.models.VAE((6,), 2, (5,))
    x = torch.rand(8, 6).round()
    base = guides.MeanFieldGuide(model, (5,))
    base(x)  # Pyro has seen it before.
    refined = guides.SemiAmortizedGuide(base, 2)
    guides.PerDatumGuide(base, x)
    guides.FrozenGuide(refined, ["base.encoder"]).thaw()
    assert base._pyro_name == "guide"
    with pyro.get_param_store().scope():
        svi = pyro.infer.SVI(model, refined, pyro.optim.Adam({"lr": 1e-2}), loss=Trace_ELBO())
        before = [p.detach().clone() for p in refined.parameters()]
        svi.step(x)
        after = list(refined.parameters())
    assert all((a != b).any() for a, b in zip(after, before, strict=True))


def test_a_frozen_guide_keeps_what_it_is_told_to():
    model = ppl_vae.models.VAE((6,), 2, (5,))
    network = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5))
    guide = guides.MeanFieldGuide(model, encoder=network)
    frozen = guides.FrozenGuide(guide)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    ppl_vae.fit(model, frozen, torch.rand(40, 6).round(), num_steps=5)
    moved = {n for n, v in frozen.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {"base.heads.z.network.weight", "base.heads.z.network.bias"}
    assert frozen.train().training and not network.training
    assert frozen.thaw() is guide and network.training
    assert all(p.requires_grad for p in guide.parameters())
    whole = guides.FrozenGuide(guide, [""])
    assert not any(p.requires_grad for p in whole.parameters())
    with pytest.raises(ValueError, match=r"MeanFieldGuide has no module 'decoder'; .* heads"):
        guides.FrozenGuide(guide, ["decoder"])


def test_arguments_of_refinement_are_checked():
    guide = guides.MeanFieldGuide(correlated())
    for how, message in (
        ({"num_steps": 0}, "num_steps is 0"),
        ({"step_size": 0.0}, "step_size is 0.0; accepted is > 0"),
        ({"momentum": 1.0}, "momentum is 1.0; accepted is 0 to < 1"),
        ({"clip": -1}, "clip is -1"),
    ):
        with pytest.raises(ValueError, match=f"SemiAmortizedGuide: {message}"):
            guides.SemiAmortizedGuide(guide, **how)
    with pytest.raises(ValueError, match="guide is GaussianMixtureGuide; accepted is an Amortized"):
        guides.SemiAmortizedGuide(
            guides.GaussianMixtureGuide(ppl_vae.models.GaussianMixtureVAE((6,), 2, 2))
        )


def test_a_mixture_has_two_modes_where_one_normal_has_one():
    """x = z^2 and noise: the posterior of z has a mode on either side."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z**2, 0.2).to_event(1), obs=x)

    x = 0.7 + 0.3 * torch.rand(200, 1)
    grid = torch.linspace(-4, 4, 4001)
    joint = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(grid**2, 0.2).log_prob(x)
    truth = torch.trapezoid(joint.exp(), grid).log()
    gaps = []
    for guide in (guides.MeanFieldGuide(model, (16,)), guides.MixtureGuide(model, (16,), 2)):
        ppl_vae.fit(
            model, guide, x, num_steps=1500, optimizer=partial(Adam, lr=1e-2), batch_size=50,
            estimator=ppl_vae.estimators.TraceIWAE_ELBO(16), log_every=1500,
        )  # fmt: skip
        elbo = average_terms(model, guide, x, num_particles=200).elbo
        gaps.append((truth - elbo).mean().item())
    assert gaps[0] > 0.5 and 0 < gaps[1] < 0.2 * gaps[0]


# ------------------------------------------------------------------------------ what can be guided


def three_sites(x):
    with pyro.plate("data", len(x), dim=-1):
        rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 1.0))  # positive, a scalar
        mix = pyro.sample("mix", dist.Dirichlet(x.new_ones(3)))  # on the simplex
        table = pyro.sample("table", dist.Normal(x.new_zeros(2, 2), 1.0).to_event(2))
        loc = rate.unsqueeze(-1) * mix + table.sum((-1, -2)).unsqueeze(-1)
        pyro.sample("x", dist.Normal(loc, 0.3).to_event(1), obs=x)


def nested(x):
    with pyro.plate("data", len(x), dim=-1), pyro.plate("part", 3, dim=-2):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x.mT)


def second_dimension(x):
    """The data plate is not the rightmost."""
    data = pyro.plate("data", len(x), dim=-2)
    with data:
        top = pyro.sample("top", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        low = pyro.sample("low", dist.Normal(top, 1.0).to_event(1))
        with pyro.plate("pixel", 3, dim=-1):
            pyro.sample("x", dist.Normal(low.sum(-1), 1.0), obs=x)


FREE = {
    "family": lambda m: guides.FamilyGuide(m, (5,), families.DiagonalNormal(), activation="tanh"),
    "full rank": lambda m: guides.FullRankGuide(m, (5,), activation="tanh"),
    "low rank": lambda m: guides.LowRankGuide(m, (5,), activation="tanh"),
    "mixture": lambda m: guides.MixtureGuide(m, (5,), activation="tanh"),
}
CHAINED = {
    "top-down": lambda m: guides.TopDownGuide(m, (5,), (4,), FULL(), activation="tanh"),
    "bottom-up": lambda m: guides.BottomUpGuide(m, (5,), (4,), activation="tanh"),
}


@pytest.mark.parametrize("name", [*FREE, *CHAINED])
@pytest.mark.parametrize("model", [three_sites, second_dimension])
def test_any_program_is_guided(model, name):
    guide = {**FREE, **CHAINED}[name](model)
    check_guide(guide, model, torch.rand(5, 3))


@pytest.mark.parametrize("name", FREE)
def test_each_cell_of_a_nested_plate_has_its_own(name):
    guide = FREE[name](nested)
    check_guide(guide, nested, torch.rand(5, 3))


@pytest.mark.parametrize("name", CHAINED)
def test_a_chain_is_of_the_data_plate(name):
    def with_global(x):
        pyro.sample("s", dist.Normal(0.0, 1.0))
        three_sites(x)

    for model, where in ((nested, r"\['part', 'data'\]"), (with_global, "none")):
        with pytest.raises(ValueError, match=f"lies in {where}; use MeanFieldGuide"):
            CHAINED[name](model).setup(torch.rand(5, 3))


def test_a_bottom_up_guide_shows_x_to_the_lowest_level_alone():
    model = ppl_vae.models.HierarchicalVAE((6,), (3, 2, 2), (5,), (4,))
    guide = guides.BottomUpGuide(model, (5,), (4,))
    assert list(guide.latent_sites) == ["z1", "z2", "z3"]
    sees = [head.network.of_features is not None for head in guide.heads.values()]
    looks = [head.network.of_drawn is not None for head in guide.heads.values()]
    assert sees == [True, False, False] and looks == [False, True, True]
    guide = guides.TopDownGuide(model, (5,), (4,))
    assert list(guide.latent_sites) == ["z3", "z2", "z1"]
    drawn = [head.network.of_drawn for head in guide.heads.values()]
    assert drawn[0] is None and [layer.in_features for layer in drawn[1:]] == [2, 4]


# ----------------------------------------------------------------------------------- the families


def test_diagonal_is_a_normal_of_locations_and_log_variances():
    member, values = families.DiagonalNormal().make(3), torch.randn(4, 6)
    z = torch.randn(4, 3)
    loc, log_variance = values[:, :3], values[:, 3:]
    each = -0.5 * ((z - loc) ** 2 / log_variance.exp() + log_variance + math.log(2 * math.pi))
    torch.testing.assert_close(member(values).log_prob(z), each.sum(-1))


def test_full_rank_is_the_normal_of_its_triangle():
    member, values = FULL().make(3), torch.randn(4, 9)
    found = member(values)
    tril = torch.zeros(4, 3, 3)
    for i in range(3):
        tril[:, i, i] = torch.nn.functional.softplus(values[:, 3 + i]) + 1e-6
    for n, (i, j) in enumerate([(1, 0), (2, 0), (2, 1)]):
        tril[:, i, j] = values[:, 6 + n]
    torch.testing.assert_close(found.scale_tril, tril)
    torch.testing.assert_close(found.loc, values[:, :3])
    assert FULL().make(1)(torch.zeros(2, 2)).scale_tril.shape == (2, 1, 1)


def test_low_rank_is_the_normal_of_its_factor():
    member, values = families.LowRankNormal(2).make(3), torch.randn(4, 12)
    found = member(values)
    factor = values[:, 6:].reshape(4, 3, 2)
    scale = torch.nn.functional.softplus(values[:, 3:6]) + 1e-6
    covariance = factor @ factor.mT + (scale**2).diag_embed()
    torch.testing.assert_close(found.covariance_matrix, covariance)


def test_a_mixtures_density_is_the_sum():
    member, values = families.Mixture(3).make(2), torch.randn(4, 15)
    z = torch.randn(4, 2)
    loc = values[:, :6].reshape(4, 3, 2) + torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1)
    scale = torch.nn.functional.softplus(values[:, 6:12].reshape(4, 3, 2)) + 1e-6
    parts = dist.Normal(loc, scale).log_prob(z.unsqueeze(1)).sum(-1)
    expected = (values[:, 12:].log_softmax(-1) + parts).logsumexp(-1)
    torch.testing.assert_close(member(values).log_prob(z), expected)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: families.LowRankNormal(0),
            "LowRankNormal: rank is 0; accepted is an integer >= 1",
        ),
        (lambda: families.Mixture(1), "Mixture: num_components is 1; accepted is an integer >= 2"),
        (
            lambda: guides.TopDownGuide(two_level(), (5,), (0,)),
            r"TopDownGuide: latent_hidden is \[0\]; accepted are integers >= 1",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
