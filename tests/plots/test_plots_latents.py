"""The latent space: colours, names, counts."""

import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from ppl_vae import plots


@pytest.mark.parametrize("kind", ["digits", "names", "flags"])
def test_classes_get_a_colour_a_legend_and_a_name(kind, legend):
    z = torch.randn(200, 2)
    digits = torch.arange(200) % 10
    labels = {"digits": digits, "names": [f"_{i}$" for i in digits.tolist()], "flags": digits > 4}
    names = {
        "digits": [str(i) for i in range(10)],
        "names": [rf"_{i}\$" for i in range(10)],
        "flags": ["False", "True"],
    }[kind]
    figure = plots.latent_scatter(z, labels[kind], ("z1[2]", "z1[7]"), label_name="class")
    axes = figure.axes[0]
    assert legend(figure.legends[0]) == names == [text.get_text() for text in axes.texts]
    assert figure.legends[0].get_title().get_text() == "class"
    assert len(np.unique(axes.collections[0].get_facecolors(), axis=0)) == len(names)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z1[2]", "z1[7]")
    assert axes.get_aspect() == 1
    assert plots.png(figure)


def test_a_point_has_the_colour_of_its_class():
    z, labels = np.array([[0.0, 0], [0, 1], [5, 5], [5, 6]]), [0, 0, 1, 1]
    figure = plots.latent_scatter(z, labels)
    dots = figure.axes[0].collections[0]
    keys = [handle.get_color() for handle in figure.legends[0].legend_handles]
    for point, color in zip(dots.get_offsets(), dots.get_facecolors(), strict=True):
        assert to_hex(color) == keys[int(point[0] > 2)]


def test_a_factor_gets_a_colour_bar_and_no_labels_get_neither():
    z = torch.randn(50, 2)
    factor = plots.latent_scatter(z, torch.rand(50), label_name="angle")
    assert [axes.get_ylabel() for axes in factor.axes] == ["z[1]", "angle"]
    many = plots.latent_scatter(z, torch.arange(50))
    assert len(many.axes) == 2
    assert not many.legends
    bare = plots.latent_scatter(z)
    assert len(bare.axes) == 1
    assert not bare.legends
    assert len(plots.latent_scatter(z, torch.arange(50) % 25).legends[0].get_texts()) == 25


def test_the_prior_is_in_view_and_bad_rows_are_left_out():
    z = np.array([[0.01, 0.0], [np.nan, 1], [np.inf, 2], [0, 7]])
    axes = plots.latent_scatter(z, [0, 1, 1, 0]).axes[0]
    assert [circle.radius for circle in axes.patches] == [1, 2, 3]
    assert axes.get_xlim()[0] < -2
    assert 7 < axes.get_ylim()[1] < 8
    assert len(axes.collections[0].get_offsets()) == 2


@pytest.mark.parametrize("scale", [0.01, 5.0])
def test_points_and_prior_are_in_view_as_drawn(scale):
    z = scale * np.array([[-3.0, 0], [0, -1], [3, 0], [0, 1]])
    figure = plots.latent_scatter(z, ["a", "b", "c", "a longer name"])
    first = plots.png(figure)
    axes = figure.axes[0]
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert low < -2
        assert high > 2
    assert (axes.transLimits.transform(z) >= 0).all()
    assert (axes.transLimits.transform(z) <= 1).all()
    assert plots.png(figure) == first  # the layout has settled in one go


def test_active_units_are_sorted_counted_and_filled(legend):
    variance = {"z1": torch.tensor([0.001, 0.9, 0.0, 0.5]), "z2": torch.tensor([0.02])}
    kl = {"z1": [0.1, 2.0, 0.0, 1.0], "z2": [0.3]}
    figure = plots.active_units(variance, kl=kl)
    left, right = figure.axes
    assert left.get_title("left") == "3 of 5 units active"
    assert left.get_yscale() == "log"
    assert left.get_ylim()[0] > 0
    assert left.get_lines()[0].get_ydata()[:3].tolist() == pytest.approx([0.9, 0.5, 0.001])
    assert right.get_lines()[0].get_ydata().tolist() == [2.0, 1.0, 0.1, 0.0]
    assert left.get_lines()[-1].get_ydata() == [0.01, 0.01]
    faces = [to_hex(color) for color in left.collections[0].get_facecolors()]
    assert faces[2:] == ["#ffffff"] * 2
    assert "#ffffff" not in faces[:2]
    assert legend(right.get_legend()) == ["z1: 2 of 4", "z2: 1 of 1"]
    assert plots.png(figure)


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan])
def test_one_unit_alone(value):
    figure = plots.active_units({"z": [value]}, threshold=0.1)
    assert figure.axes[0].get_title("left") == f"{int(value == 1)} of 1 units active"
    assert plots.png(figure)
