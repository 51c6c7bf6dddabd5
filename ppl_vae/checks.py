"""Sizes given as arguments: checked, with a message that says what is accepted."""

from collections.abc import Sequence

import torch

__all__ = ["check_dim", "check_dims", "check_hidden", "check_shape"]


def check_shape(shape: Sequence[int], what: str) -> torch.Size:
    """A shape as `torch.Size`; a `ValueError` where it is none."""
    return torch.Size(check_dims(shape, what))


def check_dims(dims: Sequence[int], what: str) -> tuple[int, ...]:
    """Positive integers as a tuple; a `ValueError` that names `what` where they are not."""
    accepted = "accepted are integers >= 1"
    if isinstance(dims, int) or not isinstance(dims, Sequence) or len(dims) == 0:
        raise ValueError(f"{what} is {dims!r}; {accepted}")
    if any(isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in dims):
        raise ValueError(f"{what} is {list(dims)!r}; {accepted}")
    return tuple(dims)


def check_dim(dim: int, what: str) -> None:
    """A `ValueError` that names `what` where `dim` is no positive integer."""
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ValueError(f"{what} is {dim!r}; accepted is an integer >= 1")


def check_hidden(widths: Sequence[int], what: str) -> tuple[int, ...]:
    """`check_dims`, but none at all is accepted: a network without hidden layers."""
    is_empty = isinstance(widths, Sequence) and len(widths) == 0
    return () if is_empty else check_dims(widths, what)
