"""Plates: a subsample's N/B stands outside of every estimator's formula; globals, nested plates.

Shapes: K particles, B data, N all data, P parts of a datum.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from pyro.infer import RenyiELBO

from ppl_vae import estimators as e

WEIGHTED = [n for n, make in zoo.ESTIMATORS.items() if isinstance(make(), e.WeightEstimator)]
HOW = [(3, True), (3, False)]


def pair_of(num_data=None, parts=3, num_parts=None, dims=(-1, -2)):
    """A model and a guide with a plate `part` inside `data`, both of which may be subsampled.

    `num_data` is N of the data plate (as many as there are, if not given), `num_parts` likewise;
    `dims` those of the two plates, and so of x.
    """
    loading = torch.tensor(1.3, requires_grad=True)
    slope = torch.tensor(0.4, requires_grad=True)
    log_scale = torch.tensor(-0.3, requires_grad=True)

    def plates(x):
        index = torch.arange(x.shape[dims[0]])
        data = pyro.plate("data", num_data or len(index), subsample=index, dim=dims[0])
        rows = torch.arange(parts)
        part = pyro.plate("part", num_parts or parts, subsample=rows, dim=dims[1])
        return data, part

    def model(x):
        data, part = plates(x)
        with data, part:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loading * z, 0.5), obs=x)

    def guide(x):
        data, part = plates(x)
        with data, part:
            pyro.sample("z", dist.Normal(slope * x, log_scale.exp()))

    return model, guide, [loading, slope, log_scale]


def loss_and_gradients(elbo, pair, x):
    model, guide, leaves = pair
    torch.manual_seed(3)
    loss = elbo.differentiable_loss(model, guide, x)
    return loss.item(), torch.stack(torch.autograd.grad(loss, leaves))


def data_of(dims=(-1, -2)):
    """4 data of 3 parts."""
    return torch.randn(3, 4) if dims == (-1, -2) else torch.randn(4, 3)


@pytest.mark.parametrize("dims", [(-1, -2), (-2, -1)])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", zoo.ESTIMATORS)
def test_a_subsample_scales_loss_and_gradients_by_n_over_b(name, how, dims):
    x, found = data_of(dims), []
    for num_data in (4, 40):
        elbo = zoo.estimator(name, how[0], vectorize_particles=how[1], max_plate_nesting=2)
        found.append(loss_and_gradients(elbo, pair_of(num_data, dims=dims), x))
    (loss, gradients), (scaled, others) = found
    assert scaled == pytest.approx(10 * loss, rel=1e-10)
    torch.testing.assert_close(others, 10 * gradients, rtol=1e-9, atol=1e-10)


def test_stock_renyi_elbo_does_not():
    """If this fails, Pyro has mended it (pyro#3104): say so in the documentation."""
    x = data_of()
    found = []
    for num_data in (4, 40):
        elbo = RenyiELBO(0.0, num_particles=3, vectorize_particles=True, max_plate_nesting=2)
        torch.manual_seed(3)
        found.append(elbo.loss(*pair_of(num_data)[:2], x))
    assert found[0] > 0 and abs(found[1] - 10 * found[0]) > 0.1 * found[0]


@pytest.mark.parametrize("dims", [(-1, -2), (-2, -1)])
@pytest.mark.parametrize("how", HOW)
def test_the_weight_of_a_datum_is_over_all_its_parts(how, dims):
    x = data_of(dims)
    model, guide, (loading, slope, log_scale) = pair_of(dims=dims)
    elbo = e.TraceIWAE_ELBO(how[0], how[1], max_plate_nesting=2)
    torch.manual_seed(3)
    found = elbo.loss(model, guide, x)
    torch.manual_seed(3)
    if how[1]:
        noise = torch.randn(3, *x.shape)
    else:
        noise = torch.stack([torch.randn(x.shape) for _ in range(3)])
    z = slope * x + log_scale.exp() * noise
    log_w = dist.Normal(loading * z, 0.5).log_prob(x) - 0.5 * z**2 + 0.5 * noise**2 + log_scale
    log_w = log_w.sum(dims[1])  # [K, B]
    assert -found == pytest.approx((log_w.logsumexp(0) - math.log(3)).sum().item(), rel=1e-10)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_subsample_within_a_datum_is_refused(name, how):
    model, guide, _ = pair_of(num_parts=30)
    elbo = zoo.estimator(name, how[0], vectorize_particles=how[1])
    with pytest.raises(ValueError, match=f"{name} .* the plate 'part' around '.' is subsampled"):
        elbo.loss(model, guide, data_of())
    assert math.isfinite(e.Trace_ELBO().loss(model, guide, data_of()))


def with_global(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, scale.unsqueeze(-1)).to_event(1), obs=x)


def guide_with_global(x):
    pyro.sample("scale", dist.LogNormal(pyro.param("loc", torch.tensor(0.2)), 0.3))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.5 * x, 0.7).to_event(1))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", zoo.ESTIMATORS)
def test_a_latent_outside_the_data_plate(name, how):
    elbo = zoo.estimator(name, how[0], vectorize_particles=how[1])
    x = torch.randn(4, 3)
    if name in WEIGHTED:
        message = f"{name} weighs each datum by itself, and the site 'scale' lies outside"
        with pytest.raises(ValueError, match=f"{message}.*'data'.*Trace_ELBO"):
            elbo.loss(with_global, guide_with_global, x)
    elif name == "TraceFreeBits_ELBO":
        with pytest.raises(ValueError, match="'scale' lies outside the plate 'data'"):
            elbo.loss(with_global, guide_with_global, x)
    else:
        assert math.isfinite(elbo.loss_and_grads(with_global, guide_with_global, x))


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_loop_over_the_data_is_refused(name):
    def program(x, obs):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
            if obs:
                pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])

    elbo = zoo.estimator(name, 2, vectorize_particles=False)
    with pytest.raises(ValueError, match=f"{name} needs a vectorized data plate, .*'data' is a lo"):
        elbo.loss(lambda x: program(x, True), lambda x: program(x, False), torch.randn(2))


def test_no_plate_at_all_is_refused_by_name():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="the model has no plate over the data; write"):
        e.TraceIWAE_ELBO(2).loss(model, guide, torch.tensor(0.3))


def test_a_mask_of_the_observed_is_within_the_weight():
    """Missing values: a datum's weight is that of what was seen."""
    x, seen = torch.randn(4, 3), torch.rand(4, 3) > 0.4
    loc, noise = torch.randn(4, 2), None

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = z @ torch.tensor([[1.0, 0.5, -1.0], [0.2, -0.3, 0.7]])
            pyro.sample("x", dist.Normal(mean, 0.5).mask(seen).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 0.8).to_event(1))

    for name in ("TraceIWAE_ELBO", "TraceDReG_ELBO"):
        torch.manual_seed(3)
        found = zoo.ESTIMATORS[name](num_particles=5, max_plate_nesting=1).loss(model, guide, x)
        torch.manual_seed(3)
        noise = torch.randn(5, 4, 2)
        z = loc + 0.8 * noise
        mean = z @ torch.tensor([[1.0, 0.5, -1.0], [0.2, -0.3, 0.7]])
        log_x = (dist.Normal(mean, 0.5).log_prob(x) * seen).sum(-1)
        log_w = log_x + (-0.5 * z**2 + 0.5 * noise**2 + math.log(0.8)).sum(-1)
        assert -found == pytest.approx((log_w.logsumexp(0) - math.log(5)).sum().item(), rel=1e-10)


def test_a_mask_on_the_guide_is_refused_by_dreg():
    def program(x, obs=None):
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.mask(mask=x > 0):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if obs is not None:
                pyro.sample("x", dist.Normal(z, 1.0), obs=obs)

    x = torch.randn(4)
    with pytest.raises(ValueError, match="TraceDReG_ELBO takes no mask .* 'z' .*TraceIWAE_ELBO"):
        e.TraceDReG_ELBO(2).loss(lambda x: program(x, x), program, x)
    assert math.isfinite(e.TraceIWAE_ELBO(2).loss(lambda x: program(x, x), program, x))
