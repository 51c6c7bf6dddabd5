"""Several trainings that make their steps together, in one graph.

Shapes: R replicas, B data of a minibatch.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from ppl_vae.ahead import Unseen, as_tensors
from ppl_vae.compiled import CompiledLoss, CompiledStep, TraceError
from ppl_vae.compiled.replicated import ReplicatedStep, twin
from ppl_vae.compiled.tracing import TracedLoss, sites_of
from ppl_vae.estimators import Estimator
from ppl_vae.handlers import Weight, weighted
from ppl_vae.lines import Line
from ppl_vae.loop import Loop
from ppl_vae.randomness import fork, looking, snapshot
from ppl_vae.replica import Replica
from ppl_vae.schedules import Constant

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
        schedules = [loop.schedule for loop in self._loops]
        self._weight: Weight | None = None
        if all(schedule == schedules[0] for schedule in schedules):
            # Then it is part of the graph.
            self._weight = schedules[0](0) if isinstance(schedules[0], Constant) else None
        self._step, lowered = self._prepare(lowers)
        self._steps = [_Member(self, i, loop, lowered) for i, loop in enumerate(self._loops)]
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

    def advance(self) -> None:
        """Makes a step of each, and what is to be done after it."""
        members = self.members
        weights = [self._loops[i].schedule(self._loops[i].step) for i in self._rows(members)]
        if any(sites_of(weight) != self._sites for weight in weights):
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
            losses = self._step(args, self._columns(weights), self._generators, rows)
        except RuntimeError:
            # One cannot draw by NaN that nobody has looked at, perhaps: which, each finds out.
            lines = {}
            for i in members:
                with self._awake(i), self._replicas[i].failing():
                    self._steps[i].again(self._loops[i].step + 1)
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
        self._step.release(index)
        for i, owner in enumerate(self._rows(self.members)):
            if i != owner:
                self._step.follow(i, owner)

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
        return _stacked([batches[i] for i in self._rows(members)])

    def _columns(self, weights: Sequence[Weight]) -> list[Tensor]:
        """The tensors of the weights, `[R]`; none where they are part of the graph."""
        if self._weight is not None:
            return []
        like = self._sums
        if isinstance(weights[0], Mapping):
            columns = [[float(weight[name]) for weight in weights] for name in weights[0]]  # type: ignore[index]
        else:
            columns = [[float(weight) for weight in weights]]  # type: ignore[arg-type]
        return [like.new_tensor(column) for column in columns]

    def _prepare(self, lowers: Callable[[TracedLoss], bool]) -> tuple[ReplicatedStep, bool]:
        batches = [loop.prepared.first for loop in self._loops]
        if not all(isinstance(value, Tensor) for args in batches for value in args):
            raise TraceError("a minibatch holds something that is no tensor")
        weights = [loop.schedule(loop.step) for loop in self._loops]
        if self._weight is None:
            # What a weight of zero hides is to be seen.
            weights = [dict.fromkeys(w, 1.0) if isinstance(w, Mapping) else 1.0 for w in weights]
        self._sites = sites_of(weights[0])
        if any(sites_of(weight) != self._sites for weight in weights):
            raise TraceError("the schedules weigh different sites")
        free = [w if self._weight is not None else as_tensors(w, self._loops[0]) for w in weights]
        steps = [_step_of(loop) for loop in self._loops]
        traced = self._trace(steps, batches, free)
        lowered = lowers(traced[0])
        step = ReplicatedStep(steps, traced, lowered=lowered)
        if not step.is_exact:
            _check_same_code([one.graph.code for one in self._trace(steps, batches, free, True)])
        args = _stacked(batches), self._columns(weights)
        step.prepare(*args)
        try:
            with _elsewhere([p for one in steps for p in one.loss.parameters]):
                if step.is_exact:
                    self._check(step.losses(*args, self._generators), free)
        except TraceError:
            for index in range(len(steps)):
                step.release(index)
            raise
        return step, lowered

    def _trace(
        self,
        steps: Sequence[CompiledStep],
        batches: Sequence[tuple[Any, ...]],
        weights: Sequence[Weight],
        each: bool = False,
    ) -> list[TracedLoss]:
        """The graph of each; that of the first for all, where it holds nothing of its own."""
        traced: list[TracedLoss] = []
        for replica, step, args, weight in zip(
            self._replicas, steps, batches, weights, strict=True
        ):
            if traced and not each and not traced[0].constants:
                traced.append(twin(traced[0], step.loss))
            else:
                with replica.awake():
                    traced.append(step.loss.trace(args, weight))
        return traced

    def _check(self, losses: Tensor, weights: Sequence[Weight]) -> None:
        """Each pair's own programs must give the loss that the graph of the first gives for it."""
        for i, (replica, weight) in enumerate(zip(self._replicas, weights, strict=True)):
            loop = self._loops[i]
            pair = loop.model, loop.guide
            watched, kept = looking(*pair), _kept(loop.estimator)
            with replica.awake(), watched, kept, torch.no_grad(), weighted(weight):
                own = loop.estimator.differentiable_loss(*pair, *loop.prepared.first)
            if not torch.allclose(losses[i], own, rtol=1e-3, equal_nan=True):
                raise TraceError(
                    f"the pairs are not of one kind: the loss of pair {i} is {own.item():.6g}, and "
                    f"that of the first one's graph, given its parameters, {losses[i].item():.6g}"
                )


class _Member:
    """One training's steps, which all of them make together."""

    def __init__(self, together: Together, index: int, loop: Loop, lowered: bool) -> None:
        self._together, self._index, self._loop = together, index, loop
        self.unseen = Unseen(loop)
        self.is_compiled = lowered

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

    def again(self, step: int) -> None:
        """Leaves the others, and makes the steps up to this one again; see `Unseen.again`."""
        self._together.leave(self._index)
        self.is_compiled = False
        self.unseen.again(step)

    def keep(self) -> None:
        """As `Ahead.keep`."""
        if self._together.has(self._index):
            self.unseen.keep()


def _step_of(loop: Loop) -> CompiledStep:
    """Its step, of which only the graph is wanted."""
    trained = list(loop.optimizers.trained.values())
    loss = CompiledLoss(loop.model, loop.guide, loop.estimator, trained, lowered=False)
    optimizers = list(loop.optimizers.optimizers.values())
    return CompiledStep(loss, optimizers, loop.clip_grad_norm, lowered=False)


def _row(batch: Sequence[Tensor], index: int) -> tuple[Tensor, ...]:
    return tuple(value[index] for value in batch)


def _stacked(batches: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.stack(values) for values in zip(*batches, strict=True)]


def _check_same_code(codes: Sequence[str]) -> None:
    for i, code in enumerate(codes):
        if code != codes[0]:
            raise TraceError(f"the pairs are not of one kind: pair {i} has another graph than 0")


@contextmanager
def _elsewhere(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Parameters moved a little: behind those that begin as zero, a difference does not show."""
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        with fork(seed=0):
            for parameter in parameters:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        try:
            yield
        finally:
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


@contextmanager
def _kept(estimator: ELBO) -> Iterator[None]:
    """What an estimator remembers is afterwards as it was."""
    state = estimator.state_dict() if isinstance(estimator, Estimator) else {}
    state = {name: value.clone() for name, value in state.items()}
    yield
    if isinstance(estimator, Estimator):
        estimator.load_state_dict(state)
