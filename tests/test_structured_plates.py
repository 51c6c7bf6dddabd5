"""Guides that draw one site after the other: in which plates, and under a model that subsamples.

Shapes: N data, B of a subsample, D dimensions.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppl_vae import guides
from ppl_vae.estimators import Trace_ELBO, TraceIWAE_ELBO, TraceSTL_ELBO

GUIDES = [guides.TopDownGuide, guides.BottomUpGuide, guides.LadderGuide]


def in_another_plate(x):
    with pyro.plate("part", 3, dim=-2):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + w.sum(), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("make", GUIDES)
def test_a_site_in_another_plate_is_refused_by_name(make):
    guide = make(in_another_plate, (5,))
    message = rf"{make.__name__}.*'w'.*\['part'\].*[Uu]se MeanFieldGuide"
    with pytest.raises(ValueError, match=message):
        guide.setup(torch.randn(5, 2))
    assert not guide.latent_sites and not list(guide.parameters())
    served = guides.MeanFieldGuide(in_another_plate, (5,))
    served.setup(torch.randn(5, 2))
    assert served(torch.randn(5, 2))["w"].shape == (3, 1)


def subsampling(x):
    with pyro.plate("data", len(x), subsample_size=4, dim=-1) as index:
        a = pyro.sample("a", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(0.5 * a, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(b, 1.0).to_event(1), obs=x[index])


@pytest.mark.parametrize("make", GUIDES)
def test_a_subsample_is_the_same_to_encoder_guide_and_model(make):
    guide, x, rows = make(subsampling, (5,), (4,)), torch.randn(10, 2), []
    guide.setup(x)
    guide.encoder.register_forward_hook(lambda _, args, out: rows.append(args[0]))
    for _ in range(3):
        drawn = poutine.trace(guide).get_trace(x)
        index = drawn.nodes["data"]["value"]
        assert index.shape == (4,) and torch.equal(rows.pop(), x[index]) and not rows
        replayed = poutine.trace(poutine.replay(subsampling, trace=drawn)).get_trace(x)
        assert torch.equal(replayed.nodes["x"]["value"], x[index])
        for name in ("a", "b"):
            assert drawn.nodes[name]["value"].shape == (4, 2)
            assert drawn.nodes[name]["scale"] == replayed.nodes[name]["scale"] == 10 / 4


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceIWAE_ELBO(3), TraceSTL_ELBO(3)])
def test_a_ladder_trains_on_subsamples(elbo):
    guide, x = guides.LadderGuide(subsampling, (5,), (4,)), torch.randn(10, 2)
    guide.setup(x)
    elbo.loss_and_grads(subsampling, guide, x)
    for parameter in guide.parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0


def test_a_ladders_density_at_a_subsample_is_that_of_its_rows():
    """The sites' log q written out from the chosen rows alone, N/B in front."""
    guide, x = guides.LadderGuide(subsampling, (5,), (4,)), torch.randn(10, 2)
    guide.setup(x)
    drawn = poutine.trace(guide).get_trace(x)
    drawn.compute_log_prob()
    features = guide.encoder(x[drawn.nodes["data"]["value"]])
    a, b = (drawn.nodes[name]["value"] for name in ("a", "b"))
    loc, log_variance = guide.heads["a"](guide.upwards[0](features)).chunk(2, -1)
    log_q = dist.Normal(loc, (0.5 * log_variance).exp()).log_prob(a).sum()
    loc, log_variance = guide.heads["b"](features).chunk(2, -1)
    precision = (-log_variance).exp() + 1
    merged = dist.Normal((loc * (-log_variance).exp() + 0.5 * a) / precision, precision**-0.5)
    log_q = log_q + merged.log_prob(b).sum()
    torch.testing.assert_close(drawn.log_prob_sum(), 10 / 4 * log_q)
