"""How a check fails, and how it leaves everything as it was."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae.randomness import fork, looking, validation

__all__ = ["ConformanceError", "close", "expect", "isolated", "keeping", "reporting"]


class ConformanceError(AssertionError):
    """What a check raises: one sentence."""


def expect(condition: Any, sentence: str) -> None:
    """Raises a `ConformanceError` unless the condition holds; under `python -O`, too."""
    if not condition:
        raise ConformanceError(sentence)


@contextmanager
def reporting(what: str) -> Iterator[None]:
    """Turns whatever the block raises into a `ConformanceError` that says what was being done."""
    try:
        yield
    except ConformanceError:
        raise
    except Exception as error:
        # Pyro appends a page of shapes to what a program raises.
        first, *rest = f"{error}".splitlines() or [""]
        if first.endswith(":") and rest:
            first = f"{first} {rest[0]}"
        raise ConformanceError(f"{what} raised {type(error).__name__}: {first}") from error


@contextmanager
def isolated(seed: int, *programs: Any) -> Iterator[None]:
    """A seeded block in an empty parameter store, with gradients and Pyro's validation on.

    All of it is put back afterwards, and so are the default type and the programs' buffers.
    """
    dtype = torch.get_default_dtype()
    store = pyro.get_param_store()
    try:
        # The seed last: `looking` and `store.scope` start nothing of their own.
        with looking(*programs), validation(True), store.scope(), torch.enable_grad(), fork(seed):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def keeping(leaves: Mapping[str, Tensor]) -> Iterator[None]:
    """A block in which the leaves start without gradients; values and gradients are put back."""
    kept = [(leaf, leaf.detach().clone(), leaf.grad) for leaf in leaves.values()]
    try:
        for leaf, _, _ in kept:
            leaf.grad = None
        yield
    finally:
        with torch.no_grad():
            for leaf, value, gradient in kept:
                leaf.copy_(value)
                leaf.grad = gradient


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same number computed in two ways."""
    if one.shape != other.shape:
        return False
    tolerance = torch.finfo(one.dtype).eps ** 0.6  # 4e-10 in float64, 7e-5 in float32
    # Relative to the largest, since sums of what cancels are compared.
    scale = other.detach().abs().max() if other.numel() else 0.0
    return bool(((one - other).abs() <= tolerance * (other.abs() + scale)).all())
