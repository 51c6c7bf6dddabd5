"""Rows of a table that agree in one factor: what a generator with that factor fixed would draw.

Shapes: N rows, M draws.
"""

import numpy as np

from ppl_vae.evaluate.disentanglement.table import Table

__all__ = ["agreeing_batches", "agreeing_pairs", "halves"]


def halves(table: Table, metric: str, generator: np.random.Generator) -> list[np.ndarray]:
    """The rows in two random halves, to draw from for a classifier's training and for its test.

    On draws from the same rows it would learn the rows, and codes of noise would be above chance.

    Raises:
        ValueError: A half has no two rows that agree in some factor.
    """
    order = generator.permutation(len(table.factors))
    parts = np.array_split(order, 2)
    for f in range(table.factors.shape[1]):
        for part in parts:
            if np.bincount(table.factors[part, f]).max() < 2:
                raise ValueError(
                    f"{metric}: half of the {len(order)} rows hold no two that agree in factor "
                    f"{f}, which has {table.sizes[f]} values; accepted are tables of more rows"
                )
    return parts


def agreeing_batches(
    column: np.ndarray, num_batches: int, size: int, generator: np.random.Generator
) -> np.ndarray:
    """Rows `[M, size]`, those of a batch equal in `column` `[N]`, drawn with replacement.

    The value of a batch is drawn evenly from the values that two rows or more have.
    """
    order, start, count = _values(column, num_batches, generator)
    place = (generator.random((num_batches, size)) * count[:, None]).astype(np.int64)
    return order[start[:, None] + place]


def agreeing_pairs(
    column: np.ndarray, num_pairs: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Two different rows, each `[M]`, equal in `column` `[N]`; the value drawn as for batches.

    A row beside itself would tell by its distance of 0 how few rows share a value, and so which
    factor was fixed.
    """
    order, start, count = _values(column, num_pairs, generator)
    first = (generator.random(num_pairs) * count).astype(np.int64)
    step = 1 + (generator.random(num_pairs) * (count - 1)).astype(np.int64)
    return order[start + first], order[start + (first + step) % count]


def _values(
    column: np.ndarray, num: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows in order of their values, and where the rows of each drawn value begin and end."""
    counts = np.bincount(column)
    starts = np.cumsum(counts) - counts
    # A resample may hold no two rows of a value.
    shared = np.flatnonzero(counts >= min(2, counts.max()))
    value = generator.choice(shared, size=num)
    return np.argsort(column, kind="stable"), starts[value], counts[value]
