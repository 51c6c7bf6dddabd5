"""Amortized guides on models of every make: which sites they find, and which they refuse.

Shapes: B data, P of another plate.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import loc_scale
from pyro import poutine
from torch import nn

from ppl_vae.estimators import Trace_ELBO
from ppl_vae.estimators.pair import trace_pair
from ppl_vae.guides import DeltaGuide, MeanFieldGuide
from ppl_vae.guides.sites import find_data_plate, find_latent_sites, trace_model
from ppl_vae.models import VAE

GUIDES = [MeanFieldGuide, DeltaGuide]


def set_up(make, model, x, **arguments):
    guide = make(model, **{"hidden": (4,), **arguments})
    guide.setup(x)
    return guide


def values(guide, x):
    """The locations of every site: what a point guide gives, or a mean-field guide before noise."""
    return poutine.trace(guide).get_trace(x)


# ----------------------------------------------------------------------------------------- refusals


def no_plate(x):
    pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(2), obs=x)


def wrong_size(x):
    with pyro.plate("data", 7, dim=-1):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def no_latent(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1), obs=x)


def endless(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("k", dist.Poisson(2.0))


def loop(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))


def two_plates_of_one_size(x):
    with pyro.plate("rows", len(x), dim=-1), pyro.plate("columns", len(x), dim=-2):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def plates_of_other_sizes(x):
    with pyro.plate("rows", 11, dim=-1):
        pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("make", GUIDES)
@pytest.mark.parametrize(
    "model, message",
    [
        (no_plate, 'the model has no plate over the data; write `with pyro.plate."data", len.x.'),
        (wrong_size, "the model's plate 'data' has size 7, the batch 3"),
        (no_latent, "the model has no latent site: every `pyro.sample` in it has `obs=...`"),
        (endless, "{guide}: the model's site 'k' is discrete .*; accepted are"),
        (loop, "samples 'z_0' in a loop over the plate 'data'; .* need vectorized plates"),
        (
            two_plates_of_one_size,
            r"the plates \['columns', 'rows'\], of which none is named 'data' and 2 have the "
            "batch's size 3",
        ),
        (plates_of_other_sizes, r"the plates \['rows'\], .* and 0 have the batch's size 3"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused(make, model, message):
    guide = make(model, hidden=(4,))
    with pytest.raises(ValueError, match=message.format(guide=make.__name__)):
        guide.setup(torch.randn(3, 2))
    # Nothing was set up by halves.
    assert not guide.latent_sites and not list(guide.parameters())
    with pytest.raises(RuntimeError, match=f"{make.__name__} has no networks yet"):
        guide(torch.randn(3, 2))


@pytest.mark.parametrize("make", GUIDES)
def test_what_is_no_model_is_refused(make):
    with pytest.raises(ValueError, match=f"{make.__name__}: model is 3; .* a Pyro program"):
        make(3)


@pytest.mark.parametrize("hidden", [(0,), (4, -1), (2.5,), 4])
def test_widths_are_positive_integers(hidden):
    with pytest.raises((ValueError, TypeError), match="hidden|len"):
        MeanFieldGuide(VAE((4,), 2), hidden=hidden)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation is 'relux'; accepted are relu, tanh"):
        MeanFieldGuide(VAE((4,), 2), activation="relux")


def test_an_encoder_that_keeps_the_data_shape_is_refused():
    message = r"encoder turns \[1, 2, 3\] into \[1, 2, 3\]; accepted is \[1, F\]"
    with pytest.raises(ValueError, match=message):
        MeanFieldGuide(VAE((2, 3), 2), encoder=nn.Identity())


# ----------------------------------------------------------------------------------------- supports


SUPPORTS = {
    "real": lambda: dist.Normal(torch.zeros(3), 1.0).to_event(1),
    "scalar": lambda: dist.Normal(0.0, 1.0),
    "positive": lambda: dist.Gamma(torch.full((3,), 2.0), 1.0).to_event(1),
    "positive scalar": lambda: dist.LogNormal(0.0, 1.0),
    "unit interval": lambda: dist.Beta(2.0, 3.0),
    "interval": lambda: dist.Uniform(-1.0, 2.0),
    "intervals": lambda: dist.Uniform(torch.tensor([0.0, 5]), torch.tensor([1.0, 9])).to_event(1),
    "simplex": lambda: dist.Dirichlet(torch.ones(4)),
    "cholesky": lambda: dist.LKJCholesky(3, 1.0),
    "matrix": lambda: dist.Normal(torch.zeros(2, 3), 1.0).to_event(2),
}


@pytest.mark.parametrize("make", GUIDES)
@pytest.mark.parametrize("name", SUPPORTS)
def test_values_lie_in_the_models_support(make, name):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", SUPPORTS[name]())
            total = z.reshape(*z.shape[: z.dim() - SUPPORTS[name]().event_dim], -1).sum(-1)
            pyro.sample("x", dist.Normal(total.unsqueeze(-1) + 0 * x, 1.0).to_event(1), obs=x)

    guide = set_up(make, model, torch.randn(3, 2))
    x = torch.randn(5, 2)
    prior = SUPPORTS[name]()
    for _ in range(10):
        site = values(guide, x).nodes["z"]
        assert site["value"].shape == (5, *prior.event_shape)
        assert prior.support.check(site["value"]).all()
        assert site["fn"].event_shape == prior.event_shape and site["fn"].batch_shape == (5,)
    pair = trace_pair(model, guide, (x,), {})
    assert all(site["log_prob"].isfinite().all() for _, _, site in pair.latents)
    # Particles at once, and gradients for all.
    Trace_ELBO(num_particles=3).loss_and_grads(model, guide, x)
    for parameter in guide.parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0


@pytest.mark.parametrize(
    "prior, pull",
    [
        (lambda: dist.LogNormal(0.0, 1.0), lambda v: (v.log(), -v.log())),
        (
            lambda: dist.Uniform(-1.0, 2.0),
            lambda v: (
                ((v + 1) / (2 - v)).log(),
                # |d u / d v| = 3 / ((v + 1) (2 - v))
                (3 / ((v + 1) * (2 - v))).log(),
            ),
        ),
        (
            lambda: dist.Beta(2.0, 3.0),
            lambda v: ((v / (1 - v)).log(), -(v * (1 - v)).log()),
        ),
    ],
)
def test_the_density_on_a_constrained_site_counts_the_jacobian(prior, pull):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", prior())

    x = torch.randn(5, 2)
    guide = set_up(MeanFieldGuide, model, x)
    trace = values(guide, x)
    trace.compute_log_prob()
    site = trace.nodes["z"]
    unconstrained, log_jacobian = pull(site["value"])
    loc, scale = loc_scale(guide, x)
    expected = dist.Normal(loc.squeeze(1), scale.squeeze(1)).log_prob(unconstrained) + log_jacobian
    torch.testing.assert_close(site["log_prob"], expected, rtol=1e-8, atol=1e-8)


# ------------------------------------------------------------------------------------------ plates


def nested_left(x):
    """`[P, B]`: the other plate left of the data's."""
    with pyro.plate("data", len(x), dim=-1):
        with pyro.plate("part", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-3), 1.0).to_event(1), obs=x)


def nested_right(x):
    """`[B, P]`: the data's plate left of the other."""
    with pyro.plate("data", len(x), dim=-2), pyro.plate("part", 3, dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x.unsqueeze(1))


@pytest.mark.parametrize("num_data", [1, 3, 5])
@pytest.mark.parametrize("model, axis", [(nested_left, 1), (nested_right, 0)])
def test_nested_plates_get_the_numbers_of_their_own_datum(model, axis, num_data):
    guide = set_up(DeltaGuide, model, torch.randn(4, 2))
    x = torch.randn(num_data, 2)
    # One linear map gives 3 * 2 numbers a datum: parts first, events last.
    expected = guide.heads["z"](guide.encoder(x)).reshape(num_data, 3, 2)
    found = guide(x)["z"]
    assert found.shape == ((3, num_data, 2) if axis else (num_data, 3, 2))
    torch.testing.assert_close(found.movedim(axis, 0), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("model", [nested_left, nested_right])
def test_nested_plates_train(model):
    x = torch.randn(4, 2)
    guide = set_up(MeanFieldGuide, model, x)
    for elbo in (Trace_ELBO(), Trace_ELBO(num_particles=2)):
        guide.zero_grad()
        elbo.loss_and_grads(model, guide, x)
        assert all(p.grad.abs().max() > 0 for p in guide.parameters())


def with_global(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("part", 3, dim=-1):
        v = pyro.sample("v", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = w.unsqueeze(-2) * z.unsqueeze(-1) + v.sum(-1)[..., None, None]
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("make", GUIDES)
def test_a_global_site_depends_on_no_datum(make):
    guide = set_up(make, with_global, torch.randn(4, 2))
    parameters = []
    for x in (torch.randn(1, 2), torch.randn(5, 2)):
        torch.manual_seed(3)
        nodes = values(guide, x).nodes
        assert nodes["w"]["value"].shape == (2,) and nodes["v"]["value"].shape == (3,)
        assert nodes["z"]["value"].shape == (len(x),)
        assert [f.name for f in nodes["w"]["cond_indep_stack"]] == []
        assert [f.name for f in nodes["v"]["cond_indep_stack"]] == ["part"]
        parameters.append((nodes["w"]["value"], nodes["v"]["value"]))
    for one, other in zip(*parameters, strict=True):
        assert torch.equal(one, other)
    Trace_ELBO().loss_and_grads(with_global, guide, x)
    assert all(p.grad.abs().max() > 0 for p in guide.parameters())


@pytest.mark.parametrize("make", GUIDES)
def test_a_model_of_global_sites_alone_is_served(make):
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

    guide, x = set_up(make, model, torch.randn(3, 2)), torch.randn(5, 2)
    assert guide(x)["w"].shape == (2,)
    loss = Trace_ELBO().loss_and_grads(model, guide, x)
    assert isinstance(loss, float)
    assert all(p.grad is not None for p in guide.heads.parameters())


def test_the_only_plate_of_the_batchs_size_is_the_datas():
    def model(x):
        with pyro.plate("rows", len(x), dim=-1), pyro.plate("part", 7, dim=-2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = set_up(MeanFieldGuide, model, torch.randn(3, 2))
    assert guide(torch.randn(5, 2))["z"].shape == (7, 5)
    trace = trace_model(model, torch.randn(3, 2))
    assert find_data_plate(trace, 3).name == "rows"
    (site,) = find_latent_sites(trace)
    assert [frame.name for frame in site.frames] == ["part", "rows"]
    assert site.batch_shape == (7, 3) and not site.is_discrete
    assert site.is_local(site.frames[1])


# ------------------------------------------------------------------------------------- subsampling


def subsampling(x):
    """The model draws 4 of its data itself."""
    with pyro.plate("data", len(x), subsample_size=4, dim=-1) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x[index])


@pytest.mark.parametrize("make", GUIDES)
def test_the_guide_subsamples_where_the_model_does(make):
    x = torch.randn(10, 2)
    guide = set_up(make, subsampling, x)
    rows = []
    guide.encoder.register_forward_hook(lambda _, args, out: rows.append(args[0]))
    for _ in range(5):
        guide_trace = poutine.trace(guide).get_trace(x)
        model_trace = poutine.trace(poutine.replay(subsampling, trace=guide_trace)).get_trace(x)
        index = model_trace.nodes["data"]["value"]
        assert index.shape == (4,) and torch.equal(index, guide_trace.nodes["data"]["value"])
        assert torch.equal(rows.pop(), x[index]) and not rows
        assert torch.equal(model_trace.nodes["x"]["value"], x[index])
        for trace, name in ((guide_trace, "z"), (model_trace, "z"), (model_trace, "x")):
            assert trace.nodes[name]["scale"] == 10 / 4


def test_the_loss_of_a_subsample_is_scaled_up():
    x = torch.randn(10, 2)
    guide = set_up(MeanFieldGuide, subsampling, x)
    pair = trace_pair(subsampling, guide, (x,), {})
    ((_, prior, posterior),), ((_, observed),) = pair.latents, pair.observed
    z, seen = posterior["value"], observed["value"]
    loc, scale = loc_scale(guide, seen)
    log_w = (
        dist.Normal(z, 0.5).log_prob(seen).sum(1)
        + dist.Normal(0.0, 1.0).log_prob(z).sum(1)
        - dist.Normal(loc, scale).log_prob(z).sum(1)
    )
    total = observed["log_prob"].sum() + prior["log_prob"].sum() - posterior["log_prob"].sum()
    assert total.item() == pytest.approx(10 / 4 * log_w.sum().item(), rel=1e-10)
    # Over all subsamples the scaled loss is right on average: N/B makes up for what is left out.
    losses = torch.tensor([Trace_ELBO().loss(subsampling, guide, x) for _ in range(300)])

    def whole(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def encoded(x):
        loc, scale = loc_scale(guide, x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    full = torch.tensor([Trace_ELBO().loss(whole, encoded, x) for _ in range(300)])
    error = ((losses.var() + full.var()) / 300).sqrt()
    assert (losses.mean() - full.mean()).abs() <= 5 * error


def test_a_batch_that_is_the_subsample_already_is_scaled_up_too():
    def model(x):
        with pyro.plate("data", 100, subsample=torch.arange(len(x)), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    guide = set_up(MeanFieldGuide, model, torch.randn(4, 2))
    for num_data in (4, 8):
        x = torch.randn(num_data, 2)
        trace = values(guide, x)
        assert trace.nodes["z"]["value"].shape == (num_data, 2)
        assert trace.nodes["z"]["scale"] == 100 / num_data
        assert isinstance(Trace_ELBO(num_particles=2).loss(model, guide, x), float)


# ----------------------------------------------------------------------------------------- encoders


@pytest.mark.parametrize("how", ["instance", "factory"])
def test_an_encoder_may_be_a_network_or_make_one(how):
    model = VAE((2, 3), 2, (4,))
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh())
    asked = []

    def factory(data_shape):
        asked.append(tuple(data_shape))
        return network

    guide = MeanFieldGuide(model, encoder=network if how == "instance" else factory)
    assert guide.encoder is network and asked == ([] if how == "instance" else [(2, 3)])
    x = torch.randn(4, 2, 3)
    mean = values(guide, x).nodes["z"]["fn"].mean
    expected, _ = guide.heads["z"](network(x)).chunk(2, -1)
    torch.testing.assert_close(mean, expected)


def test_an_encoder_with_batch_normalization_is_set_up_without_a_trace():
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    guide = MeanFieldGuide(VAE((4,), 2, (4,)), encoder=network)
    assert guide.training and network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert guide(torch.randn(6, 4))["z"].shape == (6, 2)


def test_a_linear_guide_has_no_hidden_layer():
    guide = MeanFieldGuide(VAE((4,), 2), hidden=())
    assert [tuple(p.shape) for p in guide.parameters()] == [(4, 4), (4,)]


@pytest.mark.parametrize("num_data", [2, 5])
def test_data_without_a_shape_are_numbers(num_data):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = set_up(MeanFieldGuide, model, torch.randn(3))
    assert guide(torch.randn(num_data))["z"].shape == (num_data,)


def test_other_arguments_pass_by():
    def model(x, shift, *, scale):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            fn = dist.Normal(z.unsqueeze(-1) + 0 * x, scale).to_event(1)
            pyro.sample("x", fn, obs=x)

    guide = MeanFieldGuide(model, hidden=(4,))
    x, shift = torch.randn(3, 2), torch.randn(3)
    guide.setup(x, shift, scale=2.0)
    elbo = Trace_ELBO(num_particles=2)
    torch.manual_seed(3)
    one = elbo.loss(model, guide, x, shift, scale=2.0)
    torch.manual_seed(3)
    assert elbo.loss(model, guide, x, shift, scale=0.5) != one
