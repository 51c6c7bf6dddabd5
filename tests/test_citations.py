"""`ppl-vae cite`: every choice has its papers, and they are those that the docstrings name."""

import inspect
import re
import tomllib
import unicodedata
from pathlib import Path

import pytest
import torch
import yaml

import ppl_vae
from ppl_vae import citations
from ppl_vae.catalogue import KINDS, catalogue
from ppl_vae.citations import CITATIONS, cite
from ppl_vae.cli import main
from ppl_vae.guides.cards import CARDS

ROOT = Path(__file__).parent.parent
ENTRIES = citations._entries()
PACKAGES = (ppl_vae.models, ppl_vae.guides, ppl_vae.families, ppl_vae.estimators, ppl_vae.schedules)


def named(text):
    """(surname, year) of every paper in a text such as `Kingma and Welling (2014)`."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = text.replace("ø", "oe").replace("Ø", "Oe")
    pattern = r"((?:van den )?[A-Z][\w-]+)(?:[^()\d;.]*?| et\s+al\. ?)\(?(\d{4})\)?"
    return {(name.split()[-1], year) for name, year in re.findall(pattern, text)}


def of_entry(key):
    """Surnames of its authors in plain letters, and its year."""
    block = ENTRIES[key]
    authors = re.search(r"author = \{(.*)\},?\n", block)[1]
    plain = re.sub(r"[{}]|\\['`\"]", "", authors.replace(r"{\o}", "oe"))
    surnames = [author.split(",")[0].split()[-1] for author in plain.split(" and ")]
    return surnames, re.search(r"year = \{(\d+)\}", block)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_there_is_has_its_entry(kind):
    names = [name for name in catalogue(kind) if name != "<path>"]
    assert names and not [name for name in names if name not in CITATIONS]


def test_every_key_is_there_and_every_entry_is_used():
    used = {key for keys in (*CITATIONS.values(), *citations._ALWAYS.values()) for key in keys}
    assert used | {"higgins2017beta"} == set(ENTRIES)


@pytest.mark.parametrize("key", ENTRIES)
def test_an_entry_is_whole_and_called_after_its_first_author_and_year(key):
    block = ENTRIES[key]
    surnames, year = of_entry(key)
    assert re.search(r"title = \{.+\},\n", block) and block.count("{") == block.count("}")
    assert re.search(r"  (booktitle|journal|note|howpublished) = \{.+\},\n", block)
    plain = unicodedata.normalize("NFKD", surnames[0]).encode("ascii", "ignore").decode().lower()
    family = {"berg": "vandenberg", "soenderby": "sonderby", "loaiza-ganem": "loaizaganem"}
    assert key.startswith(family.get(plain, plain) + year), (key, surnames, year)


def papers_of(name):
    member = next(getattr(p, name) for p in PACKAGES if hasattr(p, name))
    found = re.search(r"References:\n(.*?)(\n\n|\Z)", inspect.getdoc(member), re.DOTALL)
    return named(found[1]) if found else set()


@pytest.mark.parametrize(
    "name", sorted(n for n in CITATIONS if any(hasattr(p, n) for p in PACKAGES))
)
def test_papers_of_a_docstring_are_cited(name):
    cited = [of_entry(key) for key in CITATIONS[name]]
    missing = {
        (surname, year)
        for surname, year in papers_of(name)
        if not any(surname in surnames and year == its for surnames, its in cited)
    }
    # Both structured guides name both papers, each saying whose is which.
    if name in ("TopDownGuide", "BottomUpGuide"):
        assert len(missing) == 1
    else:
        assert not missing


@pytest.mark.parametrize("name", sorted(CARDS))
def test_the_paper_of_a_guide_in_the_table_is_cited(name):
    papers = named(CARDS[name].paper)
    cited = [of_entry(key) for key in CITATIONS[name]]
    assert bool(papers) == bool(cited) or name == "DeltaGuide"
    for surname, year in papers:
        assert any(surname in surnames and year == its for surnames, its in cited), (surname, year)


def test_a_run_cites_what_it_used_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    words = ["--num_steps", "2", "--report", "false", "--out", "a", "--tensorboard", "false",
             "--model", "VAE(latent_dim=2, hidden=[8])", "--guide", "IAFGuide(hidden=[8])",
             "--estimator", "TraceDReG_ELBO(num_particles=2)", "--schedule.value", "4"]  # fmt: skip
    assert main(["train", *words]) == 0
    capsys.readouterr()
    assert main(["cite", "a"]) == 0
    printed = capsys.readouterr().out
    keys = re.findall(r"^@\w+\{(\w+),", printed, re.MULTILINE)
    assert set(keys) == {
        "ppl_vae", "bingham2019pyro", "paszke2019pytorch", "kingma2014auto", "kingma2016improved",
        "tucker2019doubly", "bauer2021generalized", "kingma2015adam", "higgins2017beta",
        "pedregosa2011scikit", "alpaydin1998optical",
    }  # fmt: skip
    assert len(keys) == len(set(keys))
    assert "% guide IAFGuide: kingma2016improved" in printed


def test_a_class_of_the_users_is_named_and_not_imported(tmp_path):
    config = {"guide": {"class_path": "not_there.IAFGuide"}, "data": "mine.npz"}
    printed = cite(config)
    assert "% guide IAFGuide: not of ppl_vae" in printed and "kingma2016" not in printed


def test_cite_without_a_run_says_so(capsys, tmp_path):
    assert main(["cite", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_the_citation_file_is_that_of_the_package():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cff["version"], cff["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= set(cff)
