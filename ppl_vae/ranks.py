"""Processes that train one pair together, each on its part of every minibatch.

Shapes: R ranks, B data of a minibatch of all ranks together.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ppl_vae.checkpoint import from_bytes, to_bytes
from ppl_vae.randomness import seed_all

__all__ = ["LostRankError", "Ranks", "joined", "launched_rank", "own_device"]

# Between two questions to all ranks whether somebody wants to stop: steps.
_ASK_EVERY = 16


class LostRankError(ConnectionError):
    """Another process of the training is gone, or does not answer."""


class Ranks:
    r"""The processes of a data-parallel training, of which this is one.

    A minibatch of B data is cut into R parts of B / R. Each rank draws its own noise, and the
    gradients of all parts become that of the whole:

    .. math:: \nabla \sum_{b \le B} l_b = \sum_{r \le R} \nabla \sum_{b \in r} l_b, \qquad
        \nabla \frac{N}{B} \sum_{b \le B} l_b
        = \frac1R \sum_{r \le R} \nabla \frac{N}{B / R} \sum_{b \in r} l_b

    a sum where a loss sums over its minibatch, a mean where a subsampled plate scales it to all
    data. So the parameters are those of one process with the whole minibatch, up to noise and
    rounding, however many ranks there are.

    Args:
        group: Of `torch.distributed`, initialized.

    Attributes:
        rank: The number of this process.
        num: R.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_initialized():
            raise ValueError(
                "there are no ranks: torch.distributed is not initialized. Call "
                "torch.distributed.init_process_group first, or start the command with torchrun"
            )
        self._group = group
        self.rank, self.num = dist.get_rank(group), dist.get_world_size(group)
        self._is_cuda = dist.get_backend(group) == "nccl"

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and validates."""
        return self.rank == 0

    def part(self, index: Tensor) -> Tensor:
        """This rank's part of a minibatch: of `[B]`, `[B / R]`."""
        size = len(index) // self.num
        return index[self.rank * size : (self.rank + 1) * size]

    def seed(self, seed: int, step: int) -> None:
        """Starts this rank's random stream of a step: its own, and the same after a resume."""
        mixed = np.random.SeedSequence((seed, step, self.rank)).generate_state(1, np.uint64)[0]
        seed_all(int(mixed >> 1))

    def combine(self, loss: Tensor, parameters: Sequence[Tensor], *, scaled: bool) -> Tensor:
        """Makes gradients those of the whole minibatch, in place.

        Args:
            loss: Of this rank's part, `[]`.
            parameters: With their gradients.
            scaled: Whether losses are scaled to all data; a sum over ranks then is a mean.

        Returns:
            The mean of the ranks' losses, `[]`.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        values = torch.cat([loss.reshape(1), *(g.reshape(-1).to(loss) for g in gradients)])
        self._sum(values)
        loss, rest = values[0] / self.num, values[1:] / self.num if scaled else values[1:]
        parts = rest.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return loss

    def mean(self, x: Tensor) -> Tensor:
        """The mean over ranks; its gradient is that of this rank's own `x`, undivided.

        What `combine` makes of it is then the gradient of a function of the mean times B.
        """
        total = self._sum(x.detach().clone())
        return x + (total / self.num - x.detach())

    def average(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """The means of the numbers of a line of metrics, at any depth."""
        found = list(_numbers(line))
        means = iter(self._sum(self._tensor(found)).div_(self.num).tolist())
        return _filled(line, means)

    def any(self, wish: bool, step: int) -> bool:
        """Whether a rank wishes so; asked only every few steps, at the same ones on all ranks."""
        return step % _ASK_EVERY == 0 and bool(self._sum(self._tensor([float(wish)])).item())

    def from_first(self, value: float) -> float:
        """The first rank's number."""
        return self._sum(self._tensor([value if self.is_first else 0.0])).item()

    def tree_from_first(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The first rank's tree of numbers, strings and tensors; see `ppl_vae.checkpoint`."""
        content = to_bytes(tree) if self.is_first else b""
        size = int(self.from_first(len(content)))
        data = torch.zeros(size, dtype=torch.uint8)
        if self.is_first:
            data = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
        data = data.cuda() if self._is_cuda else data
        with _telling():
            dist.broadcast(data, dist.get_global_rank(self._group or dist.group.WORLD, 0),
                           group=self._group)  # fmt: skip
        return tree if self.is_first else from_bytes(data.cpu().numpy().tobytes())

    def _tensor(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device="cuda" if self._is_cuda else "cpu")

    def _sum(self, values: Tensor) -> Tensor:
        with _telling():
            dist.all_reduce(values, group=self._group)
        return values


def launched_rank() -> int | None:
    """The rank of a process that torchrun, or the like, has started with others; else none."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        return None
    return int(os.environ["RANK"])


def own_device(device: str) -> str:
    """Where this process trains: of several on CUDA each has the GPU of its own number.

    Args:
        device: What was asked for; returned as it is where there is nothing to choose.
    """
    if launched_rank() is None or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks | None]:
    """The ranks of a process that torchrun has started; none of any other.

    Args:
        device: Where this rank trains: nccl on CUDA, else gloo.
    """
    if launched_rank() is None:
        yield None
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _telling():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks()
    finally:
        dist.destroy_process_group()


@contextmanager
def _telling() -> Iterator[None]:
    """What a collective says of a lost rank, in a sentence."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LostRankError(
            f"another rank of the training is gone or does not answer ({reason}). The last "
            "checkpoint is whole; --resume goes on from it, with any number of ranks"
        ) from error


def _numbers(line: Mapping[str, Any]) -> Iterator[float]:
    for value in line.values():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, float):
            yield value


def _filled(line: Mapping[str, Any], values: Iterator[float]) -> dict[str, Any]:
    return {
        name: _filled(value, values)
        if isinstance(value, Mapping)
        else (next(values) if isinstance(value, float) else value)
        for name, value in line.items()
    }
