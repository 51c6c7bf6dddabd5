"""`ppl-vae` given what is wrong: exit code 2, one message that helps, and nothing lost."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ppl_vae.cli import main

FIT = (
    "train --data data.npz --num_steps 3 --tensorboard false --model.hidden [8] --guide.hidden [8]"
)
TRAIN = f"{FIT} --out new"
TWO_LEVELS = f"{TRAIN} --model HierarchicalVAE"

MINE = """
import pyro, pyro.distributions as dist, torch
from ppl_vae.guides import Guide, MeanFieldGuide
from ppl_vae.models import Model

class Discrete(Model):
    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=x.new_zeros(3)))
            probs = x.new_full((*k.shape, 6), 0.5)
            return pyro.sample("x", dist.Bernoulli(probs).to_event(1), obs=x)

class Forgetful(Guide):
    def __init__(self, model):
        super().__init__(model)
        self.loc = torch.nn.Parameter(torch.zeros(20))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z1", dist.Normal(self.loc, 1.0).to_event(1))

class Shapeless(Model):
    def __init__(self, loading):
        super().__init__(loading)

def untold(model):
    return MeanFieldGuide(model)

nothing = 3
"""
STRANGER = "raise SystemExit('a stranger was imported')\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, made once."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=(rng.random((60, 6)) > 0.5).astype("float32"))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        for name in ("ppl_vae.report.write_report", "ppl_vae.training.write_report"):
            patch.setattr(name, lambda run, *a, **k: run.directory.report_path, raising=False)
        assert main([*FIT.split(), "--out", "run"]) == 0
    torch.set_default_dtype(default)
    return folder


@pytest.fixture(autouse=True)
def folder(run, tmp_path, monkeypatch):
    """A folder to stand in, with the run and its data."""
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    (tmp_path / "wrong_mine.py").write_text(MINE)
    (tmp_path / "wrong_stranger.py").write_text(STRANGER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.set_default_dtype(torch.float32)
    return tmp_path


def npz(**arrays):
    return lambda: np.savez("bad.npz", **arrays)


def text(path, content):
    return lambda: Path(path).write_text(content)


def cut(path):
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:-7])


def flip(path, place=-3):
    def change():
        content = bytearray(Path(path).read_bytes())
        content[place] ^= 4
        Path(path).write_bytes(content)

    return change


def gone(path):
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def stored(**entries):
    """Writes entries into the config of the run."""

    def change():
        path = Path("run/config.yaml")
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **entries}))

    return change


def folder_of_images():
    from PIL import Image

    Path("pictures").mkdir()
    for size in (4, 5):
        Image.new("L", (size, size)).save(f"pictures/{size}.png")


GREY = np.full((40, 6), 0.5, "float32")
NAN = GREY.copy()
NAN[3, 2] = np.nan
BAD = f"{TRAIN} --data bad.npz"

# Each by a name: the command line, what happens to the files before, what the message must say.
CASES = {
    # Words.
    "no command": ("", None, r"no command .*accepted are train, evaluate, compare, .*list"),
    "unknown command": ("trian", None, r"no command 'trian'; did you mean train\?"),
    "unknown option": (f"{TRAIN} --num_stepz 3", None, r"--num_stepz; did you mean --num_steps\?"),
    "shortened option": (f"{TRAIN} --num 3", None, r"--num; did you mean --num_steps\?"),
    "option without its class": (
        f"{TRAIN} --latent_dim 3", None, r"--latent_dim; did you mean --model.latent_dim\?"),
    "unknown first half": (
        f"{TRAIN} --modle.latent_dim 3", None, r"did you mean --model.latent_dim\?"),
    "unknown second half": (
        f"{TRAIN} --model.latent_dimm 3", None,
        r"--model.latent_dimm: VAE has no .*did you mean latent_dim\? Accepted are latent_dim,"),
    "unknown third part": (
        f"{TRAIN} --model.likelihood Gaussian --model.likelihood.scal 3", None,
        r"--model.likelihood.scal: Gaussian has no .*did you mean scale\?"),
    "argument of no class": (
        f"{TRAIN} --model.likelihood.scale 3", None,
        r"--model.likelihood.scale: name a class first, .*Accepted are Bernoulli, .*Gaussian"),
    "learning-rate schedule of no class": (
        f"{TRAIN} --lr_schedule.step_size 3", None,
        r"--lr_schedule.step_size: name a class first, .*StepLR"),
    "capacity of no class": (
        f"{TRAIN} --estimator TraceCapacity_ELBO --estimator.capacity.num_steps 3", None,
        r"--estimator.capacity.num_steps: name a class first, .*Linear"),
    "stray word": (f"{TRAIN} mnist", None, r"unexpected argument 'mnist'.*--name value"),
    "no value": (f"{TRAIN} --num_steps", None, r"--num_steps: no value"),
    "option of another command": ("sample run --split test", None, r"no option --split"),
    # Names of classes.
    "unknown guide": (
        f"{TRAIN} --guide MeanfieldGuide", None,
        r"--guide: 'MeanfieldGuide' .*mean MeanFieldGuide\? Accepted are .*import path"),
    "unknown model": (
        f"{TRAIN} --model Vae", None, r"--model: 'Vae' .*did you mean VAE\? Accepted"),
    "unknown estimator": (
        f"{TRAIN} --estimator ELBOW", None, r"--estimator: 'ELBOW' .*Trace_ELBO.*pyro\.infer\."),
    "unknown schedule": (
        f"{TRAIN} --schedule Liner", None, r"--schedule: 'Liner' .*did you mean Linear\?"),
    "unknown optimizer": (
        f"{TRAIN} --optimizer Adm", None, r"--optimizer: 'Adm' .*did you mean Adam\? .*SGD"),
    "unknown learning-rate schedule": (
        f"{TRAIN} --lr_schedule Step", None, r"--lr_schedule: 'Step' .*StepLR"),
    "unknown likelihood": (
        f"{TRAIN} --model.likelihood Poisson", None,
        r"--model.likelihood: 'Poisson' .*Bernoulli, ContinuousBernoulli, Gaussian, Laplace"),
    "unknown decoder": (
        f"{TRAIN} --model.decoder ConvDecode", None,
        r"--model.decoder: 'ConvDecode' .*did you mean ConvDecoder\?"),
    "unknown module": (
        f"{TRAIN} --guide no_such.Guide", None, r"--guide: 'no_such.Guide' .*no module no_such"),
    "unknown name in a module": (
        f"{TRAIN} --guide ppl_vae.guides.Nope", None, r"'ppl_vae.guides.Nope' is not there"),
    "module that is broken": (
        f"{TRAIN} --guide broken.Guide", text("broken.py", "x = undefined\n"),
        r"--guide: broken.Guide .*NameError: name 'undefined'.*broken\.py:1"),
    "module that is no Python": (
        f"{TRAIN} --estimator no_python.E", text("no_python.py", "def f(:\n"),
        r"--estimator: no_python.E .*SyntaxError: .*no_python\.py, line 1"),
    "model for a guide": (
        f"{TRAIN} --guide ppl_vae.models.VAE", None, r"--guide: 'ppl_vae.models.VAE' is no Guide"),
    "number for a guide": (
        f"{TRAIN} --guide wrong_mine.nothing", None, r"--guide: 'wrong_mine.nothing' is no class"),
    "function for a guide": (
        f"{TRAIN} --guide wrong_mine.untold", None, r"--guide: 'wrong_mine.untold' .*-> Guide"),
    "module for an estimator": (
        f"{TRAIN} --estimator torch.nn.Linear", None,
        r"--estimator: 'torch.nn.Linear' is no E.*Accepted are"),
    "abstract guide": (f"{TRAIN} --guide AmortizedGuide", None, r"(?=.*AmortizedGuide).*abstract"),
    "abstract schedule": (
        f"{TRAIN} --schedule Schedule", None, r"--schedule: 'Schedule' is abstract. Accepted"),
    "model that needs no data": (
        f"{TRAIN} --model LinearGaussian", None,
        r"--model: LinearGaussian has no argument data_shape.*ppl_vae\.fit.*VAE"),
    "the user's model that needs no data": (
        f"{TRAIN} --model wrong_mine.Shapeless", None, r"Shapeless has no argument data_shape"),
    "schedule without its length": (
        f"{TRAIN} --schedule Linear", None, r"--schedule.num_steps is not given; Linear needs it"),
    "no sites": (
        f"{TRAIN} --schedule PerSite", None, r"--schedule.sites is not given; PerSite needs it"),
    "Pyro's estimator without its kernel": (
        f"{TRAIN} --estimator pyro.infer.Trace_MMD", None, r"--estimator.*kernel"),
    "null for a list": (f"{TRAIN} --model.hidden null", None, r"hidden is None.*>= 1"),
    # Values of the wrong kind.
    **{
        f"{option} {value}": (
            f"{TRAIN} --{option} {value}", None, rf"--{option}: '{value}' .*{says}")
        for option, value, says in (
            ("num_steps", "abc", "an integer"),
            ("num_steps", "1.5", "an integer"),
            ("model.latent_dim", "abc", "an integer"),
            ("model.hidden", "8", r"a list, as \[8, 8\]"),
            ("model.activation", "rleu", "relu, tanh"),
            ("binarize", "sometimes", "dynamic, fixed"),
            ("resume", "maybe", "true or false"),
            ("clip_grad_norm", "tight", "a number"),
            ("optimizer.lr", "fast", "a number"),
            ("tensorboard", "maybe", "true, false or null"),
        )
    },
    # Values out of range.
    **{
        f"{option} {value}": (
            f"{TRAIN} --{option} {value}", None,
            rf"{option.split('.')[-1]} is \[?{value}\b.*{says}")
        for option, value, says in (
            ("num_steps", "0", ">= 1"),
            ("num_steps", "-5", ">= 1"),
            ("model.latent_dim", "0", ">= 1"),
            ("model.latent_dim", "-1", ">= 1"),
            ("batch_size", "0", "1 to 48"),
            ("batch_size", "100", "1 to 48"),
            ("log_every", "0", ">= 1"),
            ("eval_every", "0", ">= 1"),
            ("checkpoint_every", "-1", ">= 1"),
            ("patience", "0", ">= 1"),
            ("clip_grad_norm", "-1", "> 0"),
            ("estimator.num_particles", "0", ">= 1"),
            ("schedule.value", "-1", ">= 0"),
        )
    },
    "device nonsense": (f"{TRAIN} --device nonsense", None, r"device is 'nonsense'.*auto, cpu"),
    "hidden [0]": (f"{TRAIN} --model.hidden [0]", None, r"VAE: hidden is \[0\].*>= 1"),
    "guide's hidden [0]": (f"{TRAIN} --guide.hidden [0]", None, r"Guide: hidden is \[0\].*>= 1"),
    "one level": (f"{TWO_LEVELS} --model.latent_dims [20]", None, r"latent_dims is \[20\].*two"),
    "no level": (f"{TWO_LEVELS} --model.latent_dims []", None, r"latent_dims is \[\].*>= 1"),
    "likelihood of negative scale": (
        f"{TRAIN} --model.likelihood Gaussian --model.likelihood.scale -1", None,
        r"--model: Gaussian: scale is -1.0.*> 0"),
    "schedule of no steps": (
        f"{TRAIN} --schedule Linear --schedule.num_steps 0", None, r"--schedule: .*num_steps is 0"),
    "ratio 2": (
        f"{TRAIN} --schedule Cyclical --schedule.num_cycles 1 --schedule.num_steps 9 "
        "--schedule.ratio 2", None, r"--schedule: .*ratio is 2.0.*<= 1"),
    "Renyi's bound of order 1": (
        f"{TRAIN} --estimator pyro.infer.RenyiELBO --estimator.alpha 1", None,
        r"--estimator: RenyiELBO\(alpha=1\): .*equal to 1"),
    "learning rate below 0": (f"{TRAIN} --optimizer.lr -1", None, r"learning rate: -1\.0"),
    "freeze of what is not there": (
        f"{TRAIN} --freeze [decoder]", None, r"freeze names 'decoder'.*accepted .*model\.decoder"),
    "freeze of everything": (f"{TRAIN} --freeze [model,guide]", None, r"\['model', 'guide'\]"),
    "device that is not here": (
        f"{TRAIN} --device mps", None, r"device is 'mps'.*auto, cpu"),
    "device without memory": (f"{TRAIN} --device meta", None, r"device is 'meta'.*auto, cpu"),
    "seed below 0 of an evaluation": ("evaluate run --seed -1", None, r"seed is -1"),
    "seed below 0": (f"{TRAIN} --seed -1", None, r"seed is -1"),
    "schedule for no site": (
        f"{TRAIN} --schedule PerSite --schedule.sites {{y:{{class_path:Constant}}}}", None,
        r"'y'.*accepted.*z"),
    # Pairs that do not fit.
    "guide that lacks a site": (
        "train --data data.npz --num_steps 3 --out new --model HierarchicalVAE "
        "--guide wrong_mine.Forgetful", None, r"model samples 'z2' which the guide does not"),
    "discrete site": (
        "train --data data.npz --num_steps 3 --out new --model wrong_mine.Discrete", None,
        r"Trace_ELBO needs reparameterized guides, and the guide samples 'k' from Categorical"),
    "convolutions for vectors": (
        f"{TRAIN} --model.decoder ConvDecoder", None, r"ConvDecoder: .*\(6,\).*\(C, H, W\)"),
    "convolutional encoder for vectors": (
        f"{TRAIN} --guide.encoder ConvEncoder", None, r"ConvEncoder: .*\(6,\).*\(C, H, W\)"),
    "capacity and a weight": (
        f"{TRAIN} --estimator TraceCapacity_ELBO --schedule.value 2", None,
        r"TraceCapacity_ELBO .*no KL weight.*Constant\(1\.0\)"),
    "free bits and a weight": (
        f"{TRAIN} --estimator TraceFreeBits_ELBO --schedule.value 0.5", None,
        r"TraceFreeBits_ELBO takes no KL weight.*Constant\(1\.0\)"),
    "free bits of what has no KL": (
        f"{TRAIN} --estimator TraceFreeBits_ELBO --estimator.estimator TraceIWAE_ELBO", None,
        r"--estimator: TraceFreeBits_ELBO .*TraceIWAE_ELBO has none; accepted are Trace_ELBO"),
    "one particle against no other": (
        f"{TRAIN} --estimator TraceVIMCO_ELBO --estimator.num_particles 1", None,
        r"--estimator: TraceVIMCO_ELBO: num_particles is 1; accepted is >= 2"),
    "a point mass has no weights": (
        f"{TRAIN} --estimator TraceDReG_ELBO --guide DeltaGuide", None,
        r"TraceDReG_ELBO needs the density .*DeltaGuide.*MeanFieldGuide"),
    "a score of nothing": (
        f"{TRAIN} --estimator TraceOVIS_ELBO --estimator.pathwise true", None,
        r"TraceOVIS_ELBO: pathwise is true.*use pathwise=False"),
    "unknown baseline": (
        f"{TRAIN} --estimator TraceScoreFunction_ELBO --estimator.baseline Mean", None,
        r"--estimator.baseline: 'Mean' is not known. Accepted are DecayingAverage, LeaveOneOut"),
    # Data.
    "misspelt data": (f"{TRAIN} --data mnst", None, r"'mnst', did you mean 'mnist'\?"),
    "unknown data": (f"{TRAIN} --data nope", None, r"'nope'.*digits, mnist.*\.npz"),
    "no such file": (f"{TRAIN} --data no/such.npz", None, r"no/such\.npz: no such file.*\.npz"),
    "empty folder": (f"{TRAIN} --data run/checkpoint", None, r"run/checkpoint: no images.*\.png"),
    "another kind of file": (
        f"{TRAIN} --data wrong_mine.py", None, r"wrong_mine\.py: .*\.npz.*\.py"),
    "images of two sizes": (f"{TRAIN} --data pictures", folder_of_images, r"5\.png.*one size"),
    "no archive": (BAD, text("bad.npz", "no archive"), r"bad\.npz"),
    "archive that is cut": (
        BAD, lambda: Path("bad.npz").write_bytes(Path("data.npz").read_bytes()[:300]), r"bad\.npz"),
    "empty archive": (BAD, npz(), r"bad\.npz: .*keys.*accepted are train"),
    "empty file": (BAD, text("bad.npz", ""), r"bad\.npz"),
    "unknown keys": (BAD, npz(images=GREY, more=GREY), r"bad\.npz: .*'images'.*accepted are train"),
    "objects": (BAD, npz(x=np.array([{}, {}])), r"bad\.npz: .*'x' holds Python objects"),
    "words for data": (BAD, npz(x=np.array([["a", "b"]])), r"bad\.npz: .*real numbers"),
    "complex numbers": (BAD, npz(x=GREY + 1j), r"bad\.npz: .*complex.*real numbers"),
    "NaN": (BAD, npz(train=NAN), r"bad\.npz: train .*NaN.*\(3, 2\)"),
    "no rows": (BAD, npz(train=GREY[:0]), r"bad\.npz: train is empty.*\[0, 6\]"),
    "one dimension": (
        BAD, npz(train=GREY[0]), r"bad\.npz: train has shape \[6\].*\[N, \*data_shape\]"),
    "splits of two shapes": (
        BAD, npz(train=GREY, valid=GREY[:, :3]), r"bad\.npz: .*valid has shape \[3\].*train \[6\]"),
    "splits of two types": (
        BAD, npz(train=GREY, valid=GREY.astype("uint8")), r"bad\.npz: valid is uint8.*float32"),
    "integers for a Bernoulli": (
        BAD, npz(train=np.full((40, 6), 7)), r"outside \[0, 1\], the first is 7.*Gaussian"),
    "values outside of [0, 1]": (
        BAD, npz(train=2 * GREY + 0.5), r"outside \[0, 1\], the first is 1\.5.*Gaussian"),
    "binarize outside of [0, 1]": (
        f"{BAD} --binarize dynamic", npz(train=3 * GREY),
        r"bad\.npz: train ranges .*1\.5.*\[0, 1\]"),
    # Configs.
    "no such config": (f"{TRAIN} --config no.yaml", None, r"--config: no\.yaml cannot be read"),
    "folder for a config": (f"{TRAIN} --config run", None, r"--config: run cannot be read"),
    "config that is no YAML": (
        f"{TRAIN} --config c.yaml", text("c.yaml", "a: [1,"), r"--config: c\.yaml is no YAML"),
    "config that is no text": (
        f"{TRAIN} --config data.npz", None, r"--config: data\.npz is no YAML"),
    "config that is no mapping": (
        f"{TRAIN} --config c.yaml", text("c.yaml", "- 1"), r"c\.yaml holds '\[1\]'.*mapping"),
    "empty config": (f"{TRAIN} --config c.yaml", text("c.yaml", ""), r"c\.yaml holds .*mapping"),
    "config with an unknown option": (
        f"{TRAIN} --config c.yaml", text("c.yaml", "num_stps: 3"),
        r"c\.yaml: .*'num_stps'; did you mean num_steps\?"),
    "config with an unknown argument": (
        f"{TRAIN} --config c.yaml",
        text("c.yaml", "model: {class_path: VAE, init_args: {latent_dm: 3}}"),
        r"--model.latent_dm: VAE has no .*did you mean latent_dim\?"),
    "config with a wrong value": (
        "train --out new --config c.yaml", text("c.yaml", "num_steps: many"),
        r"--num_steps: 'many' .*an integer"),
    "config within a config": (
        f"{TRAIN} --config c.yaml", text("c.yaml", "config: d.yaml"), r"c\.yaml: .*'config'"),
    "config that allows": (
        f"{TRAIN} --config c.yaml", text("c.yaml", "allow: [os]"), r"c\.yaml: allow is .*--allow"),
    "config of a run that is not YAML": (
        "evaluate run", text("run/config.yaml", "a: [1,"), r"run/config\.yaml is no YAML"),
    "config of a run that is no mapping": (
        "evaluate run", text("run/config.yaml", "- 1"), r"run/config\.yaml holds no mapping"),
    "config of a run without a model": (
        "evaluate run", stored(model=None), r"no class for its model.*load_run"),
    "config of a run with an unknown class": (
        "evaluate run", stored(model={"class_path": "ppl_vae.models.Nope"}),
        r"no ppl_vae\.models\.Nope"),
    "config of a run with a wrong argument": (
        "evaluate run", stored(model={"class_path": "ppl_vae.models.VAE", "init_args": {"no": 1}}),
        r"ppl_vae\.models\.VAE|VAE.*'no'"),
    # Strangers.
    **{
        f"{name} in {where}": (words, prepare, rf"{re.escape(name)}, which is not loaded .*--allow")
        for name in ("os.system", "subprocess.Popen", "torch.nn.Linear", "wrong_stranger.Guide")
        for where, words, prepare in (
            ("a config", f"{TRAIN} --config c.yaml",
             text("c.yaml", f"guide: {{class_path: {name}}}")),
            ("a config, in short", f"{TRAIN} --config c.yaml", text("c.yaml", f"guide: {name}")),
            ("a run", "evaluate run", stored(guide={"class_path": name})),
            ("a run to resume", "train --resume --out run", stored(guide={"class_path": name})),
        )
    },
    **{
        f"stranger {where}": (
            f"{TRAIN} --config c.yaml", text("c.yaml", content),
            r"wrong_stranger\.\w+, which is not")
        for where, content in (
            ("as an argument", "model: {class_path: VAE, init_args: {decoder: wrong_stranger.D}}"),
            ("in a string", "guide: '{class_path: wrong_stranger.Guide}'"),
            ("in a site",
             "schedule: {class_path: PerSite, init_args: {sites: {z: wrong_stranger.S}}}"),
            ("in a string in a site",
             "schedule: {class_path: PerSite, init_args: {sites: '{z: wrong_stranger.S}'}}"),
            ("in a set", "guide: !!set {wrong_stranger.Guide}"),
            ("under a dotted key", "guide.class_path: wrong_stranger.Guide"),
            ("among other keywords",
             "guide: {class_path: MeanFieldGuide, dict_kwargs: {encoder: wrong_stranger.E}}"),
            ("for a number", "optimizer: {class_path: Adam, init_args: {lr: wrong_stranger.X}}"),
        )
    },
    "stranger in the first of two configs": (
        f"{TRAIN} --config c.yaml --config d.yaml",
        lambda: (text("c.yaml", "guide: wrong_stranger.Guide")(), text("d.yaml", "seed: 1")()),
        r"c\.yaml: .*wrong_stranger\.Guide, which is not"),
    "--allow of another module": (
        "evaluate run --allow wrong", stored(guide={"class_path": "wrong_stranger.Guide"}),
        r"wrong_stranger\.Guide, which is not .*--allow wrong_stranger"),
    # Places.
    "out that holds a run": (FIT + " --out run", None, r"out is run, .*holds a run.*--resume"),
    "file in the way": (
        FIT + " --out data.npz", None, r"out is data\.npz, which cannot be written to.*folder"),
    "file further up": (
        FIT + " --out data.npz/a", None, r"out is data\.npz/a, which cannot be written to"),
    "resume without out": (f"{FIT} --resume", None, r"resume is true, but out is not given"),
    "resume with other options": (
        "train --out run --resume --model.latent_dim 3", None,
        r"run in run was made with model = .*'latent_dim': 3.*--config run/config\.yaml"),
    "resume with other data": (
        "train --out run --resume --data bad.npz", npz(train=GREY[:, :3]),
        r"data = 'data\.npz'.*resumed with 'bad\.npz'"),
    "no folder of runs": ("list runs --folder nope", None, r"--folder: .*no folder nope"),
    "list of nonsense": ("list nonsense", None, r"'nonsense' .*models, .*data or runs"),
    # Runs.
    "no run": ("evaluate", None, r"run is not given.*folder of a run"),
    "run that is not there": ("evaluate nowhere", None, r"nowhere is no run.*config\.yaml"),
    "file for a run": ("sample data.npz", None, r"data\.npz is no run"),
    "unknown split": ("evaluate run --split tset", None, r"--split: 'tset' .*train, valid or test"),
    "unknown split of a report": ("report run --split x", None, r"--split: 'x' .*train, valid or"),
    "no particles": ("evaluate run --num_particles 0", None, r"num_particles is 0.*>= 1"),
    "evaluate particles abc": ("evaluate run --num_particles abc", None, r"--num_particles: 'abc'"),
    "no data": ("evaluate run --num_data 0", None, r"num_data is 0.*1 to 6"),
    "more data than there are": ("evaluate run --num_data 7", None, r"num_data is 7.*1 to 6"),
    "data of another shape": (
        "evaluate run --data bad.npz", npz(train=GREY[:, :3], test=GREY[:, :3]),
        r"trained on .*\(6,\).*given \(3,\)"),
    "data of no such name": ("evaluate run --data nope", None, r"'nope'.*digits"),
    "empty split": (
        "evaluate run --data bad.npz", npz(train=GREY), r"'test' of bad\.npz is empty.*--split"),
    "data that are gone": ("evaluate run", gone("data.npz"), r"data\.npz: no such file"),
    "unknown checkpoint": ("evaluate run --checkpoint b", None, r"--checkpoint: 'b' .*last, best"),
    "no samples": ("sample run --num 0", None, r"num is 0.*>= 1"),
    "unknown device": ("sample run --device gpu", None, r"device is 'gpu'.*auto, cpu"),
    # Checkpoints.
    **{
        f"{what} {name}": (words, change(f"run/checkpoint/{name}"), rf"checkpoint.*{name}.*{says}")
        for words in ("evaluate run",)
        for name in (
            "model.safetensors", "guide.safetensors", "optimizer.safetensors", "state.json")
        for what, change, says in (
            ("cut", cut, "damaged"), ("bit in", flip, "damaged"), ("no", gone, "is missing"))
    },
    "flipped bit in a resumed checkpoint": (
        "train --resume --out run --num_steps 5", flip("run/checkpoint/optimizer.safetensors"),
        r"optimizer\.safetensors is damaged"),
    "state.json with a flipped bit in its middle": (
        "evaluate run", flip("run/checkpoint/state.json", 900), r"run/checkpoint"),
    "no checkpoint": ("evaluate run", gone("run/checkpoint"), r"run has no checkpoint 'last'"),
    "no best checkpoint": (
        "evaluate run --checkpoint best", gone("run/best"), r"no checkpoint 'best'.*last"),
    "checkpoint of another model": (
        "evaluate run",
        stored(model={"class_path": "ppl_vae.models.VAE", "init_args": {"hidden": [9]}}),
        r"checkpoint's model does not fit"),
    "results that are no JSON": (
        "list runs --folder .", text("run/results.json", "{"), r"run/results\.json"),
}  # fmt: skip

if not torch.cuda.is_available():
    CASES["no GPU"] = (f"{TRAIN} --device cuda", None, r"device is 'cuda'.*accepted are auto, cpu")


def case(name):
    return pytest.param(*CASES[name], id=name)


def files():
    """Everything in the folder, by its path; what Python itself leaves there is left out."""
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in sorted(Path().rglob("*"))
        if "__pycache__" not in path.parts
    }


@pytest.mark.parametrize(("words", "prepare", "says"), [case(name) for name in CASES])
def test_one_message_and_nothing_lost(capsys, words, prepare, says):
    if prepare is not None:
        prepare()
    before = files()
    words = [w.replace(":", ": ") if w.startswith("{") else w.strip("'") for w in words.split()]
    code = main(words)
    printed = capsys.readouterr()
    message = printed.err
    assert message.startswith("ppl-vae: ")
    assert re.search(says, message.replace("\n", " ")), message
    assert code == 2
    assert printed.out == ""
    assert message.count("\n") <= 3
    assert message.count("ppl-vae: ") == 1
    raw = ["Traceback", "usage:", "<class", "Parser key", "collections.abc", "Namespace(", "Union"]
    assert [word for word in raw if word in message] == []
    assert files() == before
    assert "wrong_stranger" not in sys.modules
