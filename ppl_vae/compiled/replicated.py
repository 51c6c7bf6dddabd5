"""One step of several trainings at once: the graph of one, vmapped over all that they hold.

Shapes: R replicas.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_vae.compiled.loss import CompiledLoss
from ppl_vae.compiled.lowering import lower
from ppl_vae.compiled.noise import lift_noise
from ppl_vae.compiled.step import CompiledStep
from ppl_vae.compiled.tracing import TracedLoss, TraceError, trace_function
from ppl_vae.randomness import fork, restore, seed_all, snapshot

__all__ = ["ReplicatedStep", "twin"]


def twin(traced: TracedLoss, loss: CompiledLoss) -> TracedLoss:
    """The graph of one pair for another pair of the same kind.

    Raises:
        TraceError: What the other pair holds is not of the same shapes and types.
    """
    held = loss.held()
    ours, theirs = ([(v.shape, v.dtype) for v in values] for values in (traced.held, held))
    if ours != theirs:
        raise TraceError("the pairs hold tensors of different shapes or types")
    places = {id(value): i for i, value in enumerate(traced.held)}
    reached = tuple(held[places[id(parameter)]] for parameter in traced.reached)
    return replace(traced, held=held, reached=reached)


class ReplicatedStep:
    """The same step of R trainings, each with parameters, data, weight and rates of its own.

    What the trainings hold is laid in one tensor, `[R, ...]`, of which each parameter, buffer and
    moment becomes a row: so each can be validated, saved and looked at as if it were alone.

    Each draws from a generator of its own, as it would if it were alone, as long as nothing is
    drawn whose distribution hangs on what the graph computes (`is_exact`); such draws are different
    for each, but come from one stream of all.

    Args:
        steps: One for each training, each with its own pair, estimator and optimizers.
        traced: The graph of the loss, for each.
        lowered: Compile the graph; else it is interpreted, operation by operation.

    Raises:
        TraceError: The trainings are not of one kind, or an operation cannot be vmapped.
    """

    def __init__(
        self, steps: Sequence[CompiledStep], traced: Sequence[TracedLoss], *, lowered: bool = True
    ) -> None:
        if not all(step.is_whole for step in steps):
            raise TraceError("the optimizers are not Adam, AdamW or SGD in their common forms")
        forms = {step.form for step in steps}
        if len(forms) > 1:
            raise TraceError("the optimizers are of different kinds")
        graph, self._draws, self.is_exact = lift_noise(traced[0].graph)
        self._made = [
            step.plan(replace(one, graph=graph)) for step, one in zip(steps, traced, strict=True)
        ]
        self._lowered = lowered
        self._held = _Rows([list(made.traced.held) for made in self._made])
        self._moments = _Rows([made.moments() for made in self._made])
        blank = zip(*(made.blank() for made in self._made), strict=True)
        self._blank = [torch.stack(rows) for rows in blank]
        self._function: Callable = self._made[0].function
        self._constants: tuple[Tensor, ...] = ()
        self._random: dict[str, Any] | None = None

    def prepare(self, batch: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """Compiles for batches and weights like these; see `__call__`.

        Raises:
            TraceError: An operation cannot be vmapped.
            CompileError: The graph cannot be compiled.
        """
        generators = [torch.Generator(batch[0].device) for _ in self._made]
        inputs = self._inputs(batch, weights, generators, self._blank)
        dims = [*self._held.dims, *[0] * (len(inputs) - len(self._held.dims))]
        together = torch.func.vmap(self._made[0].function, tuple(dims), randomness="different")
        with fork(), warnings.catch_warnings():
            # What has no rule of its own is made R times over, which the graph then holds.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            step = trace_function(together, inputs)
            function: Callable = step.graph
            if self._lowered:
                function = lower(step.graph, step.inputs(inputs))
        self._function, self._constants = function, step.constants
        self._held.adopt()
        self._moments.adopt()

    def losses(
        self,
        batch: Sequence[Tensor],
        weights: Sequence[Tensor],
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """The losses before a step that is not made, `[R]`; no generator is moved."""
        kept = [generator.get_state() for generator in generators]
        inputs = self._inputs(batch, weights, generators, self._blank)
        for generator, state in zip(generators, kept, strict=True):
            generator.set_state(state)
        with torch.no_grad(), fork():
            return self._function(*(value.clone() for value in inputs), *self._constants)[0]

    def __call__(
        self,
        batch: Sequence[Tensor],
        weights: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        owners: Sequence[int],
    ) -> Tensor:
        """Makes a step of each.

        Args:
            batch: The tensors of the minibatches, `[R, B, ...]`.
            weights: The tensors of the KL weights, `[R]`.
            generators: Where each draws from.
            owners: Whose step each row makes: its own, or that of another it `follows`.

        Returns:
            The losses before the step, `[R]`.
        """
        counted = {i: self._made[i].numbers() for i in dict.fromkeys(owners)}
        rows = [counted[i] for i in owners]
        numbers = [
            torch.tensor(values, dtype=like.dtype, device=like.device)
            for values, like in zip(zip(*rows, strict=True), self._blank, strict=True)
        ]
        with torch.no_grad(), nullcontext() if self.is_exact else self._own_stream(generators[0]):
            inputs = self._inputs(batch, weights, generators, numbers)
            return self._function(*inputs, *self._constants)[0]

    def release(self, index: int) -> None:
        """Gives a training tensors of its own again."""
        self._held.release(index)
        self._moments.release(index)

    def follow(self, index: int, other: int) -> None:
        """Makes the row of one that has left another's: by NaN nothing could be drawn."""
        for rows in (self._held, self._moments):
            rows.follow(index, other)

    @contextmanager
    def _own_stream(self, generator: torch.Generator) -> Iterator[None]:
        """What the graph draws itself: from no replica's stream, whose noise it has already."""
        with fork():
            if self._random is None:
                seed_all(_seed_by(generator))
            else:
                restore(self._random)
            yield
            self._random = snapshot()

    def _inputs(
        self,
        batch: Sequence[Tensor],
        weights: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        numbers: Sequence[Tensor],
    ) -> list[Tensor]:
        found = (made.traced.constants for made in self._made)
        constants = [torch.stack(values) for values in zip(*found, strict=True)]
        noise = [draw(generators) for draw in self._draws]
        before = [*self._held.tensors, *batch, *weights, *constants, *noise]
        return [*before, *self._moments.tensors, *numbers]


def _seed_by(generator: torch.Generator) -> int:
    """A seed that hangs on where a generator stands, which is left there."""
    other = torch.Generator(generator.device)
    other.set_state(generator.get_state())
    return int(torch.randint(2**62, (), generator=other, device=generator.device))


class _Rows:
    """Tensors of several owners, laid together; what they share stays one.

    Attributes:
        tensors: `[R, ...]`, or the shared one.
        dims: Along which axis each is an owner's, or none.
    """

    def __init__(self, rows: Sequence[Sequence[Tensor]]) -> None:
        self._columns = list(zip(*rows, strict=True))
        self.tensors: list[Tensor] = []
        self.dims: list[int | None] = []
        for column in self._columns:
            shared = all(value is column[0] for value in column)
            if not shared and len({id(value) for value in column}) < len(column):
                raise TraceError("some of the trainings share a tensor, and others do not")
            values = [value.detach() for value in column]
            self.tensors.append(values[0] if shared else torch.stack(values))
            self.dims.append(None if shared else 0)

    def adopt(self) -> None:
        """Makes each owner's tensor a row."""
        for column, whole, dim in zip(self._columns, self.tensors, self.dims, strict=True):
            if dim is not None:
                for value, row in zip(column, whole, strict=True):
                    value.data = row

    def release(self, index: int) -> None:
        """Gives one owner copies of its rows."""
        for column, dim in zip(self._columns, self.dims, strict=True):
            if dim is not None:
                column[index].data = column[index].detach().clone()

    def follow(self, index: int, other: int) -> None:
        """Copies another owner's rows over those that one had."""
        for whole, dim in zip(self.tensors, self.dims, strict=True):
            if dim is not None:
                whole[index] = whole[other]
