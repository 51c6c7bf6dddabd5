"""`ppl-vae`: what the user may say is understood, and means what the library means by it."""

import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import ppl_vae.training
from ppl_vae.catalogue import KINDS, catalogue
from ppl_vae.cli import main
from ppl_vae.evaluate import class_probabilities
from ppl_vae.report import write_report
from ppl_vae.runs import load_run

SMALL = ["--model.hidden", "[8]", "--guide.hidden", "[8]"]
TINY = ["train", "--data", "data.npz", "--num_steps", "3", "--tensorboard", "false", *SMALL]

MINE = """
import pyro, pyro.distributions as dist, torch
from ppl_vae.estimators import Trace_ELBO
from ppl_vae.guides import Guide
from ppl_vae.models import Model

class MyModel(Model):
    def __init__(self, data_shape, width: int = 3):
        super().__init__(data_shape)
        self.decoder = torch.nn.Linear(width, data_shape[0])
        self.width = width

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.width), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

class MyGuide(Guide):
    def __init__(self, model, scale: float = 1.0):  # Nobody says of which type the model is.
        super().__init__(model)
        self.encoder, self.scale = torch.nn.Linear(model.data_shape[0], model.width), scale

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), self.scale).to_event(1))

class MyELBO(Trace_ELBO):
    pass
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with data, to stand in; the figures are left out, which take the longest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.set_default_dtype(torch.float32)
    rng = np.random.default_rng(0)
    np.savez("data.npz", x=(rng.random((60, 6)) > 0.5).astype("float32"))

    def no_figures(run, *args, **kwargs):
        return run.directory.report_path

    monkeypatch.setattr("ppl_vae.report.write_report", no_figures)
    monkeypatch.setattr("ppl_vae.training.write_report", no_figures, raising=False)
    return tmp_path


@pytest.fixture
def ppl_vae_(capsys):
    """Runs a command line that must succeed, and gives what it printed."""

    def call(*words):
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        assert (code, printed.err) == (0, "")
        return printed.out

    return call


def config(path):
    return yaml.safe_load((Path(path) / "config.yaml").read_text())


def weights(path, part="model"):
    return (Path(path) / "checkpoint" / f"{part}.safetensors").read_bytes()


def entry(name, **arguments):
    return {"class_path": name, **({"init_args": arguments} if arguments else {})}


def test_the_example_of_the_design(ppl_vae_):
    printed = ppl_vae_(
        "train", "--data", "data.npz", "--model", "HierarchicalVAE", "--model.latent_dims", "[4,3]",
        "--guide", "MeanFieldGuide", "--estimator", "Trace_ELBO", "--estimator.num_particles", 2,
        "--schedule", "Linear", "--schedule.num_steps", 2, "--num_steps", 3, "--out", "runs/a",
    )  # fmt: skip
    stored = config("runs/a")
    assert stored["model"] == entry("ppl_vae.models.HierarchicalVAE", latent_dims=[4, 3])
    assert stored["guide"] == entry("ppl_vae.guides.MeanFieldGuide")
    assert stored["estimator"] == entry("ppl_vae.estimators.Trace_ELBO", num_particles=2)
    assert stored["schedule"] == entry("ppl_vae.schedules.Linear", num_steps=2)
    assert (stored["data"], stored["num_steps"]) == ("data.npz", 3)
    assert re.search(r"^elbo +-\d[\d.]* ± [\d.]+ nats$", printed, re.M)
    assert "KL of z1" in printed
    assert "\nrun     runs/a\nreport  runs/a/report.html\nnext    " in printed


VAE, ELBO = "ppl_vae.models.VAE", "ppl_vae.estimators.Trace_ELBO"
ADAM, STEP = "torch.optim.Adam", "torch.optim.lr_scheduler.StepLR"
UNDERSTOOD = {
    "model argument without the class": (
        "--model.latent_dim 5", "model", entry(VAE, hidden=[8], latent_dim=5)),
    "model by import path": (
        "--model ppl_vae.models.VAE", "model", entry(VAE, hidden=[8])),
    "likelihood inside of the model": (
        "--model.likelihood Gaussian --model.likelihood.scale 0.5", "model",
        entry(VAE, hidden=[8], likelihood=entry("ppl_vae.models.Gaussian", scale=0.5))),
    "decoder inside of the model": (
        "--model.decoder DenseDecoder --model.decoder.hidden [4]", "model",
        entry(VAE, hidden=[8], decoder=entry("ppl_vae.models.DenseDecoder", hidden=[4]))),
    "encoder inside of the guide": (
        "--guide.encoder DenseEncoder --guide.encoder.hidden [4]", "guide",
        entry("ppl_vae.guides.MeanFieldGuide", hidden=[8],
              encoder=entry("ppl_vae.models.DenseEncoder", hidden=[4]))),
    "guide with a family inside": (
        "--guide TopDownGuide --guide.family LowRankNormal --guide.family.rank 3 "
        "--guide.latent_hidden [4]", "guide",
        entry("ppl_vae.guides.TopDownGuide", hidden=[8], latent_hidden=[4],
              family=entry("ppl_vae.families.LowRankNormal", rank=3))),
    "guide of flows": (
        "--guide NeuralSplineGuide --guide.num_bins 4", "guide",
        entry("ppl_vae.guides.NeuralSplineGuide", hidden=[8], num_bins=4)),
    "guide around a guide": (
        "--guide SemiAmortizedGuide --guide.num_steps 2 --guide.make FullRankGuide "
        "--guide.make.hidden [4]", "guide",
        entry("ppl_vae.guides.SemiAmortizedGuide", num_steps=2,
              make=entry("ppl_vae.guides.FullRankGuide", hidden=[4]))),
    "prior inside of the model": (
        "--model.prior Mixture --model.prior.num_components 4", "model",
        entry(VAE, hidden=[8], prior=entry("ppl_vae.families.Mixture", num_components=4))),
    "model around a model": (
        "--model VampPrior --model.num_components 5 --model.make VAE --model.make.hidden [4]",
        "model", entry("ppl_vae.models.VampPrior", num_components=5,
                       make=entry(VAE, hidden=[4]))),
    "guide by name": (
        "--guide DeltaGuide", "guide", entry("ppl_vae.guides.DeltaGuide", hidden=[8])),
    "estimator argument without the class": (
        "--estimator.num_particles 2", "estimator", entry(ELBO, num_particles=2)),
    "Pyro's estimator by import path": (
        "--estimator pyro.infer.TraceMeanField_ELBO --estimator.num_particles 2", "estimator",
        entry("pyro.infer.TraceMeanField_ELBO", num_particles=2)),
    "Pyro's estimator of our name": (
        "--estimator pyro.infer.Trace_ELBO", "estimator", entry("pyro.infer.Trace_ELBO")),
    "Pyro's estimator by name": (
        "--estimator TraceMeanField_ELBO", "estimator", entry("pyro.infer.TraceMeanField_ELBO")),
    "estimator with a schedule inside": (
        "--estimator TraceCapacity_ELBO --estimator.capacity Linear "
        "--estimator.capacity.num_steps 9", "estimator",
        entry("ppl_vae.estimators.TraceCapacity_ELBO",
              capacity=entry("ppl_vae.schedules.Linear", num_steps=9))),
    "estimator with an estimator inside": (
        "--estimator TraceFreeBits_ELBO --estimator.nats 0.2 --estimator.estimator TraceSTL_ELBO "
        "--estimator.estimator.num_particles 3", "estimator",
        entry("ppl_vae.estimators.TraceFreeBits_ELBO", nats=0.2,
              estimator=entry("ppl_vae.estimators.TraceSTL_ELBO", num_particles=3))),
    "estimator with a baseline inside": (
        "--estimator TraceScoreFunction_ELBO --estimator.baseline DecayingAverage "
        "--estimator.baseline.decay 0.5", "estimator",
        entry("ppl_vae.estimators.TraceScoreFunction_ELBO",
              baseline=entry("ppl_vae.estimators.DecayingAverage", decay=0.5))),
    "schedule argument without the class": (
        "--schedule.value 0", "schedule", entry("ppl_vae.schedules.Constant", value=0.0)),
    "schedule for each site": (
        "--schedule PerSite --schedule.sites {z:{class_path:Linear,init_args:{num_steps:2}}}",
        "schedule", entry("ppl_vae.schedules.PerSite",
                          sites={"z": entry("ppl_vae.schedules.Linear", num_steps=2)})),
    "optimizer argument without the class": (
        "--optimizer.lr 0.1", "optimizer", entry(ADAM, lr=0.1)),
    "optimizer by name": (
        "--optimizer SGD --optimizer.momentum 0.9", "optimizer",
        entry("torch.optim.SGD", momentum=0.9)),
    "learning-rate schedule": (
        "--lr_schedule StepLR --lr_schedule.step_size 2", "lr_schedule", entry(STEP, step_size=2)),
    "freeze a list": ("--freeze [model,guide.encoder]", "freeze", ["model", "guide.encoder"]),
    "freeze a word": ("--freeze model", "freeze", ["model"]),
    "patience": ("--patience 2 --eval_every 1", "patience", 2),
    "clip_grad_norm": ("--clip_grad_norm 3", "clip_grad_norm", 3.0),
    "batch_size": ("--batch_size=48", "batch_size", 48),
    "binarize": ("--binarize fixed", "binarize", "fixed"),
    "device": ("--device cpu", "device", "cpu"),
    "seed": ("--seed 7", "seed", 7),
}  # fmt: skip


@pytest.mark.parametrize(("words", "option", "stored"), UNDERSTOOD.values(), ids=UNDERSTOOD.keys())
def test_an_option_reaches_the_run(ppl_vae_, words, option, stored):
    ppl_vae_(*TINY, "--out", "runs/a", *spaced(words))
    assert config("runs/a")[option] == stored


@pytest.mark.parametrize("equals", [True, False])
def test_a_class_with_its_arguments_in_one_word(ppl_vae_, equals):
    calls = {
        "model": "VAE(latent_dim=3, hidden=[8], prior=Mixture(num_components=4))",
        "guide": "MeanFieldGuide(hidden=[8])",
        "estimator": "TraceIWAE_ELBO(num_particles=2)",
        "optimizer": "Adam(lr=0.01)",
    }
    pairs = [(f"--{name}", call) for name, call in calls.items()]
    words = [f"{n}={c}" for n, c in pairs] if equals else [word for pair in pairs for word in pair]
    ppl_vae_("train", "--data", "data.npz", "--num_steps", 2, "--out", "runs/a", *words,
             "--guide.activation", "tanh")  # fmt: skip
    found = config("runs/a")
    prior = entry("ppl_vae.families.Mixture", num_components=4)
    assert found["model"] == entry("ppl_vae.models.VAE", latent_dim=3, hidden=[8], prior=prior)
    guide = entry("ppl_vae.guides.MeanFieldGuide", hidden=[8], activation="tanh")
    assert found["guide"] == guide and found["optimizer"] == entry(ADAM, lr=0.01)
    assert found["estimator"] == entry("ppl_vae.estimators.TraceIWAE_ELBO", num_particles=2)


@pytest.mark.parametrize("call", ["VAE(2)", "VAE(**a)", "VAE(latent_dim=)", "VAE(1 2)"])
def test_a_call_that_cannot_be_read(capsys, folder, call):
    assert main(["train", "--data", "data.npz", "--model", call]) == 2
    assert f"option --model: '{call}' cannot be read; accepted is" in capsys.readouterr().err
    assert not Path("runs").exists()


def spaced(words):
    """YAML wants a space behind a colon, which the words above use up."""
    return [word.replace(":", ": ") if word.startswith("{") else word for word in words.split()]


def test_without_options_a_vae_is_fitted_to_digits(ppl_vae_, monkeypatch):
    asked = {}

    def shorter(*args, **kwargs):
        asked.update(kwargs)
        return ppl_vae.fit(*args, **{**kwargs, "num_steps": 2, "tensorboard": False})

    monkeypatch.setattr(ppl_vae.training, "fit", shorter)
    printed = ppl_vae_("train")
    (path,) = Path("runs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d", path.name)
    assert f"run     {path}" in printed
    assert "improper" in printed
    stored = config(path)
    assert (stored["data"], stored["model"], stored["guide"], stored["optimizer"]) == (
        "digits", entry(VAE), entry("ppl_vae.guides.MeanFieldGuide"), entry(ADAM, lr=1e-3)
    )  # fmt: skip
    assert asked["num_steps"] >= 1000


def test_from_train_to_list(ppl_vae_, monkeypatch):
    for name in ("ppl_vae.report.write_report", "ppl_vae.training.write_report"):
        monkeypatch.setattr(name, write_report, raising=False)
    images = np.random.default_rng(0).random((40, 1, 4, 4)).round()
    np.savez("images.npz", train=images[:20], test=images[20:])
    ppl_vae_(*TINY, "--data", "images.npz", "--out", "runs/a", "--model.latent_dim", 2)
    run = Path("runs/a")
    page = (run / "report.html").read_text()

    printed = ppl_vae_("evaluate", run, "--num_particles", 7, "--num_data", 9)
    results = json.loads((run / "results.json").read_text())
    assert results["num_data"] == 9
    assert results["log_marginal"]["num_particles"] == 7
    assert "log p(x), 7 particles" in printed
    assert str(run / "results.json") in printed
    ppl_vae_("evaluate", run, "--split", "train", "--num_particles", 2, "--checkpoint", "last")
    assert json.loads((run / "results.json").read_text())["num_data"] == 20

    printed = ppl_vae_("sample", run, "--num", 5)
    drawn = np.load(run / "samples.npz")["x"]
    assert drawn.shape == (5, 1, 4, 4)
    assert set(np.unique(drawn)) <= {0, 1}
    assert str(run / "samples.npz") in printed
    ppl_vae_("sample", "--mean", run, "--num", 5)
    assert len(np.unique(np.load(run / "samples.npz")["x"])) > 2

    (run / "report.html").unlink()
    printed = ppl_vae_("report", run)
    assert str(run / "report.html") in printed
    # The page of the results of the last evaluation, else the same.
    assert (run / "report.html").read_text()[:200] == page[:200]

    listed = ppl_vae_("list", "runs")
    assert re.fullmatch(r"runs/a  elbo -\d+\.\d\d\n", listed)


MIXTURES = {
    "enumerated": "--guide.enumerate true --estimator pyro.infer.TraceEnum_ELBO "
                  "--estimator.max_plate_nesting 1",
    "score function": "--estimator TraceScoreFunction_ELBO --estimator.num_particles 2 "
                      "--estimator.pathwise true",
    "VIMCO": "--estimator TraceVIMCO_ELBO",
}  # fmt: skip


@pytest.mark.parametrize("words", MIXTURES.values(), ids=MIXTURES.keys())
def test_a_mixture_from_train_to_report(ppl_vae_, monkeypatch, words):
    for name in ("ppl_vae.report.write_report", "ppl_vae.training.write_report"):
        monkeypatch.setattr(name, write_report, raising=False)
    rng = np.random.default_rng(0)
    np.savez("images.npz", train=rng.random((40, 1, 4, 4)).round(), test=rng.random((30, 1, 4, 4)))
    printed = ppl_vae_(
        "train", "--data", "images.npz", "--binarize", "fixed", "--num_steps", 3, "--tensorboard",
        "false", "--out", "a", "--model", "GaussianMixtureVAE", "--model.num_components", 3,
        "--model.latent_dim", 2, "--guide", "GaussianMixtureGuide", *SMALL, *words.split(),
    )  # fmt: skip
    results = json.loads(Path("a/results.json").read_text())
    assert set(results["kl"]) == {"y", "z"}
    assert set(results["active_units"]) == {"z"}
    run = load_run("a")
    share = class_probabilities(run.guide, run.data().test)["y"].double().mean(0)
    in_use = math.exp(-sum(p * math.log(p) for p in share.tolist()))
    assert results["classes"] == {"y": {"in_use": pytest.approx(in_use, rel=1e-6), "of": 3}}
    assert f"classes of y in use      {in_use:.1f} of 3" in printed
    figures = {path.stem for path in Path("a/figures").iterdir()}
    assert figures == {"learning_curves", "reconstructions", "samples", "classes_y", "latents_z",
                       "traversals_z", "active_units"}  # fmt: skip
    assert "Samples from each class of y" in Path("a/report.html").read_text()
    ppl_vae_("evaluate", "a", "--num_particles", 3)
    ppl_vae_("sample", "a", "--num", 5)
    assert np.load("a/samples.npz")["x"].shape == (5, 1, 4, 4)


@pytest.mark.parametrize("flag", [["--resume"], ["--resume", "true"]])
def test_resume_goes_on_with_the_stored_options(ppl_vae_, flag):
    options = [
        "--lr_schedule",
        "StepLR",
        "--lr_schedule.step_size",
        2,
        "--estimator.num_particles",
        2,
    ]
    ppl_vae_(*TINY, *options, "--num_steps", 6, "--out", "runs/whole")
    ppl_vae_(*TINY, *options, "--out", "runs/a", *flag)  # Nothing to resume: it starts.
    assert weights("runs/a") != weights("runs/whole")
    ppl_vae_("train", *flag, "--out", "runs/a", "--num_steps", 6)
    for part in ("model", "guide", "optimizer"):
        assert weights("runs/a", part) == weights("runs/whole", part)
    assert config("runs/a") == config("runs/whole")


def test_a_resume_of_nothing_begins_and_says_so(ppl_vae_):
    words = ("train", "--data", "data.npz", "--report", "false", "--out", "runs/b", "--resume")
    said = "note: runs/b held no run to resume; the training began at step 0\n"
    assert ppl_vae_(*words, "--num_steps", 1) == f"{said}run     runs/b\n"
    assert ppl_vae_(*words, "--num_steps", 2) == "run     runs/b\n"


def test_resume_false_is_no_resume(ppl_vae_):
    ppl_vae_(*TINY, "--out", "runs/a", "--resume", "false")
    assert main([*TINY, "--out", "runs/a", "--resume", "false"]) == 2
    assert main(["train", "--out", "runs/a", "--resume=yes"]) == 0


def test_a_config_repeats_its_run(ppl_vae_):
    ppl_vae_(
        *TINY, "--out", "runs/a", "--model", "HierarchicalVAE", "--model.latent_dims", "[3,2]",
        "--model.likelihood", "Laplace", "--guide.encoder", "DenseEncoder", "--schedule", "PerSite",
        "--schedule.sites", "{z1: {class_path: Linear, init_args: {num_steps: 2}}}",
        "--optimizer", "AdamW", "--estimator", "pyro.infer.Trace_ELBO", "--seed", 3,
    )  # fmt: skip
    ppl_vae_("train", "--config", "runs/a/config.yaml", "--out", "runs/b")
    ppl_vae_("train", "--config", "runs/a/config.yaml", "--out", "runs/c", "--seed", 4)
    assert config("runs/b") == config("runs/a")
    assert config("runs/c") == {**config("runs/a"), "seed": 4}
    for part in ("model", "guide", "optimizer"):
        assert weights("runs/b", part) == weights("runs/a", part)
        assert weights("runs/c", part) != weights("runs/a", part)


def test_a_config_by_hand(ppl_vae_):
    Path("mine.yaml").write_text(
        """
        data: data.npz
        num_steps: 2
        model:
          class_path: HierarchicalVAE
          init_args: {latent_dims: [4, 2], hidden: [8]}
        guide: DeltaGuide
        schedule:
          class_path: PerSite
          init_args:
            sites:
              z1: {class_path: Linear, init_args: {num_steps: 2}}
              z2: {class_path: Constant, init_args: {value: 0.5}}
        """
    )
    ppl_vae_("train", "--config", "mine.yaml", "--out", "runs/a", "--model.latent_hidden", "[5]")
    stored = config("runs/a")
    model = {"latent_dims": [4, 2], "hidden": [8], "latent_hidden": [5]}
    assert stored["model"] == entry("ppl_vae.models.HierarchicalVAE", **model)
    assert stored["guide"] == entry("ppl_vae.guides.DeltaGuide")
    assert list(stored["schedule"]["init_args"]["sites"]) == ["z1", "z2"]
    printed = ppl_vae_("evaluate", "runs/a")
    assert "elbo" not in printed.replace("there is no elbo", "")
    assert "log p of z2" in printed


def test_a_config_that_was_printed(ppl_vae_):
    printed = ppl_vae_(*TINY, "--print_config", "--model.latent_dim", 5)
    Path("printed.yaml").write_text(printed)
    ppl_vae_("train", "--config", "printed.yaml", "--out", "runs/a")
    ppl_vae_(*TINY, "--model.latent_dim", 5, "--out", "runs/b")
    assert weights("runs/a") == weights("runs/b")


def test_frozen_parameters_stay(ppl_vae_):
    for path, words in (("a", []), ("b", ["--num_steps", "5"])):
        ppl_vae_(*TINY, "--freeze", "[model]", "--out", path, *words)
    assert weights("a", "model") == weights("b", "model")
    assert weights("a", "guide") != weights("b", "guide")


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_the_users_own_classes(ppl_vae_, folder, where):
    # One name each, for a module is imported but once.
    name = f"mine_{where}"
    (folder / "elsewhere").mkdir()
    place = folder if where == "here" else folder / "elsewhere"
    (place / f"{name}.py").write_text(MINE)
    if where == "elsewhere":
        sys.path.append(str(place))
    ppl_vae_(
        "train", "--data", "data.npz", "--num_steps", 3, "--tensorboard", "false", "--out", "a",
        "--model", f"{name}.MyModel", "--model.width", 2, "--guide", f"{name}.MyGuide",
        "--guide.scale", 0.5, "--estimator", f"{name}.MyELBO", "--estimator.num_particles", 2,
    )  # fmt: skip
    stored = config("a")
    assert stored["model"] == entry(f"{name}.MyModel", width=2)
    assert stored["guide"] == entry(f"{name}.MyGuide", scale=0.5)
    assert stored["estimator"] == entry(f"{name}.MyELBO", num_particles=2)
    ppl_vae_("evaluate", "a", "--allow", name, "--num_particles", 2)
    ppl_vae_("sample", "a", f"--allow=[{name}]")
    ppl_vae_("train", "--config", "a/config.yaml", "--allow", name, "--out", "b")
    assert weights("b") == weights("a")
    # To name the classes outright allows their module as well.
    ppl_vae_("train", "--resume", "--out", "a", "--num_steps", 4, "--model", f"{name}.MyModel")


def test_list_shows_no_markup(ppl_vae_):
    printed = ppl_vae_("list")
    assert not re.search(r":math:|\*\*|`|\\", printed) and "N(" in printed


def test_list_shows_every_public_class(ppl_vae_):
    everything = ppl_vae_("list")
    for kind in KINDS:
        printed = ppl_vae_("list", kind)
        # A guide by itself says more, in lines of their own.
        short = "".join(re.findall(r"^(?:  )?\S.*\n", printed, re.M))
        assert short in everything and (short == printed) == (kind != "guides")
        for name, summary in catalogue(kind).items():
            assert re.search(rf"^  {re.escape(name)} +{re.escape(summary)}$", printed, re.M)


def test_list_of_runs(ppl_vae_):
    (Path("runs") / "no run").mkdir(parents=True)
    assert ppl_vae_("list", "runs") == ""
    ppl_vae_(*TINY, "--out", "elsewhere/a", "--guide", "DeltaGuide")
    assert ppl_vae_("list", "runs", "--folder", "elsewhere") == "elsewhere/a  not evaluated\n"


@pytest.mark.parametrize("command", ["", "train", "evaluate", "sample", "report", "list"])
def test_help(ppl_vae_, command):
    printed = " ".join(ppl_vae_(*command.split(), "--help").split())
    expected = {
        "": ["train", "evaluate", "sample", "report", "list"],
        "train": ["--config", "--model", "--guide", "--estimator", "--schedule", "--resume"],
        "evaluate": ["--num_particles", "--num_data", "--split", "--checkpoint", "--allow"],
        "sample": ["--num", "--mean", "--checkpoint"],
        "report": ["--data", "--split"],
        "list": ["runs", "--folder"],
    }
    assert all(word in printed for word in expected[command])


def test_help_of_a_class(ppl_vae_):
    assert "--model.latent_dims" in ppl_vae_("train", "--model.help", "HierarchicalVAE")


def test_python_m(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ppl_vae", "list", "guides"])
    # A test that walks through all modules may have imported it.
    monkeypatch.delitem(sys.modules, "ppl_vae.__main__", raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("ppl_vae", run_name="__main__")
    assert stop.value.code == 0
    assert "MeanFieldGuide" in capsys.readouterr().out


def test_a_loss_that_explodes_is_not_the_users_typing_error(capsys):
    words = [
        *TINY,
        "--out",
        "a",
        "--optimizer",
        "SGD",
        "--optimizer.lr",
        "1e30",
        "--num_steps",
        "9",
    ]
    assert main(words) == 1
    message = capsys.readouterr().err
    assert re.fullmatch(r"ppl-vae: .*step \d.*\n", message)


def test_ctrl_c(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt("stopped at step 2 of 3")

    monkeypatch.setattr(ppl_vae.training, "fit", interrupted)
    assert main([*TINY, "--out", "a"]) == 1
    assert capsys.readouterr().err == (
        "ppl-vae: interrupted: stopped at step 2 of 3. Go on with --resume\n"
    )


@pytest.mark.slow
def test_list_waits_for_no_figures():
    program = (
        "import sys; from ppl_vae.cli import main; main(['list']);"
        "print(*(set(sys.modules) & {'matplotlib', 'sklearn', 'torchvision', 'jinja2', 'PIL'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("folder of images\n\n")
