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
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import ppl_vae
from ppl_vae import families, guides
from ppl_vae.estimators import Trace_ELBO, TraceSTL_ELBO
from ppl_vae.evaluate import average_terms
from ppl_vae.models import LinearGaussian
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
