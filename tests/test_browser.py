"""What runs in a page, in a headless Chromium: decoders, curves, and no word in the console."""

import math
import re
from pathlib import Path

import pytest
import torch
from test_interactive import CASES, case

from ppl_vae import evaluate, load_run
from ppl_vae.cli import main
from ppl_vae.interactive.arrays import Arrays
from ppl_vae.interactive.program import program_of

PHONE = (390, 844)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One level and two, and one of convolutions, each with its report."""
    folder = tmp_path_factory.mktemp("runs")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    short = ["--data", "digits", "--num_steps", "60", "--log_every", "5", "--eval_every", "20",
             "--tensorboard", "false", "--compile", "false", "--progress", "false"]  # fmt: skip
    two = ["--model", "HierarchicalVAE", "--model.latent_dims", "[6,3]", "--guide", "TopDownGuide",
           "--schedule", "Linear", "--schedule.num_steps", "30"]  # fmt: skip
    conv = ["--model.decoder", "ConvDecoder", "--model.latent_dim", "2", "--model.decoder.channels",
            "[8,4]"]  # fmt: skip
    for name, options in {"one": [], "two": two, "conv": conv}.items():
        assert main(["train", *short, *options, "--out", str(folder / name)]) == 0
    torch.set_default_dtype(default)
    return folder


def explorer(page):
    return page.evaluate_handle("document.getElementById('explorer')")


def box_of(element):
    element.scroll_into_view_if_needed()
    return element.bounding_box()


def chosen(page, name):
    return page.locator(f"#explorer [data-part={name}]")


@pytest.mark.parametrize("name", CASES)
def test_a_page_computes_what_a_function_does(browser, name, tmp_path):
    function, inputs = case(name)
    program = program_of(function, inputs[0])
    arrays = Arrays()
    given = {"steps": program.steps, "shape": program.shape,
             "constants": [arrays.add(constant) for constant in program.constants]}  # fmt: skip
    script = Path(evaluate.__file__).parents[1] / "templates" / "decoder.js"
    page = browser.new_page()
    page.add_script_tag(path=script)
    found = page.evaluate(
        """([program, arrays, inputs]) => {
             const constants = readArrays(arrays.list, arrays.base64);
             return inputs.map(z => {
               const {shape, data} = runProgram(program, constants, z);
               return {shape, data: Array.from(data, v => Number.isFinite(v) ? v : `${v}`)};
             });
           }""",
        [given, arrays.as_json(), [z.flatten().tolist() for z in inputs]],
    )
    page.close()
    with torch.no_grad():
        for z, one in zip(inputs, found, strict=True):
            expected = function(z)
            values = torch.tensor([float(v.replace("Infinity", "inf")) if isinstance(v, str) else v
                                   for v in one["data"]], dtype=expected.dtype)  # fmt: skip
            assert one["shape"] == list(expected.shape)
            torch.testing.assert_close(values.reshape(expected.shape), expected, rtol=2e-5,
                                       atol=2e-6, equal_nan=True)  # fmt: skip


@pytest.mark.parametrize("name", ["one", "two", "conv"])
def test_the_explorer_decodes_as_the_model_does(runs, show, name):
    page, run = show(runs / name / "report.html"), load_run(runs / name)
    assert explorer(page).evaluate("root => root.worst") < 1e-3
    sites = page.evaluate("JSON.parse(document.getElementById('explorer-data').textContent).sites")
    assert len(sites) == (2 if name == "two" else 1)
    x = run.example[:1].expand(20, *run.example.shape[1:])
    for i, site in enumerate(sites):
        z = 2 * torch.randn(20, len(site["mean"]), dtype=torch.float32)
        found = [explorer(page).evaluate("(root, [i, z]) => root.decode(i, z)", [i, row])
                 for row in z.tolist()]  # fmt: skip
        expected = evaluate.decode(run.model, {site["name"]: z}, x)
        difference = torch.tensor(found) - expected.flatten(1)
        assert difference.abs().max() < 1e-3


def test_the_image_on_the_page_is_what_was_decoded(runs, show):
    page, run = show(runs / "one" / "report.html"), load_run(runs / "one")
    site = page.evaluate(
        "JSON.parse(document.getElementById('explorer-data').textContent).sites[0]"
    )
    z = {"z": torch.tensor([site["checked"]], dtype=torch.float32)}
    pixels = chosen(page, "decoded").evaluate(
        "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    )
    red = torch.tensor(pixels).reshape(-1, 4)[:, 0] / 255
    expected = evaluate.decode(run.model, z, run.example[:1])
    assert (red - expected.flatten()).abs().max() < 1 / 255
    datum = chosen(page, "datum").evaluate(
        "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    )
    assert len(set(datum)) > 5


def test_the_map_and_the_sliders_move_the_latent(runs, show):
    page = show(runs / "one" / "report.html")
    decoded = "root => Array.from(root.decoded)"
    before = explorer(page).evaluate(decoded)
    outputs = page.locator("#explorer .sliders output")
    texts = outputs.all_inner_texts()
    box = box_of(chosen(page, "map"))
    center = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*center)
    page.mouse.down()
    page.mouse.move(center[0] + 40, center[1] - 60, steps=4)
    page.mouse.up()
    moved = outputs.all_inner_texts()
    assert [a != b for a, b in zip(texts, moved, strict=True)] == [True, True] + [False] * 18
    assert explorer(page).evaluate(decoded) != before
    slider = page.locator("#explorer input[data-unit]").nth(4)
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert outputs.all_inner_texts()[4] != moved[4]
    chosen(page, "center").click()
    mean = page.evaluate(
        "JSON.parse(document.getElementById('explorer-data').textContent).sites[0].mean"
    )
    assert sum(abs(float(t.replace("−", "-"))) for t in outputs.all_inner_texts()) == pytest.approx(
        sum(map(abs, mean)), abs=0.1)  # fmt: skip


def test_data_are_chosen_and_walked_to(runs, show):
    page = show(runs / "one" / "report.html")
    which = chosen(page, "which")
    assert which.inner_text().startswith("datum 0, ")
    chosen(page, "another").click()
    assert which.inner_text().startswith("datum 1, ")
    chosen(page, "walk").click()
    expect = pytest.importorskip("playwright.sync_api").expect
    expect(which).to_have_text(re.compile("datum 2, "), timeout=10_000)


def test_a_press_on_a_point_takes_its_datum(runs, show):
    page = show(runs / "one" / "report.html")
    site = page.evaluate(
        "JSON.parse(document.getElementById('explorer-data').textContent).sites[0]"
    )
    first, second = site["units"][:2]
    xs, ys = ([p[u] for p in site["points"]] for u in (first, second))
    top = max(range(len(ys)), key=ys.__getitem__)
    box = box_of(chosen(page, "map"))
    ranges = [(min([*v, -2]), max([*v, 2])) for v in (xs, ys)]
    (left, right), (low, high) = [(a - 0.06 * (b - a), b + 0.06 * (b - a)) for a, b in ranges]
    inside = box["width"] - 2 - 36  # two borders, and the margins of the axes
    across = [30 + (x - left) / (right - left) * inside for x in xs]
    down = [6 + (high - y) / (high - low) * inside for y in ys]
    page.mouse.click(box["x"] + 1 + across[top], box["y"] + 1 + down[top])
    taken = int(re.match(r"datum (\d+), ", chosen(page, "which").inner_text())[1])
    assert taken > 0
    assert math.hypot(across[taken] - across[top], down[taken] - down[top]) < 1.5


def test_another_site_is_entered(runs, show):
    page = show(runs / "two" / "report.html")
    chosen(page, "site").select_option(label="z2")
    names = page.locator("#explorer .sliders label span").all_inner_texts()
    assert sorted(names) == ["z2[0]", "z2[1]", "z2[2]"]
    chosen(page, "up").select_option(index=2)
    assert chosen(page, "up").locator("option:checked").inner_text() == names[2]


def test_curves_tell_values_and_zoom(runs, show):
    page = show(runs / "two" / "report.html")
    assert page.locator("#curves h4").all_inner_texts() == [
        "Bound on log p(x), nats per datum", "KL, nats per datum",
        "Reconstruction, nats per datum", "KL weight",
    ]  # fmt: skip
    assert not page.locator('[data-still="curves"]').is_visible()
    box = box_of(page.locator("#curves canvas").first)
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    values = page.locator("#curves output").all_inner_texts()
    assert values and all(re.match(r"−?[\d.]+ at \d+$", value) for value in values)
    whole = page.evaluate("document.getElementById('curves').range()")
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], y, steps=3)
    page.mouse.up()
    inside = page.evaluate("document.getElementById('curves').range()")
    assert whole[0] < inside[0] < inside[1] < whole[1]
    page.mouse.dblclick(box["x"] + box["width"] / 2, y)
    assert page.evaluate("document.getElementById('curves').range()") == whole


@pytest.mark.parametrize("name", ["one", "two", "conv"])
def test_a_phone_need_not_scroll_sideways(runs, show, name):
    page = show(runs / name / "report.html", PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    tall = page.locator("#explorer button, #explorer select")
    assert all(tall.nth(i).bounding_box()["height"] >= 28 for i in range(1, tall.count()))


def test_without_scripts_there_are_pictures(runs, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((runs / "one" / "report.html").as_uri())
    assert page.locator('[data-still="curves"] img').is_visible()
    assert not page.locator("#explorer").is_visible()
    assert page.locator("noscript").is_visible()
    context.close()


def test_labels_are_text_and_other_scripts_do_not_run(runs, browser, tmp_path):
    html = (runs / "one" / "report.html").read_text()
    evil = "<img src=x onerror=document.title=666>"
    escaped = evil.replace("<", "\\u003c").replace(">", "\\u003e")
    html = html.replace('"name":"label"', f'"name":"{escaped}"')
    html = html.replace("</main>", "</main><script>document.title = '666'</script>")
    path = tmp_path / "report.html"
    path.write_text(html)
    page = browser.new_page()
    page.goto(path.as_uri())
    assert evil in chosen(page, "which").inner_text()
    assert "666" not in page.title()
    page.close()
