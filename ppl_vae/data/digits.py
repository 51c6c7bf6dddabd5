"""`digits`: the 8x8 handwritten digits that come with scikit-learn."""

from pathlib import Path

import torch

from ppl_vae.data.partition import partition
from ppl_vae.data.splits import SPLIT_NAMES, Splits

__all__ = ["digits"]


def digits(root: Path) -> Splits:
    """1,797 grey images `(1, 8, 8)` of ten digits: 1,297 train, 250 valid, 250 test.

    The values 0 to 16 are divided by 16. The split is random by `SPLIT_SEED`. Needs no file and no
    network. Source: `sklearn.datasets.load_digits`, the test set of the UCI "Optical Recognition
    of Handwritten Digits" (Alpaydin and Kaynak, 1998).

    Args:
        root: Not used.
    """
    # Imported here because scikit-learn takes seconds to import and nothing else needs it.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).div(16).float().unsqueeze(1)  # [N, 1, 8, 8]
    labels = torch.from_numpy(bunch.target).long()  # [N]
    rows = dict(zip(SPLIT_NAMES, partition(len(x), num_valid=250, num_test=250), strict=True))
    return Splits(
        **{split: x[index] for split, index in rows.items()},
        labels={split: labels[index] for split, index in rows.items()},
        label_names=("label",),
        name="digits",
    )
