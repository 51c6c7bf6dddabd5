"""Which rows are held out of a classifier's training: a share of each class."""

import numpy as np

__all__ = ["held_out"]


def held_out(classes: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """A random share of each class, so that every class of two rows or more is on both sides.

    Args:
        classes: The class of each row, `[N]`, in any numbers.
        share: Of each class that is held out, rounded; at least one row, and at most all but one.
            The only row of a class is not held out.
        generator: Where to draw from.

    Returns:
        Whether a row is held out, bool `[N]`.
    """
    held = np.zeros(len(classes), dtype=bool)
    for value in np.unique(classes):
        rows = generator.permutation(np.flatnonzero(classes == value))
        size = min(max(1, round(share * len(rows))), len(rows) - 1)
        held[rows[:size]] = True
    return held
