"""Grids: what is run, what is not run again, what fails, and the statistics of what comes out."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import ppl_vae
from ppl_vae import laboratory as lab
from ppl_vae.estimators import Trace_ELBO, TraceIWAE_ELBO
from ppl_vae.evaluate import Estimate, posterior_means
from ppl_vae.guides import IAFGuide, MeanFieldGuide
from ppl_vae.laboratory import cells as cells_file
from ppl_vae.laboratory.figures import frontier
from ppl_vae.models import VAE

BASE = {
    "data": "digits",
    "model": partial(VAE, latent_dim=2, hidden=(8,)),
    "guide": partial(MeanFieldGuide, hidden=(8,)),
    "num_steps": 30,
    "eval_every": 10,
    "compile": False,
}
QUICK = {"num_particles": 10, "num_data": 40, "progress": False}


@pytest.fixture(autouse=True)
def single():
    torch.set_default_dtype(torch.float32)


# --------------------------------------------------------------------------------------- the grid


def test_a_grid_has_every_cell_once():
    axes = {"estimator": [Trace_ELBO(), TraceIWAE_ELBO(5)], "seed": range(3),
            "guide.hidden": [[8], [16]]}  # fmt: skip
    cells = lab.expand(axes, BASE)
    assert len(cells) == len({cell.name for cell in cells}) == 12
    assert cells[-1].labels == {"estimator": "TraceIWAE_ELBO(num_particles=5)", "seed": "2",
                                "guide.hidden": "[16]"}  # fmt: skip
    assert cells[-1].options["guide"]["init_args"] == {"hidden": [16]}
    assert cells[0].options["guide"]["init_args"] == {"hidden": [8]}
    assert cells[0].options["seed"] == 0 and cells[-1].options["num_steps"] == 30
    assert lab.expand(axes, BASE)[3].name == cells[3].name
    assert lab.expand(axes, {**BASE, "num_steps": 31})[3].name != cells[3].name


@pytest.mark.parametrize(
    "axes, message",
    [
        ({}, "axes is empty"),
        ({"seed": []}, "the axis seed has no values"),
        ({"seed": 3}, "the axis seed is 3; accepted is a list"),
        ({"seed": "012"}, "the axis seed is '012'"),
        ({"seed": [1, 2, 1]}, "the axis seed has 1 twice"),
        ({"seed": {"a": 1, "b": 1}}, "the axis seed has b twice"),
        ({"seed": range(200), "num_steps": range(1, 100)}, "the grid has 19800 cells"),
        ({"schedule.num_steps": [1]}, "sets an argument of schedule, which the base does not give"),
        ({"sead": [1]}, "there is no option sead; accepted are .*seed"),
        ({"out": ["a"]}, "there is no option out"),
    ],
)
def test_what_is_no_grid(axes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ppl_vae.compare(axes, BASE, out=tmp_path)


# ------------------------------------------------------------------------------------- statistics


def test_means_and_paired_differences_are_the_textbook_ones():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(1, 1, 7), rng.normal(0, 1, 7)
    found = lab.paired(dict(enumerate(ours)), dict(enumerate(theirs)))
    test = stats.ttest_rel(ours, theirs)
    assert found.p_value == pytest.approx(test.pvalue, rel=1e-12) and found.num == 7
    assert found.difference.value == pytest.approx((ours - theirs).mean())
    assert found.difference.standard_error == pytest.approx(stats.sem(ours - theirs))
    mean = lab.mean_of([*ours, math.nan])
    assert (mean.value, mean.standard_error) == pytest.approx((ours.mean(), stats.sem(ours)))
    # Only what both have.
    rest = lab.paired({0: 1.0, 1: 3.0, 2: math.nan}, {1: 1.0, 2: 5.0, 3: 0.0})
    assert rest.num == 1 and rest.difference.value == 2 and math.isnan(rest.p_value)
    assert lab.paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p_value == 1
    assert math.isnan(lab.mean_of([]).value)


def test_holm_is_the_definition():
    p = [0.01, 0.04, math.nan, 0.03, 0.005]
    raised = lab.holm(p)
    kept = [value for value in p if not math.isnan(value)]
    for value, found in zip(p, raised, strict=True):
        if math.isnan(value):
            assert math.isnan(found)
            continue
        # Over all that are no larger: their number among the m, counted from above.
        expected = max(
            min(1.0, sum(other >= smaller for other in kept) * smaller)
            for smaller in kept
            if smaller <= value
        )
        assert found == pytest.approx(expected)


# -------------------------------------------------------------------------------------- a grid run


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("grid")
    torch.set_default_dtype(torch.float32)
    axes = {"guide": [partial(MeanFieldGuide, hidden=(8,)), partial(IAFGuide, hidden=(8,))],
            "seed": [0, 1, 2]}  # fmt: skip
    return out, lab.compare(axes, BASE, out=out, **QUICK), axes


def test_a_cell_is_the_training_of_its_options(compared, tmp_path):
    _, found, _ = compared
    path = ppl_vae.training.train(**{**BASE, "seed": 1}, out=str(tmp_path / "run"), report=False)
    alone = ppl_vae.load_run(path)
    record = found.records[1]
    assert record.labels == {"guide": "MeanFieldGuide(hidden=[8])", "seed": "1"}
    valid = [line for line in alone.metrics if line["split"] == "valid"]
    assert [v[0] for v in record.validations] == [10, 20, 30]
    assert [v[2] for v in record.validations] == [line["elbo"] for line in valid]


def test_rows_are_means_over_seeds_and_differences_seed_by_seed(compared):
    _, found, _ = compared
    first, second = found.rows()
    assert (first.num, second.num) == (3, 3) and not first.paired and not first.failed
    values = [
        [r.results["log_marginal"]["value"] for r in found.records[i : i + 3]] for i in (0, 3)
    ]
    assert first.metrics["log_marginal"].value == pytest.approx(np.mean(values[0]))
    assert second.metrics["log_marginal"].standard_error == pytest.approx(stats.sem(values[1]))
    test = stats.ttest_rel(values[1], values[0])
    assert second.paired["log_marginal"].p_value == pytest.approx(test.pvalue)
    units = [r.results["active_units"]["z"]["active"] for r in found.records[:3]]
    assert first.metrics["active_units.z"].value == pytest.approx(np.mean(units))


def test_equal_time_is_the_fastest_trainings(compared):
    _, found, _ = compared
    limit = min(r.seconds for r in found.records)
    assert found.equal_time == limit > 0
    for record in found.records:
        had = [elbo for _, seconds, elbo in record.validations if seconds <= limit]
        value = record.elbo_after(limit)
        assert value == had[-1] if had else math.isnan(value)


def test_files_say_the_same_as_the_table(compared):
    out, found, _ = compared
    lines = list(csv.DictReader((out / "cells.csv").read_text().splitlines()))
    assert [line["seed"] for line in lines] == ["0", "1", "2"] * 2
    assert all(line["status"] == "done" for line in lines)
    for line, record in zip(lines, found.records, strict=True):
        assert float(line["log_marginal"]) == pytest.approx(record.metric("log_marginal"), rel=1e-8)
    data = json.loads((out / "comparison.json").read_text())
    assert len(data["cells"]) == 6 and data["baseline"]["guide"] == "MeanFieldGuide(hidden=[8])"
    table = lab.table_of(found)
    markdown = (out / "table.md").read_text().splitlines()
    assert [c.strip() for c in markdown[2].strip("|").split("|")] == table.rows[0]
    assert len(table.headings) == len(table.rows[0])
    # The digits are grey.
    assert any("improper" in remark for remark in table.remarks)
    assert "improper" in (out / "index.html").read_text()
    chosen = lab.table_of(found, ["elbo", "kl.z", "kl.nowhere"])
    assert chosen.headings == ["guide", "n", "ELBO", "Δ", "p", "KL z"]
    assert [row[-1] for row in chosen.rows] == [
        row[table.headings.index("KL z")] for row in table.rows
    ]
    latex = (out / "table.tex").read_text()
    assert latex.count(r"\\") == 3 and r"MeanFieldGuide(hidden=[8])" in latex
    assert r"$-$" in latex and "active z" in latex
    page = (out / "index.html").read_text()
    assert page.count("<tr>") == 3 and "data:image/png" in page
    for name in ("dots", "pareto", "curves"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5000


def test_what_is_done_is_not_run_again(compared, monkeypatch):
    out, found, axes = compared
    monkeypatch.setattr(cells_file, "train", lambda **options: pytest.fail("trained again"))
    again = lab.compare(axes, BASE, out=out, **QUICK)
    assert lab.table_of(again) == lab.table_of(found)


def test_another_evaluation_does_not_train_again(compared, tmp_path, monkeypatch):
    out, found, axes = compared
    shutil.copytree(out, tmp_path / "copy")
    again = lab.compare(axes, BASE, out=tmp_path / "copy", **{**QUICK, "num_particles": 11})
    assert again.records[0].results["log_marginal"]["num_particles"] == 11
    assert again.records[0].seconds == found.records[0].seconds


def test_another_baseline(compared):
    out, _, axes = compared
    found = lab.compare(axes, BASE, out=out, baseline={"guide": "IAFGuide(hidden=[8])"}, **QUICK)
    assert found.rows()[0].paired and not found.rows()[1].paired
    with pytest.raises(ValueError, match="baseline is .*'x'.*, which is no cell of the grid"):
        lab.compare(axes, BASE, out=out, baseline={"guide": "x"}, **QUICK)


def test_several_processes_come_to_the_same(compared, tmp_path):
    _, found, axes = compared
    again = lab.compare(axes, BASE, out=tmp_path, num_workers=2, **QUICK)
    for one, other in zip(again.records, found.records, strict=True):
        assert one.labels == other.labels
        assert one.metric("log_marginal") == pytest.approx(other.metric("log_marginal"), rel=1e-4)


def test_arguments_are_set_in_each_cells_own_object():
    axes = {"guide": [MeanFieldGuide, IAFGuide], "guide.hidden": [[4], [6]]}
    cells = lab.expand(axes, BASE)
    found = [cell.options["guide"]["init_args"]["hidden"] for cell in cells]
    assert found == [[4], [6], [4], [6]]


def test_an_axis_may_set_several_options(tmp_path):
    wide = {"model": partial(VAE, latent_dim=3, hidden=(8,)), "guide.hidden": [4]}
    guide = {"guide": [partial(MeanFieldGuide, hidden=(8,))]}
    axes = {"size": {"narrow": {}, "wide": wide}, **guide, "seed": [0, 1]}
    found = lab.compare(axes, BASE, out=tmp_path, baseline={"size": "narrow"}, **QUICK)
    assert [row.labels["size"] for row in found.rows()] == ["narrow", "wide"]
    models = [r.options["model"]["init_args"]["latent_dim"] for r in found.records]
    assert models == [2, 2, 3, 3] and all(r.is_done for r in found.records)
    hidden = [r.options["guide"]["init_args"]["hidden"] for r in found.records]
    assert hidden == [[8], [8], [4], [4]]


@pytest.mark.parametrize("value", [{"modle": VAE}, VAE, "wide"])
def test_an_axis_that_sets_what_is_no_option(tmp_path, value):
    with pytest.raises(ValueError, match="the axis size is no option, and its value wide is"):
        lab.compare({"size": {"narrow": {}, "wide": value}}, BASE, out=tmp_path)


def squared_code(run, splits):
    codes = posterior_means(run.guide, run.like(splits.test))["z"]
    return {"squared code": codes.square().mean().item(), "size": Estimate(len(codes), 0.0)}


def test_measures_of_ones_own_are_compared_like_the_others(tmp_path):
    axes, options = {"seed": [0, 1]}, {**QUICK, "out": tmp_path}
    plain = lab.compare(axes, BASE, **options)
    found = lab.compare(axes, BASE, measures=[squared_code], num_workers=2, **options)
    assert [r.seconds for r in found.records] == [r.seconds for r in plain.records]
    row, text = found.rows()[0], (tmp_path / "table.md").read_text()
    runs = [ppl_vae.load_run(path) for path in sorted(tmp_path.glob("cells/*"))]
    values = [squared_code(run, run.data())["squared code"] for run in runs]
    assert row.metrics["measures.squared code"].value == pytest.approx(np.mean(values))
    assert row.metrics["measures.size"].value == len(runs[0].data().test)
    assert "| squared code |" in text
    again = lab.compare(axes, BASE, measures=[squared_code], **options)
    assert [r.results for r in again.records] == [r.results for r in found.records]


def test_two_measures_of_one_name_are_refused(tmp_path):
    measures = [squared_code, squared_code]
    found = lab.compare({"seed": [0]}, BASE, measures=measures, out=tmp_path, **QUICK)
    assert found.records[0].error == "two measures give squared code; accepted is each name once"


# ------------------------------------------------------------------------------ failures and stops


def test_a_failed_cell_is_shown_and_does_not_stop_the_rest(tmp_path):
    axes = {"estimator": {"one": Trace_ELBO(), "no": TraceIWAE_ELBO(5)}, "batch_size": [32, 10**6]}
    found = lab.compare(axes, BASE, out=tmp_path, **QUICK)
    status = [r.status for r in found.records]
    assert status == ["done", "failed", "done", "failed"]
    assert "batch_size is 1000000; accepted are 1 to" in found.records[1].error
    text = lab.as_text(lab.table_of(found))
    assert "0 (1 failed)" in text and "Failed: one, 1000000: batch_size is 1000000" in text
    assert "failed" in (tmp_path / "cells.csv").read_text()
    traces = [path.read_text() for path in sorted(tmp_path.glob("cells/*/error.txt"))]
    assert len(traces) == 2 and all("batch_size is 1000000" in trace for trace in traces)


def test_what_is_a_bug_is_shown_by_its_type_and_where_it_was(tmp_path, monkeypatch):
    def broken(**options):
        return {}["no such thing"]

    monkeypatch.setattr(cells_file, "train", broken)
    axes = {"estimator": [Trace_ELBO(), TraceIWAE_ELBO(5)]}
    found = lab.compare(axes, BASE, out=tmp_path, **QUICK)
    assert [r.error for r in found.records] == ["KeyError: 'no such thing'"] * 2
    traces = list(tmp_path.glob("cells/*/error.txt"))
    assert len(traces) == 2 and "in broken" in traces[0].read_text()
    monkeypatch.undo()
    again = lab.compare(axes, BASE, out=tmp_path, **QUICK)
    assert all(r.is_done for r in again.records)
    assert not list(tmp_path.glob("cells/*/error.txt"))


PROGRAM = """
import sys
sys.argv = ["ppl-vae", "compare", *{words!r}]
from ppl_vae.cli import main
sys.exit(main())
"""
WORDS = ["--data", "digits", "--model", "VAE(latent_dim=2, hidden=[8])", "--seed", "0", "1",
         "--guide", "MeanFieldGuide(hidden=[8])", "IAFGuide(hidden=[8])", "--num_particles", "10",
         "--num_data", "40", "--compile", "false", "--checkpoint_every", "20"]  # fmt: skip


def test_killed_half_way_and_resumed_the_table_is_the_same(tmp_path, capsys, monkeypatch):
    words = [*WORDS, "--num_steps", "300", "--eval_every", "100"]
    program = PROGRAM.format(words=[*words, "--out", str(tmp_path / "cut")])
    process = subprocess.Popen([sys.executable, "-c", program])
    # Killed within the second cell.
    while len(list((tmp_path / "cut").glob("cells/*/cell.json"))) < 1:
        time.sleep(0.05)
        assert process.poll() is None
    while len(list((tmp_path / "cut").glob("cells/*/metrics.jsonl"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "index.html").exists()
    from ppl_vae.cli import main

    trained = []
    train = cells_file.train
    monkeypatch.setattr(cells_file, "train", lambda **o: (trained.append(o["seed"]), train(**o))[1])
    assert main(["compare", *words, "--out", str(tmp_path / "cut")]) == 0
    assert len(trained) == 3
    assert main(["compare", *words, "--out", str(tmp_path / "whole")]) == 0
    found = []
    for name in ("cut", "whole"):
        rows = list(csv.DictReader((tmp_path / name / "cells.csv").read_text().splitlines()))
        found.append([{k: v for k, v in row.items() if k not in ("seconds", "elbo_at_time")}
                      for row in rows])  # fmt: skip
    assert found[0] == found[1]


def test_workers_end_with_a_killed_parent(tmp_path):
    words = [*WORDS, "--num_steps", "100000", "--num_workers", "2", "--out", str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM.format(words=words)])
    while len(list(tmp_path.glob("cells/*/metrics.jsonl"))) < 2:
        time.sleep(0.05)
        assert process.poll() is None
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(_is_alive(int(pid)) for pid in listed):
        assert time.monotonic() < deadline, "workers outlive the command"
        time.sleep(0.05)
    assert len(listed) >= 2


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ctrl_c_writes_what_there_is(tmp_path, monkeypatch, capsys):
    from ppl_vae.cli import main

    train, calls = cells_file.train, []

    def interrupted(**options):
        calls.append(options)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return train(**options)

    monkeypatch.setattr(cells_file, "train", interrupted)
    words = ["compare", *WORDS, "--num_steps", "20", "--out", str(tmp_path)]
    assert main(words) == 1
    assert "1 of 4 cells are done; the same command goes on" in capsys.readouterr().err
    assert "3 cells are not run yet" in (tmp_path / "table.md").read_text()


# -------------------------------------------------------------------------------- the command line


def test_a_users_own_estimator_enters_by_its_import_path(tmp_path, monkeypatch, capsys):
    from ppl_vae.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_bounds.py").write_text(
        "from ppl_vae.estimators import TraceIWAE_ELBO\n\n\n"
        "class Halved(TraceIWAE_ELBO):\n"
        "    '''Half of the bound: as good as the bound.'''\n\n"
        "    def _loss(self, pairs):\n"
        "        return 0.5 * super()._loss(pairs)\n"
    )
    words = ["--data", "digits", "--model", "VAE(latent_dim=2, hidden=[8])", "--num_steps", "10",
             "--estimator", "Trace_ELBO", "my_bounds.Halved(num_particles=3)", "--seed", "0", "1",
             "--num_particles", "5", "--num_data", "20", "--out", "out"]  # fmt: skip
    assert main(["compare", *words]) == 0
    printed = capsys.readouterr().out
    assert "my_bounds.Halved(num_particles=3)  2  -" in printed
    config = next((tmp_path / "out" / "cells").glob("my_bounds*/config.yaml")).read_text()
    assert "class_path: my_bounds.Halved" in config


@pytest.mark.parametrize(
    "words, message",
    [
        (["--seed", "0"], "there is nothing to compare: no option has several values"),
        (["--seed", "0", "0"], "option --seed has 0 twice"),
        (["--seed", "0", "--seed", "1"], "option --seed is given twice"),
        (["--seed", "0", "1", "--guide"], "option --guide has no value"),
        (["seed", "0"], "'seed' belongs to no option"),
        (["--seed", "0", "x"], "option --seed: 'x' is not accepted; accepted is an integer"),
        (["--sead", "0", "1"], "there is no option --sead; did you mean --seed"),
        (["--seed", "0", "1", "--guide", "IAF"], "IAF"),
        (["--guide", "IAFGuide(", "MeanFieldGuide"], "IAFGuide"),
        (["--guide", "IAFGuide([8])", "MeanFieldGuide"], "a class with its arguments by name"),
        (["--guide", "IAFGuide(hiden=[8])", "MeanFieldGuide"], "hiden"),
        (["--seed", "0", "1", "--resume", "true"], "option --resume is not for compare"),
        (["--seed", "0", "1", "--num_workers", "0"], "num_workers is 0"),
        (["--seed", "0", "1", "--num_workers", "two"], "num_workers"),
        (["--seed", "0", "1", "--split", "all"], "split"),
    ],
)
def test_bad_words_are_said_in_one_sentence(words, message, tmp_path, capsys):
    from ppl_vae.cli import main

    assert main(["compare", *words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_the_frontier_is_what_nobody_beats():
    def row(name, seconds, value):
        metrics = {"seconds": Estimate(seconds, 0.1), "elbo": Estimate(value, 0.1)}
        return lab.Row({"guide": name}, metrics, {}, 1, {})

    rows = [row("a", 1, -5), row("b", 2, -6), row("c", 3, -4), row("d", 3, -4.5), row("e", 9, -4)]
    assert [r.name for r in frontier(rows, "elbo")] == ["a", "c"]
