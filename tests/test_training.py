"""From names to a finished run: the files, the figures in them, and the page."""

import json
import os
import warnings
from functools import partial
from html.parser import HTMLParser
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import exact_one_level, linear, off_posterior, one_level

import ppl_vae
from ppl_vae import plots
from ppl_vae.data import Splits
from ppl_vae.directory import RunDirectory
from ppl_vae.evaluate import Estimate, importance_diagnostics, sample_prior
from ppl_vae.guides import DeltaGuide, MeanFieldGuide
from ppl_vae.loggers import TensorBoard
from ppl_vae.models import VAE, HierarchicalVAE
from ppl_vae.report import sample_run, write_report
from ppl_vae.results import evaluate_run, notes, results_table
from ppl_vae.runs import load_run
from ppl_vae.schedules import Constant, Linear
from ppl_vae.training import train

SMALL = {"hidden": (16,)}
MODEL = partial(VAE, latent_dim=3, **SMALL)
GUIDE = partial(MeanFieldGuide, **SMALL)


@pytest.fixture(autouse=True)
def single_precision():
    # `load` gives float32, as the networks of a user are.
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    path = tmp_path_factory.mktemp("runs") / "a"
    train(model=MODEL, guide=GUIDE, num_steps=60, eval_every=30, log_every=20, out=str(path))
    torch.set_default_dtype(default)
    return path


def test_a_run_leaves_all_that_is_promised(run_path):
    files = {str(p.relative_to(run_path)) for p in run_path.rglob("*") if p.is_file()}
    promised = {
        "config.yaml", "metrics.jsonl", "results.json", "report.html",
        "checkpoint/model.safetensors", "checkpoint/guide.safetensors",
        "checkpoint/optimizer.safetensors", "checkpoint/random.safetensors",
        "checkpoint/state.json", "best/model.safetensors", "best/guide.safetensors",
        "best/state.json",
        *(f"figures/{name}.png" for name in (
            "learning_curves", "reconstructions", "samples", "latents_z", "traversals_z",
            "active_units")),
    }  # fmt: skip
    assert promised == {file for file in files if not file.startswith("tensorboard/")}
    assert any(file.startswith("tensorboard/") for file in files) == TensorBoard.is_installed()


def test_the_page_needs_nothing_but_itself(run_path):
    html = (run_path / "report.html").read_text()
    assert "VAE with MeanFieldGuide on digits" in html
    assert html.count('<img src="data:image/png;base64,') == 6
    assert "improper" in html

    class Links(HTMLParser):
        found: list = []

        def handle_starttag(self, tag, attributes):
            self.found += [v for k, v in attributes if k in ("src", "href") and v]

    parser = Links()
    parser.feed(html)
    assert all(link.startswith(("data:", "#")) for link in parser.found)


def test_the_results_are_those_of_the_library(run_path):
    results = json.loads((run_path / "results.json").read_text())
    run = load_run(run_path)
    x = run.data().test
    assert (results["split"], results["num_data"], results["step"]) == ("test", 250, 60)
    estimate = ppl_vae.evaluate.log_marginal(run.model, run.guide, x, num_particles=100, seed=0)
    assert results["log_marginal"]["value"] == pytest.approx(estimate.mean().value, rel=1e-6)
    parts = results["reconstruction"]["value"] - results["kl"]["z"]["value"]
    assert results["elbo"]["value"] == pytest.approx(parts, rel=1e-6)
    assert results["elbo"]["value"] < results["log_marginal"]["value"]
    assert not results["is_proper"]
    assert "improper" in notes(results)[0]
    names = [name for name, _ in results_table(results)]
    assert names == ["elbo", "reconstruction", "KL of z", "log p(x), 100 particles",
                     "Pareto k-hat", "effective sample size", "active units of z"]  # fmt: skip


def test_an_evaluation_of_a_part_is_drawn_at_random_and_says_so(run_path):
    run = load_run(run_path)
    data = run.data()
    results = evaluate_run(run, data, num_data=40, num_particles=10, split="valid")
    assert (results["num_data"], results["split"]) == (40, "valid")
    again = evaluate_run(run, data, num_data=40, num_particles=10, split="valid")
    other = evaluate_run(run, data, num_data=40, num_particles=10, split="valid", seed=1)
    assert results == again
    assert results["elbo"]["value"] != other["elbo"]["value"]


def evaluated(model, guide, x, tmp_path, **options):
    """The results of a pair as if it were a run's."""
    run = SimpleNamespace(
        model=model, guide=guide, step=1, directory=RunDirectory(tmp_path), like=lambda x: x
    )
    return evaluate_run(run, Splits(x, x, x), **options)


@pytest.mark.parametrize("factor, is_bad", [(1.3, False), (0.3, True)])
def test_an_evaluation_says_whether_its_log_p_can_be_trusted(factor, is_bad, tmp_path):
    torch.set_default_dtype(torch.float64)
    model = linear(10)
    guide, x = off_posterior(model, factor), sample_prior(model, torch.zeros(31, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once, in a note
        results = evaluated(model, guide, x, tmp_path, num_particles=2500, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = importance_diagnostics(model, guide, x, num_particles=2500, seed=3)
    assert results["importance"] == {
        "pareto_k": {
            "median": expected.pareto_k.median().item(),
            "threshold": 0.7,
            "share_above": (expected.pareto_k > 0.7).double().mean().item(),
        },
        "effective_size": {"median": expected.effective_size.median().item(), "of": 2500},
    }
    assert results["log_marginal"]["value"] == expected.log_marginal.mean().value
    assert json.loads((tmp_path / "results.json").read_text()) == results
    median, share = results["importance"]["pareto_k"]["median"], 100 if is_bad else 0
    size = results["importance"]["effective_size"]["median"]
    assert results_table(results)[-3:-1] == [
        ("Pareto k-hat", f"median {median:.2f}, {share}% of the data above 0.7"),
        ("effective sample size", f"median {size:.0f} of 2500"),
    ]
    found = [note for note in notes(results) if "k-hat" in note]
    assert len(found) == is_bad
    if is_bad:
        assert "log p(x) cannot be trusted: Pareto k-hat is above 0.7 for 100% of the" in found[0]


@pytest.mark.parametrize("share, warns", [(0.0, 0), (0.33, 0), (1 / 3, 1), (0.5, 1), (1.0, 1)])
def test_from_a_third_of_the_data_on_a_note_warns(share, warns):
    weights = {"median": None, "threshold": 0.67, "share_above": share}
    size = {"median": 7.4, "of": 1000}
    results = {"importance": {"pareto_k": weights, "effective_size": size}}
    assert len(notes(results)) == warns
    text = f"{share:.0%} of the data above 0.67"
    expected = [("Pareto k-hat", text), ("effective sample size", "median 7 of 1000")]
    assert results_table(results) == expected


def test_weights_that_are_all_the_same_and_too_few_of_them(tmp_path):
    torch.set_default_dtype(torch.float64)
    x = torch.randn(5, 3)
    results = evaluated(one_level(), exact_one_level, x, tmp_path, num_particles=100)
    assert results["importance"]["pareto_k"] == {
        "median": None, "threshold": 0.5, "share_above": 0.0
    }  # fmt: skip
    assert not notes(results)
    least = evaluated(one_level(), exact_one_level, x, tmp_path, num_particles=25)
    assert least["importance"]["effective_size"] == {"median": pytest.approx(25), "of": 25}
    few = evaluated(one_level(), exact_one_level, x, tmp_path, num_particles=24)
    assert "importance" not in few and not notes(few)
    assert few["log_marginal"]["num_particles"] == 24


def test_data_without_a_positive_weight_are_above_every_threshold(tmp_path):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(torch.zeros(len(x)), 1.0))
            density = dist.Uniform(z, z + 1, validate_args=False)
            pyro.sample("x", density, obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Beta(torch.ones(len(x)), 2.0))

    x = torch.tensor([[0.5], [9.0], [9.0]])
    results = evaluated(model, guide, x, tmp_path, num_particles=100)
    assert results["importance"]["pareto_k"] == {
        "median": None, "threshold": 0.5, "share_above": pytest.approx(2 / 3)
    }  # fmt: skip
    assert results["importance"]["effective_size"]["median"] == 0
    assert "above 0.5 for 67% of the data" in notes(results)[0]


def test_samples_are_data_of_the_model(run_path):
    run = load_run(run_path)
    drawn, means = sample_run(run, num=5), sample_run(run, num=5, mean=True)
    assert drawn.shape == means.shape == (5, 1, 8, 8)
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert 0 < means.min() < means.max() < 1
    assert torch.equal(drawn, sample_run(run, num=5))
    assert not torch.equal(drawn, sample_run(run, num=5, seed=1))


def test_the_report_can_be_redrawn_to_the_byte(run_path):
    run = load_run(run_path)
    figures = {p: p.read_bytes() for p in (run_path / "figures").iterdir()}
    write_report(run, run.data())
    assert figures == {p: p.read_bytes() for p in (run_path / "figures").iterdir()}


def test_a_second_run_of_the_same_arguments_is_the_same(run_path, tmp_path):
    again = tmp_path / "again"
    train(model=MODEL, guide=GUIDE, num_steps=60, eval_every=30, log_every=20, out=str(again))
    for name in ("model", "guide", "optimizer"):
        file = f"checkpoint/{name}.safetensors"
        assert (run_path / file).read_bytes() == (again / file).read_bytes()


def test_a_deterministic_autoencoder_reports_no_bound(tmp_path):
    path = tmp_path / "ae"
    guide = partial(DeltaGuide, **SMALL)
    train(model=MODEL, guide=guide, schedule=Constant(0.0), num_steps=20, out=str(path))
    results = json.loads((path / "results.json").read_text())
    assert {"elbo", "kl", "log_marginal"}.isdisjoint(results)
    assert set(results["log_prior"]) == {"z"}
    assert any("point mass" in note for note in notes(results))
    assert (path / "report.html").is_file()


def test_two_levels_have_pictures_of_each(tmp_path):
    path = tmp_path / "two"
    model = partial(HierarchicalVAE, latent_dims=(3, 2), latent_hidden=(8,), **SMALL)
    train(model=model, guide=GUIDE, num_steps=20, binarize="dynamic", out=str(path))
    names = {p.name for p in (path / "figures").iterdir()}
    assert {"latents_z1.png", "latents_z2.png", "traversals_z1.png", "traversals_z2.png"} <= names
    assert json.loads((path / "results.json").read_text())["is_proper"]


class Shades(ppl_vae.models.Model):
    """A scalar that is positive, and a vector."""

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 1.0))
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = (z.sum(-1) - rate)[..., None, None, None].expand(*z.shape[:-1], 1, 8, 8)
            return pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)


class Classes(ppl_vae.models.Model):
    """Two classes, and nothing else."""

    def __init__(self, data_shape):
        super().__init__(data_shape)
        self.logits = torch.nn.Parameter(torch.randn(2, *data_shape))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(x.new_ones(2)))
            return pyro.sample("x", dist.Bernoulli(logits=self.logits[y]).to_event(3), obs=x)


class Classifier(ppl_vae.guides.Guide):
    def __init__(self, model):
        super().__init__(model)
        self.net = torch.nn.Linear(64, 2)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Categorical(logits=self.net(x.flatten(1))))


@pytest.mark.parametrize(
    ("model", "guide", "expected"),
    [
        (Shades, GUIDE, {"latents_rate", "latents_z", "traversals_rate", "traversals_z",
                         "active_units"}),
        (Classes, Classifier, {"classes_y"}),
    ],
)  # fmt: skip
def test_latents_of_every_kind_are_reported(tmp_path, model, guide, expected):
    train(model=model, guide=guide, estimator=pyro.infer.Trace_ELBO(), num_steps=3,
          binarize="dynamic", out=str(tmp_path / "a"))  # fmt: skip
    names = {path.stem for path in (tmp_path / "a" / "figures").iterdir()}
    assert names == {"learning_curves", "reconstructions", "samples", *expected}
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert set(results["active_units"]) == ({"rate", "z"} if model is Shades else set())
    assert results.get("classes", {}).keys() == (set() if model is Shades else {"y"})


def test_a_row_of_the_report_is_of_its_class(tmp_path, monkeypatch):
    shown = {}

    def kept(x, classes, share, site):
        shown.update(x=x, classes=classes, share=share, site=site)
        return plots.samples(x[0])

    monkeypatch.setattr("ppl_vae.plots.class_samples", kept)
    train(model=Classes, guide=Classifier, estimator=pyro.infer.Trace_ELBO(), num_steps=3,
          binarize="dynamic", out=str(tmp_path / "a"))  # fmt: skip
    run = load_run(tmp_path / "a", [__name__])
    x = run.data().test
    share = run.guide.net(x.flatten(1)).softmax(1).mean(0)
    assert (shown["site"], sorted(shown["classes"])) == ("y", [0, 1])
    assert shown["share"][0] >= shown["share"][1]
    torch.testing.assert_close(shown["share"], share[shown["classes"]].detach())
    for row, y in zip(shown["x"], shown["classes"], strict=True):
        torch.testing.assert_close(row, run.model.logits[y].sigmoid().detach().expand(row.shape))


@pytest.mark.slow
def test_two_levels_with_warm_up_keep_both_kls_above_zero(tmp_path):
    if not os.environ.get("PPL_VAE_DATA"):
        pytest.skip("needs MNIST in PPL_VAE_DATA; on a thousand digits the upper level has no use")
    epochs = 3
    splits = ppl_vae.data.load("mnist", binarize="dynamic")
    model = HierarchicalVAE(splits.data_shape, latent_dims=(20, 10), hidden=(200,))
    guide = MeanFieldGuide(model, hidden=(200,))
    epoch = len(splits.train) // 128
    result = ppl_vae.fit(
        model, guide, splits, num_steps=epochs * epoch, eval_every=epoch,
        schedule=Linear(2 * epoch), out=tmp_path / "run", tensorboard=False,
    )  # fmt: skip
    kls = [line["kl"] for line in result.metrics if line["split"] == "valid"]
    assert len(kls) == epochs
    assert all(kl["z1"] > 1.0 and kl["z2"] > 0.1 for kl in kls)
    assert RunDirectory(tmp_path / "run").load()["progress"]["step"] == epochs * epoch


def test_an_estimate_prints_two_digits_of_its_error():
    assert str(Estimate(-104.2345, 0.3456)) == "-104.23 ± 0.35"
    assert str(Estimate(1234.5, 12.0)) == "1234 ± 12"
    assert str(Estimate(0.012345, 0.00123)) == "0.0123 ± 0.0012"
