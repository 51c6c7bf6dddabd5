"""Free bits, around each estimator that has a KL for each site, against formulas written here.

Shapes: K particles, B data, D units.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from oracle import loc_scale
from torch.distributions import Normal, kl_divergence

from ppl_vae import estimators as e
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.handlers import scale_latents
from ppl_vae.models import VAE, HierarchicalVAE

INNER = {"Trace_ELBO": e.Trace_ELBO, "TraceAnalyticKL_ELBO": e.TraceAnalyticKL_ELBO,
         "TraceSTL_ELBO": e.TraceSTL_ELBO}  # fmt: skip


def bernoulli(logits, x):
    return (x * logits - torch.nn.functional.softplus(logits)).sum()


def gradients(*modules):
    found = [p.grad.clone() for module in modules for p in module.parameters()]
    for module in modules:
        module.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("per", ["site", "unit"])
@pytest.mark.parametrize("nats", [0.0, 0.05, 0.2, 9.0])
@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("inner", INNER)
def test_it_is_the_formula(inner, vectorize, nats, per):
    model = HierarchicalVAE((6,), (3, 2), (5,), (4,))
    guide, x = MeanFieldGuide(model, hidden=(5,)), torch.rand(7, 6).round()
    elbo = e.TraceFreeBits_ELBO(nats, per, INNER[inner](4, vectorize, max_plate_nesting=1))
    torch.manual_seed(3)
    value = elbo.loss_and_grads(model, guide, x)
    found = gradients(model, guide)
    torch.manual_seed(3)
    if vectorize:
        noise = torch.randn(4, 7, 2), torch.randn(4, 7, 3)
    else:
        drawn = [(torch.randn(7, 2), torch.randn(7, 3)) for _ in range(4)]
        noise = tuple(torch.stack([pair[i] for pair in drawn]) for i in (0, 1))
    q2, q1 = (Normal(*loc_scale(guide, x, name)) for name in ("z2", "z1"))
    z2, z1 = q2.loc + q2.scale * noise[0], q1.loc + q1.scale * noise[1]
    p1 = Normal(*model.priors[0](z2))
    if inner == "TraceAnalyticKL_ELBO":
        kls = kl_divergence(q2, Normal(0.0, 1.0)).expand(4, 7, 2), kl_divergence(q1, p1)
    else:
        kls = q2.log_prob(z2) - Normal(0.0, 1.0).log_prob(z2), q1.log_prob(z1) - p1.log_prob(z1)
    held = 0.0
    for kl in kls:
        mean = kl.mean((0, 1))  # [D]
        mean = mean if per == "unit" else mean.sum(0, keepdim=True)
        held = held + torch.where(mean > nats, mean, torch.tensor(nats)).sum()
    expected = -bernoulli(model.decoder(z1), x) / 4 + 7 * held
    assert value == pytest.approx(expected.item(), rel=1e-10)
    expected.backward()
    others = gradients(model, guide)
    if inner == "TraceSTL_ELBO" and nats < 9.0:
        # Without the score the guide's gradients differ; the model's do not.
        found, others = (g[: len(list(model.parameters()))] for g in (found, others))
    for one, other in zip(found, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_below_the_floor_a_site_feels_nothing_of_its_kl():
    model = VAE((6,), 2, (5,))
    guide, x = MeanFieldGuide(model, hidden=(5,)), torch.rand(7, 6).round()
    torch.nn.init.zeros_(model.decoder.layers[0].weight)  # nothing to reconstruct with
    for nats, moved in ((50.0, False), (0.0, True)):
        e.TraceFreeBits_ELBO(nats).loss_and_grads(model, guide, x)
        assert all(bool(g.abs().max() > 1e-8) == moved for g in gradients(guide))


def test_it_is_below_the_elbo_and_a_bound():
    model = zoo.MODELS["HierarchicalVAE"]()
    guide, x = MeanFieldGuide(model, hidden=(4,)), zoo.batch(model)
    losses = []
    for nats in (0.0, 0.5, 5.0):
        torch.manual_seed(3)
        losses.append(e.TraceFreeBits_ELBO(nats, "unit").loss(model, guide, x))
    assert losses[0] < losses[1] < losses[2] and e.TraceFreeBits_ELBO.is_bound


@pytest.mark.parametrize("inner", ["TraceIWAE_ELBO", "TraceScoreFunction_ELBO", "TraceRWS_ELBO"])
@pytest.mark.parametrize("modifier", [e.TraceFreeBits_ELBO, e.TraceCapacity_ELBO])
def test_an_estimator_without_kl_terms_is_refused(modifier, inner):
    message = f"{modifier.__name__} .* KL of each site, and {inner} has none; .* TraceAnalyticKL"
    with pytest.raises(ValueError, match=message):
        modifier(estimator=zoo.ESTIMATORS[inner]())


@pytest.mark.parametrize("weight", [0.5, 0.0, {"z": 2.0}, torch.tensor(0.5)])
def test_a_kl_weight_is_refused(weight):
    model = zoo.MODELS["VAE"]()
    guide, x = MeanFieldGuide(model, hidden=(4,)), zoo.batch(model)
    with (
        scale_latents(weight),
        pytest.raises(ValueError, match=r"TraceFreeBits_ELBO takes no KL weight; .*Constant.1.0"),
    ):
        e.TraceFreeBits_ELBO().loss(model, guide, x)


def test_units_need_a_distribution_that_falls_into_them():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            tril = torch.tensor([[0.8, 0.0], [0.3, 0.5]])
            pyro.sample("z", dist.MultivariateNormal(0.5 * x, scale_tril=tril))

    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match="per is 'unit', and 'z' is a Multiv.*use per='site'"):
        e.TraceFreeBits_ELBO(0.1, "unit").loss(model, guide, x)
    # As a site its KL is closed, full covariance against diagonal.
    covariance = torch.tensor([[0.64, 0.24], [0.24, 0.34]])
    kl = 0.5 * (covariance.trace() + (0.25 * x**2).sum(1) - 2 - covariance.logdet())
    torch.manual_seed(3)
    found = e.TraceFreeBits_ELBO(0.1).loss(model, guide, x)
    torch.manual_seed(3)
    z = guide_draw(x)
    expected = -Normal(z, 1.0).log_prob(x).sum() + kl.sum()
    assert kl.mean() > 0.1 and found == pytest.approx(expected.item(), rel=1e-10)


def guide_draw(x):
    tril = torch.tensor([[0.8, 0.0], [0.3, 0.5]])
    return 0.5 * x + torch.randn(4, 2) @ tril.mT


@pytest.mark.parametrize("rank", [None, 2])
def test_a_full_covariance_against_a_diagonal_has_a_closed_kl(rank):
    from ppl_vae.estimators.kl import _closed_form

    loc, root = torch.randn(4, 3), torch.randn(4, 3, rank or 3)
    diagonal = torch.rand(4, 3) + 0.5
    covariance = root @ root.mT + diagonal.diag_embed()
    q = dist.MultivariateNormal(loc, covariance)
    if rank:
        q = dist.LowRankMultivariateNormal(loc, root, diagonal)
    mean, scale = torch.randn(3), torch.rand(3) + 0.5
    found = _closed_form(q, dist.Normal(mean, scale).to_event(1))
    other = torch.diag(scale**2)
    inverse = torch.linalg.inv(other)
    expected = 0.5 * (
        torch.einsum("ij,bji->b", inverse, covariance)
        + torch.einsum("bi,ij,bj->b", loc - mean, inverse, loc - mean)
        - 3 + other.logdet() - covariance.logdet()
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: e.TraceFreeBits_ELBO(-0.1), "nats is -0.1; accepted is a number >= 0"),
        (lambda: e.TraceFreeBits_ELBO(math.nan), "nats is nan"),
        (lambda: e.TraceFreeBits_ELBO(0.1, "layer"), "per is 'layer'; accepted are 'site', 'unit'"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
