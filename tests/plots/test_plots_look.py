"""The look and the files: the same bytes, no one else's style, no half-written file."""

import io
import warnings

import matplotlib
import pytest
import torch
from matplotlib.image import imread

from ppl_vae import plots
from ppl_vae.plots.look import DPI, TEXT_WIDTH, plain

METRICS = [{"step": i, "bound": -50.0 - i, "kl": {"z1": 2.0, "z2": i}} for i in range(20)]


def test_png_is_byte_stable_and_carries_no_time_or_version():
    first, second = (plots.png(plots.learning_curves(METRICS)) for _ in range(2))
    assert first == second
    assert b"tEXt" not in first
    assert b"tIME" not in first
    assert imread(io.BytesIO(first)).shape[1] == round(TEXT_WIDTH * DPI)


def test_the_look_is_local_and_the_callers_style_does_not_enter():
    before = plots.png(plots.samples(torch.ones(4, 3)))
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        style = dict(matplotlib.rcParams)
        assert plots.png(plots.samples(torch.ones(4, 3))) == before
        assert dict(matplotlib.rcParams) == style


def test_save_makes_the_folder_and_leaves_no_part(tmp_path):
    figure = plots.samples(torch.rand(4, 8, 8))
    path = plots.save(figure, tmp_path / "figures" / "samples.png")
    assert path.read_bytes() == plots.png(figure)
    assert [p.name for p in path.parent.iterdir()] == ["samples.png"]


def test_a_failing_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(AttributeError):
        plots.save(None, path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_names_are_never_mathematics_and_lose_only_their_middle():
    assert plain("_a$b$ é") == r"_a\$b\$ é"
    assert plain("大") == r"\u5927" != plain("小")
    assert plain("👍\ud800\x00") == r"\U0001f44d\ud800\x00"
    assert plain("a" * 40) == "a" * 40
    assert plain("a" * 30 + "b" * 30) == "a" * 20 + "…" + "b" * 19


@pytest.mark.parametrize("name", ["大👍🏽\ud800क्षि", "latent $variable" * 9])
def test_no_name_warns(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.rand(2, 3, 8, 8)
        for figure in (
            plots.learning_curves([{**line, "kl": {name: 1.0, "z": 2.0}} for line in METRICS]),
            plots.learning_curves([{**line, "kl": {name: 1.0}} for line in METRICS]),
            plots.latent_scatter(x[0, 0, :, :2], [name, "b"] * 4, (name, "z"), label_name=name),
            plots.latent_scatter(x[0, 0, :, :2], x[0, 1, :, 0], label_name=name),
            plots.traversals(x, [name, 1], [-1, 0, 1], site=name),
            plots.traversals(x[..., 0, :2], [name, 1], [-1, 0, 1]),
            plots.traversals(x[..., 0], [name, 1], [-1, 0, 1]),
            plots.active_units({name: [1.0], "z": [0.0]}, kl={name: [1.0], "z": [0.0]}),
        ):
            assert plots.png(figure)
