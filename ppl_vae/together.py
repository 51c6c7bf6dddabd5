"""Several trainings that make their steps together, in one graph.

Shapes: R replicas, B data of a minibatch.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ppl_vae.ahead import Unseen
from ppl_vae.common_step import common_step, stacked
from ppl_vae.compiled.tracing import TracedLoss
from ppl_vae.handlers import Weight
from ppl_vae.lines import Line
from ppl_vae.loop import Loop
from ppl_vae.randomness import snapshot
from ppl_vae.replica import Replica

__all__ = ["Together"]


class Together:
    """Replicas at the same step, of one kind of pair.

    Args:
        replicas: The trainings.
        lowers: Of the traced loss, whether to compile; else the graph is interpreted.

    Raises:
        TraceError: The pairs cannot be traced, or are not of one kind.
        CompileError: The graph cannot be compiled.
    """

    def __init__(self, replicas: Sequence[Replica], lowers: Callable[[TracedLoss], bool]) -> None:
        self._replicas = list(replicas)
        self._loops = [replica.course.loop for replica in replicas]
        self._device = self._loops[0].prepared.first[0].device
        self._generators = [replica.generator(self._device) for replica in replicas]
        self._sums = self._loops[0].prepared.first[0].new_zeros(len(replicas))
        self._common = common_step(replicas, self._generators, lowers)
        self._steps = [_Member(self, i, loop) for i, loop in enumerate(self._loops)]
        for replica, member in zip(self._replicas, self._steps, strict=True):
            replica.together, replica.course.steps = True, member
            with replica.awake():
                member.keep()

    def has(self, index: int) -> bool:
        """Whether this one still makes its steps here."""
        return self._replicas[index].together

    @property
    def members(self) -> list[int]:
        """Which of them still make their steps here."""
        return [i for i, replica in enumerate(self._replicas) if replica.together]

    @property
    def is_compiled(self) -> bool:
        """Whether the graph of their step is compiled, or interpreted."""
        return self._common.is_lowered

    def advance(self) -> None:
        """Makes a step of each, and what is to be done after it."""
        members = self.members
        weights = [self._loops[i].schedule(self._loops[i].step) for i in self._rows(members)]
        if not self._common.takes(weights):
            warnings.warn(
                f"from step {self._loops[members[0]].step} on each replica is trained by itself: "
                "the schedule weighs other sites than before",
                stacklevel=4,
            )
            self.part()
            return
        args = self._next(members)
        lines: dict[int, Line] = {}
        if self._replicas[members[0]].course.logs:
            lines = {i: self._line(i, _row(args, i), weights[i]) for i in members}
        try:
            rows = self._rows(members)
            columns = self._common.columns(weights, self._sums)
            losses = self._common.step(args, columns, self._generators, rows)
        except RuntimeError as error:
            # One cannot draw by NaN that nobody has looked at, perhaps: which, each finds out.
            lines = {}
            for i in members:
                with self._awake(i), self._replicas[i].failing():
                    self._steps[i].again(self._loops[i].step + 1, error)
        else:
            self._sums += losses
            for i in members:
                self._loops[i].optimizers.stepped()
                self._loops[i].step += 1
            for i in list(lines):
                value = losses[i].item()
                lines[i]["loss"] = value / self._loops[i].prepared.num_data(_row(args, i))
                if not math.isfinite(value):
                    del lines[i]
                    self._look(i, check_only=True)
        for i in members:
            replica = self._replicas[i]
            replica.course.saw(lines.get(i))
            if replica.failure is None and replica.course.is_due:
                self._look(i)

    def sum_of(self, index: int) -> Tensor:
        """The sum over the losses of one that nobody has looked at, `[]`."""
        value = self._sums[index].clone()
        self._sums[index] = 0.0
        return value

    def part(self) -> None:
        """Lets all go their own ways from where they stand, if that is finite."""
        for index in self.members:
            with self._awake(index), self._replicas[index].failing():
                self._replicas[index].course.steps.check()
                if self.has(index):
                    self.leave(index)

    def leave(self, index: int) -> None:
        """Lets one that is awake go its own way from where it stands."""
        self._replicas[index].together = False
        self._common.step.release(index)
        for i, owner in enumerate(self._rows(self.members)):
            if i != owner:
                self._common.step.follow(i, owner)

    def _look(self, index: int, *, check_only: bool = False) -> None:
        replica = self._replicas[index]
        with self._awake(index), replica.failing():
            if check_only:
                replica.course.steps.check()
            else:
                replica.course.look()
            if replica.is_over and replica.together:
                self.leave(index)

    @contextmanager
    def _awake(self, index: int) -> Iterator[None]:
        """As `Replica.awake`, its generator taken along."""
        replica, generator = self._replicas[index], self._generators[index]
        replica.moved(generator, self._device)
        with replica.awake():
            yield
        generator.set_state(replica.stream(self._device))

    def _line(self, index: int, args: Sequence[Tensor], weight: Weight) -> Line:
        with self._awake(index):
            return self._loops[index].train_line(tuple(args), weight, None, snapshot())

    def _rows(self, members: Sequence[int]) -> list[int]:
        """Whose step each row makes: its own, or, where that one has left, any other's."""
        lead = members[:1]
        return [i if i in members or not lead else lead[0] for i in range(len(self._loops))]

    def _next(self, members: Sequence[int]) -> list[Tensor]:
        """The minibatches of the next step, `[R, B, ...]`."""
        lead = members[0]
        for i in members:
            if hasattr(self._loops[i].estimator, "set_step"):
                self._loops[i].estimator.set_step(self._loops[i].step)
        prepared = self._loops[lead].prepared
        if prepared.stream.is_resident:
            index = {i: self._loops[i].prepared.stream.next_index() for i in members}
            rows = torch.stack([index[i] for i in self._rows(members)])
            return list(prepared.take(rows, self._generators))
        batches = {}
        for i in members:
            with self._awake(i):
                batches[i] = self._loops[i].prepared.batch()
        return stacked([batches[i] for i in self._rows(members)])


class _Member:
    """One training's steps, which all of them make together."""

    def __init__(self, together: Together, index: int, loop: Loop) -> None:
        self._together, self._index, self._loop = together, index, loop
        self.unseen = Unseen(loop)
        self.is_compiled = together.is_compiled

    def advance(self, *, log: bool, most: int = 1) -> Line | None:
        """A step by itself, after it has left the others; see `Loop.advance`."""
        return self._loop.advance(log=log, most=most)

    def check(self) -> None:
        """As `Ahead.check`; from where it goes back to, it goes on by itself."""
        if not self._together.has(self._index):
            return
        self.unseen.add(self._together.sum_of(self._index))
        if not self.unseen.is_finite():
            self.again(self._loop.step)

    def again(self, step: int, cause: Exception | None = None) -> None:
        """Leaves the others, and makes the steps up to this one again; see `Unseen.again`."""
        self._together.leave(self._index)
        self.is_compiled = False
        self.unseen.again(step, cause)

    def keep(self) -> None:
        """As `Ahead.keep`."""
        if self._together.has(self._index):
            self.unseen.keep()


def _row(batch: Sequence[Tensor], index: int) -> tuple[Tensor, ...]:
    return tuple(value[index] for value in batch)
