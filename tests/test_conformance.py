"""What every model, guide, estimator and schedule of the zoo promises.

Shapes: K particles, B data.
"""

import copy
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from pyro import poutine
from pyro.infer import ELBO, SVI

from ppl_vae import estimators, guides, models, schedules
from ppl_vae.estimators import Trace_ELBO

ACCEPTED = [pair for pair in product(zoo.ESTIMATORS, zoo.GUIDES) if pair not in zoo.REFUSED]
SMALL = ["VAE", "HierarchicalVAE"]
"""The models on which every estimator is tried with every guide."""


@pytest.fixture(params=zoo.MODELS)
def model(request):
    return zoo.MODELS[request.param]()


@pytest.fixture(params=zoo.GUIDES)
def make_guide(request):
    return zoo.GUIDES[request.param]


def trace_of(program, *args):
    trace = poutine.trace(program).get_trace(*args)
    trace.compute_log_prob()
    return trace


def latents(trace):
    """The latent sites, without those of subsampled plates."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and type(site["fn"]).__name__ != "_Subsample"
    }


def gradients(*modules):
    return [None if p.grad is None else p.grad.clone() for m in modules for p in m.parameters()]


def zero_grad(*modules):
    for module in modules:
        module.zero_grad(set_to_none=True)


# ---------------------------------------------------------------------------------- the zoo itself


@pytest.mark.parametrize(
    "package, base, built",
    [
        (models, models.Model, lambda: [make() for make in zoo.MODELS.values()]),
        (guides, guides.Guide, lambda: [g(zoo.MODELS["VAE"]()) for g in zoo.GUIDES.values()]),
        (estimators, ELBO, lambda: [make() for make in zoo.ESTIMATORS.values()]),
        (schedules, schedules.Schedule, lambda: [make() for make in zoo.SCHEDULES.values()]),
        (
            models,
            models.Likelihood,
            lambda: (
                [m.likelihood for m in (f() for f in zoo.MODELS.values()) if "VAE" in str(m)]
                + [models.Likelihood()]
            ),
        ),
    ],
)
def test_the_zoo_lists_every_public_concrete_class(package, base, built):
    listed = {type(instance) for instance in built()}
    assert {cls.__name__ for cls in listed} == set(zoo.concrete(package, base))


# ------------------------------------------------------------------------------------------ models


def test_a_model_is_a_program_over_the_data_plate(model):
    x = zoo.batch(model)
    model.check(x)
    trace = trace_of(model, x)
    assert trace.nodes["_RETURN"]["value"] is trace.nodes["x"]["value"] is x
    assert trace.nodes["x"]["is_observed"]
    assert trace.nodes["x"]["fn"].event_shape == model.data_shape == x.shape[1:]
    assert latents(trace)
    for site in (*latents(trace).values(), trace.nodes["x"]):
        (frame,) = site["cond_indep_stack"]
        assert (frame.name, frame.dim, frame.size) == ("data", -1, 5)
        assert site["fn"].batch_shape == site["log_prob"].shape == (5,)
        assert site["log_prob"].isfinite().all()


def test_a_model_refuses_data_of_another_shape(model):
    with pytest.raises(ValueError, match=r"was built for data of shape .* was given \(9,\)"):
        model.check(torch.zeros(5, 9))


@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_a_model_takes_any_leading_particles(model, lead):
    x = zoo.batch(model)
    plates = [pyro.plate(f"k{i}", k, dim=-2 - i) for i, k in enumerate(reversed(lead))]
    program = model
    for plate in plates:
        program = plate(program)
    drawn = trace_of(program, x)
    trace = trace_of(poutine.replay(program, trace=drawn), x)
    for site in latents(trace).values():
        assert site["value"].shape == (*lead, 5, *site["fn"].event_shape)
    for site in (*latents(trace).values(), trace.nodes["x"]):
        assert site["log_prob"].shape == (*lead, 5)
    # Each particle is what the model gives for it alone.
    last = tuple(k - 1 for k in lead)
    values = {name: site["value"][last] for name, site in latents(trace).items()}
    alone = trace_of(poutine.condition(model, data=values), x)
    for name in (*values, "x"):
        torch.testing.assert_close(
            trace.nodes[name]["log_prob"][last], alone.nodes[name]["log_prob"], rtol=1e-10, atol=0
        )


@pytest.mark.parametrize("guide_name", zoo.GUIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pair_computes_in_the_models_type_whatever_the_default(model, guide_name, dtype):
    model = model.to(dtype)
    guide = zoo.GUIDES[guide_name](model)
    assert {p.dtype for p in guide.parameters()} == {dtype}
    x = zoo.batch(model).to(dtype)
    other = torch.float64 if dtype == torch.float32 else torch.float32
    torch.set_default_dtype(other)
    loss = Trace_ELBO(num_particles=2).differentiable_loss(model, guide, x)
    assert loss.dtype == dtype and loss.isfinite()
    for trace in (trace_of(model, x), trace_of(guide, x)):
        assert {site["value"].dtype for site in latents(trace).values()} == {dtype}


def test_a_model_leaves_nothing_in_the_parameter_store(model):
    with pyro.get_param_store().scope() as inside:
        model(zoo.batch(model))
    assert all(name.startswith("model") for name in inside["params"])
    assert list(pyro.get_param_store()) == []


@pytest.mark.parametrize("estimator, guide_name", ACCEPTED)
def test_a_pair_runs_on_the_meta_device(model, estimator, guide_name):
    # Nothing on this device has a value: a tensor on another device, or a look at a value, fails.
    pyro.enable_validation(False)
    model = model.to("meta")
    guide = zoo.GUIDES[guide_name](model)
    assert {p.device.type for p in guide.parameters()} == {"meta"}
    x = torch.empty(5, *model.data_shape, device="meta")
    for num_particles in (1, 3):
        elbo = zoo.estimator(estimator, num_particles)
        loss = elbo.differentiable_loss(model, guide, x)
        assert loss.shape == () and loss.device.type == "meta"
        loss.backward()
    assert all(p.grad.device.type == "meta" for p in guide.parameters())


# ------------------------------------------------------------------------------------------ guides


@pytest.mark.parametrize("num_data", [1, 5])
def test_a_guide_samples_exactly_the_models_latents(model, make_guide, num_data):
    guide = make_guide(model)  # set up with another number of data
    x = zoo.batch(model, num_data)
    ours, theirs = trace_of(guide, x), trace_of(model, x)
    assert set(latents(ours)) == set(latents(theirs))
    assert not [site for site in ours.nodes.values() if site.get("is_observed")]
    for name, site in latents(theirs).items():
        found = ours.nodes[name]
        assert found["value"].shape == site["value"].shape
        assert found["fn"].event_shape == site["fn"].event_shape
        assert found["log_prob"].shape == (num_data,) and found["log_prob"].isfinite().all()
        assert found["cond_indep_stack"] == site["cond_indep_stack"]
    values = ours.nodes["_RETURN"]["value"]
    assert set(values) == set(latents(theirs))
    assert all(values[name] is ours.nodes[name]["value"] for name in values)


def test_each_datum_is_encoded_by_itself(model, make_guide):
    guide, x = make_guide(model), zoo.batch(model)
    torch.manual_seed(0)
    whole = trace_of(guide, x)
    torch.manual_seed(0)
    reversed_ = trace_of(guide, x.flip(0))
    for name, site in latents(whole).items():
        # The same noise in the same rows: only the data have changed places.
        if isinstance(site["fn"], dist.Delta):
            one, other = site["value"], reversed_.nodes[name]["value"]
        else:
            one, other = site["fn"].mean, reversed_.nodes[name]["fn"].mean
        torch.testing.assert_close(one, other.flip(0), rtol=1e-10, atol=1e-14)
        assert (one[0] - one[1]).abs().max() > 1e-6


def test_the_models_parameters_are_not_the_guides(model, make_guide):
    guide = make_guide(model)
    assert guide.model is model
    assert not {id(p) for p in model.parameters()} & {id(p) for p in guide.parameters()}
    assert model not in list(guide.modules())


@pytest.mark.parametrize("num_particles", [1, 7])
def test_the_encoder_runs_once_per_datum(model, make_guide, num_particles):
    guide, x = make_guide(model), zoo.batch(model)
    elbo = Trace_ELBO(num_particles=num_particles)
    elbo.loss(model, guide, x)  # finds the plate nesting
    rows = []
    guide.encoder.register_forward_hook(lambda _, args, out: rows.append((args[0].shape, out)))
    elbo.loss(model, guide, x)
    ((shape, features),) = rows
    assert shape == x.shape and features.shape[:-1] == (5,)


def test_every_parameter_of_the_guide_gets_a_gradient(model, make_guide):
    guide, x = make_guide(model), zoo.batch(model, 20)
    Trace_ELBO(num_particles=3).loss_and_grads(model, guide, x)
    for name, parameter in guide.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
        # Locations and scales alike: they are rows of one matrix.
        if name.startswith("heads") and parameter.dim() == 1:
            assert (parameter.grad != 0).all(), name


def run_seeded(guide, x):
    torch.manual_seed(5)
    return guide(x)


def test_a_guide_can_be_copied(model, make_guide):
    guide, x = make_guide(model), zoo.batch(model)
    before = run_seeded(guide, x)
    twin = copy.deepcopy(guide)
    for name, value in run_seeded(twin, x).items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    for name, value in run_seeded(guide, x).items():
        assert torch.equal(value, before[name])
        assert not torch.equal(run_seeded(twin, x)[name], value)


def test_a_guides_state_makes_another_guide_equal(model, make_guide):
    guide, other, x = make_guide(model), make_guide(model), zoo.batch(model)
    assert not torch.equal(
        torch.cat([v.flatten() for v in run_seeded(guide, x).values()]),
        torch.cat([v.flatten() for v in run_seeded(other, x).values()]),
    )
    other.load_state_dict(guide.state_dict())
    for name, value in run_seeded(guide, x).items():
        assert torch.equal(value, run_seeded(other, x)[name])


class Needy:
    """A plain callable that cannot be run on the data alone."""

    def __init__(self, program):
        self.program, self.data_shape = program, program.data_shape

    def __call__(self, x, labels):
        assert labels is not None
        return self.program(x)


def test_networks_made_later_are_those_made_at_once(model, make_guide):
    x, labels = zoo.batch(model), torch.zeros(5)
    torch.manual_seed(0)
    at_once = make_guide(model)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    later = make_guide(Needy(model))
    with pytest.raises(RuntimeError, match="no networks yet.*guide.setup"):
        later(x, labels)
    with poutine.trace() as seen:
        later.setup(x, labels)
    # Neither the trace nor the random stream has seen the run of the model.
    assert not seen.trace.nodes and torch.equal(torch.get_rng_state(), state)
    later.setup(x, labels)  # once is enough
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in at_once.state_dict().items():
        assert torch.equal(later.state_dict()[name], value), name
    torch.manual_seed(5)
    loss = Trace_ELBO().loss(Needy(model), later, x, labels=labels)
    torch.manual_seed(5)
    assert Trace_ELBO().loss(model, at_once, x) == loss


# -------------------------------------------------------------------------------------- estimators


@pytest.mark.parametrize("name", zoo.ESTIMATORS)
@pytest.mark.parametrize("num_particles", [0, -1])
def test_an_estimator_needs_a_particle(name, num_particles):
    with pytest.raises(ValueError, match=rf"_ELBO: num_particles is {num_particles}.*is >= [12]"):
        zoo.ESTIMATORS[name](num_particles=num_particles)


@pytest.mark.parametrize("estimator, guide_name", sorted(zoo.REFUSED))
def test_a_refused_pair_names_both_sides(estimator, guide_name):
    model = zoo.MODELS["VAE"]()
    with pytest.raises(ValueError, match=f"{estimator}.*{guide_name}"):
        zoo.ESTIMATORS[estimator]().loss(model, zoo.GUIDES[guide_name](model), zoo.batch(model))


@pytest.mark.parametrize("how", [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("model_name", SMALL)
@pytest.mark.parametrize("estimator, guide_name", ACCEPTED)
def test_the_three_ways_in_agree(estimator, guide_name, model_name, how):
    model = zoo.MODELS[model_name]()
    guide, x = zoo.GUIDES[guide_name](model), zoo.batch(model)
    elbo = zoo.estimator(estimator, how[0], vectorize_particles=how[1])
    torch.manual_seed(3)
    value = elbo.loss(model, guide, x)
    assert isinstance(value, float)
    assert gradients(model, guide) == [None] * len(gradients(model, guide))
    state = copy.deepcopy(elbo.state_dict())
    torch.manual_seed(3)
    assert elbo.loss_and_grads(model, guide, x) == value
    expected = gradients(model, guide)
    zero_grad(model, guide)
    elbo.load_state_dict(state)
    torch.manual_seed(3)
    loss = elbo.differentiable_loss(model, guide, x)
    assert loss.shape == () and loss.item() == value
    loss.backward()
    for found, other in zip(gradients(model, guide), expected, strict=True):
        assert torch.equal(found, other)
    torch.manual_seed(4)
    if guide_name != "DeltaGuide":
        assert elbo.loss(model, guide, x) != value


@pytest.mark.parametrize("model_name", SMALL)
@pytest.mark.parametrize("estimator, guide_name", ACCEPTED)
def test_vectorized_and_looped_particles_agree_in_expectation(estimator, guide_name, model_name):
    model = zoo.MODELS[model_name]()
    guide, x = zoo.GUIDES[guide_name](model), zoo.batch(model)
    losses = {}
    for vectorize in (True, False):
        elbo = zoo.ESTIMATORS[estimator](num_particles=2, vectorize_particles=vectorize)
        losses[vectorize] = torch.tensor([elbo.loss(model, guide, x) for _ in range(30)])
    one, other = losses[True], losses[False]
    error = ((one.var() + other.var()) / 30).sqrt()
    # A point mass has no noise but rounding.
    assert (one.mean() - other.mean()).abs() <= 5 * error + 1e-10 * one.mean().abs()


@pytest.mark.parametrize("model_name", [*SMALL, "VAE-Laplace", "HierarchicalVAE-3"])
@pytest.mark.parametrize("estimator, guide_name", ACCEPTED)
def test_plain_svi_trains_every_parameter(estimator, guide_name, model_name):
    model = zoo.MODELS[model_name]()
    guide, x = zoo.GUIDES[guide_name](model), zoo.batch(model, 20)
    elbo = zoo.ESTIMATORS[estimator](num_particles=2)
    before = {n: p.detach().clone() for m in (model, guide) for n, p in m.named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=elbo)
    assert isinstance(svi.step(x), float) and isinstance(svi.evaluate_loss(x), float)
    for module in (model, guide):
        for name, parameter in module.named_parameters():
            assert not torch.equal(parameter, before[name]), name
    # Two programs, no name in common.
    names = list(pyro.get_param_store())
    assert {name.split(".")[0].split("$")[0] for name in names} == {"model", "guide"}
    assert len(names) == len(list(model.parameters())) + len(list(guide.parameters()))


@pytest.mark.parametrize("estimator, guide_name", ACCEPTED)
def test_the_estimator_makes_a_module_of_a_pair(estimator, guide_name):
    model = zoo.MODELS["VAE"]()
    guide, x = zoo.GUIDES[guide_name](model), zoo.batch(model)
    elbo = zoo.ESTIMATORS[estimator]()
    module = elbo(model, guide)
    torch.manual_seed(3)
    loss = module(x)
    torch.manual_seed(3)
    assert loss.item() == elbo.loss(model, guide, x)
    loss.backward()
    parameters = list(module.parameters())
    assert len(parameters) == len(list(model.parameters())) + len(list(guide.parameters()))
    assert all(p.grad is not None for p in parameters)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", zoo.ESTIMATORS)
def test_a_closure_whose_parameters_pyro_cannot_see_gets_gradients(name, vectorize):
    weight = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    log_scale = torch.tensor([-0.4], requires_grad=True)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x @ weight.mT, log_scale.exp()).to_event(1))

    model = models.LinearGaussian([[1.0], [0.5], [-1.0]], 0.7)
    x = torch.randn(4, 3)
    elbo = zoo.ESTIMATORS[name](num_particles=2, vectorize_particles=vectorize)
    value = elbo.loss_and_grads(model, guide, x)
    found = weight.grad.clone(), log_scale.grad.clone()
    assert all(g.abs().max() > 0 for g in found)
    weight.grad = log_scale.grad = None
    pyro.set_rng_seed(0)
    torch.randn(4, 3)
    loss = elbo.differentiable_loss(model, guide, x)
    assert loss.item() == value
    loss.backward()
    assert torch.equal(weight.grad, found[0]) and torch.equal(log_scale.grad, found[1])


@pytest.mark.parametrize("name", zoo.ESTIMATORS)
def test_finding_the_plate_nesting_draws_nothing_from_the_stream(name):
    model = zoo.MODELS["VAE"]()
    guide, x = zoo.GUIDES["MeanFieldGuide"](model), zoo.batch(model)
    losses = []
    for nesting in (None, 1):
        elbo = zoo.ESTIMATORS[name](num_particles=3, max_plate_nesting=nesting)
        torch.manual_seed(3)
        losses.append(elbo.loss(model, guide, x))
    assert losses[0] == losses[1]


# --------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("name", zoo.SCHEDULES)
def test_a_schedule_is_a_function_of_the_step_alone(name):
    schedule, twin = zoo.SCHEDULES[name](), zoo.SCHEDULES[name]()
    forwards = [schedule(step) for step in range(30)]
    assert [twin(step) for step in reversed(range(30))] == forwards[::-1]
    for weight in forwards:
        for value in weight.values() if isinstance(weight, dict) else [weight]:
            assert isinstance(value, int | float) and 0 <= value < float("inf")
    assert forwards[12:] == [forwards[12]] * 18
