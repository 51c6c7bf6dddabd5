"""Objects as plain data and back, and what is not loaded unasked."""

import json
import math
import subprocess
import sys
from functools import partial

import pyro
import pyro.infer
import pytest
import torch
import zoo

from ppl_vae import guides, models, schedules
from ppl_vae.config import ConfigError, describe, instantiate
from ppl_vae.estimators import Trace_ELBO, TraceScoreFunction_ELBO


def through_text(entry):
    """What a file keeps of an entry."""
    return json.loads(json.dumps(entry))


def shapes(module):
    """Names and shapes of parameters and of buffers, and what is trained."""
    return (
        {name: p.shape for name, p in module.named_parameters()},
        {name: b.shape for name, b in module.named_buffers()},
    )


# ----------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", zoo.MODELS)
def test_models_come_back(name):
    model = zoo.MODELS[name]()
    entry = through_text(describe(model))
    assert entry["class_path"] == f"ppl_vae.models.{type(model).__name__}"
    twin = instantiate(entry)
    assert type(twin) is type(model) and shapes(twin) == shapes(model)
    assert str(twin) == str(model)
    assert through_text(describe(twin)) == entry
    twin.load_state_dict(model.state_dict())
    x = zoo.batch(model)
    guide = zoo.any_guide(name)(model)
    losses = []
    for program in (model, twin):
        torch.manual_seed(3)
        losses.append(TraceScoreFunction_ELBO().loss(program, guide, x))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "model_name, name",
    [
        names
        for names in zoo.PAIRS
        if names[0] in ("VAE-conv", "HierarchicalVAE", "LinearGaussian", "GaussianMixtureVAE")
    ],
)
def test_guides_come_back(name, model_name):
    model, guide = zoo.pair(model_name, name)
    x = zoo.batch(model)
    entry = through_text(describe(guide, omit=["model"]))
    assert entry["class_path"] == f"ppl_vae.guides.{type(guide).__name__}"
    assert "model" not in entry["init_args"]
    twin = instantiate(entry, model)
    assert type(twin) is type(guide) and twin.model is model and shapes(twin) == shapes(guide)
    twin.load_state_dict(guide.state_dict())
    torch.manual_seed(3)
    expected = guide(x)
    torch.manual_seed(3)
    for site, value in twin(x).items():
        assert torch.equal(value, expected[site])


@pytest.mark.parametrize("name", zoo.ESTIMATORS)
def test_estimators_come_back(name):
    model = zoo.MODELS["VAE"]()
    guide, x = zoo.GUIDES["MeanFieldGuide"](model), zoo.batch(model)
    elbo = zoo.ESTIMATORS[name](num_particles=3, vectorize_particles=False)
    entry = through_text(describe(elbo))
    assert entry["class_path"] == f"ppl_vae.estimators.{name}"
    twin = instantiate(entry)
    assert type(twin) is type(elbo)
    assert twin.num_particles == 3 and twin.vectorize_particles is False
    torch.manual_seed(3)
    expected = elbo.loss(model, guide, x)
    torch.manual_seed(3)
    assert twin.loss(model, guide, x) == expected
    # A run does not change what is written down of it.
    assert through_text(describe(elbo)) == entry


@pytest.mark.parametrize("name", zoo.SCHEDULES)
def test_schedules_come_back(name):
    schedule = zoo.SCHEDULES[name]()
    entry = through_text(describe(schedule))
    assert entry["class_path"] == f"ppl_vae.schedules.{name}"
    assert instantiate(entry) == schedule


@pytest.mark.parametrize(
    "elbo",
    [
        pyro.infer.Trace_ELBO(),
        pyro.infer.Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1),
        pyro.infer.TraceMeanField_ELBO(num_particles=2),
        pyro.infer.RenyiELBO(alpha=0.5, num_particles=3),
        pyro.infer.TraceEnum_ELBO(strict_enumeration_warning=False, max_plate_nesting=2),
        pyro.infer.TraceGraph_ELBO(),
    ],
    ids=lambda elbo: type(elbo).__name__,
)
def test_pyros_estimators_come_back(elbo):
    entry = through_text(describe(elbo))
    assert entry["class_path"] == f"pyro.infer.{type(elbo).__name__}"
    twin = instantiate(entry)
    assert type(twin) is type(elbo)
    for name in ("num_particles", "vectorize_particles", "alpha", "strict_enumeration_warning"):
        assert getattr(twin, name, None) == getattr(elbo, name, None), name


def test_defaults_are_left_out_and_plain_data_stays():
    assert describe(schedules.Constant()) == {"class_path": "ppl_vae.schedules.Constant"}
    assert describe(Trace_ELBO()) == {"class_path": "ppl_vae.estimators.Trace_ELBO"}
    plain = {"a": [1, 2.5, None, True, "x"], "b": {"c": []}}
    assert describe(plain) == plain == instantiate(plain)
    assert describe((1, (2,))) == [1, [2]]
    assert describe(torch.arange(4.0).view(2, 2)) == [[0.0, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    "factory, path, arguments",
    [
        (partial(torch.optim.Adam, lr=1e-2), "torch.optim.Adam", {"lr": 1e-2}),
        (
            partial(torch.optim.lr_scheduler.StepLR, step_size=5),
            "torch.optim.lr_scheduler.StepLR",
            {"step_size": 5},
        ),
        (torch.optim.SGD, "torch.optim.SGD", {}),
    ],
)
def test_optimizers_come_back_as_factories(factory, path, arguments):
    entry = through_text(describe(factory))
    assert entry == {"class_path": path, **({"init_args": arguments} if arguments else {})}
    twin = instantiate(entry, as_partial=True)
    assert isinstance(twin, partial) and twin.keywords == arguments
    assert twin.func is (factory.func if isinstance(factory, partial) else factory)


@pytest.mark.parametrize("make", [guides.MeanFieldGuide, guides.DeltaGuide])
@pytest.mark.parametrize(
    "encoder",
    [
        models.ConvEncoder,
        models.DenseEncoder,
        partial(models.ConvEncoder, channels=(2,), features=3),
        models.ConvEncoder(zoo.IMAGE, channels=(2,), features=3),
        models.DenseEncoder(zoo.IMAGE, hidden=(7,)),
    ],
    ids=["class", "another class", "partial", "instance", "another instance"],
)
def test_an_encoder_comes_back_however_it_was_given(encoder, make):
    model = zoo.MODELS["VAE"]()
    if isinstance(encoder, torch.nn.Module):
        encoder = type(encoder)(**encoder.init_args)
    guide = make(model, encoder=encoder)
    twin = instantiate(through_text(describe(guide, omit=["model"])), model)
    assert type(twin.encoder) is type(guide.encoder) and shapes(twin) == shapes(guide)


def test_a_learned_matrix_is_not_written_down_as_a_fixed_one():
    model = models.LinearGaussian(torch.nn.Parameter(torch.ones(3, 2)), 0.5)
    try:
        entry = through_text(describe(model))
    except ConfigError:
        return  # To refuse is right, to forget is not.
    assert shapes(instantiate(entry)) == shapes(model)


@pytest.mark.parametrize(
    "value, message",
    [
        (lambda x: x, "cannot be written into a config; accepted are instances"),
        (torch.nn.Linear(1, 1), "cannot be written into a config"),
        (partial(print, 1), "cannot be written into a config"),
        (torch.zeros(101, 100), r"a tensor of shape \(101, 100\) is too large for a config"),
    ],
)
def test_what_cannot_be_written_down_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        describe(value)


def test_a_class_without_an_import_path_is_refused():
    class Mine(schedules.Schedule):
        def __call__(self, step):
            return 1.0

    with pytest.raises(ConfigError, match="Mine is defined inside a function.*top of a module"):
        describe(Mine())


# -------------------------------------------------------------------------------------- refusals

REFUSED = [
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "torch.nn.Linear",
    "torch.load",
    "torch.optim.os",
    "torch.optim.optimizer.defaultdict",
    "torch.optim.optimizer.OrderedDict",
    "pyro.infer.SVI",
    "pyro.infer.Predictive",
    "pyro.infer.elbo.warnings",
    "pyro.optim.Adam",
    "pyro.infer_evil.Thing",
    "ppl_vaevil.Thing",
    "ppl_vae.checkpoint.os",
    "ppl_vae.checkpoint.Path",
    "ppl_vae.checkpoint.save_checkpoint",
    "ppl_vae.config.ConfigError",
    "ppl_vae.x.y.os",
    "ppl_vae.models.NotThere",
    "ppl_vae.models.VAE.forward",
    "ppl_vae.data.Splits",
]


@pytest.mark.parametrize("class_path", REFUSED)
@pytest.mark.parametrize("nested", [False, True])
def test_a_class_that_is_not_harmless_is_refused(class_path, nested):
    entry = {"class_path": class_path}
    if nested:
        entry = {
            "class_path": "ppl_vae.schedules.PerSite",
            "init_args": {"sites": {"z": [entry]}},
        }
    with pytest.raises(ConfigError, match=class_path.rpartition(".")[2]):
        instantiate(entry)


@pytest.mark.parametrize("class_path", ["os.system", "subprocess.Popen", "torch.nn.Linear"])
def test_the_refusal_says_how_to_allow(class_path):
    module = class_path.rpartition(".")[0]
    with pytest.raises(ConfigError) as error:
        instantiate({"class_path": class_path})
    assert f"allow=['{module}']" in str(error.value) and f"--allow {module}" in str(error.value)


def test_a_module_allowed_by_name_is_loaded():
    entry = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}}
    for allow in (["torch.nn"], ["torch"], ("other", "torch.nn")):
        assert isinstance(instantiate(entry, allow=allow), torch.nn.Linear)
    for allow in (["torch.n"], ["torch.nn.Linear"], ["nn"], []):
        with pytest.raises(ConfigError, match="torch.nn.Linear, which is not loaded unasked"):
            instantiate(entry, allow=allow)
    assert instantiate({"class_path": "pyro.infer.SVI"}, allow=["pyro.infer"], as_partial=True)


def test_a_module_that_is_not_allowed_is_not_even_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for package in ("evil_plugin", "evil_plugin2"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(
            f"open({str(tmp_path / (package + '.ran'))!r}, 'w').close()\n"
            "from ppl_vae.schedules import Constant\n"
            "class Mine(Constant): pass\n"
        )
    for path in ("evil_plugin.Mine", "evil_plugin.Constant"):
        with pytest.raises(ConfigError, match=f"{path}, which is not loaded unasked"):
            instantiate({"class_path": path}, allow=["evil_plugin2"])
    assert not (tmp_path / "evil_plugin.ran").exists() and "evil_plugin" not in sys.modules
    made = instantiate({"class_path": "evil_plugin2.Mine"}, allow=["evil_plugin2"])
    assert (tmp_path / "evil_plugin2.ran").exists() and made(0) == 1.0
    assert describe(made)["class_path"] == "evil_plugin2.Mine"
    del sys.modules["evil_plugin2"]


def test_nothing_is_run_by_a_refused_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("it ran"))
    monkeypatch.setattr("os.system", lambda *a: pytest.fail("it ran"))
    command = f"touch {tmp_path / 'ran'}"
    for path, arguments in (("subprocess.Popen", {"args": command}), ("os.system", {"c": command})):
        with pytest.raises(ConfigError, match="not loaded unasked"):
            instantiate({"class_path": path, "init_args": arguments})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"class_path": 3}, "class_path is 3; accepted is a path"),
        ({"class_path": "VAE"}, "class_path is 'VAE'"),
        ({"class_path": None}, "class_path is None"),
        (
            {"class_path": "ppl_vae.schedules.Linear", "args": 1},
            r"the keys \['args'\]; accepted are class_path and init_args",
        ),
        (
            {"class_path": "ppl_vae.schedules.Linear", "init_args": {"steps": 3}},
            "ppl_vae.schedules.Linear does not take.*steps",
        ),
        ({"class_path": "ppl_vae.schedules.Linear"}, "does not take.*num_steps"),
    ],
)
def test_a_wrong_entry_is_named(entry, message):
    with pytest.raises(ConfigError, match=message):
        instantiate(entry)


# ----------------------------------------------------------------------------------- init_args


def test_arguments_are_kept_by_name_as_they_were_given():
    model = models.VAE((4,), 3, activation="tanh")
    assert model.init_args == {"data_shape": (4,), "latent_dim": 3, "activation": "tanh"}
    guide = guides.MeanFieldGuide(model)
    assert guide.init_args == {"model": model}
    assert models.VAE((5,)).init_args == {"data_shape": (5,)}


def test_wrong_arguments_fail_in_the_usual_words():
    with pytest.raises(TypeError, match="unexpected keyword argument 'latent_dims'"):
        models.VAE((4,), latent_dims=3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'data_shape'"):
        models.VAE()


def test_an_allowed_module_does_not_lend_its_imports(tmp_path, monkeypatch):
    (tmp_path / "lender.py").write_text(
        "from subprocess import Popen\nfrom torch.nn import Linear\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    touched = tmp_path / "touched"
    for name, arguments in (("Popen", {"args": ["touch", str(touched)]}), ("Linear", {})):
        with pytest.raises(ConfigError, match=f"lender.{name}, which is not loaded unasked"):
            instantiate({"class_path": f"lender.{name}", "init_args": arguments}, allow=["lender"])
    assert not touched.exists()


@pytest.mark.parametrize("name", ["TraceEnum_ELBO", "Trace_ELBO", "TraceTMC_ELBO"])
def test_a_whole_number_of_plates_is_an_integer(name):
    # jsonargparse reads 1 as 1.0, where the default is infinity.
    path = f"pyro.infer.{name}"
    elbo = instantiate({"class_path": path, "init_args": {"max_plate_nesting": 1.0}})
    assert elbo.max_plate_nesting == 1 and isinstance(elbo.max_plate_nesting, int)
    elbo = instantiate({"class_path": path, "init_args": {"max_plate_nesting": math.inf}})
    assert elbo.max_plate_nesting == math.inf
    for wrong in (1.5, -math.inf, math.nan):
        with pytest.raises(ConfigError, match=f"max_plate_nesting is {wrong}; accepted is an int"):
            instantiate({"class_path": path, "init_args": {"max_plate_nesting": wrong}})
