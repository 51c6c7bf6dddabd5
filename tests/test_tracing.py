"""The traced graph against the programs: the same loss, gradients and memory.

No compiler here: the graph is interpreted. `test_compiled.py` has what Inductor makes of it.
"""

import os

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

from ppl_vae import estimators as e
from ppl_vae import guides, models
from ppl_vae.compiled import CompiledLoss, TraceError, trace_loss
from ppl_vae.compiled.tracing import trace_function
from ppl_vae.exchange import Substitution
from ppl_vae.handlers import scale_latents, weighted
from ppl_vae.randomness import fork, validation
from ppl_vae.testing.isolation import isolated
from tests import zoo


def check_graph(model, guide, elbo, args, weight=1.0, tensor_weight=1.0):
    """Loss, gradients, what is remembered, and the random stream, with the same noise."""
    with isolated(0, model, guide), validation(False):
        elbo.loss(model, guide, *args)
        parameters = list(pyro.get_param_store().named_parameters())
        parameters = {id(p): p for _, p in parameters} | {
            id(p): p
            for program in (model, guide)
            if isinstance(program, nn.Module)
            for p in program.parameters()
            if p.requires_grad
        }
        parameters = list(parameters.values())
        traced = trace_loss(model, guide, elbo, parameters, args, tensor_weight)
        held = [value.detach().clone() for value in traced.held]
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        tensors += [w for w in _values(tensor_weight) if isinstance(w, torch.Tensor)]
        torch.manual_seed(5)
        loss, *gradients = traced.graph(*traced.inputs([*held, *tensors]))
        state = torch.get_rng_state()
        torch.manual_seed(5)
        with weighted(weight):
            expected = elbo.differentiable_loss(model, guide, *args)
        found = torch.autograd.grad(expected, parameters, allow_unused=True)
        assert torch.equal(torch.get_rng_state(), state)
        assert abs(loss - expected) <= 1e-12 * abs(expected)
        reached = [p for p, value in zip(parameters, found, strict=True) if value is not None]
        assert [id(p) for p in reached] == [id(p) for p in traced.reached]
        for one, other in zip(gradients, [v for v in found if v is not None], strict=True):
            assert (one - other).norm() <= 1e-12 * other.norm()
            assert one.stride() == other.stride() or one.numel() == other.numel()
        for one, other in zip(held[len(parameters) :], traced.held[len(parameters) :], strict=True):
            assert torch.equal(one, other)
    return traced


def _values(weight):
    return weight.values() if isinstance(weight, dict) else [weight]


def check_triples(model_name, guide_name, names):
    model, guide = zoo.pair(model_name, guide_name)
    x = zoo.batch(model)
    for name in names:
        check_graph(model, guide, zoo.estimator(name, 2), (x,))


# It seeds its own noise inside.
UNTRACEABLE = {"SemiAmortizedGuide"}
PAIRS = [(model, guide) for model, guide in zoo.PAIRS if guide not in UNTRACEABLE]
# With PPL_VAE_TEST_ALL=1 every model, in half an hour of one core.
ALL = os.environ.get("PPL_VAE_TEST_ALL") == "1"
WHOLE = set(zoo.MODELS) if ALL else {"HierarchicalVAE"}


def legal(model_name, guide_name):
    return [e for m, e, g in zoo.accepted(model_name) if g == guide_name]


@pytest.mark.parametrize("index", range(len(PAIRS)))
def test_the_graph_is_the_programs(index):
    """Every pair, with the estimators in turn."""
    names = legal(*PAIRS[index])
    check_triples(*PAIRS[index], [names[index % len(names)]] if names else [])


@pytest.mark.slow
@pytest.mark.parametrize("model_name, guide_name", [pair for pair in PAIRS if pair[0] in WHOLE])
def test_every_graph_is_its_programs(model_name, guide_name):
    check_triples(model_name, guide_name, legal(model_name, guide_name))


def test_what_is_no_operation_on_tensors_is_found_out():
    model, guide = zoo.pair("VAE", "SemiAmortizedGuide")
    with pytest.raises(TraceError, match="at the same noise .* that of their graph"):
        check_graph(model, guide, e.Trace_ELBO(), (zoo.batch(model),))


@pytest.mark.parametrize("name", zoo.ESTIMATORS)
def test_a_kl_weight_is_an_input(name):
    model, guide = zoo.pair("HierarchicalVAE", "TopDownGuide")
    x, elbo = zoo.batch(model), zoo.estimator(name, 2)
    with isolated(0, model, guide), scale_latents(0.3):
        try:
            elbo.loss(model, guide, x)
        except ValueError as error:
            message = str(error)
        else:
            message = None
    weight = torch.tensor(0.3)
    if message is None:
        check_graph(model, guide, elbo, (x,), 0.3, weight)
    else:
        with pytest.raises(ValueError, match="weight"):
            check_graph(model, guide, elbo, (x,), 1.0, weight)


def test_kl_weights_by_site_are_inputs():
    model, guide = zoo.pair("HierarchicalVAE", "BottomUpGuide")
    weights = {"z1": torch.tensor(0.3), "z2": 0.7}
    numbers = {"z1": 0.3, "z2": 0.7}
    check_graph(model, guide, e.Trace_ELBO(2), (zoo.batch(model),), numbers, weights)


@pytest.mark.parametrize(
    "elbo",
    [
        e.Trace_ELBO(3, vectorize_particles=False),
        e.TraceIWAE_ELBO(2, num_outer=3),
        e.TraceDReG_ELBO(3, vectorize_particles=False),
        e.TraceScoreFunction_ELBO(e.DecayingAverage(), 3),
    ],
    ids=["looped", "outer", "looped path", "baseline"],
)
def test_ways_to_draw(elbo):
    model, guide = zoo.pair("VAE", "MeanFieldGuide")
    check_graph(model, guide, elbo, (zoo.batch(model),))


def test_a_baseline_moves_as_it_does_eagerly():
    model, guide = zoo.pair("VAE", "MeanFieldGuide")
    x, averages = zoo.batch(model), []
    parameters = [*model.parameters(), *guide.parameters()]
    for compiled in (False, True):
        elbo = e.TraceScoreFunction_ELBO(e.DecayingAverage(0.5), 2)
        with isolated(0, model, guide), validation(False):
            elbo.loss(model, guide, x)
            loss = CompiledLoss(model, guide, elbo, parameters, lowered=False)
            for _ in range(4):
                if compiled:
                    loss((x,))
                else:
                    elbo.differentiable_loss(model, guide, x)
        averages.append(elbo.baseline.average.clone())
    assert averages[0] == pytest.approx(averages[1].item(), rel=1e-12)
    assert averages[0] != 0


def test_a_capacity_is_read_anew_at_each_step():
    model, guide = zoo.pair("VAE", "MeanFieldGuide")
    x = zoo.batch(model)
    parameters = [*model.parameters(), *guide.parameters()]
    elbo = e.TraceCapacity_ELBO(gamma=10.0)
    with isolated(0, model, guide), validation(False):
        elbo.loss(model, guide, x)
        loss = CompiledLoss(model, guide, elbo, parameters, lowered=False)
        for step in (0, 40_000, 90_000):
            elbo.set_step(step)
            torch.manual_seed(step)
            found = loss((x,))
            torch.manual_seed(step)
            assert found == pytest.approx(elbo.loss(model, guide, x), rel=1e-12)


class Normalizing(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(size, 4), nn.BatchNorm1d(4), nn.ReLU())

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("elbo", [e.Trace_ELBO(), e.TraceSTL_ELBO(2)], ids=["plain", "path"])
def test_running_statistics_move_once(elbo):
    model = models.VAE((6,), latent_dim=2, hidden=(5,))
    guide = guides.MeanFieldGuide(model, encoder=Normalizing(6))
    x = torch.rand(8, 6)
    parameters = [*model.parameters(), *guide.parameters()]
    with isolated(0, model, guide), validation(False):
        loss = CompiledLoss(model, guide, elbo, parameters, lowered=False)
        before = [b.clone() for b in guide.buffers()]
        loss.prepare((x,))
        assert all(map(torch.equal, guide.buffers(), before))
        with fork(1):
            elbo.differentiable_loss(model, guide, x)
        moved = [b.clone() for b in guide.buffers()]
        for buffer, value in zip(guide.buffers(), before, strict=True):
            buffer.copy_(value)
        with fork(1):
            loss((x,))
        for buffer, value, start in zip(guide.buffers(), moved, before, strict=True):
            torch.testing.assert_close(buffer, value, rtol=1e-12, atol=0)
            assert not torch.equal(value, start)


def test_plain_functions_with_parameters_in_the_store_and_in_a_closure():
    decoder, encoder = nn.Linear(2, 6), nn.Linear(6, 2)

    def model(x):
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(encoder(x), 0.3).to_event(1))

    traced = check_graph(model, guide, e.TraceSTL_ELBO(2), (torch.randn(4, 6),))
    assert len(traced.reached) == 5


def test_labels_and_what_is_no_tensor_go_along():
    def model(x, y, shift):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + y.unsqueeze(-1) + shift, 1.0).to_event(1), obs=x)

    class Guide(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)

        def forward(self, x, y, shift):
            with pyro.plate("data", len(x), dim=-1):
                loc = self.net(torch.cat([x, y.unsqueeze(-1)], -1))
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    x, y = torch.randn(4, 2), torch.rand(4)
    check_graph(model, Guide(), e.Trace_ELBO(), (x, y, 0.5))
    guide = Guide()
    loss = CompiledLoss(model, guide, e.Trace_ELBO(), list(guide.parameters()), lowered=False)
    with isolated(0, guide), validation(False):
        one, other = (float(loss((x, y, shift))) for shift in (0.5, 5.0))
    assert abs(one - other) > 1  # What is no tensor is part of the graph, and of its key.


def test_a_tensor_that_a_program_holds_is_read_anew():
    shift = torch.zeros(2)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + shift, 1.0).to_event(1), obs=x)

    guide = guides.MeanFieldGuide(model, hidden=())
    guide.setup(torch.randn(4, 2))
    x, parameters = torch.randn(4, 2), list(guide.parameters())
    with isolated(0, guide), validation(False):
        loss = CompiledLoss(model, guide, e.Trace_ELBO(), parameters, lowered=False)
        loss.prepare((x,))
        # An argument of the graph: a constant of it would be compiled in.
        assert any(value is shift for value in loss.trace((x,)).constants)
        shift.fill_(100.0)
        assert loss((x,)) > 10_000


def test_tensors_are_exchanged_wherever_they_go_in():
    old, new = torch.zeros(2), torch.ones(2)
    with Substitution([old], [new]):
        found = torch.add(new, old), torch.add(new, other=old), torch.stack([new, old]).sum(0)
    assert all(torch.equal(value, 2 * new) for value in found)


def test_numbers_that_a_program_writes_are_part_of_the_graph():
    assert trace_function(lambda x: x * torch.tensor(2.0), [torch.ones(2)]).constants == ()


def test_a_graph_is_for_one_kind_of_batch():
    x, weight = torch.zeros(3, 3), torch.tensor(1.0)
    batches = [(x,), (x.t(),), (x[:2],), (x.float(),), (x, 1), (x, 2), (x, None)]
    weights = [0.5, 0.7, weight, {"a": weight}, {"b": weight}, {"a": 0.5}, {"a": weight, "b": 0.5}]
    kinds = [CompiledLoss.key(args, 1.0) for args in batches]
    kinds += [CompiledLoss.key((x,), value) for value in weights]
    assert len(set(kinds)) == len(kinds)
    assert CompiledLoss.key((x + 1,), weight + 1) == CompiledLoss.key((x,), weight)


def looks_at_data(x):
    if x.sum() > 0:
        pyro.deterministic("positive", x)
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    "model, elbo, message",
    [
        (looks_at_data, e.Trace_ELBO(), "looks at the value of a tensor"),
        (None, pyro.infer.Trace_ELBO(), "pyro.infer.trace_elbo.Trace_ELBO looks at the values"),
    ],
    ids=["python", "pyro"],
)
def test_what_cannot_be_traced_says_why(model, elbo, message):
    model = models.VAE((2,), latent_dim=2, hidden=()) if model is None else model
    guide = guides.MeanFieldGuide(model, hidden=())
    x = torch.rand(4, 2).round()
    guide.setup(x)
    parameters = list(guide.parameters())
    state = torch.get_rng_state()
    with isolated(0, guide), pytest.raises(TraceError, match=message):
        trace_loss(model, guide, elbo, parameters, (x,))
    assert torch.equal(state, torch.get_rng_state())


def test_nothing_to_train_is_said():
    model, guide = zoo.pair("VAE", "MeanFieldGuide")
    for parameter in (*model.parameters(), *guide.parameters()):
        parameter.requires_grad_(False)
    model.eval(), guide.eval()
    with isolated(0), pytest.raises(TraceError, match="depends on no parameter"):
        trace_loss(model, guide, e.Trace_ELBO(), [], (zoo.batch(model),))
