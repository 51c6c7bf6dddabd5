"""Supports with bounds: which a guide takes, which it refuses, and where they are kept.

Shapes: B data, D dimensions.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppl_vae import guides
from ppl_vae.estimators import TraceSTL_ELBO, TraceVIMCO_ELBO
from ppl_vae.models import Model

GUIDES = [guides.MeanFieldGuide, guides.FullRankGuide, guides.TopDownGuide, guides.DeltaGuide]


class Bounded(Model):
    """z between two bounds, which are parameters, or buffers, or come of x."""

    def __init__(self, low, high, learned=False):
        super().__init__((2,))
        self.bounds = low, high
        self.width = torch.nn.Parameter(torch.tensor(1.0)) if learned else 1.0

    def forward(self, x):
        low, high = (b(x) if callable(b) else b for b in self.bounds)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(low, high * self.width))
            loc = z.unsqueeze(-1).expand(*z.shape, 2)
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


MOVING = {
    "learned": lambda: Bounded(torch.tensor(0.0), torch.tensor(2.0), learned=True),
    "per datum": lambda: Bounded(lambda x: x[:, 0], lambda x: x[:, 0] + 1),
    "per datum, no gradient": lambda: Bounded(0.0, lambda x: 1.0 + torch.arange(len(x))),
    "of the batch": lambda: Bounded(lambda x: x.min() - 1, lambda x: x.max() + 1),
}


@pytest.mark.parametrize("make", GUIDES)
@pytest.mark.parametrize("name", MOVING)
def test_a_support_that_moves_is_refused_by_name(name, make):
    message = r"the model's site 'z' has a support \(Interval\) whose bounds .*Sample the site on"
    with pytest.raises(ValueError, match=message):
        make(MOVING[name](), (5,))


STILL = {
    "numbers": (lambda x: -1.0, lambda x: 2.0),
    "tensors": (lambda x: x.new_tensor(-1.0), lambda x: x.new_tensor(2.0)),
    "one a datum, all the same": (lambda x: -x.new_ones(len(x)), lambda x: 2 * x.new_ones(len(x))),
}


@pytest.mark.parametrize("make", GUIDES)
@pytest.mark.parametrize("name", STILL)
def test_a_support_that_stays_serves_batches_of_any_size(name, make):
    model = Bounded(*STILL[name])
    guide = make(model, (5,))
    for num_data in (1, 7):
        z = guide(100 * torch.randn(num_data, 2))["z"]
        assert z.shape == (num_data,) and (z >= -1).all() and (z <= 2).all()
    if make is not guides.DeltaGuide:
        TraceSTL_ELBO(num_particles=3).loss_and_grads(model, guide, torch.randn(4, 2))
        assert all(p.grad.isfinite().all() for p in guide.parameters())


@pytest.mark.parametrize("make", GUIDES)
def test_bounds_go_where_the_guide_goes_and_are_not_saved(make):
    low, high = torch.tensor([0.0, 5.0]), torch.tensor([1.0, 9.0])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(low.to(x), high.to(x)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    guide = make(model, (5,))
    guide.setup(torch.randn(4, 2))
    assert not any("bound" in name for name in guide.state_dict())
    single = guide.float()(torch.randn(3, 2, dtype=torch.float32))["z"]
    assert single.dtype == torch.float32
    assert (single >= low).all() and (single <= high).all()
    x = torch.zeros(3, 2, device="meta", dtype=torch.float32)
    pyro.enable_validation(False)
    trace = poutine.trace(guide.to("meta")).get_trace(x)
    trace.compute_log_prob()
    assert trace.nodes["z"]["value"].device.type == "meta"


def test_a_count_of_trials_may_be_a_tensor():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Binomial(torch.tensor(3.0), 0.5))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    guide = guides.MeanFieldGuide(model, (5,))
    guide.setup(torch.randn(4))
    assert guide.heads["k"].coding.size == 4
    assert isinstance(TraceVIMCO_ELBO(2).loss(model, guide, torch.randn(6)), float)
