"""The figure of ranks: every curve, the band, and who leaves it."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from ppl_vae import plots
from ppl_vae.evaluate import Calibration


@pytest.fixture
def found():
    ranks = torch.randint(100, (500, 3))
    ranks[:, 2] = torch.randint(70, (500,))
    return Calibration({"z1": ranks, "a long name": ranks[:, :1], "z2": ranks[:, :2]}, 99)


def drawn(found, alpha=1e-6):
    band = found.band(alpha)
    return plots.calibration(found.ecdf_difference(), band.lower, band.upper), band


def test_every_unit_is_a_curve_and_those_that_leave_are_named(found):
    figure, band = drawn(found)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == [
        "z1: 1 of 3 units outside the band", "a long name: 0 of 1 units outside the band",
        "z2: 0 of 2 units outside the band",
    ]  # fmt: skip
    axes = figure.axes[0]
    curves = [line for line in axes.get_lines() if len(line.get_xdata()) > 2]
    for curve, expected in zip(curves, found.ecdf_difference()["z1"], strict=True):
        assert np.allclose(curve.get_ydata(), [0, *expected, 0])
        assert np.allclose(curve.get_xdata(), np.arange(101) / 100)
    colors = [to_hex(curve.get_color()) for curve in curves]
    assert colors[0] == colors[1] != colors[2] == "#d55e00"
    assert [text.get_text() for text in axes.texts] == ["[2]"]
    assert not figure.axes[1].texts and not figure.axes[2].texts
    (edge,) = (path.vertices for path in axes.collections[0].get_paths())
    assert edge[:, 1].max() == pytest.approx(band.upper.max().item())
    assert edge[:, 1].min() == pytest.approx(band.lower.min().item())
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert plots.png(figure)


@pytest.mark.parametrize("lowest, place", [(0, "bottom"), (40, "top")])
def test_a_unit_may_leave_on_either_side(lowest, place):
    found = Calibration({"z": torch.randint(lowest, lowest + 60, (300, 1))}, 99)
    figure, band = drawn(found)
    (text,) = figure.axes[0].texts
    curve = found.ecdf_difference()["z"][0]
    farthest = torch.maximum(band.lower - curve, curve - band.upper).argmax()
    assert text.xy == pytest.approx(((farthest.item() + 1) / 100, curve[farthest].item()))
    assert text.get_va() == place


def test_of_many_units_that_leave_four_are_named():
    found = Calibration({"z": torch.randint(60, (300, 9))}, 99)
    figure, _ = drawn(found)
    assert figure.axes[0].get_title("left") == "z: 9 of 9 units outside the band"
    assert len(figure.axes[0].texts) == 4


def test_no_name_is_mathematics(found):
    found = Calibration({"a$b$": found.ranks["z1"], "x" * 50: found.ranks["z1"]}, 99)
    figure, _ = drawn(found)
    assert figure.axes[0].get_title("left").startswith(r"a\$b\$: 1 of 3")
    assert "…" in figure.axes[1].get_title("left") and "\n" in figure.axes[1].get_title("left")
    assert plots.png(figure)


def test_sizes_that_do_not_fit_are_named(found):
    band, curves = found.band(), found.ecdf_difference()
    for bad in ({}, {"z": curves["z1"][0]}, {"z": curves["z1"][:0]}, {"z": curves["z1"][:, 1:]}):
        with pytest.raises(ValueError, match=r"differences \[U, L\], U >= 1, and edges \[L\], got"):
            plots.calibration(bad, band.lower, band.upper)
    with pytest.raises(ValueError, match=r"\(99,\), \(98,\)"):
        plots.calibration(curves, band.lower, band.upper[1:])
