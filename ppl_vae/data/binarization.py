"""From grey values to binary ones, once or anew at every step."""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from ppl_vae.data.rows import Rows
from ppl_vae.data.splits import SPLIT_NAMES, Splits

__all__ = ["BINARIZATION_SEED", "binarize"]

BINARIZATION_SEED = 0
"""The seed of what is binarized once; `valid` and `test` are the same under both ways."""

_ROWS_AT_ONCE = 4096


def binarize(
    splits: Splits,
    how: Literal["dynamic", "fixed"] | None,
    *,
    seed: int = BINARIZATION_SEED,
) -> Splits:
    """Reads grey values as probabilities of a one: x ~ Bernoulli(grey).

    `"fixed"` draws every split once (as Salakhutdinov and Murray, 2008, did for MNIST).
    `"dynamic"` draws `valid` and `test` once, the same as under `"fixed"`, and leaves `train` grey
    for `Splits.draw` to binarize anew at every step (as Burda et al., 2016).
    `Rows` on a disk can only be binarized dynamically; their range is checked as they are read.
    A likelihood under the one is not comparable with one under the other.

    Args:
        splits: Values in [0, 1].
        how: `"dynamic"`, `"fixed"`, or `None` for no change.
        seed: Of what is drawn once.

    Returns:
        New splits, or the same ones where there is nothing to do.

    Raises:
        ValueError: `how` is something else, a value lies outside [0, 1] (which split, and its
            range), or the data are already binarized the other way.

    Example:
        >>> splits = binarize(Splits(torch.full((100, 2), 0.5)), "fixed")
        >>> splits.train.unique().tolist()
        [0.0, 1.0]
    """
    if how not in (None, "dynamic", "fixed"):
        raise ValueError(f"binarize={how!r} is none of None, 'dynamic', 'fixed'")
    if how is None or how == splits.binarize:
        return splits
    if splits.binarize is not None:
        raise ValueError(
            f"{splits.name}: already binarized ({splits.binarize!r}), so binarize={how!r} comes "
            "too late; start from the grey values"
        )
    on_disk = isinstance(splits.train, Rows)
    if on_disk and how == "fixed":
        return replace(splits, binarize=how)  # Which says why not.
    for split in SPLIT_NAMES[on_disk:]:
        _check_range(splits.name, split, getattr(splits, split))
    drawn = {
        split: _draw_once(getattr(splits, split), (seed, index))
        for index, split in enumerate(SPLIT_NAMES)
        if not (split == "train" and how == "dynamic")
    }
    return replace(splits, binarize=how, **drawn)


def _check_range(name: str, split: str, x: torch.Tensor) -> None:
    if x.numel() and (x.min() < 0 or x.max() > 1):
        raise ValueError(
            f"{name}: {split} ranges from {x.min().item():g} to {x.max().item():g}, but only "
            "values in [0, 1] can be binarized; rescale them, or leave binarize=None"
        )


def _draw_once(grey: torch.Tensor, seed: tuple[int, int]) -> torch.Tensor:
    # RandomState on the CPU: the same bits on every device and under every version of torch.
    stream = np.random.RandomState(seed)
    binary = torch.empty_like(grey)
    for start in range(0, len(grey), _ROWS_AT_ONCE):
        rows = grey[start : start + _ROWS_AT_ONCE]
        uniform = torch.from_numpy(stream.random_sample(tuple(rows.shape)))
        binary[start : start + _ROWS_AT_ONCE] = (uniform < rows.cpu()).to(grey)
    return binary
