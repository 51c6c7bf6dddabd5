"""The pages: their own files run, their commands are understood, and the whole of them builds."""

import html
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from ppl_vae.arguments import parse
from ppl_vae.cli import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "results" not in path.parts)
OWN = sorted((DOCS / "extend").glob("*.py"))


def blocks(language):
    for page in PAGES:
        for block in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S):
            yield page.name, block


def commands():
    """Every `ppl-vae` command of the pages, shown or run, as words."""
    for language in ("sh", r"\{code-cell\}"):
        for page, block in blocks(language):
            whole = block.replace("\\\n", " ").replace("-m ppl_vae", "\nppl-vae")
            for line in re.findall(r"^!?ppl-vae (.*)$", whole, re.M):
                words = shlex.split(line, comments=True)
                words = list(itertools.takewhile(lambda word: word not in ("|", ">"), words))
                yield pytest.param(words, id=f"{page}: {' '.join(words[:4])}")


def test_every_block_of_python_is_run_at_build():
    # One that is not a code cell would be believed and never run.
    assert [page for page, _ in blocks("python")] == []
    assert len(list(blocks(r"\{code-cell\}"))) > 60


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_is_understood(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(DOCS / "extend")])
    if "--help" in words:
        with pytest.raises(SystemExit) as stop:
            parse(words)
        assert stop.value.code in (0, None)
        return
    if "--config" in words:  # Of a run that is made beside it.
        words = [w for i, w in enumerate(words) if w != "--config" and words[i - 1] != "--config"]
    assert parse(words)[0] == words[0]


def test_a_command_that_is_not_one_is_found():
    with pytest.raises(ValueError, match="guid"):
        parse(["train", "--guid", "IAFGuide"])


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_a_file_of_ones_own_is_short(path):
    assert len(path.read_text().splitlines()) < 40


@pytest.mark.slow
def test_the_four_files_of_ones_own_run_through_compare(tmp_path, monkeypatch, capsys):
    assert {path.stem.split("_")[1] for path in OWN} == {"model", "guide", "estimator", "data"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    torch.set_default_dtype(torch.float32)
    for path in OWN:
        (tmp_path / path.name).write_text(path.read_text())
    subprocess.run([sys.executable, "waves_data.py"], check=True)
    words = [
        "--data", "waves.npz", "--model", "waves_model.Waves", "--num_steps", "4",
        "--guide", "MeanFieldGuide", "waves_guide.LoudnessFirst", "--seed", "0", "1",
        "--estimator", "Trace_ELBO", "waves_estimator.TraceTruncated_ELBO(num_particles=2)",
        "--num_particles", "5", "--num_data", "20", "--out", "out", "--tensorboard", "false",
    ]  # fmt: skip
    assert main(["compare", *words]) == 0
    printed = capsys.readouterr()
    assert "failed" not in (printed.out + printed.err)
    assert len(list(Path("out/cells").iterdir())) == 8
    # In the page the same words stand, with more steps.
    page = " ".join((DOCS / "tutorials" / "own.md").read_text().replace("\\\n", " ").split())
    assert "--guide MeanFieldGuide waves_guide.LoudnessFirst --seed 0 1" in page


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages, built in a folder of their own; warnings are errors."""
    pytest.importorskip("sphinx")
    out = tmp_path_factory.mktemp("pages")
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(out / "trees")]
    done = subprocess.run(
        [*words, str(DOCS), str(out / "html")], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out / "html"


@pytest.mark.slow
def test_every_link_within_the_site_leads_somewhere(site):
    pages = {path: path.read_text() for path in site.rglob("*.html")}
    anchors = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    missing = []
    for path, text in pages.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            target, _, anchor = unquote(html.unescape(link)).partition("#")
            target = target.partition("?")[0]
            if re.match(r"[a-z]+:|//", target):
                continue
            file = (path.parent / target).resolve() if target else path
            if not file.exists() or (anchor and file in anchors and anchor not in anchors[file]):
                missing.append((path.name, link))
    assert len(pages) > 40 and not missing


@pytest.mark.slow
def test_the_pages_say_nothing_of_the_machine_that_built_them(site):
    words = (str(ROOT), str(Path.home()), "/site-packages/", "Warning:", "&lt;Figure")
    for path in site.rglob("*.html"):
        text = path.read_text()
        for word in words:
            assert word not in text, (path.name, word)


@pytest.mark.slow
def test_every_experiment_has_its_page(site):
    for readme in ROOT.glob("experiments/*/README.md"):
        page = (site / "results" / f"{readme.parent.name}.html").read_text()
        for picture in re.findall(r"!\[.*?\]\((\S+?)\)", readme.read_text()):
            assert f"/{Path(picture).stem}" in page


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_a_browser_shows_every_page_without_a_word(site, show, size):
    page = show(site / "index.html", size)
    wide = []
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        if page.evaluate("document.documentElement.scrollWidth") > size[0]:
            wide.append(path.name)
    assert wide == []
    page.goto((site / "tutorials" / "pair.html").as_uri())
    page.wait_for_function("document.querySelectorAll('mjx-container svg').length > 10")
