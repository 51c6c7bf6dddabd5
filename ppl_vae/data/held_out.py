"""Validation and test data of what is too large for memory: few rows, drawn once and for all.

Shapes: N rows, D values of one datum.
"""

from math import prod

import numpy as np

from ppl_vae.data.partition import SPLIT_SEED
from ppl_vae.data.permutation import Permutation
from ppl_vae.data.rows import Rest, Rows, read_rows
from ppl_vae.data.splits import Splits

__all__ = ["MAX_HELD_OUT", "split_rows"]

MAX_HELD_OUT = 10_000
"""The most rows of `valid`, and of `test`: a standard error is a hundredth of the deviation."""

_MAX_BYTES = 2**28


def split_rows(rows: Rows, num_valid: int | None = None, num_test: int | None = None) -> Splits:
    """Holds rows out as tensors in memory, and leaves the rest where it lies, to be trained on.

    Args:
        rows: All rows.
        num_valid: How many become `valid`; min(N / 10, 10,000, 2^26 / D), rounded down, if not
            given, so that it is never more than 256 MiB.
        num_test: How many become `test`; likewise.

    Returns:
        Splits whose `train` are `Rows`. Which rows are held out is drawn by `SPLIT_SEED`: the same
        ones whenever N is the same.

    Raises:
        ValueError: No row would be left for train, or a count is negative.

    Example:
        >>> import tempfile
        >>> from ppl_vae.data.shards import Shards
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/x.npy", np.zeros((1000, 4), np.float32))
        ...     splits = split_rows(Shards(folder))
        >>> len(splits.train), len(splits.valid), len(splits.test)
        (800, 100, 100)
    """
    most = min(len(rows) // 10, MAX_HELD_OUT, _MAX_BYTES // (4 * max(1, prod(rows.data_shape))))
    num_valid = most if num_valid is None else num_valid
    num_test = most if num_test is None else num_test
    if min(num_valid, num_test) < 0 or num_valid + num_test >= len(rows):
        raise ValueError(
            f"{rows.name}: {len(rows)} rows cannot give {num_valid} to valid and {num_test} to "
            "test and at least one to train"
        )
    held_out = Permutation(len(rows), (SPLIT_SEED,))(np.arange(num_valid + num_test))
    return Splits(
        Rest(rows, held_out),
        valid=read_rows(rows, held_out[:num_valid]),
        test=read_rows(rows, held_out[num_valid:]),
        name=rows.name,
    )
