"""Samples beside the training data that are nearest to them."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ppl_vae.plots.look import FAINT, GREY, TEXT_WIDTH, VERMILION, array, dot_size, look
from ppl_vae.plots.tiles import profiles, rgb, tiled


@look()
def neighbors(
    samples: ArrayLike, nearest: ArrayLike, distances: ArrayLike | None = None, num: int = 10
) -> Figure:
    r"""Samples, and below each the training data nearest to it.

    Vectors are overlaid on the nearest, points joined to it by a line; a number is drawn against
    it. Where samples are copies, the first two rows are the same. Above a column, or a panel,
    stands the distance d of the nearest.

    Args:
        samples: draws of a model, `[N, *shape]`.
        nearest: the training data nearest to each, the nearest first, `[N, k, *shape]`.
        distances: of these, `[N, k]`; not of points, where they are seen.
        num: how many samples are drawn, the first ones; points are drawn all, with the nearest.

    Raises:
        ValueError: the shapes do not fit, or there is no sample or no neighbour.

    Example:
        >>> import torch
        >>> from ppl_vae.evaluate import nearest_neighbors
        >>> train, x = torch.rand(20, 8, 8), torch.rand(4, 8, 8)
        >>> found = nearest_neighbors(x, train, num=2)
        >>> figure = neighbors(x, train[found.indices], found.distances)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['sample', 'nearest\nin training', '2nd']
    """
    x, near = array(samples), array(nearest)
    far = None if distances is None else array(distances)
    fits = near.ndim == x.ndim + 1 and near.size and near.shape[:1] + near.shape[2:] == x.shape
    if not fits or (far is not None and far.shape != near.shape[:2]):
        got = (x.shape, near.shape) if far is None else (x.shape, near.shape, far.shape)
        raise ValueError(
            "neighbors needs samples [N, *shape], nearest [N, k, *shape] and distances [N, k], got "
            + ", ".join(map(str, got))
        )
    both = np.concatenate([x[:, None], near], 1).swapaxes(0, 1)  # [1 + k, N, *shape]
    columns = [] if far is None else [_distance(value) for value in far[:num, 0]]
    if (tiles := rgb(both, 2)) is not None:
        names = ["sample", "nearest\nin training", *(_ordinal(i) for i in range(2, len(both)))]
        return tiled(tiles[:, :num], names, columns)
    both = both.reshape(*both.shape[:2], -1)
    if both.shape[-1] > 2:
        labels = ("nearest in training", "sample")
        return profiles(both[1::-1, :num], (GREY, VERMILION), labels, columns)
    figure = Figure(figsize=(TEXT_WIDTH * 0.75, 4.0), layout="constrained")
    axes = figure.add_subplot(aspect="equal", adjustable="datalim")
    if both.shape[-1] == 1:
        axes.axline((0, 0), slope=1, color=FAINT, lw=1, zorder=1)
        axes.scatter(*both[:2, :, 0], s=dot_size(len(x)), color=VERMILION, lw=0, alpha=0.7)
        axes.set(xlabel="sample", ylabel="nearest in training")
        return figure
    axes.plot(*both[:2].transpose(2, 0, 1), color=GREY, alpha=0.5, lw=0.6, zorder=1)
    axes.scatter(*both[1].T, s=8, color=GREY, lw=0, label="nearest in training")
    axes.scatter(*both[0].T, s=8, color=VERMILION, lw=0, label="sample")
    axes.set(xlabel="x[0]", ylabel="x[1]")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _distance(value: float) -> str:
    return f"d = {value:.2g}" if value < 100 else f"d = {value:.0f}"


def _ordinal(number: int) -> str:
    if number % 100 not in (11, 12, 13) and number % 10 in (1, 2, 3):
        return f"{number}{('st', 'nd', 'rd')[number % 10 - 1]}"
    return f"{number}th"
