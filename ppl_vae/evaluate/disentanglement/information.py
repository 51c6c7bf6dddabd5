"""Mutual information of binned codes and discrete factors, by counting.

Shapes: N rows, D codes, F factors.
"""

from collections.abc import Sequence

import numpy as np

__all__ = ["bins", "entropies", "information"]


def bins(codes: np.ndarray, num_bins: int) -> np.ndarray:
    """The bin of each code, `[N, D]`, of `num_bins` of equal width from its least to its largest.

    A constant code lies in bin 0.
    """
    low, width = codes.min(axis=0), np.ptp(codes, axis=0)
    place = (codes - low) / np.where(width > 0, width, 1.0)
    return np.minimum((place * num_bins).astype(np.int64), num_bins - 1)


def information(
    binned: np.ndarray, factors: np.ndarray, num_bins: int, sizes: Sequence[int], weight: np.ndarray
) -> np.ndarray:
    r"""Mutual information of every code and every factor, `[D, F]`, nats.

    .. math:: I(z_i; v_j) = H(z_i) + H(v_j) - H(z_i, v_j)

    by relative frequencies (the plug-in estimate). Of independent variables it is not 0 but about
    (a - 1) (b - 1) / (2 N), for a bins and b values.

    Args:
        binned: `[N, D]`, below `num_bins`.
        factors: `[N, F]`, column f below `sizes[f]`.
        num_bins: Of the codes.
        sizes: Values of each factor.
        weight: How often each row counts, `[N]`.
    """
    of_codes = entropies(binned, weight)
    of_factors = entropies(factors, weight)
    joint = np.empty((binned.shape[1], factors.shape[1]))
    for i in range(binned.shape[1]):
        for j in range(factors.shape[1]):
            cells = binned[:, i] * sizes[j] + factors[:, j]
            joint[i, j] = _entropy(np.bincount(cells, weight, minlength=num_bins * sizes[j]))
    return np.maximum(of_codes[:, None] + of_factors - joint, 0.0)  # rounding may go below


def entropies(columns: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The entropy of each column of classes `[N, C]`, by relative frequencies, nats."""
    return np.array([_entropy(np.bincount(column, weight)) for column in columns.T])


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
