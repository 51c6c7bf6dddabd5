"""The global state of random streams and of Pyro's parameter store: kept, and put back."""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import unwrap

__all__ = [
    "check_seed",
    "fork",
    "looking",
    "on_copies",
    "restore",
    "seed_all",
    "snapshot",
    "untouched",
    "validation",
]


def seed_all(seed: int) -> None:
    """Seeds torch on every device, numpy and Python; see `check_seed`."""
    check_seed(seed)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def check_seed(seed: int) -> None:
    """Raises `ValueError` for a seed that is no integer, or outside of [0, 2^63)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}; accepted is an integer >= 0 and below 2^63")


def snapshot() -> dict[str, Any]:
    """The state of every global generator: torch on CPU and CUDA, numpy, Python.

    Returns:
        A tree of dictionaries, tuples, numbers and tensors (see `ppl_vae.checkpoint`).
    """
    _, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = tuple(torch.cuda.get_rng_state_all())
    return state


def restore(state: dict[str, Any]) -> None:
    """Puts every global generator back where `snapshot` found it."""
    torch.set_rng_state(state["torch"])
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    random.setstate(state["python"])
    # A run that began on a GPU may go on without one.
    if "cuda" in state and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(list(state["cuda"]))


@contextmanager
def fork(seed: int | None = None) -> Iterator[None]:
    """Runs a block that leaves every global generator as it was.

    Args:
        seed: Where the block's own stream starts; where the outer one stands, if not given.
    """
    state = snapshot()
    try:
        if seed is not None:
            seed_all(seed)
        yield
    finally:
        restore(state)


@contextmanager
def untouched(seed: int | None = None) -> Iterator[None]:
    """`fork`, and Pyro's parameter store is left as it was, too.

    Running a `PyroModule` registers its parameters in the global store, where a later module of the
    same names would find them. What is in the store already can be read inside.
    """
    store = pyro.get_param_store()
    with fork(seed), store.scope(store.get_state()):
        yield


@contextmanager
def looking(*programs: Any) -> Iterator[None]:
    """Runs of programs that are to change nothing: random streams and buffers are put back.

    In training mode a forward pass moves the running statistics of batch normalization.
    """
    modules = [program for program in programs if isinstance(program, torch.nn.Module)]
    kept = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    try:
        with fork():
            yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


@contextmanager
def on_copies(*programs: Any) -> Iterator[None]:
    """Runs of programs whose gradients are wanted, and that are to move no buffer.

    They move copies; to write old values back, as `looking` does, would spoil the graph of a run.
    """
    programs = tuple(unwrap(program) for program in programs)
    modules = [m for p in programs if isinstance(p, torch.nn.Module) for m in p.modules()]
    kept = [(module, dict(module._buffers)) for module in modules if module._buffers]
    for module, buffers in kept:
        module._buffers.update({n: b.clone() for n, b in buffers.items() if b is not None})
    try:
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)


def validation(on: bool) -> AbstractContextManager:
    """Pyro's and torch's checks of distributions and programs, on or off for a while."""
    return pyro.settings.context(
        validate_distributions_pyro=on,
        validate_distributions_torch=on,
        validate_infer=on,
        validate_poutine=on,
    )
