"""The conformance kit: each check passes what is right and names what is broken.

Shapes: K particles, B data.
"""

import math
import random
import re
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
import zoo
from pyro import poutine
from pyro.nn import PyroModule
from torch import nn

import ppl_vae.testing
from ppl_vae import estimators
from ppl_vae.estimators import Trace_ELBO, TraceAnalyticKL_ELBO, TraceIWAE_ELBO
from ppl_vae.estimators.particles import log_mean_exp, with_gradient
from ppl_vae.models import LinearGaussian
from ppl_vae.testing import (
    ConformanceError,
    check_bound,
    check_estimator,
    check_guide,
    check_model,
    check_svi,
    check_unbiased,
)
from ppl_vae.testing.handlers import Enlarge
from ppl_vae.testing.oracle import closed_form_loss, learned

W = torch.tensor([[1.0, -0.5], [0.3, 0.8], [0.0, 1.2]], dtype=torch.float64)
PRIOR = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)


@pytest.fixture
def x():
    return torch.randn(5, 3)


def data_plate(x):
    return pyro.plate("data", len(x), dim=-1)


def says(message):
    return pytest.raises(ConformanceError, match=message)


# ------------------------------------------------------------------------------------------ models


def model_of(decode=lambda z: z @ W.mT, scale=0.5, aside=lambda x: None):
    """A model that is right, but for what is put into it."""

    def model(x):
        aside(x)
        with data_plate(x):
            z = pyro.sample("z", PRIOR)
            pyro.sample("x", dist.Normal(decode(z), scale).to_event(1), obs=x)

    return model


def without_plate(x):
    z = pyro.sample("z", PRIOR.expand([len(x)]))
    pyro.sample("x", dist.Normal(z @ W.mT, 0.5).to_event(1), obs=x)


def with_global_latent(x):
    scale = pyro.sample("scale", dist.Gamma(torch.tensor(2.0), 1.0))
    with data_plate(x):
        z = pyro.sample("z", PRIOR)
        # [..., 1] of the scale, left of its place in the data plate.
        fn = dist.Normal(z @ W.mT, scale.unsqueeze(-1)).to_event(1)
        pyro.sample("x", fn, obs=x)


def without_observation(x):
    with data_plate(x):
        pyro.sample("z", PRIOR)


def without_latent(x):
    with data_plate(x):
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x)


def without_event(x):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
        pyro.sample("x", dist.Normal(z @ W.mT, 0.5).to_event(1), obs=x)


class Lazy(dist.Normal):
    """Draws one value for all particles, and does not even expand it."""

    def rsample(self, sample_shape=()):
        value = super().rsample(sample_shape)
        return value[:1] if value.dim() > 2 else value

    def expand(self, batch_shape, _instance=None):
        return super().expand(batch_shape, self._get_checked_instance(Lazy, _instance))


def draws_once_for_all_particles(x):
    with data_plate(x):
        z = pyro.sample("z", Lazy(torch.zeros(5, 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W.mT, 0.5).to_event(1), obs=x)


def keeps_the_first_particle(z):
    return z.reshape(-1, 5, 2)[0] @ W.mT if z.dim() > 2 else z @ W.mT


def mixes_particles(z):
    return (z if z.dim() < 3 else z.mean(0).expand_as(z)) @ W.mT


def leaves_a_stranger(x):
    with poutine.block():
        pyro.param("stranger", torch.zeros(2))


def broken(z):
    raise RuntimeError("no such thing\n on many lines")


@pytest.mark.parametrize(
    "model, message",
    [
        (without_plate, "the model has no plate over the data; write"),
        (with_global_latent, "the model's site 'scale' lies outside the plate 'data'"),
        (without_observation, "the model observes nothing"),
        (without_latent, "the model has no latent site"),
        (
            without_event,
            r"log-density of 'z', run once, has shape \[5, 2\]; expected was \[5, 1\].*to_event",
        ),
        (model_of(scale=1e-300), "log-density of 'x', run once, is not finite for 5 of 5"),
        (
            model_of(lambda z: z.reshape(-1, 2) @ W.mT),
            r"with leading particles \[3\] raised ValueError: Shape mismatch",
        ),
        (
            model_of(keeps_the_first_particle),
            r"log-density of 'x' with leading particles \[3\] is, for particle \[2\], another",
        ),
        (
            draws_once_for_all_particles,
            r"value of 'z', with leading particles \[3\], has shape \[1, 5, 2\]; expected was "
            r"\[3, 5, 2\]",
        ),
        (model_of(mixes_particles), r"'x' with leading particles \[3\] is, for particle \[0\]"),
        (
            model_of(lambda z: nn.functional.dropout(z, 0.5) @ W.mT),
            "log-density of 'x' is another when .* dropout",
        ),
        (model_of(aside=leaves_a_stranger), "running the model leaves 'stranger' in Pyro's"),
        (model_of(broken), "running the model raised RuntimeError: no such thing$"),
    ],
)
def test_a_broken_model_is_caught(x, model, message):
    with says(message) as caught:
        check_model(model, x)
    assert "\n" not in str(caught.value)


def test_a_good_model_passes(x):
    check_model(model_of(), x)
    check_model(model_of(aside=lambda x: pyro.param("own", torch.zeros(2))), x)
    check_model(with_global_latent, x, global_sites=["scale"])

    def subsampling(x):
        with pyro.plate("data", len(x), 3, dim=-1) as rows, pyro.plate("part", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[rows].mT)

    check_model(subsampling, x)


# ------------------------------------------------------------------------------------------ guides


class GoodGuide(PyroModule):
    """A guide that is right, but for what a subclass makes of it."""

    features = 3

    def __init__(self, name="guide"):
        super().__init__(name=name)
        self.encoder = nn.Linear(self.features, 4).double()

    def prepare(self, x):
        return x

    def encode(self, x):
        return self.encoder(self.prepare(x))

    def sample(self, loc, scale):
        return pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def forward(self, x):
        with data_plate(x):
            loc, scale = self.encode(x).chunk(2, -1)
            self.sample(loc, scale.exp())


class Mixing(GoodGuide):
    def prepare(self, x):
        return x - x.mean(0)


class Ordering(GoodGuide):
    def prepare(self, x):
        return x + torch.arange(len(x)).unsqueeze(-1)


class Normalized(GoodGuide):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3).double()

    def prepare(self, x):
        return self.norm(x)


class Rigid(GoodGuide):
    def prepare(self, x):
        return x.reshape(5, 3)


class Blind(GoodGuide):
    def prepare(self, x):
        return torch.ones_like(x)


class Dropping(GoodGuide):
    def prepare(self, x):
        return nn.functional.dropout(x, 0.5)


class PerParticle(GoodGuide):
    """Opens the particles' plate before the encoder, as it were."""

    def forward(self, x):
        with data_plate(x):
            shape = pyro.sample("z_shape", PRIOR, infer={"is_auxiliary": True}).shape[:-1]
            loc, scale = self.encode(x.expand(*shape, 3)).chunk(2, -1)
            self.sample(loc, scale.exp())


class Looping(GoodGuide):
    def prepare(self, x):
        self.encoder(x)
        return x


class Twice(GoodGuide):
    """Two networks, each of which runs once: nothing is wrong."""

    def __init__(self):
        super().__init__()
        self.before = nn.Linear(3, 3).double()

    def prepare(self, x):
        return self.before(x)


class Widening(GoodGuide):
    def sample(self, loc, scale):
        return super().sample(loc, scale * torch.arange(1.0, 4.0).reshape(-1, 1, 1))


class Coupled(GoodGuide):
    """The last particle of one site enters the other particles' next site."""

    def forward(self, x):
        with data_plate(x):
            loc, scale = self.encode(x).chunk(2, -1)
            upper = pyro.sample("z2", dist.Normal(loc, scale.exp()).to_event(1))
            upper = upper[-1].expand_as(upper) if upper.dim() > 2 else upper
            self.sample(loc + upper, scale.exp())


class Idle(GoodGuide):
    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.zeros(2))


class Detached(GoodGuide):
    def encode(self, x):
        return super().encode(x).detach()


class Infinite(GoodGuide):
    def encode(self, x):
        out = super().encode(x)
        if out.requires_grad:
            out.register_hook(lambda gradient: gradient / 0)
        return out


class Observing(GoodGuide):
    def sample(self, loc, scale):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1), obs=loc)


class Renamed(GoodGuide):
    def sample(self, loc, scale):
        pyro.sample("w", dist.Normal(loc, scale).to_event(1))


class WrongEvent(GoodGuide):
    def sample(self, loc, scale):
        pyro.sample("z", dist.Normal(loc[..., :1], scale[..., :1]).to_event(1))


class OtherPlate(GoodGuide):
    def forward(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            loc, scale = self.encode(x).chunk(2, -1)
            self.sample(loc, scale.exp())


class RunsTheModel(GoodGuide):
    def forward(self, x):
        with poutine.block():
            model_of(aside=lambda x: pyro.param("model.weight", torch.zeros(2)))(x)
        super().forward(x)


def two_levels(x):
    with data_plate(x):
        upper = pyro.sample("z2", PRIOR)
        z = pyro.sample("z", dist.Normal(upper, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W.mT, 0.5).to_event(1), obs=x)


def positive(x):
    with data_plate(x):
        z = pyro.sample("z", dist.Gamma(torch.ones(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W.mT, 0.5).to_event(1), obs=x)


@pytest.mark.parametrize(
    "make, message",
    [
        (Mixing, "q of 'z' for a datum is another when it is run on the first datum alone"),
        (Ordering, "q of 'z' for a datum is another when it is run on the data in reverse"),
        (Normalized, "on the first datum alone raised ValueError: Expected more than 1 value"),
        (Rigid, r"raised RuntimeError: shape '\[5, 3\]' is invalid"),
        (Blind, "the guide has the same q for different data"),
        (Dropping, "'z' at its own sample is another when the sample is put back in.*dropout"),
        (PerParticle, "network 'encoder' runs on 3 copies of one input"),
        (Looping, "network 'encoder' runs 2 times in one pass, 2 times on the same input"),
        (Widening, r"log-density of 'z', run once, has shape \[3, 5\]; expected was \[5\]"),
        (Idle, "the guide's parameter 'spare' gets no gradient from Trace_ELBO"),
        (Detached, "the guide's parameter 'encoder.weight' gets no gradient"),
        (Infinite, "'encoder.weight' gets a gradient from Trace_ELBO that is not finite"),
        (Observing, "the guide observes 'z'; a guide observes nothing"),
        (Renamed, "the model samples 'z' which the guide does not; the guide samples 'w'"),
        (WrongEvent, r"at 'z' the model's event has shape \(2,\), the guide's \(1,\)"),
        (
            OtherPlate,
            "at 'z' the model is in the plate 'data', and the guide in the plates 'rows'",
        ),
        (RunsTheModel, "running the guide leaves 'model.weight' in Pyro's parameter store"),
    ],
)
def test_a_broken_guide_is_caught(x, make, message):
    with says(message) as caught:
        check_guide(make(), model_of(), x)
    assert "\n" not in str(caught.value)


def test_a_guide_that_mixes_particles_is_caught(x):
    with says(r"log-density of 'z' with leading particles \[3\] is, for particle 0, another"):
        check_guide(Coupled(), two_levels, x)


def test_a_guide_off_the_models_support_is_caught(x):
    with says("'z' the model's Gamma has the support GreaterThanEq.*, and the guide's Normal"):
        check_guide(GoodGuide(), positive, x)


def test_a_name_that_model_and_guide_share_is_caught(x):
    shared = model_of(aside=lambda x: pyro.param("encoder$$$weight", torch.zeros(2)))
    with says("model and guide both have a parameter 'encoder\\$\\$\\$weight'"):
        check_guide(GoodGuide(name=""), shared, x)
    check_guide(GoodGuide(), shared, x)


@pytest.mark.parametrize("make", [GoodGuide, Twice])
def test_a_good_guide_passes(x, make):
    check_guide(make(), model_of(), x)


def test_a_guide_without_a_module_passes(x):
    weight = torch.randn(2, 3).requires_grad_()

    def guide(x):
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with data_plate(x):
            pyro.sample("z", dist.Normal(x @ weight.mT, scale).to_event(1))

    check_guide(guide, model_of(), x)

    def stopped(x):
        pyro.param("spare", torch.ones(2))
        guide(x)

    with says("the guide's `pyro.param` 'spare' gets no gradient"):
        check_guide(stopped, model_of(), x)


def test_a_guide_with_a_parameter_for_each_datum_passes_as_not_amortized(x):
    loc = torch.randn(5, 2).requires_grad_()

    def guide(x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))

    check_guide(guide, model_of(), x, amortized=False)
    with says("on the first datum alone|running the model against the guide raised"):
        check_guide(guide, model_of(), x)


def test_a_latent_of_all_data_passes(x):
    class Guide(GoodGuide):
        def __init__(self):
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            pyro.sample("scale", dist.LogNormal(self.log_scale, 0.1))
            super().forward(x)

    check_guide(Guide(), with_global_latent, x)


def test_labels_go_with_the_data(x):
    model = zoo.MODELS["GaussianMixtureVAE"]()
    guide, x = zoo.GUIDES["GaussianMixtureGuide"](model), zoo.batch(model, 6)
    labels = torch.tensor([0, -1, 2, -1, -1, -1])
    check_model(model, x, labels)
    check_guide(guide, model, x, labels)


# -------------------------------------------------------------------------------------- estimators


class Doubled(Trace_ELBO):
    """Twice the gradient."""

    def _loss(self, pairs):
        loss = super()._loss(pairs)
        return with_gradient(loss, 2 * loss)


class DoubledOnOneWay(Trace_ELBO):
    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = 2 * self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item() / 2


class PerDatum(Trace_ELBO):
    def differentiable_loss(self, model, guide, x):
        return super().differentiable_loss(model, guide, x) / len(x)


class Untyped(Trace_ELBO):
    def loss(self, *args):
        return torch.tensor(super().loss(*args))


class Leaving(Trace_ELBO):
    def loss(self, *args):
        return self.loss_and_grads(*args)


class Flat(Trace_ELBO):
    def differentiable_loss(self, *args):
        return super().differentiable_loss(*args).detach()


class Vector(Trace_ELBO):
    def differentiable_loss(self, *args):
        return super().differentiable_loss(*args).expand(2)


class Inside(TraceIWAE_ELBO):
    """N/B within the logarithm."""

    def _bound(self, particles):
        return log_mean_exp(particles.scale * particles.log_weights) / particles.scale


class Forgetful(Trace_ELBO):
    """N/B nowhere."""

    def _loss(self, pairs):
        plate = pairs[0].data_plate
        return super()._loss(pairs) * plate.size / plate.full_size


class Summing(Trace_ELBO):
    """Of looped particles the sum."""

    def _loss(self, pairs):
        return super()._loss(pairs) * len(pairs)


class Remembering(Trace_ELBO):
    """A gradient of what was before, and no `state_dict`."""

    past = 1.0

    def _loss(self, pairs):
        loss = super()._loss(pairs)
        past, self.past = self.past, self.past + torch.is_grad_enabled()
        return with_gradient(loss, past * loss)


class Restored(Remembering):
    """The same, with one: nothing is wrong."""

    def state_dict(self):
        return {"past": torch.tensor(self.past)}

    def load_state_dict(self, state):
        self.past = state["past"].item()


class Endless(Trace_ELBO):
    """Good at everything but the value that SVI gets."""

    def loss_and_grads(self, *args):
        super().loss_and_grads(*args)
        return math.inf


class Idling(Trace_ELBO):
    def _loss(self, pairs):
        loss = super()._loss(pairs)
        return with_gradient(loss, 0 * loss)


pyros = partial(pyro.infer.Trace_ELBO, max_plate_nesting=1)


@pytest.mark.parametrize(
    "factory, message",
    [
        (
            DoubledOnOneWay,
            r"differentiable_loss, with 1 particle drawn at once, gives the guide's parameter "
            r"'encoder.weight' another gradient than loss_and_grads: it differs by up to",
        ),
        (PerDatum, r"differentiable_loss, .* has the value .*; expected is that of loss, "),
        (Untyped, "loss, with 1 particle drawn at once, returns a Tensor; expected is a float"),
        (Leaving, "loss, .* leaves a gradient in the guide's parameter 'encoder.weight'"),
        (Flat, r"differentiable_loss, .* of shape \[\] without gradient; expected is a 0-dim"),
        (Vector, r"differentiable_loss, .* returns a tensor of shape \[2\]; expected is a 0-dim"),
        (Inside, r"from a batch of B out of N = 2.5 B data, is .*into a logarithm"),
        (Forgetful, r"from a batch of B out of N = 2.5 B data, is .*expected was N/B times"),
        (Summing, "2 particles drawn at once, and .* in a loop; expected was the same within 5"),
        (Remembering, "gives the guide's parameter 'encoder.weight' another gradient"),
        (Idling, "the guide's parameter 'encoder.weight' did not move in a step of plain SVI"),
        (
            partial(pyro.infer.Trace_ELBO),
            "the first loss of an estimator is .*the second from the same seed .*plate nesting",
        ),
        (
            pyros,
            "with parameters that Pyro cannot see, gives the guide's parameter 'encoder.weight' no "
            "gradient",
        ),
        (
            lambda num_particles, vectorize_particles: Trace_ELBO(num_particles=0),
            "making the estimator, .* raised ValueError: Trace_ELBO: num_particles is 0",
        ),
    ],
)
def test_a_broken_estimator_is_caught(x, factory, message):
    with says(message) as caught:
        check_estimator(factory, model_of(), GoodGuide(), x)
    assert "\n" not in str(caught.value)


def test_a_module_of_the_pair_is_a_way_in(x):
    class Odd(Trace_ELBO):
        def __call__(self, model, guide):
            return lambda x: 2 * self.differentiable_loss(model, guide, x)

    model = zoo.MODELS["VAE-Gaussian"]()
    guide, x = zoo.GUIDES["MeanFieldGuide"](model), zoo.batch(model)
    with says(r"elbo\(model, guide\), with 1 particle drawn at once, has the value"):
        check_estimator(Odd, model, guide, x)


@pytest.mark.parametrize("factory", [Trace_ELBO, TraceIWAE_ELBO, Restored])
def test_a_good_estimator_passes(x, factory):
    check_estimator(factory, model_of(), GoodGuide(), x)


def test_estimators_are_tried_on_closures_and_parameters_of_the_store(x):
    weight = torch.randn(2, 3).requires_grad_()

    def guide(x):
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with data_plate(x):
            pyro.sample("z", dist.Normal(x @ weight.mT, scale).to_event(1))

    check_estimator(Trace_ELBO, model_of(), guide, x)
    assert weight.grad is None
    with says(r"with parameters that Pyro cannot see, gives the guide's .* no gradient"):
        check_estimator(pyros, model_of(), guide, x)
    with says("the guide's `pyro.param` 'scale' did not move"):
        check_estimator(Idling, model_of(), guide, x)
    # A latent of all data has no N/B.
    check_estimator(Trace_ELBO, with_global_latent, global_guide, x)


def global_guide(x):
    pyro.sample("scale", dist.LogNormal(pyro.param("loc", torch.tensor(0.1)), 0.1))
    guide_loc = pyro.param("weight", W.clone())
    with data_plate(x):
        pyro.sample("z", dist.Normal(x @ guide_loc, 0.5).to_event(1))


def test_a_plate_made_larger_is_the_plate_that_subsamples(x):
    def model(x, size):
        with pyro.plate("data", size, subsample=torch.arange(5), dim=-1):
            z = pyro.sample("z", PRIOR)
            pyro.sample("x", dist.Normal(z @ W.mT, 0.5).to_event(1), obs=x)

    def guide(x, size):
        with pyro.plate("data", size, subsample=torch.arange(5), dim=-1):
            pyro.sample("z", dist.Normal(x @ W, 0.5).to_event(1))

    for name in ("Trace_ELBO", "TraceIWAE_ELBO", "TraceCapacity_ELBO", "TraceRWS_ELBO"):
        elbo = zoo.estimator(name, 3)
        torch.manual_seed(3)
        expected = elbo.loss(model, guide, x, 12.5)
        torch.manual_seed(3)
        larger = Enlarge("data", 2.5)
        assert elbo.loss(larger(model), larger(guide), x, 5) == pytest.approx(expected, rel=1e-12)


def test_one_particle_alone_shows_nothing_of_particles(x):
    with pytest.raises(ValueError, match=r"num_particles is \[1\]; accepted is one >= 2"):
        check_estimator(Trace_ELBO, model_of(), GoodGuide(), x, num_particles=[1])


def test_a_step_of_plain_svi(x):
    guide = GoodGuide()
    check_svi(model_of(), guide, x)
    check_svi(model_of(), guide, x, loss=pyros())
    with says("the guide's parameter 'encoder.weight' did not move"):
        check_svi(model_of(), guide, x, loss=Idling())
    with says("step of plain SVI returns inf; expected is a finite float"):
        check_svi(model_of(), guide, x, loss=Endless())
    with says("a step of plain SVI raised RuntimeError|the model raised RuntimeError: no such"):
        check_svi(model_of(broken), guide, x)


# ------------------------------------------------------------------------------------------ bounds


class Generous(Trace_ELBO):
    """A third of a nat too much for each datum."""

    def _loss(self, pairs):
        return super()._loss(pairs) - pairs[0].data_plate.size / 3


class Meagre(Trace_ELBO):
    def _loss(self, pairs):
        return super()._loss(pairs) + 1e-6


@pytest.mark.parametrize(
    "factory, message",
    [
        (partial(estimators.TraceRenyi_ELBO, alpha=-3.0), "expected was a lower bound of log p"),
        (Generous, "expected was a lower bound of log p|expected for every draw"),
        (Meagre, r"at the exact posterior .*one of 3 draws; expected for every draw was log p\(x"),
        (TraceAnalyticKL_ELBO, "at the exact posterior .* expected for every draw"),
        (
            lambda num_particles, vectorize_particles: (
                Trace_ELBO if vectorize_particles else Generous
            )(num_particles),
            "3 particle.*, vectorize_particles=False",
        ),
    ],
)
def test_what_is_no_bound_is_caught(factory, message):
    with says(message):
        check_bound(factory)


def test_what_is_off_in_mean_is_caught():
    class Low(TraceAnalyticKL_ELBO):
        def _loss(self, pairs):
            return super()._loss(pairs) + pairs[0].data_plate.size

    with says(r"is -\d+\.?\d* in mean, .* expected was log p\(x\)"):
        check_bound(Low, exact_in_mean=True)


def test_a_bound_passes():
    check_bound(TraceIWAE_ELBO)
    check_bound(TraceAnalyticKL_ELBO, exact_in_mean=True)


# --------------------------------------------------------------------------------------- gradients


class Skewed(Trace_ELBO):
    """A gradient that is right but for the scales."""

    def _kl(self, pair, name):
        kl = super()._kl(pair, name)
        scale = pair.guide_trace.nodes[name]["fn"].base_dist.scale
        return with_gradient(kl, kl + 2.0 * scale.sum(-1))


@pytest.mark.parametrize(
    "factory, message",
    [
        (Doubled, r"the gradient of the guide's parameter 'weight', with 2 .* is biased at \["),
        (Skewed, "the gradient of the guide's parameter 'log_scale', .* is biased at"),
        (TraceIWAE_ELBO, r"is biased at \[.*with a standard error of .*; expected was"),
    ],
)
def test_a_biased_gradient_is_caught(factory, message):
    with says(message):
        check_unbiased(factory)


@pytest.mark.parametrize(
    "factory",
    [
        Trace_ELBO,
        TraceAnalyticKL_ELBO,
        estimators.TraceSTL_ELBO,
        estimators.TraceScoreFunction_ELBO,
        pyro.infer.TraceMeanField_ELBO,
    ],
)
def test_an_unbiased_gradient_passes(factory):
    check_unbiased(factory)


def iwae_by_quadrature(model, guide, x):
    """Minus the importance-weighted bound of two particles: a grid over all of their noise."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(12))
    grid = torch.cartesian_prod(*[nodes] * 4).reshape(-1, 2, 1, 2)  # [G, K, 1, D]
    mass = torch.cartesian_prod(*[weights / math.sqrt(2 * math.pi)] * 4).prod(-1)
    scale = guide.log_scale.exp()
    z = x @ guide.weight.mT + guide.bias + scale * grid  # [G, K, B, D]
    residual = (x - model.bias - z @ model.loading.mT) / model.noise_scale
    log_w = (-0.5 * residual**2 - model.noise_scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    log_w = log_w + (-0.5 * z**2 + 0.5 * grid**2 + scale.log()).sum(-1)
    return -(mass.unsqueeze(-1) * (log_w.logsumexp(1) - math.log(2))).sum()


@pytest.mark.parametrize("name", ["TraceIWAE_ELBO", "TraceDReG_ELBO", "TraceVIMCO_ELBO"])
def test_a_reference_of_ones_own(name):
    check_unbiased(getattr(estimators, name), reference=iwae_by_quadrature)


def test_the_bias_of_iwae_stl_is_seen():
    # As its docstring says.
    with says("the gradient of the guide's parameter .* is biased"):
        check_unbiased(estimators.TraceIWAESTL_ELBO, reference=iwae_by_quadrature, num_draws=200)


def test_a_pair_of_ones_own_needs_a_reference():
    pair = learned()
    with pytest.raises(ValueError, match="give `reference`"):
        check_unbiased(Trace_ELBO, pair=pair)
    check_unbiased(Trace_ELBO, pair=pair, reference=closed_form_loss, num_draws=20)
    assert all(p.grad is None for program in pair[:2] for p in program.parameters())


def test_the_closed_form_is_the_elbo():
    model, guide, x = learned()
    losses = torch.tensor([Trace_ELBO(1000).loss(model, guide, x) for _ in range(30)])
    error = losses.std() / math.sqrt(30)
    assert (losses.mean() - closed_form_loss(model, guide, x)).abs() <= 5 * error
    assert error < 0.1


# ------------------------------------------------------------------------------------ what is left


class Wild(GoodGuide):
    """A guide that changes all that it should not, and conforms."""

    def __init__(self):
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        self.runs.add_(1)
        random.random()
        np.random.rand()
        torch.set_default_dtype(torch.float32)
        super().forward(x)


IDLE = Idle()

CHECKS = {
    "model": lambda model, guide, x: check_model(model, x),
    "guide": lambda model, guide, x: check_guide(guide, model, x),
    "estimator": lambda model, guide, x: check_estimator(Trace_ELBO, model, guide, x),
    "svi": lambda model, guide, x: check_svi(model, guide, x),
    "bound": lambda model, guide, x: check_bound(Trace_ELBO, num_draws=3),
    "unbiased": lambda model, guide, x: check_unbiased(Trace_ELBO, num_draws=10),
    "broken model": lambda model, guide, x: check_model(model_of(broken), x),
    "broken guide": lambda model, guide, x: check_guide(IDLE, model, x),
    "broken estimator": lambda model, guide, x: check_estimator(Idling, model, guide, x),
    "no bound": lambda model, guide, x: check_bound(Generous),
    "biased": lambda model, guide, x: check_unbiased(Doubled),
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_leaves_everything_as_it_was(x, name):
    guide, start = Wild().train(), torch.zeros(2)
    for parameter in guide.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for p in guide.parameters()]
    pyro.param("kept", torch.ones(2))
    pyro.enable_validation(False)
    settings, states = pyro.settings.get(), (random.getstate(), torch.get_rng_state())
    numpys = np.random.get_state()[1].copy()

    def moving(x):
        # Of a parameter without constraint the store trains this very tensor.
        pyro.param("shift", start)

    with torch.no_grad():
        is_broken = " " in name or name == "biased"
        if is_broken:
            with pytest.raises(ConformanceError):
                CHECKS[name](model_of(aside=moving), guide, x)
        else:
            CHECKS[name](model_of(lambda z: z @ W.mT), guide, x)
        assert not torch.is_grad_enabled()
    assert pyro.settings.get() == settings
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert (np.random.get_state()[1] == numpys).all()
    assert torch.get_default_dtype() == torch.float64
    assert dict(pyro.get_param_store().items()).keys() == {"kept"}
    assert guide.training and guide.runs == 0 and torch.equal(start, torch.zeros(2))
    for parameter, value in zip(guide.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert torch.equal(parameter.grad, torch.ones_like(parameter))


def test_a_trained_tensor_of_the_store_is_put_back(x):
    start = torch.zeros(3)

    def model(x):
        bias = pyro.param("model.bias", start)
        with data_plate(x):
            z = pyro.sample("z", PRIOR)
            pyro.sample("x", dist.Normal(z @ W.mT + bias, 0.5).to_event(1), obs=x)

    check_estimator(Trace_ELBO, model, GoodGuide(), x)
    assert torch.equal(start, torch.zeros(3))


def test_the_seed_decides(x):
    losses = []

    class Watching(Trace_ELBO):
        def loss(self, *args):
            losses.append(super().loss(*args))
            return losses[-1]

    guide = GoodGuide()
    for seed in (0, 0, 1):
        torch.manual_seed(len(losses))
        check_estimator(Watching, model_of(), guide, x, seed=seed)
    third = len(losses) // 3
    assert losses[:third] == losses[third : 2 * third] != losses[2 * third :]


def test_the_kit_needs_no_pytest_and_is_not_imported_unasked():
    sources = [path.read_text() for path in Path(ppl_vae.testing.__file__).parent.glob("*.py")]
    assert len(sources) > 5
    assert not any(re.search(r"^\s*(import|from) _?pytest", s, re.MULTILINE) for s in sources)
    package = Path(ppl_vae.__file__).parent
    others = [path for path in package.rglob("*.py") if "testing" not in path.parts]
    assert not [path for path in others if "ppl_vae.testing" in path.read_text()]


def test_any_model_of_the_library_is_an_oracle_for_the_kit(x):
    model = LinearGaussian(W, 0.5)
    check_model(model, x)
    check_guide(zoo.GUIDES["MeanFieldGuide"](model), model, x)
