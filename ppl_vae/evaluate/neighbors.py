"""The nearest training data: exact, some rows against some rows at a time.

Shapes: N samples, M training data, k neighbours, F numbers of a datum.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.evaluate.terms import batches

__all__ = ["Neighbors", "nearest_neighbors"]


@dataclass(frozen=True)
class Neighbors:
    """The nearest training data of each sample, the nearest first.

    Attributes:
        indices: Which rows of the training data, `[N, k]`.
        distances: How far away they are, `[N, k]`, double, in the unit of the data.
    """

    indices: Tensor
    distances: Tensor


def nearest_neighbors(
    samples: Tensor, train: Tensor, *, num: int = 5, batch_size: int = 1000
) -> Neighbors:
    r"""The k training data that are nearest to each sample, and their Euclidean distances.

    .. math:: d(x, y) = \sqrt{\textstyle\sum_f (x_f - y_f)^2}

    Summed as differences, in double: no product of matrices, whose rounding would part a copy from
    its original. Of training data that are equally near any come first. Pixels as they are: a
    shifted copy is not near.

    Cost: N M F, without a gradient. Memory: `batch_size`\ :sup:`2` distances, and as many rows of
    either side in double. The training data may lie on another device than the samples; they are
    brought to these by the batch.

    Args:
        samples: `[N, *shape]`, any real numbers.
        train: `[M, *shape]`.
        num: k, no more than M.
        batch_size: Rows of either side at once.

    Returns:
        Indices and distances, on the samples' device.

    Raises:
        ValueError: Shapes that do not fit, no rows, values that are not finite, a number out of
            range.

    Example:
        >>> train = torch.tensor([[0.0, 0.0], [3.0, 4.0], [9.0, 9.0]])
        >>> found = nearest_neighbors(torch.tensor([[0.0, 0.0]]), train, num=2)
        >>> found.indices.tolist(), found.distances.tolist()
        ([[0, 1]], [[0.0, 5.0]])
    """
    check_dim(num, "nearest_neighbors: num")
    check_dim(batch_size, "nearest_neighbors: batch_size")
    check_rows("nearest_neighbors", samples=samples, train=train)
    if num > len(train):
        raise ValueError(
            f"nearest_neighbors: num is {num} of {len(train)} training data; accepted are no more "
            "than these"
        )
    with torch.no_grad():
        found = [_of_batch(x, train, num, batch_size) for x in batches(samples, batch_size)]
    distances, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Neighbors(indices, distances)


def check_rows(what: str, **data: Tensor) -> None:
    """Raises a `ValueError` unless all are real, have a row, and rows of one shape."""
    if bad := [name for name, x in data.items() if not isinstance(x, Tensor) or x.is_complex()]:
        kind = getattr(data[bad[0]], "dtype", type(data[bad[0]]).__name__)
        raise ValueError(f"{what}: {bad[0]} is of {kind}; accepted is a Tensor of real numbers")
    is_empty = any(x.dim() == 0 or x.numel() == 0 for x in data.values())
    if is_empty or len({x.shape[1:] for x in data.values()}) > 1:
        names, shapes = " and ".join(data), ", ".join(str(list(x.shape)) for x in data.values())
        raise ValueError(
            f"{what}: {names} have the shapes {shapes}; accepted are [N, *shape], N >= 1, of one "
            "shape"
        )


def _of_batch(x: Tensor, train: Tensor, num: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Distances and indices of the nearest, `[B, k]` each."""
    x, device = _flat(x, "samples", x.device), x.device
    distances = torch.empty(len(x), 0, dtype=x.dtype, device=device)
    indices = torch.empty(len(x), 0, dtype=torch.long, device=device)
    start = 0
    for batch in batches(train, batch_size):
        found = torch.cdist(
            x, _flat(batch, "train", device), compute_mode="donot_use_mm_for_euclid_dist"
        )
        there = torch.arange(start, start + len(batch), device=device).expand(len(x), -1)
        distances, indices = torch.cat([distances, found], 1), torch.cat([indices, there], 1)
        distances, kept = distances.topk(min(num, distances.shape[1]), largest=False)
        indices = indices.gather(1, kept)
        start += len(batch)
    return distances, indices


def _flat(x: Tensor, name: str, device: torch.device) -> Tensor:
    """`[B, F]`, double."""
    x = x.to(device).double().reshape(len(x), -1)
    if num_bad := int((~x.isfinite()).sum()):
        raise ValueError(
            f"nearest_neighbors: {name} holds {num_bad} values that are NaN or infinite; accepted "
            "are finite values"
        )
    return x
