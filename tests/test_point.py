"""Comparing estimators at a pair as it stands: closed forms, files, the command line."""

import csv
import json

import pytest
import torch

from ppl_vae import laboratory as lab
from ppl_vae.cli import main
from ppl_vae.estimators import (
    Trace_ELBO,
    TraceDReG_ELBO,
    TraceIWAE_ELBO,
    TraceSTL_ELBO,
)
from ppl_vae.evaluate import bound_at, gradient_signal
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.laboratory import point_page
from ppl_vae.models import VAE, LinearGaussian


@pytest.fixture
def pair():
    torch.manual_seed(0)
    model = LinearGaussian(torch.randn(6, 2), 0.7)
    return model, MeanFieldGuide(model, hidden=(8,))


X = torch.randn(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_rows_are_the_measures_of_each_estimator(pair):
    elbos = {"one": Trace_ELBO(), "eight": TraceIWAE_ELBO(8)}
    found = lab.compare_at(pair, elbos, X, num_draws=20, seed=3)
    truth = pair[0].log_marginal(X)
    assert found.truth == "exact"
    assert found.log_marginal[""].value == pytest.approx(truth.mean().item())
    for contender, elbo in zip(found.contenders, elbos.values(), strict=True):
        bound = bound_at(*pair, elbo, X, 20, log_marginal=truth, seed=3)
        assert contender.bound == bound and bound.gap.value > 0
        signal = gradient_signal(*pair, elbo, X, num_draws=20, seed=3)
        assert contender.groups["guide"].snr == signal["guide"].snr
        assert contender.cost.seconds > 0
    assert found.contenders[0].bound.gap.value > found.contenders[1].bound.gap.value


def test_gaps_are_to_the_exact_log_marginal_or_to_a_bound_that_is_called_so(pair):
    model = VAE((6,), latent_dim=2, hidden=(4,)).double()
    guide = MeanFieldGuide(model, hidden=(4,))
    x = (X > 0).double()
    found = lab.compare_at((model, guide), [Trace_ELBO()], x, num_draws=5, num_particles=50)
    assert found.truth == "a lower bound, importance-weighted with 50 samples"
    assert "a lower bound, importance-weighted with 50 samples" in found.table().remarks[0]
    given = lab.compare_at((model, guide), [Trace_ELBO()], x, num_draws=5, log_p=-1.0)
    bound = given.contenders[0].bound
    assert bound.gap.value == pytest.approx(-1.0 - bound.value.value) and given.truth == "as given"


def test_biases_are_to_a_reference(pair):
    elbos = {"stl": TraceSTL_ELBO(), "iwae": TraceIWAE_ELBO(5)}
    found = lab.compare_at(pair, elbos, X, num_draws=60, reference=Trace_ELBO(), groups=["guide"])
    stl, iwae = (c.groups["guide"].squared_bias for c in found.contenders)
    assert abs(stl.value) < 5 * stl.standard_error  # The same gradient in the mean.
    assert iwae.value > 5 * iwae.standard_error  # That of another bound.


def test_what_is_no_bound_has_none(pair):
    class NoBound(TraceIWAE_ELBO):
        is_bound = False

    found = lab.compare_at(pair, {"none": NoBound(4)}, X, num_draws=5)
    assert found.contenders[0].bound is None
    assert found.table().rows[0][2:4] == ["–", "–"]


def test_files(pair, tmp_path):
    elbos = {"DReG": TraceDReG_ELBO(4), "IWAE": TraceIWAE_ELBO(4)}
    found = lab.compare_at({"a": pair, "b": pair}, elbos, X, num_draws=5)
    found.write(tmp_path)
    rows = list(csv.DictReader((tmp_path / "point.csv").read_text().splitlines()))
    assert len(rows) == sum(len(c.groups) for c in found.contenders)
    assert {(row["pair"], row["estimator"]) for row in rows} == {
        (p, e) for p in "ab" for e in elbos
    }
    contender = found.contenders[1]
    row = next(r for r in rows if r["estimator"] == "IWAE" and r["parameters"] == "guide")
    assert float(row["snr"]) == pytest.approx(contender.groups["guide"].snr.value, rel=1e-8)
    assert float(row["gap"]) == pytest.approx(contender.bound.gap.value, rel=1e-8)
    assert float(row["bound_error"]) == pytest.approx(
        contender.bound.value.standard_error, rel=0.01
    )
    assert len(json.loads((tmp_path / "point.json").read_text())["contenders"]) == 4
    markdown = (tmp_path / "point.md").read_text()
    assert markdown.startswith("| pair | estimator | parameters | bound | gap |")
    assert r"\begin{tabular}" in (tmp_path / "point.tex").read_text()
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png;base64") == 2 and "How tight the bounds are" in page
    assert {path.name for path in tmp_path.glob("figures/*")} == {"gaps.png", "gradients.png"}


def test_the_figures_show_what_the_table_says(pair):
    class NoBound(TraceIWAE_ELBO):
        is_bound = False

    elbos = {"IWAE": TraceIWAE_ELBO(4), "none": NoBound(4)}
    found = lab.compare_at(pair, elbos, X, num_draws=20)
    axes = point_page.distances(found).axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    gap = found.contenders[0].bound.gap
    assert [line.get_xdata()[0] for line in dots] == [gap.value]
    (bar,) = axes.collections
    (start, end), *_ = bar.get_segments()[0].T
    assert (end - start) / 4 == pytest.approx(gap.standard_error)
    snr, dsnr = point_page.signals(found).axes
    for axes, name in ((snr, "snr"), (dsnr, "dsnr")):
        drawn = sorted(line.get_xdata()[0] for line in axes.lines)
        signals = [signal for one in found.contenders for signal in one.groups.values()]
        assert drawn == sorted(getattr(signal, name).value for signal in signals)
    only = lab.compare_at(pair, {"none": NoBound(4)}, X, num_draws=5)
    assert point_page.distances(only) is None


def test_nothing_to_compare_and_estimators_that_do_not_fit(pair):
    with pytest.raises(ValueError, match="there is nothing to compare"):
        lab.compare_at(pair, [], X)
    with pytest.raises(ValueError, match="estimator is 3; accepted"):
        lab.compare_at(pair, {"three": 3}, X)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "one"
    torch.set_default_dtype(torch.float32)
    words = ["train", "--data", "digits", "--num_steps", "20", "--model.latent_dim", "2"]
    assert main([*words, "--report", "false", "--out", str(path)]) == 0
    return path


def test_the_command_line(run, tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    elbos = ["Trace_ELBO", "TraceIWAE_ELBO(num_particles=5)"]
    words = ["compare", "--at", str(run), "--estimator", *elbos, "--num_draws", "10",
             "--num_data", "12", "--num_particles", "20"]  # fmt: skip
    assert main([*words, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "TraceIWAE_ELBO(num_particles=5)  guide.heads.z" in printed
    assert "over 10 draws" in printed and "importance-weighted with 20 samples" in printed
    assert (tmp_path / "point.csv").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--estimator", "Trace_ELBO", "--guide", "IAFGuide"], "option --guide is not for compare"),
        ([], "compare --at needs --estimator"),
        (["--estimator", "Trace_ELBO", "--split", "tests"], "split"),
        (["--estimator", "Trace_ELBO", "--num_draws", "1"], "num_draws is 1"),
        (["--estimator", "Trace_ELBO", "--num_data", "0"], "num_data is 0"),
    ],
)
def test_bad_words(run, words, message, tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    assert main(["compare", "--at", str(run), *words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
