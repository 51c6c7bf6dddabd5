"""The page: self-contained, escaped, well-formed, and true to the numbers given."""

import base64
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from ppl_vae import page, plots

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = "<script>alert('x')</script> & \"co\""


class Balanced(HTMLParser):
    """Fails on a tag that is not closed in order; collects tags and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def png():
    return plots.png(Figure(figsize=(2, 1)))


@pytest.fixture
def content(png):
    return {
        "title": "VAE on digits",
        "verdict": "It settled.",
        "summary": {"ELBO, test": "-104.2 ± 0.3 nats"},
        "pair": {"model": "VAE(latent_dim=20)", "guide": "MeanFieldGuide()"},
        "config": "data: digits\nmodel:\n  latent_dim: 20\n",
        "results": {"test": {"elbo": {"value": -104.2345, "standard_error": 0.3123}}},
        "figures": [page.Picture("Samples", "Means of p(x | z).", png)],
        "notes": ["log p(x) of grey data is improper."],
    }


def cells(results):
    html = page.render(title="", summary={}, config="", figures=[], results=results)
    rows = re.findall(r"<tr[ >].*?</tr>", html.split("<tbody>")[1], re.S)
    strip = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]
    return [[re.sub(r"<[^>]*>", "", cell).strip() for cell in row] for row in strip]


def test_a_page_has_all_it_was_given_and_balanced_tags(content):
    parsed = Balanced(page.render(**content))
    text = "".join(parsed.text)
    for wanted in (
        "VAE on digits", "It settled.", "ELBO, test", "−104.2 ± 0.3 nats", "MeanFieldGuide()",
        "  latent_dim: 20\n", "−104.23", "Samples", "Means of p(x | z).", "grey data is improper.",
    ):  # fmt: skip
        assert wanted in text
    assert len(parsed.all("h1")) == 1
    (details,) = parsed.all("details")
    assert "open" not in details


def test_figures_are_embedded_with_text_and_size(content, png):
    (image,) = Balanced(page.render(**content)).all("img")
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == png
    assert image["alt"] == "Samples"
    assert (image["width"], image["height"]) == ("216", "108")  # 300 x 150 pixels by 0.72


def test_nothing_is_requested(content):
    html = page.render(**content)
    parsed = Balanced(html)
    assert not re.search(r"https?://|url\(|@import", html)
    assert not parsed.all("script") and not parsed.all("link") and not parsed.all("iframe")
    assert all(attrs["src"].startswith("data:") for _, attrs in parsed.tags if "src" in attrs)
    policy = [attrs for attrs in parsed.all("meta") if "http-equiv" in attrs]
    assert policy[0]["content"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    "where", ["title", "verdict", "summary", "pair", "config", "results", "figures", "notes"]
)
def test_markup_is_text_wherever_it_comes_in(content, png, where):
    clean = Balanced(page.render(**content))
    content[where] = {
        "summary": {EVIL: EVIL},
        "pair": {EVIL: EVIL},
        "results": {EVIL: {EVIL: {"value": 1.0, "unit": EVIL}, "b": EVIL}},
        "figures": [page.Picture(EVIL, EVIL, png)],
        "notes": [EVIL],
    }.get(where, EVIL)
    html = page.render(**content)
    parsed = Balanced(html)
    assert "<script" not in html
    assert EVIL in "".join(parsed.text)
    assert {tag for tag, _ in parsed.tags} <= {tag for tag, _ in clean.tags} | {"span"}
    if where == "figures":
        assert parsed.all("img")[0]["alt"] == EVIL


def test_an_empty_run_is_a_page_without_empty_sections():
    html = page.render(title="t", summary={}, config="", results={}, figures=[])
    parsed = Balanced(html)
    assert not parsed.all("h2") and not parsed.all("dl") and not parsed.all("table")


def test_values_are_rounded_by_their_standard_error():
    results = {
        "a": {"value": -104.2345, "standard_error": 0.3123},
        "b": {"value": 12345.6, "standard_error": 120.0},
        "c": {"value": 0.5, "standard_error": 0.0},
        "d": {"value": float("nan"), "standard_error": float("nan")},
        "e": {"value": 1.0, "standard_error": 2e-4, "unit": "nats", "num_particles": 5000},
        "f": {"value": -2.5},
    }
    assert cells(results) == [
        ["a", "−104.23", "± 0.31", ""],
        ["b", "12346", "± 120", ""],
        ["c", "0.5", "± 0", ""],
        ["d", "nan", "± nan", ""],
        ["e", "1.00000", "± 0.00020", "nats, num particles 5000"],
        ["f", "−2.5", "", ""],
    ]


def test_results_nest_and_may_hold_anything_json_holds():
    results = {
        "test": {"kl": {"z_1": -0.25, "z2": None}},
        "steps": 20000,
        "flag": True,
        "short": [1, -2.5],
        "long": list(range(40)),
        "value": {"value": {"standard_error": 1}},
    }
    assert cells(results) == [
        ["test"],
        ["kl"],
        ["z 1", "−0.25", "", ""],
        ["z2", "–", "", ""],
        ["steps", "20000", "", ""],
        ["flag", "True", "", ""],
        ["short", "1, −2.5", "", ""],
        ["long", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … (40 values)"],
        ["value"],
        ["value"],
        ["standard error", "1", "", ""],
    ]


def test_both_colour_schemes_phones_and_print_are_served(content):
    html = page.render(**content)
    assert "prefers-color-scheme: dark" in html and "@media print" in html
    names = {attrs.get("name"): attrs.get("content") for attrs in Balanced(html).all("meta")}
    assert names["viewport"] == "width=device-width, initial-scale=1"
    assert re.search(r"\.card \{ background: #fff", html)


def test_write_is_whole_and_the_same_each_time(content, tmp_path):
    path = page.write(tmp_path / "run" / "report.html", **content)
    first = path.read_bytes()
    assert first.decode("utf-8") == page.render(**content)
    assert page.write(path, **content).read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_failing_write_keeps_the_old_page(content, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(TypeError):
        page.write(path, **content, unknown=1)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_picture_must_be_a_png():
    with pytest.raises(ValueError, match="'Samples' is not a PNG"):
        page.Picture("Samples", "", b"GIF89a")
