"""A run, a config or a page made by a stranger: nothing of theirs is executed or overwritten."""

import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pages import without_scripts
from safetensors.torch import save

import ppl_vae
from ppl_vae import ConfigError, load_run
from ppl_vae.checkpoint import CheckpointError, load_checkpoint
from ppl_vae.cli import main
from ppl_vae.config import instantiate, resolve
from ppl_vae.plain import read_yaml

TRAIN = ["train", "--data", "digits", "--num_steps", "4", "--model.hidden", "[4]", "--guide.hidden",
         "[4]", "--tensorboard", "false", "--compile", "false", "--report", "false", "--progress",
         "false", "--out"]  # fmt: skip
TOUCH = "from pathlib import Path\nPath('executed').touch()\nclass Guide: pass\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        assert main([*TRAIN, str(folder / "run")]) == 0
        assert main(["evaluate", str(folder / "run"), "--num_particles", "30"]) == 0
    torch.set_default_dtype(default)
    return folder


@pytest.fixture(autouse=True)
def place(made, tmp_path, monkeypatch):
    """A folder with the stranger's run and module, and a file of the user's beside it."""
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "stranger_made.py").write_text(TOUCH)
    (tmp_path / "precious").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    torch.set_default_dtype(torch.float32)
    yield tmp_path
    assert not Path("executed").exists(), "a stranger's code was executed"
    assert Path("precious").read_text() == "mine"
    assert "stranger_made" not in sys.modules


ENTRIES = [
    "stranger_made.Guide",
    {"class_path": "stranger_made.Guide"},
    {"class_path": "os.system", "init_args": {"command": "touch executed"}},
    {"class_path": "torch.optim.os.system", "init_args": {"command": "touch executed"}},
    {"class_path": "ppl_vae.cli.os.system", "init_args": {"command": "touch executed"}},
    {"class_path": "ppl_vae.writing.write_text", "init_args": {"path": "executed", "text": ""}},
    {"class_path": "ppl_vae.directory.RunDirectory", "init_args": {"path": "executed"}},
    {"class_path": "ppl_vae.locking.Lock", "init_args": {"folder": "."}},
    {"class_path": "ppl_vae.__main__.sys"},
    {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "executed"]}},
    {"class_path": "builtins.exec", "init_args": {"source": "open('executed', 'w')"}},
    {"class_path": "pathlib.Path"},
    {"class_path": "functools.partial", "init_args": {"func": "os.system"}},
    {"class_path": "ppl_vae.guides.SemiAmortizedGuide", "init_args": {"make": "os.system"}},
    {"class_path": "ppl_vae.guides.SemiAmortizedGuide",
     "init_args": {"make": {"class_path": "os.system"}}},
    {"class_path": "ppl_vae.guides.MeanFieldGuide",
     "init_args": {"encoder": {"class_path": "stranger_made.Guide"}}},
    {"class_path": "ppl_vae.guides.MeanFieldGuide",
     "init_args": {"encoder": {"class_path": "torch.nn.Module"}}},
    {"class_path": "ppl_vae.guides.MeanFieldGuide",
     "init_args": {"hidden": [{"class_path": "stranger_made.Guide"}]}},
    {"class_path": "ppl_vae.guides.MeanFieldGuide", "init_args": {"nothing": "${oc.env:HOME}"}},
    {"class_path": "torch.optim.Adam.__init__.__globals__"},
    {"class_path": "torch.optim.__builtins__.exec"},
    {"class_path": ".stranger_made.Guide"},
    {"class_path": "ppl_vae..stranger_made.Guide"},
    {"class_path": "../stranger_made.Guide"},
    {"class_path": "stranger_made:Guide"},
    {"class_path": ["stranger_made", "Guide"]},
    {"class_path": {"class_path": "stranger_made.Guide"}},
]  # fmt: skip


@pytest.mark.parametrize("part", ["guide", "model"])
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry)[:60])
def test_no_class_of_a_strangers_run_is_made(part, entry, capsys):
    path = Path("run/config.yaml")
    config = yaml.safe_load(path.read_text())
    config[part] = entry
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError):
        load_run("run")
    for words in ("evaluate run", "report run", "sample run", "train --resume --out run",
                  "train --config run/config.yaml --out new"):  # fmt: skip
        assert main(words.split()) == 2
        message = capsys.readouterr().err
        assert message.startswith("ppl-vae: ") and message.count("\n") <= 2, message


@pytest.mark.parametrize("option", ["model", "guide", "estimator", "schedule", "optimizer",
                                    "lr_schedule"])  # fmt: skip
@pytest.mark.parametrize("template", [
    "{o}: stranger_made.Guide",
    "{o}: {{class_path: stranger_made.Guide}}",
    "{o}: '{{class_path: stranger_made.Guide}}'",
    "{o}: \"'stranger_made.Guide'\"",
    "{o}: ' stranger_made.Guide '",
    "{o}: |\n  stranger_made.Guide\n",
    "{o}: [stranger_made.Guide]",
    "{o}.class_path: stranger_made.Guide",
    "{o}.init_args.make: stranger_made.Guide",
    "{o}: {{class_path: VAE, dict_kwargs: {{x: stranger_made.Guide}}}}",
    "x: &a stranger_made.Guide\n{o}: *a",
    "{o}: {{<<: {{class_path: stranger_made.Guide}}}}",
    "{o}: !!python/object:stranger_made.Guide {{}}",
    "{o}: !!python/object/apply:os.system ['touch executed']",
    "{o}: !!python/name:stranger_made.Guide ''",
    "{o}: !!python/module:stranger_made ''",
    "{o}: !!binary c3RyYW5nZXJfbWFkZS5HdWlkZQ==",
    "{o}: !!set {{stranger_made.Guide}}",
    "{o}: {{stranger_made.Guide: 1}}",
    "{o}: ${{oc.env:HOME}}",
    "{o}: {{class_path: VAE, init_args: {{make: {{class_path: os.system}}}}}}",
], ids=lambda text: text[:50])  # fmt: skip
def test_no_class_of_a_strangers_config_is_made(option, template, capsys):
    Path("c.yaml").write_text(template.format(o=option))
    assert main([*TRAIN, "new", "--config", "c.yaml"]) == 2
    assert capsys.readouterr().err.startswith("ppl-vae: ")


def test_what_is_allowed_by_name_is_all_that_is():
    Path("allowed_made.py").write_text("import os\nfrom subprocess import Popen\nclass Guide: pass")
    assert resolve("allowed_made.Guide", ["allowed_made"]).__name__ == "Guide"
    for path in ("allowed_made.Popen", "allowed_made.os", "allowed_made.os.system",
                 "allowed_made_other.Guide"):  # fmt: skip
        with pytest.raises(ConfigError):
            resolve(path, ["allowed_made"])


def test_an_environment_is_not_looked_up(monkeypatch):
    monkeypatch.setenv("SECRET", "found")
    assert instantiate({"a": "${oc.env:SECRET}", "b": "$SECRET"})["a"] == "${oc.env:SECRET}"


@pytest.mark.parametrize("text", ["&a [*a]", "&a {x: *a}", "[" * 5000, "a: " + "[" * 60 + "]" * 60])
def test_yaml_that_never_ends_is_refused(text):
    with pytest.raises(ValueError, match="nested too deep|expected"):
        read_yaml(text)


def test_a_bomb_of_aliases_is_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    with pytest.raises(ValueError, match="holds too much; accepted are 200000 entries"):
        read_yaml("\n".join(lines))
    assert read_yaml("a: &a [1]\nb: *a") == {"a": [1], "b": [1]}


# ------------------------------------------------------------------------- tensors and their tree


def forged(change):
    """A state whose checksums are right, as somebody may write it on purpose."""
    path = Path("run/checkpoint/state.json")
    state = json.loads(path.read_text())
    change(state)
    text = json.dumps(state["tree"], sort_keys=True).encode()
    state["sha256"]["state.json"] = hashlib.sha256(text).hexdigest()
    path.write_text(json.dumps(state))


def huge(state):
    state["tree"]["data"] = {"dict": [["shape", {"list": [10**9, 10**9]}], ["dtype", "float32"],
                                      ["rest", {"list": []}]]}  # fmt: skip


FORGERIES = {
    "no data": lambda state: state["tree"].pop("data"),
    "no model": lambda state: state["tree"].pop("model"),
    "no progress": lambda state: state["tree"].pop("progress"),
    "a number": lambda state: state["tree"].update(data=3),
    "two kinds": lambda state: state["tree"].update(data={"dict": [], "list": []}),
    "no kind": lambda state: state["tree"].update(data={}),
    "missing tensor": lambda state: state["tree"].update(model={"tensor": "nowhere"}),
    "list of keys": lambda state: state["tree"].update(data={"dict": [[[1], 2]]}),
    "huge": huge,
    "tree of a list": lambda state: state.update(tree=[1, 2]),
    "below zero": lambda state: state["tree"].update(
        data={"dict": [["shape", {"list": [-1]}], ["dtype", "float32"], ["rest", {"list": []}]]}),
    "no type": lambda state: state["tree"].update(
        data={"dict": [["shape", {"list": [1, 8, 8]}], ["dtype", "save"], ["rest", {"list": []}]]}),
    "a type that is none": lambda state: state["tree"].update(
        data={"dict": [["shape", {"list": [1, 8, 8]}], ["dtype", 3], ["rest", {"list": []}]]}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_checkpoint_is_refused_in_a_sentence(name, capsys):
    forged(FORGERIES[name])
    with pytest.raises(CheckpointError):
        load_run("run")
    for words in ("evaluate run", "report run", "sample run", "train --resume --out run"):
        # Training asks its own data for their shape.
        about_data = {"no data", "a number", "huge", "below zero", "no type", "a type that is none"}
        if name in about_data and "train" in words:
            continue
        code = main([*words.split(), *(["--num_steps", "6"] if "train" in words else [])])
        message = capsys.readouterr().err
        assert code == 2 and message.count("\n") <= 2, message


def test_what_are_no_tensors_is_refused():
    content = b"\x10" + bytes(7) + b'{"a": 1}        '
    Path("run/checkpoint/model.safetensors").write_bytes(content)
    forged(lambda s: s["sha256"].update({"model.safetensors": hashlib.sha256(content).hexdigest()}))
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load_checkpoint(Path("run/checkpoint"))


def test_names_in_a_checkpoint_lead_nowhere():
    Path("outside.safetensors").write_bytes(save({"a": torch.ones(1)}))
    digest = hashlib.sha256(Path("outside.safetensors").read_bytes()).hexdigest()
    for name in ("../outside.safetensors", "../../outside.safetensors",
                 str(Path("outside.safetensors").absolute())):  # fmt: skip
        forged(lambda state, name=name: state["sha256"].update({name: digest}))
        with pytest.raises(CheckpointError, match="missing"):
            load_checkpoint(Path("run/checkpoint"))


RESULTS = ["[]", "3", '"x"', "{", "[" * 9999, '{"elbo": 3}', '{"elbo": {"value": "x"}}', "{}",
           '{"elbo": {"value": null, "standard_error": 1}}', '{"kl": {"z": 3}}', '{"kl": {}}',
           '{"importance": {}}', '{"importance": 3}', '{"active_units": {"z": 3}}',
           '{"classes": {"y": {}}}', '{"log_marginal": {"value": 1, "standard_error": 2}}',
           '{"elbo": {"value": 1e999, "standard_error": -1}}']  # fmt: skip


@pytest.mark.parametrize("text", RESULTS)
def test_forged_results_are_shown_or_refused_in_a_sentence(text, capsys):
    Path("run/results.json").write_text(text)
    for words in ("report run", "list runs --folder ."):
        code = main(words.split())
        captured = capsys.readouterr()
        assert code in (0, 2)
        assert (code == 2) == captured.err.startswith("ppl-vae: ") and captured.err.count("\n") < 3


def test_forged_metrics_are_passed_over(capsys):
    path = Path("run/metrics.jsonl")
    good = path.read_text()
    for text in ("3", '{"split": "train"}', '{"split": 1, "step": "x", "seconds": []}', "\0",
                 '{"split": "valid", "step": 1, "seconds": 1, "elbo": "x"}',
                 '{"split": "train", "step": null, "seconds": null, "kl": 3}'):  # fmt: skip
        path.write_text(text + "\n" + good)
        code = main(["report", "run"])
        assert code in (0, 2) and capsys.readouterr().err.count("\n") < 2


# ------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize(
    "name",
    ["results.json", "report.html", "metrics.jsonl", "config.yaml", "samples.npz", ".lock",
     "results.json.new", ".results.json.{pid}", ".report.html.{pid}", ".samples.npz.{pid}",
     ".config.yaml.{pid}", "figures/samples.png", "figures/.samples.png.{pid}"],
)  # fmt: skip
def test_a_link_to_a_file_of_the_users_is_not_written_through(name, capsys):
    path = Path("run") / name.format(pid=os.getpid())
    content = path.read_bytes() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if content is not None and name in ("metrics.jsonl", "config.yaml", "results.json"):
        Path("precious").write_bytes(content)
    path.symlink_to(Path("precious").absolute())
    before = Path("precious").read_bytes()
    for words in ("evaluate run --num_particles 5", "sample run", "report run",
                  "train --resume --out run --num_steps 6"):  # fmt: skip
        assert main(words.split()) in (0, 2)
    assert Path("precious").read_bytes() == before
    Path("precious").write_text("mine")


@pytest.mark.parametrize("name", ["figures", "checkpoint", "best", "checkpoint.new", "best.new",
                                  "checkpoint.old", "tensorboard"])  # fmt: skip
def test_a_link_to_a_folder_of_the_users_is_not_written_into(name, capsys):
    Path("home").mkdir()
    Path("home/state.json").write_text("mine")
    path = Path("run") / name
    if name in ("checkpoint", "best"):
        shutil.copytree(path, "home", dirs_exist_ok=True)
    shutil.rmtree(path, ignore_errors=True)
    path.symlink_to(Path("home").absolute())
    before = {p.name: p.read_bytes() for p in Path("home").iterdir()}
    codes = [main(w.split()) for w in ("sample run", "report run",
             "train --resume --out run --num_steps 600 --tensorboard true")]  # fmt: skip
    assert set(codes) <= {0, 2}
    if name in ("figures", "checkpoint", "best", "tensorboard"):
        assert 2 in codes and "leads out of run" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in Path("home").iterdir()} == before


# ------------------------------------------------------------------------------------------- pages

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>'\"&{{7*7}}{%x%}"


def assert_harmless(html):
    html = without_scripts(html)
    assert "<script" not in html and "onerror=alert(1)>" not in html and "49" not in EVIL
    assert "{{7*7}}" in html or EVIL[:7] not in html
    assert re.search(r'http-equiv="Content-Security-Policy" content="default-src \'none\'', html)
    assert not re.search(r"<[^>]*\son\w+=", html)


def test_a_report_shows_markup_as_text(capsys):
    path = Path("run/config.yaml")
    config = yaml.safe_load(path.read_text())
    config |= {EVIL: EVIL, "schedule": EVIL}
    config["estimator"] = {"class_path": f"x.{EVIL}", "init_args": {EVIL: EVIL, "b": [EVIL]}}
    path.write_text(yaml.safe_dump(config))
    results = json.loads(Path("run/results.json").read_text())
    results["kl"] = {EVIL: {"value": 1.0, "standard_error": 0.1, "unit": EVIL}}
    results |= {"split": EVIL, EVIL: EVIL, "active_units": {EVIL: {"active": EVIL, "of": 3}}}
    Path("run/results.json").write_text(json.dumps(results))
    assert main(["report", "run"]) == 0
    html = Path("run/report.html").read_text()
    assert_harmless(html)
    assert "&lt;script&gt;alert(1)" in html


def test_a_comparison_shows_markup_as_text(tmp_path):
    base = {"data": "digits", "num_steps": 2, "compile": False, "tensorboard": False}
    axes = {"seed": {EVIL: 0, "../../x": 1}, "log_every": {f"{EVIL} {'y' * 300}": 1}}
    found = ppl_vae.compare(axes, base, out=tmp_path / "grid", num_particles=5, num_data=20,
                            progress=False)  # fmt: skip
    assert all(record.is_done for record in found.records), found.records[0].error
    assert_harmless((tmp_path / "grid" / "index.html").read_text())
    names = [path.name for path in (tmp_path / "grid" / "cells").iterdir()]
    assert len(names) == 2 and all(re.fullmatch(r"[\w-]+", name) for name in names)


def test_an_error_of_a_cell_is_text(tmp_path):
    base = {"data": EVIL.replace("/", "_"), "num_steps": 2}
    ppl_vae.compare({"seed": [0, 1]}, base, out=tmp_path / "grid", progress=False)
    assert_harmless((tmp_path / "grid" / "index.html").read_text())
