"""Guides of any Pyro program: discrete, spherical, global, labelled, masked, conditional sites.

Shapes: B data.
"""

import inspect
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn
from torch.optim import Adam

import ppl_vae
from ppl_vae import estimators as e
from ppl_vae import families, guides
from ppl_vae.estimators import Trace_ELBO
from ppl_vae.testing import check_guide

HERE = {"hidden": (8,), "activation": "tanh"}
WEIGHTS, MEANS = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([-2.0, 0.0, 2.5])


def clusters(x):
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(WEIGHTS.to(x)))
        z = pyro.sample("z", dist.Normal(MEANS.to(x)[k], 0.5))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 0.3).to_event(1), obs=x)


def switches(x):
    with pyro.plate("data", len(x), dim=-1):
        on = pyro.sample("on", dist.Bernoulli(0.3 * x.new_ones(2)).to_event(1))
        kind = pyro.sample("kind", dist.OneHotCategorical(WEIGHTS.to(x)))
        z = pyro.sample("z", dist.Normal(on.sum(-1) + kind @ MEANS.to(x), 0.5))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 0.3).to_event(1), obs=x)


def directions(x):
    with pyro.plate("data", len(x), dim=-1):
        u = pyro.sample("u", dist.ProjectedNormal(x.new_zeros(3)))
        v = pyro.sample("v", dist.VonMises(x.new_tensor(0.0), 2.0))
        pyro.sample("x", dist.Normal(u[..., :1] + v.cos().unsqueeze(-1), 0.3).to_event(1), obs=x)


PROGRAMS = {"clusters": clusters, "switches": switches, "directions": directions}
GUIDES = {
    "mean field": lambda m: guides.MeanFieldGuide(m, **HERE),
    "full rank": lambda m: guides.FullRankGuide(m, **HERE),
    "spline": lambda m: guides.FamilyGuide(
        m, (8,), families.NeuralSpline(1, 3, context_dim=2, hidden=(5,)), activation="tanh"
    ),
    "top-down": lambda m: guides.TopDownGuide(m, (8,), (6,), activation="tanh"),
    "bottom-up": lambda m: guides.BottomUpGuide(m, (8,), (6,), activation="tanh"),
}


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_any_support_is_guided(program, name):
    model = PROGRAMS[program]
    check_guide(GUIDES[name](model), model, torch.randn(8, 1))


def positive(event):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            rate = dist.Gamma(2.0 * x.new_ones(event), 1.0).to_event(len(event))
            pyro.sample("rate", rate)

    return model


@pytest.mark.parametrize("event", [(), (3,)])
def test_a_positive_site_is_written_as_its_logarithm(event):
    guide = guides.MeanFieldGuide(positive(event), **HERE)
    guide.setup(torch.randn(4, 2))
    value = 0.1 + torch.rand(5, *event)
    written = guide.heads["rate"].coding.write(value)
    torch.testing.assert_close(written, value.log().reshape(5, -1))


@pytest.mark.parametrize("event", [(), (3,)])
@pytest.mark.parametrize("make", [guides.PlanarGuide, guides.SylvesterGuide])
def test_a_flow_without_inverse_has_a_density_at_its_draw_on_any_support(make, event):
    guide, x = make(positive(event), **HERE), torch.randn(1, 2)
    guide.setup(x)
    fn = poutine.trace(guide).get_trace(x).nodes["rate"]["fn"]
    normal, parts = fn, []
    while isinstance(normal, dist.TransformedDistribution):
        normal, parts = normal.base_dist, [*normal.transforms, *parts]

    def push(noise):
        for part in parts:
            noise = part(noise)
        return noise

    noise = normal.sample()
    found = fn.log_prob(value := push(noise))
    size = noise.numel()
    slope = torch.autograd.functional.jacobian(push, noise).reshape(size, size)
    expected = normal.log_prob(noise) - slope.det().abs().log()
    torch.testing.assert_close(found, expected)
    assert (value > 0).all()


def exact_evidence(x):
    """log p(x), k and z summed and integrated out."""
    marginal = dist.Normal(MEANS, (0.25 + 0.09) ** 0.5)
    return (WEIGHTS.log() + marginal.log_prob(x)).logsumexp(-1)


@pytest.mark.parametrize("elbo", ["score", "enumeration"])
def test_a_general_guide_finds_the_posterior_of_a_discrete_site(elbo):
    x = poutine.trace(clusters).get_trace(torch.zeros(400, 1)).nodes["z"]["value"]
    x = (x + 0.3 * torch.randn(400)).unsqueeze(-1)
    guide = guides.TopDownGuide(clusters, (16,), (16,), activation="tanh")
    loss = {
        "score": e.TraceScoreFunction_ELBO(num_particles=4, pathwise=True),
        "enumeration": TraceEnum_ELBO(max_plate_nesting=1),
    }
    program = config_enumerate(guide) if elbo == "enumeration" else guide
    guide.setup(x)
    ppl_vae.fit(clusters, program, x, estimator=loss[elbo], num_steps=800, batch_size=100,
                optimizer=partial(Adam, lr=1e-2), log_every=800)  # fmt: skip
    truth = exact_evidence(x).mean()
    terms = ppl_vae.evaluate.average_terms(clusters, guide, x, num_particles=100)
    assert -0.05 < truth - terms.elbo.mean() < 0.1
    # q(k | x) against Bayes' rule.
    at = torch.tensor([[-2.0], [0.0], [2.5], [1.2]])
    found = poutine.trace(guide).get_trace(at).nodes["k"]["fn"].probs
    joint = WEIGHTS.log() + dist.Normal(MEANS, (0.25 + 0.09) ** 0.5).log_prob(at)
    torch.testing.assert_close(found.detach(), joint.softmax(-1), rtol=0, atol=0.1)


class Odd(dist.Normal):
    support = dist.constraints.symmetric


@pytest.mark.parametrize(
    "site, message",
    [
        (lambda: dist.Geometric(0.5), "discrete with the support IntegerGreaterThan.*finitely"),
        (lambda: dist.ProjectedNormal(torch.ones(7)), r"on a sphere and has the event \[7\]; acc"),
        (lambda: Odd(0.0, 1.0), "has the support Symmetric, which no bijection of torch or"),
    ],
)
def test_a_support_out_of_reach_is_refused_by_name(site, message):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("s", site())

    with pytest.raises(ValueError, match=f"FullRankGuide: the model's site 's'.*{message}"):
        guides.FullRankGuide(model).setup(torch.randn(3, 2))


# --------------------------------------------------------------------------- more than x


def labelled(x, y):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + y.unsqueeze(-1), 0.5).to_event(1), obs=x)


class Both(nn.Module):
    """An encoder that reads the label as well."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x, y):
        return self.linear(torch.cat([x, y.unsqueeze(-1)], -1))


def test_an_encoder_sees_what_it_asks_for():
    """q(z | x, y) is exact where the encoder reads y, and not where it does not."""
    y = 3 * torch.randn(300)
    x = torch.randn(300, 2) + y.unsqueeze(-1) + 0.5 * torch.randn(300, 2)
    data = torch.utils.data.TensorDataset(x, y)
    truth = dist.Normal(y.unsqueeze(-1), 1.25**0.5).to_event(1).log_prob(x).mean()
    gaps = []
    for encoder in (nn.Flatten(), Both()):
        guide = guides.MeanFieldGuide(labelled, encoder=encoder)
        ppl_vae.fit(labelled, guide, data, num_steps=800, batch_size=100, log_every=800,
                    optimizer=partial(Adam, lr=2e-2))  # fmt: skip
        loss = Trace_ELBO(num_particles=100).loss(labelled, guide, x, y)
        gaps.append(truth.item() + loss / len(x))
    assert gaps[0] > 0.5 and -0.02 < gaps[1] < 0.05
    check_guide(guide, labelled, x[:6], y[:6])


@pytest.mark.parametrize(
    "forward, expected",
    [
        (lambda x: (), ()),
        (lambda x, label: (label,), ("y",)),
        (lambda x, y=None: (y,), ("y",)),
        (lambda x, *, y=None: (y,), ("y",)),
        (lambda x, hidden=False: (hidden,), (False,)),
        (lambda x, y, hidden=False: (y, hidden), ("y", False)),
        (lambda x, w, y: (w, y), ("w", "y")),
        (lambda x, w=None: (w,), ("w",)),
        (lambda *xs: xs[1:], ()),
    ],
)
@pytest.mark.parametrize("named", [(), ("w",), ("y", "w")])
def test_an_encoder_sees_the_same_by_place_and_by_keyword(forward, expected, named):
    def model(x, y=None, w=None):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    network, seen = nn.Identity(), []

    def look(*args, **kwargs):
        seen[:] = forward(*args, **kwargs)
        return args[0]

    look.__signature__ = inspect.signature(forward)
    network.forward = look
    x, other = torch.randn(4, 3), {"y": torch.randn(4), "w": torch.randn(4)}
    args = tuple(value for name, value in other.items() if name not in named)
    kwargs = {name: other[name] for name in named}
    guide = guides.MeanFieldGuide(model, encoder=network)
    guide.setup(x, *args, **kwargs)
    guide(x, *args, **kwargs)
    wanted = tuple(other.get(e, e) for e in expected)
    assert len(seen) == len(wanted)
    assert all(one is two for one, two in zip(seen, wanted, strict=True))


def test_an_encoder_sees_the_labels_of_the_subsample():
    def model(x, y):
        with pyro.plate("data", len(x), subsample_size=4, dim=-1) as index:
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + y[index].unsqueeze(-1), 0.5).to_event(1), obs=x[index])

    x, y, seen, network = torch.randn(10, 2), torch.randn(10), [], Both()
    guide = guides.MeanFieldGuide(model, encoder=network)
    guide.setup(x, y)
    network.register_forward_hook(
        lambda _, args, kwargs, out: seen.append((*args, *kwargs.values())), with_kwargs=True
    )
    for call in (lambda: guide(x, y), lambda: guide(x, y=y)):
        index = poutine.trace(call).get_trace().nodes["data"]["value"]
        rows, labels = seen.pop()
        assert len(index) == 4
        assert torch.equal(rows, x[index]) and torch.equal(labels, y[index])


def test_missing_pixels_are_left_out():
    """A mask on the observation: what is masked counts for nothing, whatever it holds."""

    def model(x, seen):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            with pyro.plate("pixel", 3, dim=-2), poutine.mask(mask=seen.mT):
                pyro.sample("x", dist.Normal(z.squeeze(-1), 0.5), obs=x.mT)

    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 8)

        def forward(self, x, seen):
            return torch.tanh(self.linear(torch.cat([x * seen, seen.to(x)], -1)))

    torch.manual_seed(1)
    z = torch.randn(500, 1)
    x, seen = z + 0.5 * torch.randn(500, 3), torch.rand(500, 3) < 0.6
    wild = torch.where(seen, x, 1e3)
    data = torch.utils.data.TensorDataset(wild, seen)
    guide = guides.FullRankGuide(model, encoder=Seen())
    ppl_vae.fit(model, guide, data, num_steps=1500, batch_size=100, log_every=1500,
                optimizer=partial(Adam, lr=1e-2), estimator=e.TraceSTL_ELBO(2))  # fmt: skip
    # log p of the pixels seen, the latent integrated out: one + 0.25 I is their covariance.
    each = [
        dist.MultivariateNormal(torch.zeros(n), 0.25 * torch.eye(n) + 1).log_prob(v[s])
        for v, s in zip(x, seen, strict=True)
        if (n := int(s.sum()))
    ]
    truth = sum(each) / 500
    loss = Trace_ELBO(num_particles=50).loss(model, guide, wild, seen)
    assert -0.02 < truth.item() + loss / 500 < 0.05


def test_a_guide_may_be_a_plain_function():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 0.5).to_event(1), obs=x)

    def guide(x):
        a = pyro.param("a", torch.tensor(0.0))
        s = pyro.param("s", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(a * x.squeeze(-1), s))

    x = torch.randn(200, 1)
    result = ppl_vae.fit(model, guide, x, num_steps=600, optimizer=partial(Adam, lr=2e-2),
                         estimator=e.TraceSTL_ELBO(4))  # fmt: skip
    # The posterior of one observation: precision 1 + 4, mean 4 x / 5.
    with result.scope():
        found = poutine.trace(guide).get_trace(torch.ones(1, 1)).nodes["z"]["fn"]
    assert found.loc.item() == pytest.approx(0.8, abs=1e-3)
    assert found.scale.item() == pytest.approx(0.2**0.5, abs=1e-3)


# ------------------------------------------------------------------------------------- mistakes


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z * rate.unsqueeze(-1), 1.0).to_event(1), obs=x)


def sites(x, *, rate=None, z=None, others=()):
    """What a guide samples; one mistake is in the arguments."""
    if rate is not False:
        pyro.sample("rate", rate or dist.Gamma(2.0, 1.0))
    if z is not False:
        z = z or dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1)
        pyro.sample("z", z)
    for name, options in others:
        pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1), **options)


def in_plate(name="data", size=None, dim=-1, **how):
    def guide(x):
        with pyro.plate(name, size or len(x), dim=dim):
            sites(x, **how)

    return guide


def within(guide, name, size):
    def program(x):
        with pyro.plate(name, size, dim=-2):
            guide(x)

    return program


MISTAKES = {
    "a site is missing": (
        in_plate(z=False), "the model samples 'z' which the guide does not$"),
    "both are missing": (
        lambda x: None, "the model samples 'rate', 'z' which the guide does not$"),
    "a site too many": (
        in_plate(others=[("y", {})]), "the guide samples 'y' which the model does not$"),
    "one missing and one too many": (
        in_plate(z=False, others=[("y", {})]),
        "the model samples 'z' which the guide does not; the guide samples 'y' which the model"),
    "an event of another size": (
        in_plate(z=dist.Normal(torch.zeros(3), 1.0).to_event(1)),
        r"at 'z' the model's event has shape \(2,\), the guide's \(3,\); check `.to_event"),
    "a scalar for a vector": (
        in_plate(z=dist.Normal(0.0, 1.0)), r"event has shape \(2,\), the guide's \(\); check"),
    "to_event forgotten": (
        in_plate(z=dist.Normal(torch.zeros(5, 2), 1.0)),
        r"shape mismatch inside plate\('data'\) at site z dim -1, 5 vs 2. In a plate a site has"),
    "another support": (
        in_plate(rate=dist.Normal(2.0, 0.01)),
        r"at 'rate' the model's Gamma has the support GreaterThanEq\(lower_bound=0.0\), and the "
        "guide's Normal draws from Real; draw from a distribution on the model's support, or push"),
    "a value off the support": (
        in_plate(rate=dist.Delta(torch.tensor(-1.0))), "at 'rate' the model's Gamma has the supp"),
    "it observes": (
        in_plate(others=[("x", {"obs": torch.zeros(2)})]), "the guide observes 'x'; a guide obs"),
    "it samples the data": (
        in_plate(others=[("x", {})]), "the guide samples 'x' which the model observes"),
    "no plate": (
        sites, r"at 'rate' the model is in the plate 'data', and the guide in no plate; write "
        r"`with pyro.plate\(\"data\", ..., dim=-1\):`"),
    "no plate, but a batch": (
        partial(sites, rate=dist.Gamma(2.0 * torch.ones(5), 1.0)), "and the guide in no plate"),
    "a plate of another name": (
        in_plate("rows"), "is in the plate 'data', and the guide in the plates 'rows'"),
    "a plate of another size": (
        in_plate(size=7), "the plate 'data' has size 5 at dim=-1 in the model, and size 7 at dim="),
    "a plate of another dim": (
        in_plate(dim=-2), "has size 5 at dim=-1 in the model, and size 5 at dim=-2 in the guide"),
    "a plate too many": (
        within(in_plate(), "row", 3), "guide is in the plate 'row', which the model has not arou"),
    "no argument": (
        lambda: None, r"the guide takes 0 argument\(s\), and the model is given 1; a guide takes"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_beginners_mistake_is_named(mistake):
    guide, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message) as raised:
        ppl_vae.fit(model, guide, torch.randn(5, 2), num_steps=2)
    # One sentence or two, and not Pyro's page of shapes.
    assert "\n" not in str(raised.value) and "Trace Shapes" not in str(raised.value)


def test_without_a_mistake_there_is_no_message():
    ppl_vae.fit(model, in_plate(), torch.randn(5, 2), num_steps=2)
