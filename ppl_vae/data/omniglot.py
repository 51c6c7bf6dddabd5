"""`omniglot`: handwritten characters of fifty alphabets, brought to 28x28."""

from pathlib import Path

import numpy as np
import torch

from ppl_vae.data.archives import read_npz
from ppl_vae.data.partition import partition
from ppl_vae.data.splits import Splits

__all__ = ["omniglot"]

_NUM_VALID = 2_000
_CHARACTERS_AT_ONCE = 16


def omniglot(root: Path) -> Splits:
    """Omniglot (Lake et al., 2015): 1,623 characters, 20 drawings of each, grey `(1, 28, 28)`.

    The 19,280 drawings of the background set are 17,280 train and 2,000 valid, random by
    `SPLIT_SEED`; the 13,180 of the evaluation set, which are other characters, are test. Labels
    number the characters: 0 to 963 background, 964 to 1622 evaluation. One drawing is in the
    original twice; both are in train.

    The original 105x105 drawings are averaged over areas: ink counts 1, paper 0, and
    x28 = W ink W^T with W[i, j] = max(0, min(3.75 (i+1), j+1) - max(3.75 i, j)) / 3.75.

    This is NOT the 28x28 preprocessing and split of Burda et al. (2016), so its likelihoods are not
    comparable with published ones for "OMNIGLOT".

    Args:
        root: Holds `OMNIGLOT/images_background.npz` and `images_evaluation.npz`, each with `images`
            bool `[C, 20, 105, 105]` (True is paper) and `labels` int64 `[C, 20]`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged or holds something else.
    """
    background, labels = _read(root / "OMNIGLOT" / "images_background.npz")
    test, labels_test = _read(root / "OMNIGLOT" / "images_evaluation.npz")
    train_rows, valid_rows, _ = partition(len(background), num_valid=_NUM_VALID, num_test=0)
    return Splits(
        train=background[train_rows],
        valid=background[valid_rows],
        test=test,
        labels={
            "train": labels[train_rows],
            "valid": labels[valid_rows],
            "test": labels_test + int(labels.max()) + 1,
        },
        label_names=("label",),
        name="omniglot",
    )


def _read(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The images `[N, 1, 28, 28]` and character numbers `[N]` of one file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"omniglot: {path} is missing. Make it from the drawings of "
            "https://github.com/brendenlake/omniglot: np.savez(path, images=..., labels=...), "
            "images bool [C, 20, 105, 105], True where paper, labels int64 [C, 20]; or give the "
            "folder that holds OMNIGLOT as root or in the environment variable PPL_VAE_DATA"
        )
    arrays = read_npz(path)
    paper, labels = arrays.get("images"), arrays.get("labels")
    if (
        paper is None
        or labels is None
        or paper.dtype != bool
        or paper.shape[1:] != (20, 105, 105)
        or labels.shape != paper.shape[:2]
        or labels.dtype.kind not in "iu"
    ):
        found = {key: f"{array.dtype} {list(array.shape)}" for key, array in arrays.items()}
        raise ValueError(
            f"{path}: must hold images bool [C, 20, 105, 105] and labels int [C, 20], found {found}"
        )
    small = shrink(torch.from_numpy(paper).logical_not())
    return small.flatten(0, 1).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)).flatten()


def shrink(ink: torch.Tensor) -> torch.Tensor:
    """Averages 105x105 images over areas of 3.75 x 3.75 pixels.

    Args:
        ink: `[C, ..., 105, 105]`, True where there is ink.

    Returns:
        float32 `[C, ..., 28, 28]` in [0, 1], the share of ink.
    """
    # Explicitly, for the default floating type is the caller's to choose.
    i, j = (torch.arange(n, dtype=torch.float32) for n in (28, 105))
    i = i[:, None]
    ends = torch.minimum(3.75 * (i + 1), j + 1)
    weight = (ends - torch.maximum(3.75 * i, j)).clamp(min=0) / 3.75  # [28, 105]
    # In chunks, because all drawings as floats would take a gigabyte.
    small = [weight @ chunk.float() @ weight.T for chunk in ink.split(_CHARACTERS_AT_ONCE)]
    return torch.cat(small).clamp_(0, 1)  # rounding alone can step over 1
