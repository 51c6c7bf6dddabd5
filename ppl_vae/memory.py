"""What is said where memory runs out: which batch, how many particles, may fit.

A step's memory is a constant and a part proportional to batch times particles times replicas.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Load", "OutOfMemoryError", "allocated", "explaining", "fitting", "is_out_of_memory",
           "is_uncountable"]  # fmt: skip

# Of what is free; the rest is lost between the pieces.
_SHARE = 0.9
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
# torch's words where it does not raise an error of its own for it.
_WORDS = re.compile(
    r"can't allocate memory|not enough memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED|"
    r"Cannot allocate memory",
    re.IGNORECASE,
)


# Sizes that torch and Python cannot even count.
_UNCOUNTABLE = re.compile(
    r"Overflow when unpacking|calculation overflowed|int too (big|large) to convert|"
    r"multiplication overflow|exceeds? the (maximum|limit)",
    re.IGNORECASE,
)


class OutOfMemoryError(MemoryError):
    """Memory ran out; the message says in what, and what may fit."""


@dataclass(frozen=True)
class Load:
    """What a step works on at once.

    Attributes:
        batch: B.
        particles: Draws of the guide for each datum.
        replicas: Runs at once.
        option: How less of B is asked for, with a place for the number.
    """

    batch: int
    particles: int = 1
    replicas: int = 1
    option: str = "batch_size={}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is that memory ran out, of Python, the CPU or a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_WORDS.search(str(error)))


def is_uncountable(error: BaseException) -> bool:
    """Whether an error is that a size is beyond what a computer counts to."""
    return bool(_UNCOUNTABLE.search(str(error)))


def fitting(load: Load, needed: float, free: float) -> tuple[int, int]:
    """The batch that fits with as many particles, and the particles that fit with such a batch.

    Args:
        load: What did not fit.
        needed: Bytes that it needs beyond what stays from step to step, or more.
        free: Bytes that there are for it.

    Returns:
        Both; 0 where not even one does, and no more than 7/8 of what did not fit.
    """
    share = min(_SHARE * free / needed, 7 / 8)
    return int(load.batch * share), int(load.particles * share)


def allocated(device: torch.device) -> float:
    """Bytes that tensors on a device take now; 0 where nobody counts them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0.0


@contextmanager
def explaining(
    what: str,
    load: Load,
    device: torch.device,
    *,
    held: float = 0.0,
    tidy: Callable[[], None] | None = None,
) -> Iterator[None]:
    """A context in which memory that runs out is said to have done so.

    Args:
        what: What is done here, as `step 3`.
        load: What it works on.
        device: Where.
        held: Bytes that stay from step to step; see `allocated`.
        tidy: Frees what a failed step holds on to, before the free memory is counted.

    Raises:
        OutOfMemoryError: In the place of what torch or Python raises.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        peak, asked = _peak(device), _asked(str(error))
        # The tensors of the failed step, which its frames hold.
        error.__traceback__ = None
        if tidy is not None:
            tidy()
        raise OutOfMemoryError(
            f"{what}: {_where(device)} ran out of memory{_of(asked)}, with {_shown(load)}. "
            f"{_advice(load, max(peak - held, 0) + asked, _free(device))}"
        ) from None


def _advice(load: Load, needed: float, free: float) -> str:
    if needed > 0 and free > 0:
        batch, particles = fitting(load, needed, free)
    else:
        batch, particles = load.batch // 2, load.particles // 2
    ways = [load.option.format(batch)] if batch >= 1 else []
    if load.particles > 1 and particles >= 1:
        ways.append(f"num_particles={particles}")
    if load.replicas > 1:
        ways.append("fewer replicas at once")
    if not ways:
        return "Not even one datum fits, by an estimate; take smaller networks or a larger machine"
    return f"{' or '.join(ways)} may fit: an estimate, as memory goes by their product"


def _shown(load: Load) -> str:
    words = [f"a batch of {load.batch}", f"{load.particles} particle(s)"]
    if load.replicas > 1:
        words.append(f"{load.replicas} replicas")
    return " and ".join(words)


def _where(device: torch.device) -> str:
    return "the computer" if device.type == "cpu" else f"the device {device}"


def _of(asked: float) -> str:
    return f", asked for {asked / 2**30:.3g} GiB more" if asked else ""


def _asked(message: str) -> float:
    """How many bytes the last request was for, by torch's words; 0 where it does not say."""
    found = re.search(r"tried to allocate ([\d.]+) ?([KMGT]iB|bytes)", message, re.IGNORECASE)
    return float(found[1].rstrip(".")) * _UNITS[found[2].lower()] if found else 0.0


def _peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0.0


def _free(device: torch.device) -> float:
    """Bytes that a step could have, now that none is under way."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0.0
