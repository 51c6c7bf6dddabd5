"""Samples beside their neighbours: each where it belongs."""

import numpy as np
import pytest
import torch

from ppl_vae import plots
from ppl_vae.evaluate import nearest_neighbors


def shown(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


def labels(axis):
    return [label.get_text() for label in axis]


def test_below_each_sample_are_its_neighbors():
    train, x = torch.rand(30, 1, 8, 8), torch.rand(12, 1, 8, 8)
    found = nearest_neighbors(x, train, num=3)
    figure = plots.neighbors(x, train[found.indices], found.distances)
    pixels = shown(figure)
    assert pixels.shape == (4 * 9 - 1, 10 * 9 - 1, 3)  # ten samples; gaps of one pixel
    for row, column in ((0, 0), (1, 4), (3, 9)):
        expected = x[column] if row == 0 else train[found.indices[column, row - 1]]
        tile = pixels[9 * row : 9 * row + 8, 9 * column : 9 * column + 8, 0]
        assert np.allclose(tile, expected[0])
    axes = figure.axes[0]
    assert labels(axes.get_yticklabels()) == ["sample", "nearest\nin training", "2nd", "3rd"]
    first = f"d = {found.distances[0, 0]:.2g}"
    assert labels(axes.get_xticklabels())[0] == first and len(axes.get_xticks()) == 10
    assert plots.png(figure)


def test_distances_need_not_be_given_and_may_be_large():
    x = torch.rand(2, 4, 4)
    assert labels(plots.neighbors(x, x[:, None]).axes[0].get_xticklabels()) == []
    figure = plots.neighbors(x, x[:, None], [[123.4], [0.0]])
    assert labels(figure.axes[0].get_xticklabels()) == ["d = 123", "d = 0"]
    many = plots.neighbors(x, x[:, None].expand(2, 23, 4, 4))
    names = labels(many.axes[0].get_yticklabels())
    assert [names[i] for i in (2, 4, 11, 12, 13, 21, 22, 23)] == [
        "2nd", "4th", "11th", "12th", "13th", "21st", "22nd", "23rd",
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 5])
def test_points_and_vectors(size, legend):
    x, near = torch.randn(12, size), torch.randn(12, 3, size)
    figure = plots.neighbors(x, near, torch.ones(12, 3), num=4)
    if size == 5:
        assert len(figure.axes) == 4
        other, sample = figure.axes[3].get_lines()
        assert np.allclose(sample.get_ydata(), x[3])
        assert np.allclose(other.get_ydata(), near[3, 0])
        assert figure.axes[3].get_title("left") == "d = 1"
        assert legend(figure.legends[0]) == ["nearest in training", "sample"]
    else:
        drawn = [np.asarray(dots.get_offsets()) for dots in figure.axes[0].collections]
        expected = [near[:, 0], x] if size == 2 else [torch.cat([x, near[:, 0]], 1)]
        assert all(np.allclose(a, b) for a, b in zip(drawn, expected, strict=True))
    assert plots.png(figure)


@pytest.mark.parametrize(
    "samples, nearest, distances",
    [
        ((3, 8, 8), (3, 8, 8), None),
        ((3, 8, 8), (2, 4, 8, 8), None),
        ((3, 8, 8), (3, 4, 8, 7), None),
        ((3, 8, 8), (3, 0, 8, 8), None),
        ((0, 8, 8), (0, 2, 8, 8), None),
        ((3, 8, 8), (3, 2, 8, 8), (3, 1)),
    ],
)
def test_shapes_that_do_not_fit_are_named(samples, nearest, distances):
    far = None if distances is None else torch.zeros(distances)
    with pytest.raises(ValueError, match=r"nearest \[N, k, \*shape\]") as error:
        plots.neighbors(torch.zeros(samples), torch.zeros(nearest), far)
    for shape in (samples, nearest, distances):
        assert shape is None or str(shape) in str(error.value)
