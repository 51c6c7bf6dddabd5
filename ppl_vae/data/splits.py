"""`Splits`: the train, valid and test data of a data set, checked once when they are made.

Shapes: N data in a split, F factors, `*data_shape` one datum.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch

from ppl_vae.data.rows import Rows

__all__ = ["SPLIT_NAMES", "Splits"]

SPLIT_NAMES = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set in three parts, with its labels where there are any.

    Args:
        train: `[N, *data_shape]`, floating, finite, not empty. `load` gives float32, in [0, 1] for
            images. Or `Rows` on a disk, which are checked as they are read.
        valid: The same trailing shape and dtype; may be empty, and is so when left out.
        test: As `valid`.
        labels: By split name; int64 `[N]` for classes, `[N, F]` for factor values. Splits without
            labels are absent.
        label_names: One name per column of `labels`: `("label",)` for classes, the factors' names,
            `()` without labels.
        name: What messages call the data.
        binarize: How grey values became binary: `None` not at all (the values are used as they
            are), `"fixed"` once for all splits, `"dynamic"` anew at every `draw` from the grey
            `train`, with `valid` and `test` binarized once. `Rows` cannot be `"fixed"`.

    Raises:
        ValueError: A tensor is empty, not floating, not finite or of another shape or dtype than
            `train`; values contradict `binarize`; labels do not fit. The message names the split.

    Example:
        >>> splits = Splits(torch.rand(100, 1, 8, 8), name="noise")
        >>> splits.data_shape, len(splits.train), len(splits.valid)
        ((1, 8, 8), 100, 0)
    """

    train: torch.Tensor | Rows
    valid: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    test: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    labels: dict[str, torch.Tensor] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    name: str = "data"
    binarize: Literal["dynamic", "fixed"] | None = None

    def __post_init__(self) -> None:
        """Fills in empty splits and checks the rest."""
        if not isinstance(self.train, Rows):
            self._check_tensor("train", self.train)
        if self.train.shape.numel() == 0:
            shape = list(self.train.shape)
            raise ValueError(f"{self.name}: train is empty, its shape is {shape}")
        for split in ("valid", "test"):
            x = getattr(self, split)
            if isinstance(x, torch.Tensor) and x.shape == (0,):
                empty = x.new_empty((0, *self.train.shape[1:]), dtype=self.train.dtype)
                object.__setattr__(self, split, empty)
            self._check_tensor(split, getattr(self, split))
            self._check_like_train(split, getattr(self, split))
        self._check_binarization()
        self._check_labels()

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one datum, channel-first `(C, H, W)` for images."""
        return tuple(self.train.shape[1:])

    def draw(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """What a training step sees of the rows `x` of `train`.

        Args:
            x: `[B, *data_shape]`, on any device.
            generator: Where to draw from, on x's device; if not given, torch's global one, so that
                whoever restores the random state restores the draws.

        Returns:
            A new draw of Bernoulli(x) under `binarize="dynamic"`, else x itself.
        """
        return torch.bernoulli(x, generator=generator) if self.binarize == "dynamic" else x

    def _check_tensor(self, split: str, x: torch.Tensor) -> None:
        if not isinstance(x, torch.Tensor):
            raise ValueError(f"{self.name}: {split} must be a torch.Tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise ValueError(f"{self.name}: {split} must be floating, got {x.dtype}; use x.float()")
        if x.dim() < 2:
            raise ValueError(
                f"{self.name}: {split} must be [N, *data_shape] with at least one data dimension, "
                f"got shape {list(x.shape)}"
            )
        finite = torch.isfinite(x)
        if not finite.all():
            bad = (~finite).nonzero()
            raise ValueError(
                f"{self.name}: {split} holds {len(bad)} values that are NaN or infinite, "
                f"the first at index {tuple(bad[0].tolist())}"
            )

    def _check_like_train(self, split: str, x: torch.Tensor) -> None:
        if x.shape[1:] != self.train.shape[1:]:
            raise ValueError(
                f"{self.name}: one datum of {split} has shape {list(x.shape[1:])}, "
                f"of train {list(self.train.shape[1:])}; they must be equal"
            )
        if x.dtype != self.train.dtype:
            raise ValueError(f"{self.name}: {split} is {x.dtype}, train is {self.train.dtype}")

    def _check_binarization(self) -> None:
        if self.binarize not in (None, "dynamic", "fixed"):
            raise ValueError(
                f"{self.name}: binarize={self.binarize!r} is none of None, 'dynamic', 'fixed'"
            )
        if self.binarize is None:
            return
        if isinstance(self.train, Rows) and self.binarize == "fixed":
            raise ValueError(
                f"{self.name}: binarize='fixed' would have to draw all rows on the disk; accepted "
                "are None and 'dynamic', which draws those of a minibatch"
            )
        for split in SPLIT_NAMES:
            x = getattr(self, split)
            if isinstance(x, Rows):
                continue
            grey = split == "train" and self.binarize == "dynamic"
            if not (((x >= 0) & (x <= 1)) if grey else ((x == 0) | (x == 1))).all():
                raise ValueError(
                    f"{self.name}: with binarize={self.binarize!r} {split} must be "
                    f"{'within [0, 1]' if grey else 'only 0 and 1'}; "
                    f"ppl_vae.data.binarize(splits, {self.binarize!r}) makes it so from grey values"
                )

    def _check_labels(self) -> None:
        for split, labels in self.labels.items():
            if split not in SPLIT_NAMES:
                raise ValueError(f"{self.name}: labels for {split!r}; the splits are {SPLIT_NAMES}")
            if not isinstance(labels, torch.Tensor):
                kind = type(labels).__name__
                raise ValueError(f"{self.name}: {split} labels must be a torch.Tensor, got {kind}")
            if not (labels.dim() == 2 or (labels.dim() == 1 and labels.dtype == torch.int64)):
                raise ValueError(
                    f"{self.name}: {split} labels must be int64 [N] or factor values [N, F], "
                    f"got {labels.dtype} of shape {list(labels.shape)}"
                )
            if len(labels) != len(getattr(self, split)):
                raise ValueError(
                    f"{self.name}: {len(labels)} labels for "
                    f"{len(getattr(self, split))} data in {split}"
                )
            columns = 1 if labels.dim() == 1 else labels.shape[1]
            if columns != len(self.label_names):
                raise ValueError(
                    f"{self.name}: {split} labels have {columns} column(s), but label_names is "
                    f"{self.label_names}; one name per column"
                )
            if labels.is_floating_point() and not torch.isfinite(labels).all():
                raise ValueError(f"{self.name}: {split} labels hold NaN or infinite values")
