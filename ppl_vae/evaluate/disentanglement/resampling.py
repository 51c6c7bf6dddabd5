"""Standard errors by bootstrap: the rows of the table drawn anew, with replacement.

A resample is how often each row was drawn. Row 0 of a table of weights is the data as they are, the
others are resamples, so that one computation gives the value and its spread.

Shapes: R resamples, N rows.
"""

import numpy as np
import torch

from ppl_vae.evaluate.estimate import Estimate

__all__ = ["ratio", "resampled_rows", "spread", "weights"]


def weights(num_rows: int, num_resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each row is taken, `[1 + R, N]`: once each, then as resampled."""
    drawn = generator.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=num_resamples)
    return np.concatenate([np.ones((1, num_rows)), drawn])


def resampled_rows(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Of some rows, each as often as its weight `[N]` says; as they are if none is taken."""
    taken = np.repeat(rows, weight[rows].astype(np.int64))
    return taken if len(taken) else rows


def spread(scores: np.ndarray) -> Estimate:
    """The score of the data, and the standard deviation over resamples, of `[1 + R, ...]`.

    Numbers where the score is one, else float64 tensors; the standard error is nan where R is 0.
    """
    error = scores[1:].std(axis=0, ddof=1) if len(scores) > 2 else np.full(scores.shape[1:], np.nan)
    if scores.ndim == 1:
        return Estimate(float(scores[0]), float(error))
    return Estimate(torch.from_numpy(scores[0].copy()), torch.from_numpy(error))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole != 0)
