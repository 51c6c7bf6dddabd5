"""Learned priors, and the VampPrior: densities written out, gradients in mean, who is refused.

Shapes: N data, C components, D dimensions.
"""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.optim import Adam

import ppl_vae
from ppl_vae import estimators as e
from ppl_vae import families, guides, models
from ppl_vae.config import describe, instantiate
from ppl_vae.models import VAE, Gaussian, HierarchicalVAE, VampPrior
from ppl_vae.testing import check_model, check_unbiased

PRIORS = {
    "mixture": lambda: families.Mixture(3),
    "full rank": families.FullRankNormal,
    "masked autoregressive": lambda: families.MaskedAutoregressive(context_dim=2, hidden=(5,)),
    "inverse autoregressive": lambda: families.InverseAutoregressive(context_dim=2, hidden=(5,)),
    "spline": lambda: families.NeuralSpline(1, 3, context_dim=2, hidden=(5,)),
}

LEVELS = {
    "one": lambda **how: VAE((4,), 2, (5,), likelihood=Gaussian(0.5), **how),
    "two": lambda **how: HierarchicalVAE((4,), (3, 2), (5,), (4,), likelihood=Gaussian(0.5), **how),
}


def top(levels):
    return {"one": "z", "two": "z2"}[levels]


def prior_at(model, x, site, value):
    held = poutine.condition(model, {site: value})
    trace = poutine.trace(held).get_trace(x)
    trace.compute_log_prob()
    return trace.nodes[site]["log_prob"]


# -------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", PRIORS)
def test_a_learned_prior_is_the_member_at_its_numbers(name, levels):
    model, x = LEVELS[levels](prior=PRIORS[name]()), torch.randn(5, 4)
    check_model(model, x)
    z = torch.randn(5, 2)
    expected = model.prior.member(model.prior.numbers).log_prob(z)
    torch.testing.assert_close(prior_at(model, x, top(levels), z), expected)
    # Estimators take it, with particles and without; the path through the guide included.
    guide = guides.MeanFieldGuide(model, (5,))
    for elbo in (e.TraceIWAE_ELBO(3), e.TraceDReG_ELBO(3), e.TraceAnalyticKL_ELBO(2)):
        model.zero_grad()
        elbo.loss_and_grads(model, guide, x)
        assert (model.prior.numbers.grad != 0).any()


def test_a_mixture_finds_the_clusters_that_one_normal_cannot():
    """x = z and noise, z of three clusters: the true log p(x) is known."""
    centres = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, -1.0]])
    which = torch.randint(3, (600,))
    x = centres[which] + 0.3 * torch.randn(600, 2)
    truth = (dist.Normal(centres, 0.3).to_event(1).log_prob(x.unsqueeze(1)).logsumexp(1)
             - math.log(3)).mean().item()  # fmt: skip
    found = []
    for prior in (None, families.Mixture(6)):
        torch.manual_seed(0)
        model = VAE((2,), 2, (), likelihood=Gaussian(0.1), prior=prior)
        guide = guides.MeanFieldGuide(model, (16,))
        ppl_vae.fit(model, guide, x, num_steps=700, batch_size=100, log_every=700,
                    optimizer=partial(Adam, lr=2e-2))  # fmt: skip
        found.append(ppl_vae.evaluate.log_marginal(model, guide, x, num_particles=200).value.mean())
    plain, mixture = found
    # A generous bound from above: no model beats the true density of many data by much.
    assert plain < truth - 0.4 and truth - 0.15 < mixture < truth + 0.1


@pytest.mark.parametrize("cls", [VAE, HierarchicalVAE])
def test_a_prior_without_density_is_refused_by_name(cls):
    for family in (families.Planar(), families.Sylvester()):
        with pytest.raises(ValueError, match=f"{cls.__name__}: prior is {type(family).__name__}"):
            cls((4,), prior=family)
    with pytest.raises(ValueError, match="prior is 'mixture'; accepted is a family"):
        cls((4,), prior="mixture")


# --------------------------------------------------------------------------------------- VampPrior


def vamp(levels, make_guide=guides.MeanFieldGuide, **how):
    model = VampPrior(LEVELS[levels](), num_components=6, bounded=False)
    guide = make_guide(model, (5,), **how)
    return model.bind(guide), guide


GUIDES = [guides.MeanFieldGuide, guides.FullRankGuide, guides.MixtureGuide, guides.IAFGuide,
          guides.TopDownGuide, guides.LadderGuide]  # fmt: skip


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("make_guide", GUIDES)
def test_its_density_is_the_mean_of_the_guides_at_the_pseudo_inputs(levels, make_guide):
    model, guide = vamp(levels, make_guide)
    x, z, site = torch.randn(5, 4), torch.randn(5, 2), top(levels)
    check_model(model, x)
    densities = []
    for u in model.pseudo_inputs:
        fn = poutine.trace(guide).get_trace(u.unsqueeze(0)).nodes[site]["fn"]
        densities.append(fn.log_prob(z))
    expected = torch.stack(densities).logsumexp(0) - math.log(6)
    torch.testing.assert_close(prior_at(model, x, site, z), expected)


def test_its_draws_are_of_the_mixture():
    model, guide = vamp("one")
    with torch.no_grad():
        x = model.pseudo_inputs
        site = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
        means, variances = site.mean, site.variance
        drawn = poutine.trace(model).get_trace(torch.zeros(20_000, 4))
        z = drawn.nodes["x"]["value"], drawn.nodes["z"]["value"]
    z = z[1]
    mean = means.mean(0)
    variance = (variances + means**2).mean(0) - mean**2
    error = z.std(0) / math.sqrt(len(z))
    assert ((z.mean(0) - mean).abs() < 5 * error).all()
    spread = ((z - mean) ** 2).std(0) / math.sqrt(len(z))
    assert ((((z - mean) ** 2).mean(0) - variance).abs() < 5 * spread).all()


def sampled_loss(model, guide, x):
    """Minus the ELBO, by so many particles that it is the truth for those who have few."""
    torch.manual_seed(17)
    return e.Trace_ELBO(num_particles=5_000, max_plate_nesting=1).differentiable_loss(
        model, guide, x
    )


SHARED = {
    "vamp": lambda: vamp("one"),
    "ladder": lambda: pair(LEVELS["two"](), lambda m: guides.LadderGuide(m, (5,), (4,))),
    "refined": lambda: pair(LEVELS["one"](), lambda m: guides.SemiAmortizedGuide(
        guides.MeanFieldGuide(m, (5,)), 2)),
    "refined, second order": lambda: pair(LEVELS["one"](), lambda m: guides.SemiAmortizedGuide(
        guides.MeanFieldGuide(m, (5,)), 2, second_order=True)),
}  # fmt: skip


def pair(model, make):
    return model, make(model)


@pytest.mark.parametrize("name", SHARED)
def test_path_derivatives_are_unbiased_where_one_program_reads_the_others_parameters(name):
    model, guide = SHARED[name]()
    x = torch.randn(2, 4)
    check_unbiased(
        e.TraceSTL_ELBO, reference=sampled_loss, pair=(model, guide, x), num_particles=20,
        num_draws=15,
    )  # fmt: skip


@pytest.mark.parametrize("levels", LEVELS)
def test_it_is_bound_late(levels):
    x = torch.randn(20, 4)
    model = VampPrior(LEVELS[levels](), num_components=6, bounded=False)
    z = torch.randn(20, 2)
    plain = prior_at(model.base, x, top(levels), z)
    assert torch.equal(prior_at(model, x, top(levels), z), plain)  # Not bound yet.
    for of in (model, model.base):
        guide = guides.MeanFieldGuide(of, (5,))
        before = model.pseudo_numbers.detach().clone()
        ppl_vae.fit(model, guide, x, num_steps=3)
        assert not torch.equal(model.pseudo_numbers, before)
        assert not torch.equal(prior_at(model, x, top(levels), z), plain)
    assert VampPrior(model.base, guide, 3)._guide == (guide,)


@pytest.mark.parametrize(
    "levels, make_guide, message",
    [
        ("one", guides.PlanarGuide, "PlanarGuide has a flow without an inverse; accepted are"),
        ("two", guides.SylvesterGuide, "SylvesterGuide has a flow without an inverse"),
        ("one", guides.DeltaGuide, "DeltaGuide is a point mass; accepted are guides with"),
        ("two", guides.BottomUpGuide, r"BottomUpGuide draws \['z1', 'z2'\] in this order; accep"),
    ],
)
def test_a_guide_that_cannot_be_its_prior_is_refused_by_name(levels, make_guide, message):
    model = VampPrior(LEVELS[levels](), num_components=6)
    with pytest.raises(ValueError, match=message):
        model.bind(make_guide(model, (5,)))
    with pytest.raises(ValueError, match="SemiAmortizedGuide makes q by climbing the ELBO, of whi"):
        model.bind(guides.SemiAmortizedGuide(model))
    assert model._guide == ()
    with pytest.raises(ValueError, match="VampPrior: num_components is 0"):
        VampPrior(model.base, num_components=0)


def test_pseudo_inputs_start_from_data():
    x = torch.rand(50, 4)
    model = VampPrior(VAE((4,), 2, (5,)), num_components=7).start_from(x)
    u = model.pseudo_inputs
    nearest = torch.cdist(u, x.clamp(0.05, 0.95)).min(1).values
    assert u.shape == (7, 4) and (nearest < 1e-6).all()


def test_a_run_with_a_vamp_prior_is_loaded_with_it(tmp_path):
    x = torch.rand(30, 4)
    model = VampPrior(VAE((4,), 2, (5,)), num_components=4)
    guide = guides.FullRankGuide(model, (5,))
    ppl_vae.fit(model, guide, x.round(), num_steps=3, out=tmp_path / "run")
    run = ppl_vae.load_run(tmp_path / "run")
    z, x = torch.randn(5, 2), x[:5]
    found, expected = prior_at(run.model, x, "z", z), prior_at(model, x, "z", z)
    torch.testing.assert_close(found, expected)
    twin = instantiate(describe(model))
    assert isinstance(twin, models.VampPrior) and twin.num_components == 4


def normalized():
    network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5))
    model = VampPrior(VAE((4,), 2, (5,)), num_components=3)
    return model, guides.MeanFieldGuide(model, encoder=network), network[1]


def test_to_be_bound_changes_nothing():
    model, guide, norm = normalized()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    model.bind(guide)
    assert torch.equal(torch.randn(3), expected)
    assert norm.num_batches_tracked == 0
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())


@pytest.mark.parametrize("elbo", [e.Trace_ELBO, e.TraceSTL_ELBO, e.TraceIWAE_ELBO])
def test_running_statistics_are_the_datas(elbo):
    elbo = elbo(num_particles=2, max_plate_nesting=1)
    model, guide, norm = normalized()
    model.bind(guide)
    x = torch.rand(6, 4)
    seen = guide.encoder[0](x)
    elbo.loss_and_grads(model, guide, x)
    # One step of the average that batch normalization keeps: 0.9 of the old, 0.1 of the new.
    torch.testing.assert_close(norm.running_mean, 0.1 * seen.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * seen.var(0))
    assert norm.num_batches_tracked == 1
    assert (model.pseudo_numbers.grad != 0).any()


def test_a_refined_guide_is_refused_however_it_is_wrapped():
    model = VampPrior(VAE((4,), 2, (5,)), num_components=3)
    refined = guides.SemiAmortizedGuide(model, 2)
    for guide in (refined, guides.FrozenGuide(refined, ["base.encoder"])):
        with pytest.raises(ValueError, match=f"{type(guide).__name__} makes q by climbing the EL"):
            model.bind(guide)
    assert not guides.FrozenGuide(guides.MeanFieldGuide(model, (5,))).is_refined


def test_a_learned_priors_numbers_begin_apart():
    numbers = models.priors.Prior(families.FullRankNormal(), 60).numbers.detach()
    assert len(numbers) == 1890 and len(numbers.unique()) == 1890
    # Normals of standard deviation 0.1: the variance of so many has the error 2 / N.
    assert abs(numbers.var() - 0.01) < 5 * 0.01 * math.sqrt(2 / 1890)


def test_a_guide_with_its_plate_elsewhere_is_refused():
    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    model = VampPrior(VAE((4,), 2, (5,)), num_components=6)
    with pytest.raises(ValueError, match=r"a data plate at dim=-1, and guide has .* \[6, 1\]"):
        model.bind(guide)


def test_pseudo_inputs_keep_off_the_ends():
    model = VampPrior(VAE((4,), 2, (5,)), num_components=7)
    for end, expected in ((1.0, 0.95), (0.0, 0.05)):
        found = model.start_from(torch.full((5, 4), end)).pseudo_inputs
        torch.testing.assert_close(found, torch.full((7, 4), expected))


@pytest.mark.parametrize("levels", LEVELS)
def test_its_slope_in_z_is_that_of_the_mixture(levels):
    model, guide = vamp(levels)
    z, site = torch.randn(5, 2, requires_grad=True), top(levels)
    (found,) = torch.autograd.grad(prior_at(model, torch.randn(5, 4), site, z).sum(), z)
    q = poutine.trace(guide).get_trace(model.pseudo_inputs).nodes[site]["fn"].base_dist
    apart = (z.unsqueeze(1) - q.loc) / q.scale
    parts = -0.5 * (apart**2).sum(-1) - q.scale.log().sum(-1)
    # d log sum_c p_c = sum_c w_c d log p_c, with the posterior weights of the components.
    expected = (parts.softmax(-1).unsqueeze(-1) * -apart / q.scale).sum(1)
    torch.testing.assert_close(found, expected.detach())
