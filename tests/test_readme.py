"""The README's Python runs, block after block, as one program."""

import re
from pathlib import Path

import pytest
import torch
import zoo

from ppl_vae import evaluate
from ppl_vae.arguments import COMMANDS
from ppl_vae.catalogue import KINDS, catalogue
from ppl_vae.guides import cards
from ppl_vae.guides.cards import CARDS

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_every_python_block_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    namespace: dict = {}
    assert len(blocks("python")) >= 3
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"README block {number}", "exec"), namespace)
    assert re.search(r"log p\(x\) = -\d+\.\d+ ± \d+\.\d+ nats per image", capsys.readouterr().out)
    # What the text says of plain SVI: nothing of `fit` is left behind.
    assert namespace["result"].num_steps == 400


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "data"])
def test_everything_that_there_is_has_its_line(kind):
    missing = [name for name in catalogue(kind) if f"`{name}`" not in README.read_text()]
    assert not missing


def test_the_table_of_estimators_is_about_all_of_them():
    rows = re.findall(r"^\| `(\w+_ELBO)` \|(.*)\|$", README.read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == set(catalogue("estimators"))
    assert all(len(re.split(r"(?<!\\)\|", rest)) == 5 for _, rest in rows)


def test_the_table_of_guides_is_the_one_of_list():
    rows = re.findall(r"^\| `(\w+Guide)` \| (.*) \|$", README.read_text(), re.MULTILINE)
    found = {name: re.split(r" (?<!\\)\| ", rest) for name, rest in rows}
    expected = {n: [text.replace("|", "\\|") for _, text in card] for n, card in CARDS.items()}
    assert found == expected and set(CARDS) == set(catalogue("guides"))


def test_the_estimators_that_a_guide_is_said_to_fit_are_those():
    for name, card in CARDS.items():
        if name not in zoo.GUIDES or name == "GaussianMixtureGuide":
            continue
        taken = {e for e in zoo.ESTIMATORS if zoo.refusal("VAE", e, name) is None}
        expected = {
            cards.ALL: set(zoo.ESTIMATORS),
            cards.AT_OWN_DRAWS: set(zoo.ESTIMATORS) - zoo.AT_GIVEN_VALUES,
            cards.POINT: {"Trace_ELBO"},
            "the family's": set(zoo.ESTIMATORS),  # A normal, in the zoo.
        }[card.estimators]
        assert taken == expected, name


def test_every_evaluation_has_its_line():
    names = [name for name in evaluate.__all__ if name[0].islower()]
    missing = [name for name in names if f"`{name}`" not in README.read_text()]
    assert not missing and len(names) > 20


def test_every_command_is_one_that_there_is():
    named = re.findall(r"^ppl-vae (\w+)", "\n".join(blocks("sh")), re.MULTILINE)
    assert set(named) == set(COMMANDS)
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w[\w-]*)", "\n".join(blocks("sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
