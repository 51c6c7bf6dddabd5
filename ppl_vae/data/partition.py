"""Which rows go to train, valid and test, for data that come in one piece."""

import numpy as np
import torch

__all__ = ["SPLIT_SEED", "partition"]

SPLIT_SEED = 0
"""The seed of every random split in `ppl_vae.data`: a data set's name fixes its rows for good."""


def partition(
    num_rows: int, num_valid: int, num_test: int, seed: int = SPLIT_SEED
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three disjoint sets of row numbers that together are all rows.

    Args:
        num_rows: How many rows there are.
        num_valid: How many of them become valid.
        num_test: How many become test; at least one row is left for train.
        seed: Of the permutation.

    Returns:
        int64 row numbers of train, valid and test, in random order.

    Raises:
        ValueError: No row is left for train, or a count is negative.
    """
    num_train = num_rows - num_valid - num_test
    if num_train < 1 or min(num_valid, num_test) < 0:
        raise ValueError(
            f"{num_rows} rows cannot give {num_valid} to valid and {num_test} to test "
            "and at least one to train"
        )
    # RandomState, not torch or default_rng: NumPy promises that its stream never changes (NEP 19).
    order = torch.from_numpy(np.random.RandomState(seed).permutation(num_rows).astype(np.int64))
    train, valid, test = order.split([num_train, num_valid, num_test])
    return train, valid, test
