"""What every model, guide, estimator and schedule of the zoo promises.

What any program must keep is in `ppl_vae.testing`; here is what only the library's own promise.
Shapes: K particles, B data.
"""

import copy

import pyro
import pytest
import torch
import zoo
from pyro import poutine
from pyro.infer import ELBO

import ppl_vae
from ppl_vae import estimators, guides, models, schedules
from ppl_vae.testing import check_bound, check_estimator, check_guide, check_model, check_svi

SMALL = ["VAE", "HierarchicalVAE", "GaussianMixtureVAE"]
"""The models on which what an estimator promises is tried."""

BOUNDS = [name for name, make in zoo.ESTIMATORS.items() if make().is_bound]

over_pairs = pytest.mark.parametrize("model_name, guide_name", zoo.PAIRS)


@pytest.fixture(params=zoo.MODELS)
def model(request):
    return zoo.MODELS[request.param]()


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


# ---------------------------------------------------------------------------------- the zoo itself


@pytest.mark.parametrize(
    "package, base, built",
    [
        (models, models.Model, lambda: [make() for make in zoo.MODELS.values()]),
        (guides, guides.Guide, lambda: [zoo.pair(*names)[1] for names in zoo.PAIRS]),
        (estimators, ELBO, lambda: [make() for make in zoo.ESTIMATORS.values()]),
        (schedules, schedules.Schedule, lambda: [make() for make in zoo.SCHEDULES.values()]),
        (
            models,
            models.Likelihood,
            lambda: (
                [m.likelihood for f in zoo.MODELS.values() if hasattr(m := f(), "likelihood")]
                + [models.Likelihood()]
            ),
        ),
    ],
)
def test_the_zoo_lists_every_public_concrete_class(package, base, built):
    listed = {type(instance) for instance in built()}
    assert {cls.__name__ for cls in listed} | zoo.EVALUATION_ONLY == (
        set(zoo.concrete(package, base)) | zoo.EVALUATION_ONLY
    )


# ------------------------------------------------------------------------------------------ models


def test_a_model_conforms(model):
    check_model(model, zoo.batch(model))


def test_a_model_has_one_plate_and_returns_what_it_observes(model):
    x = zoo.batch(model)
    model.check(x)
    trace = trace_of(model, x)
    assert trace.nodes["_RETURN"]["value"] is trace.nodes["x"]["value"] is x
    assert trace.nodes["x"]["is_observed"]
    assert trace.nodes["x"]["fn"].event_shape == model.data_shape == x.shape[1:]
    for site in (*latents(trace).values(), trace.nodes["x"]):
        (frame,) = site["cond_indep_stack"]
        assert (frame.name, frame.dim, frame.size) == ("data", -1, 5)


def test_a_model_refuses_data_of_another_shape(model):
    with pytest.raises(ValueError, match=r"was built for data of shape .* was given \(9,\)"):
        model.check(torch.zeros(5, 9))


def test_a_guide_refuses_data_of_another_shape_wherever_it_is_run():
    model = zoo.MODELS["VAE"]()
    guide = zoo.GUIDES["MeanFieldGuide"](model)
    for wrong in (zoo.batch(model)[0], zoo.batch(model)[:, None]):
        with pytest.raises(ValueError, match=r"MeanFieldGuide was built for data of .* given"):
            ppl_vae.evaluate.log_marginal(model, guide, wrong, num_particles=2)


def test_a_class_is_no_program():
    model = zoo.MODELS["VAE"]()
    guide = zoo.GUIDES["MeanFieldGuide"](model)
    with pytest.raises(TypeError, match=r"the class MeanFieldGuide; accepted is .*\(model"):
        ppl_vae.fit(model, type(guide), zoo.batch(model), num_steps=1)
    with pytest.raises(TypeError, match=r"model is the class VAE; accepted is VAE\(\.\.\.\)"):
        ppl_vae.fit(type(model), guide, zoo.batch(model), num_steps=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@over_pairs
def test_a_pair_computes_in_the_models_type_whatever_the_default(model_name, guide_name, dtype):
    model = zoo.MODELS[model_name]().to(dtype)
    guide = zoo.GUIDES[guide_name](model)
    assert {p.dtype for p in guide.parameters()} == {dtype}
    x = zoo.batch(model).to(dtype)
    other = torch.float64 if dtype == torch.float32 else torch.float32
    torch.set_default_dtype(other)
    elbo = zoo.any_estimator(model_name, num_particles=2)
    loss = elbo.differentiable_loss(model, guide, x)
    assert loss.dtype == dtype and loss.isfinite()
    for trace in (trace_of(model, x), trace_of(guide, x)):
        found = {site["value"].dtype for site in latents(trace).values()}
        assert found - {torch.int64} == {dtype}  # integers are numbers of components


@over_pairs
def test_all_parameters_are_in_the_store_under_the_names_of_model_and_guide(model_name, guide_name):
    model, guide = zoo.pair(model_name, guide_name)
    x = zoo.batch(model)
    for program, role in ((model, "model"), (guide, "guide")):
        with pyro.get_param_store().scope() as inside:
            program(x)
        roles = {role} | ({"model"} if guide_name in zoo.READS_MODEL else set())
        assert {name.split(".")[0].split("$")[0] for name in inside["params"]} <= roles
        own = {id(p) for p in program.parameters() if p.requires_grad}
        theirs = {id(p) for p in model.parameters()}
        found = {id(p) for p in inside["params"].values()}
        assert own <= found <= own | theirs
    assert list(pyro.get_param_store()) == []


@pytest.mark.parametrize("model_name, estimator, guide_name", zoo.along_the_axes())
def test_a_pair_runs_on_the_meta_device(model_name, estimator, guide_name):
    # Nothing on this device has a value: a tensor on another device, or a look at a value, fails.
    pyro.enable_validation(False)
    model = zoo.MODELS[model_name]().to("meta")
    guide = zoo.GUIDES[guide_name](model)
    assert {p.device.type for p in guide.parameters()} == {"meta"}
    x = torch.empty(5, *model.data_shape, device="meta")
    elbo = zoo.estimator(estimator, 3)
    loss = elbo.differentiable_loss(model, guide, x)
    assert loss.shape == () and loss.device.type == "meta"
    loss.backward()
    trained = [p for p in guide.parameters() if p.requires_grad]
    assert all(p.grad.device.type == "meta" for p in trained)


# ------------------------------------------------------------------------------------------ guides


@over_pairs
def test_a_guide_conforms(model_name, guide_name):
    model, guide = zoo.pair(model_name, guide_name)
    check_guide(
        guide, model, zoo.batch(model, 20),
        amortized=guide_name not in zoo.BY_BATCH, invertible=guide_name not in zoo.NO_INVERSE,
    )  # fmt: skip


@pytest.mark.parametrize("model_name", zoo.MODELS)
@pytest.mark.parametrize("guide_name", zoo.GUIDES)
def test_a_guide_refuses_a_model_that_it_is_not_made_for(model_name, guide_name):
    if not zoo.fits(model_name, guide_name):
        who = f"(VampPrior|{guide_name.split('-')[0]}: the model)"
        with pytest.raises(ValueError, match=f"^{who}"):
            zoo.pair(model_name, guide_name)


@over_pairs
def test_a_guide_returns_what_it_samples(model_name, guide_name):
    model, guide = zoo.pair(model_name, guide_name)
    trace = trace_of(guide, zoo.batch(model))
    values = trace.nodes["_RETURN"]["value"]
    assert set(values) == set(latents(trace))
    assert all(values[name] is trace.nodes[name]["value"] for name in values)


@over_pairs
def test_the_models_parameters_are_not_the_guides(model_name, guide_name):
    model, guide = zoo.pair(model_name, guide_name)
    assert guide.model is model
    assert not {id(p) for p in model.parameters()} & {id(p) for p in guide.parameters()}
    assert model not in list(guide.modules())


@pytest.mark.parametrize("num_particles", [1, 7])
@over_pairs
def test_the_encoder_runs_once_per_loss(model_name, guide_name, num_particles):
    model, guide = zoo.pair(model_name, guide_name)
    x = zoo.batch(model)
    elbo = zoo.any_estimator(model_name, num_particles=num_particles)
    elbo.loss(model, guide, x)  # finds the plate nesting
    rows = []
    guide.encoder.register_forward_hook(lambda _, args, out: rows.append((args[0].shape, out)))
    elbo.loss(model, guide, x)
    # A VampPrior shows it the pseudo-inputs as well.
    ((shape, features),) = [row for row in rows if model_name != "VampPrior" or len(row[1]) == 5]
    assert shape == x.shape and features.shape[:-1] == (5,)


@over_pairs
def test_every_output_of_a_head_is_learned(model_name, guide_name):
    # Locations and scales are rows of one matrix.
    model, guide = zoo.pair(model_name, guide_name)
    elbo = zoo.any_estimator(model_name, num_particles=3)
    elbo.loss_and_grads(model, guide, zoo.batch(model, 20))
    for name, parameter in guide.named_parameters():
        if name.startswith("head") and parameter.dim() == 1:
            assert (parameter.grad != 0).all(), name


def run_seeded(guide, x):
    torch.manual_seed(5)
    return guide(x)


@over_pairs
def test_a_guide_can_be_copied(model_name, guide_name):
    model, guide = zoo.pair(model_name, guide_name)
    x = zoo.batch(model)
    before = run_seeded(guide, x)
    twin = copy.deepcopy(guide)
    for name, value in run_seeded(twin, x).items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        for parameter in twin.parameters():
            # A refined guide is refined away from wild numbers.
            parameter.add_(0.1 if guide_name in zoo.BY_BATCH else 1.0)
    for name, value in run_seeded(guide, x).items():
        assert torch.equal(value, before[name])
        assert not torch.equal(run_seeded(twin, x)[name], value)


@over_pairs
def test_a_guides_state_makes_another_guide_equal(model_name, guide_name):
    model, guide = zoo.pair(model_name, guide_name)
    other, x = zoo.GUIDES[guide_name](model), zoo.batch(model)
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


@pytest.mark.parametrize(
    "model_name, guide_name",
    [names for names in zoo.PAIRS if names[1] not in ("GaussianMixtureGuide", "FrozenGuide")],
)
def test_networks_made_later_are_those_made_at_once(model_name, guide_name):
    model, make_guide = zoo.MODELS[model_name](), zoo.GUIDES[guide_name]
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
    elbo = zoo.any_estimator(model_name)
    loss = elbo.loss(Needy(model), later, x, labels=labels)
    torch.manual_seed(5)
    assert elbo.loss(model, at_once, x) == loss


# -------------------------------------------------------------------------------------- estimators


@pytest.mark.parametrize("name", zoo.ESTIMATORS)
@pytest.mark.parametrize("num_particles", [0, -1])
def test_an_estimator_needs_a_particle(name, num_particles):
    with pytest.raises(ValueError, match=rf"_ELBO: num_particles is {num_particles}.*is >= [12]"):
        zoo.ESTIMATORS[name](num_particles=num_particles)


@pytest.mark.parametrize("model_name, guide_name", zoo.PAIRS)
def test_every_triple_gives_a_loss_and_gradients_or_says_why_not(model_name, guide_name):
    model, guide = zoo.pair(model_name, guide_name)
    x, legal = zoo.batch(model), 0
    trained = [p for p in (*model.parameters(), *guide.parameters()) if p.requires_grad]
    for name in zoo.ESTIMATORS:
        elbo = zoo.estimator(name, 2)
        if message := zoo.refusal(model_name, name, guide_name):
            with pytest.raises(ValueError, match=message):
                elbo.loss_and_grads(model, guide, x)
            continue
        for parameter in trained:
            parameter.grad = None
        loss = elbo.loss_and_grads(model, guide, x)
        assert torch.tensor(loss).isfinite(), name
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained), name
        legal += 1
    # No guide is of no use at all; `ScoreFunction(pathwise=True)` is there for what is left.
    assert legal or (model_name in zoo.DISCRETE_MODELS and guide_name in zoo.NO_INVERSE)


# Every triple gives a loss, above; what an estimator promises besides is tried with a guide of each
# kind: on one level those of one site, on two those whose sites look at each other, or do not.
KINDS = {
    "VAE": {"MeanFieldGuide", "FullRankGuide", "IAFGuide", "PlanarGuide", "DeltaGuide",
            "SemiAmortizedGuide"},
    "HierarchicalVAE": {"MeanFieldGuide", "TopDownGuide", "BottomUpGuide", "LadderGuide"},
    "GaussianMixtureVAE": {"GaussianMixtureGuide", "TopDownGuide"},
}  # fmt: skip


@pytest.mark.parametrize(
    "model_name, estimator, guide_name",
    [names for names in zoo.accepted(*SMALL) if names[2] in KINDS[names[0]]],
)
def test_an_estimator_conforms(model_name, estimator, guide_name):
    model, guide = zoo.pair(model_name, guide_name)
    x, few = zoo.batch(model, 20), zoo.min_particles(estimator)
    sizes = [few, few + 1]
    check_estimator(zoo.ESTIMATORS[estimator], model, guide, x, num_particles=sizes, num_draws=15)


@pytest.mark.parametrize(
    "model_name, estimator, guide_name", zoo.accepted("VAE-Laplace", "HierarchicalVAE-3")
)
def test_plain_svi_trains_every_parameter(model_name, estimator, guide_name):
    # These have what the small ones lack: a learned scale, convolutions, three levels.
    model, guide = zoo.pair(model_name, guide_name)
    check_svi(model, guide, zoo.batch(model, 20), loss=zoo.estimator(estimator, 2))


@pytest.mark.parametrize("estimator", BOUNDS)
def test_a_bound_is_one(estimator):
    check_bound(
        zoo.ESTIMATORS[estimator],
        num_particles=[zoo.min_particles(estimator) + 1],
        num_draws=15,
        exact_in_mean=estimator in zoo.EXACT_IN_MEAN,
    )


@pytest.mark.parametrize(
    "model_name, estimator, guide_name",
    [names for names in zoo.accepted(*SMALL) if names[2] != "DeltaGuide"],
)
def test_another_seed_gives_another_loss(model_name, estimator, guide_name):
    model, guide = zoo.pair(model_name, guide_name)
    x, elbo = zoo.batch(model), zoo.estimator(estimator, 1)
    torch.manual_seed(3)
    value = elbo.loss(model, guide, x)
    torch.manual_seed(4)
    assert elbo.loss(model, guide, x) != value


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
