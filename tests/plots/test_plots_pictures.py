"""The pictures: every value of every datum where it belongs."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from ppl_vae import plots


def pixels(figure: Figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def test_grey_images_keep_their_values():
    x = torch.full((3, 1, 8, 8), 0.25, dtype=torch.float32, requires_grad=True)
    figure = plots.reconstructions(x, x + 0.5)
    shown = pixels(figure)  # two rows of three tiles, gaps of one pixel
    assert shown.shape == (17, 26, 3)
    assert (shown[:8, :8] == 0.25).all()
    assert (shown[9:, :8] == 0.75).all()
    assert (shown[8] == 1).all()
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["data", "reconstruction"]


def test_values_outside_are_clipped_and_nan_is_not_grey():
    shown = pixels(plots.samples(np.stack([np.full((4, 4), v) for v in (-3.0, 7.0, np.nan)])))
    assert (shown[:4, :4] == 0).all()
    assert (shown[:4, 5:9] == 1).all()
    assert len(np.unique(shown[5:, 0])) == 3


def test_colour_images_and_rows_of_ten():
    x = torch.rand(14, 3, 6, 5)
    figure = plots.reconstructions(x, x.flip(1), num=12)
    shown = pixels(figure)
    assert shown.shape == (4 * 7 - 1, 10 * 6 - 1, 3)
    assert np.allclose(shown[:6, :5], x[0].permute(1, 2, 0), atol=1e-6)
    assert np.allclose(shown[7:13, :5], x[0].flip(0).permute(1, 2, 0), atol=1e-6)
    assert np.allclose(shown[14:20, 6:11], x[11].permute(1, 2, 0), atol=1e-6)
    assert (shown[14:, 12:] == 1).all()
    assert len(figure.axes[0].get_yticks()) == 4


def test_a_pixel_of_data_is_a_whole_number_of_pixels():
    x = (torch.arange(64).reshape(1, 8, 8) % 2).double().expand(4, 8, 8)
    drawn = imread(io.BytesIO(plots.png(plots.samples(x))))[..., 0]
    row = drawn[drawn.shape[0] // 4]
    edges = np.flatnonzero(np.diff(row)).tolist()
    assert len(edges) == 16  # eight in each tile; the gap joins the white stripe before it
    assert {b - a for a, b in pairwise(edges)} == {16, 32}
    assert set(np.unique(drawn)) == {0.0, 1.0}


def test_large_images_are_scaled_down():
    figure = plots.samples(torch.rand(9, 3, 400, 400))
    assert figure.get_size_inches()[0] <= 7.01


@pytest.mark.parametrize("size", [1, 2, 5])
def test_points_and_vectors(size, legend):
    x = torch.randn(12, size)
    figure = plots.reconstructions(x, x + 0.1)
    if size == 5:
        assert len(figure.axes) == 10
        data, mean = figure.axes[3].get_lines()
        assert np.allclose(data.get_ydata(), x[3])
        assert np.allclose(mean.get_ydata(), x[3] + 0.1)
        assert legend(figure.legends[0]) == ["data", "reconstruction"]
        assert len(plots.samples(x).axes) == 12
    else:
        drawn = sum(len(dots.get_offsets()) for dots in figure.axes[0].collections)
        assert drawn == 12 * size
        assert len(plots.samples(x).axes) == 1
    assert plots.png(figure)
    assert plots.png(plots.samples(x))


def test_data_of_other_shapes_are_profiles():
    assert len(plots.samples(torch.rand(3, 2, 4, 4)).axes) == 3
    assert len(plots.samples(torch.rand(3, 7)).axes[0].get_lines()[0].get_ydata()) == 7


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), \(2, 8, 8\)"):
        plots.reconstructions(torch.rand(3, 8, 8), torch.rand(2, 8, 8))
    with pytest.raises(ValueError, match="N >= 1"):
        plots.samples(torch.rand(0, 8, 8))
    with pytest.raises(ValueError, match=r"\[2, 3, \.\.\.\]"):
        plots.traversals(torch.rand(3, 2, 8, 8), [0, 1], [-1, 0, 1])
    with pytest.raises(ValueError, match=r"z \[N, 2\]"):
        plots.latent_scatter(torch.rand(5, 3))
    with pytest.raises(ValueError, match="at least one unit"):
        plots.active_units({})
    with pytest.raises(ValueError, match="sites and sizes"):
        plots.active_units({"z": [1.0, 2.0]}, kl={"z": [1.0]})


def test_traversals_have_a_row_for_each_unit_and_a_column_for_each_value():
    x = torch.rand(2, 3, 1, 8, 8)
    figure = plots.traversals(x, [3, 0], torch.tensor([-3.0, 0.0, 3.0]), kl=[1.919, 0.0], site="z2")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "z2[3]\n1.92 nats",
        "z2[0]\n0.00 nats",
    ]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["−3", "0", "3"]
    assert np.allclose(pixels(figure)[9:17, 18:26, 0], x[1, 2, 0], atol=1e-6)
    assert (
        plots.traversals(x[:1, :1], ["$a"], [0]).axes[0].get_yticklabels()[0].get_text() == r"\$a"
    )


@pytest.mark.parametrize(("size", "lines"), [(1, 4), (2, 4), (6, 3)])
def test_traversals_of_points_and_vectors(size, lines, legend):
    figure = plots.traversals(torch.randn(2, 3, size), [3, 1], [-3, 0, 3], kl=[1.0, 2.0])
    assert len(figure.axes[0].get_lines()) == lines  # paths and their ends, or one curve a value
    names = (
        legend(figure.legends[0]) if size < 3 else [axes.get_title("left") for axes in figure.axes]
    )
    assert names == ["z[3], 1.00 nats", "z[1], 2.00 nats"]
    assert plots.png(figure)


def test_samples_of_a_class_have_a_row_each():
    x = torch.rand(3, 12, 1, 8, 8)
    figure = plots.class_samples(x, [2, 0, "rest"], share=[0.625, 0.25, 0.0004], site="k$")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["k\\$ = 2\n62.5%", "k\\$ = 0\n25.0%", "rest\n0.0%"]
    shown = pixels(figure)
    assert shown.shape == (26, 89, 3)  # ten of the twelve
    assert np.allclose(shown[9:17, 27:35, 0], x[1, 3, 0], atol=1e-6)
    assert plots.png(figure)
    assert pixels(plots.class_samples(x, [0, 1, 2], num=2)).shape == (26, 17, 3)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_samples_of_a_class_as_points_and_vectors(size, legend):
    x = torch.randn(3, 12, size)
    figure = plots.class_samples(x, [2, 0, 1], share=[0.5, 0.3, 0.2])
    names = ["y = 2, 50.0%", "y = 0, 30.0%", "y = 1, 20.0%"]
    axes = figure.axes[0]
    if size == 1:
        drawn = [line.get_xdata() for line in axes.get_lines()]
        assert [label.get_text() for label in axes.get_yticklabels()] == names
        assert [set(line.get_ydata()) for line in axes.get_lines()] == [{0}, {1}, {2}]
        assert np.allclose(drawn, x[..., 0])
    elif size == 2:
        assert np.allclose([dots.get_offsets() for dots in axes.collections], x)
        assert legend(figure.legends[0]) == names
        colors = [tuple(dots.get_facecolor()[0]) for dots in axes.collections]
        assert len(set(colors)) == 3
    else:
        assert [panel.get_title("left") for panel in figure.axes] == names
        curves = [line.get_ydata() for line in figure.axes[1].get_lines()]
        assert np.allclose(curves, x[1, :10])
    assert plots.png(figure)


def test_classes_that_do_not_fit_their_samples_are_named():
    for shape in [(2, 3, 8, 8), (3,), (3, 0, 8, 8)]:
        with pytest.raises(ValueError, match=r"x needs \[K, S, \*shape\] = \[3, \.\.\.\]"):
            plots.class_samples(torch.rand(shape), [0, 1, 2])
