"""A whole training step as one compiled graph: loss, gradients, clipping, and the optimizers'."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_vae.compiled.loss import CompiledLoss
from ppl_vae.compiled.lowering import lower
from ppl_vae.compiled.tracing import Traced, TracedLoss, trace_function
from ppl_vae.compiled.updates import Update, update_of
from ppl_vae.handlers import Weight
from ppl_vae.optimizers import clip
from ppl_vae.randomness import fork

__all__ = ["CompiledStep", "Made"]


@dataclass(frozen=True)
class Made:
    """A step for one shape of batch: what is run, and what it takes.

    Attributes:
        traced: Loss and gradients.
        function: The whole step.
        moved: The updates, each with those of its parameters that have gradients.
    """

    traced: TracedLoss
    function: Callable
    moved: list[tuple[Update, list[Tensor]]]

    def state(self) -> list[Tensor]:
        """What the step changes, parameters and buffers included."""
        return [*(value.detach() for value in self.traced.held), *self.moments()]

    def moments(self) -> list[Tensor]:
        """What the optimizers keep."""
        return [
            value
            for update, members in self.moved
            for kept in update.state(members)
            for value in kept
        ]

    def numbers(self) -> list[list[float]]:
        """What is different in the next step, for each of `moved`; counts the step."""
        return [update.numbers(members) for update, members in self.moved]

    def is_even(self) -> bool:
        """Whether the numbers of each update are right for all that it moves."""
        return all(update.is_even(members) for update, members in self.moved)

    def blank(self) -> list[Tensor]:
        """Numbers of no step, of the right shape."""
        return [members[0].new_zeros(update.num_numbers) for update, members in self.moved]


class CompiledStep:
    """Steps of a training.

    Adam, AdamW and SGD in their common forms are part of the graph, which then holds no gradient
    longer than it needs it. Others make their steps themselves, with the graph's gradients.

    Args:
        loss: Loss and gradients, not compiled yet.
        optimizers: What moves the parameters.
        max_norm: The largest norm of all gradients, or none.
        lowered: Compile the graphs; else they are interpreted, operation by operation.
        combined: What makes of a loss and the gradients those of other processes too; the
            optimizers then make their steps themselves.
    """

    def __init__(
        self,
        loss: CompiledLoss,
        optimizers: Sequence[Optimizer],
        max_norm: float | None = None,
        *,
        lowered: bool = True,
        combined: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.loss = loss
        self._optimizers, self._max_norm, self._lowered = optimizers, max_norm, lowered
        found = [update_of(o, group) for o in optimizers for group in o.param_groups]
        self._updates = [update for update in found if update is not None]
        #: Whether the optimizers' steps are part of the graph.
        self.is_whole = len(self._updates) == len(found) and combined is None
        self._combined = combined
        self._made: dict[Hashable, Made] = {}

    @property
    def form(self) -> Hashable:
        """What of the updates is part of the graph, and no number of each step."""
        return tuple(update.form for update in self._updates)

    def prepare(
        self, args: Sequence[Any], weight: Weight = 1.0, traced: TracedLoss | None = None
    ) -> None:
        """Compiles for batches like this one; draws nothing, and moves nothing.

        Raises:
            TraceError: The pair cannot be traced.
            CompileError: The graph cannot be compiled.
        """
        traced = self.loss.trace(args, weight) if traced is None else traced
        if not self.is_whole:
            self.loss.prepare(args, weight, traced)
            return
        made = self.plan(traced)
        with fork():
            inputs = self.inputs(made, args, weight, made.blank())
            step = trace_function(made.function, inputs)
            function = lower(step.graph, step.inputs(inputs)) if self._lowered else step.graph
        made = replace(made, function=_with(step, function))
        self._made[self.loss.key(args, weight)] = made

    def plan(self, traced: TracedLoss) -> Made:
        """The step that moves what a loss reaches, as a function that is no graph yet."""
        reached = {id(parameter) for parameter in traced.reached}
        parts = [
            (update, [p for p in update.parameters if id(p) in reached]) for update in self._updates
        ]
        made = Made(traced, lambda: None, [(update, found) for update, found in parts if found])
        return replace(made, function=partial(_step, made, self._max_norm))

    def inputs(
        self, made: Made, args: Sequence[Any], weight: Weight, numbers: Sequence[Tensor]
    ) -> list[Tensor]:
        """What a step takes, for a batch."""
        return [*self.loss.inputs(made.traced, args, weight), *made.moments(), *numbers]

    def of(self, args: Sequence[Any], weight: Weight = 1.0) -> Callable[[], Tensor] | None:
        """The step on a batch, to be made; none if there are too many graphs for another.

        It gives the loss before the step, `[]`.
        """
        if self.is_whole:
            made = self.made(args, weight)
            if made is None:
                return None
            # Of one graph alone, all that it moves has made as many steps.
            if len(self._made) == 1 or made.is_even():
                return partial(self._inside, made, args, weight)
            self.is_whole = False
        loss = self.loss.of(args, weight)
        return None if loss is None else partial(self._outside, loss)

    def made(self, args: Sequence[Any], weight: Weight = 1.0) -> Made | None:
        """What is made for such batches, or is now; none if there are too many for another."""
        key = self.loss.key(args, weight)
        if key not in self._made:
            if len(self._made) == self.loss.max_graphs:
                return None
            self.prepare(args, weight)
        return self._made[key]

    def run(self, made: Made, args: Sequence[Any], weight: Weight, numbers: list[Tensor]) -> Tensor:
        """A step with these numbers, a tensor for each of `made.moved`; its loss, `[]`."""
        with torch.no_grad():
            return made.function(*self.inputs(made, args, weight, numbers))[0]

    def _inside(self, made: Made, args: Sequence[Any], weight: Weight) -> Tensor:
        numbers = [
            torch.tensor(row, dtype=members[0].dtype, device=members[0].device)
            for row, (_, members) in zip(made.numbers(), made.moved, strict=True)
        ]
        return self.run(made, args, weight, numbers)

    def _outside(self, loss: Callable[[], Tensor]) -> Tensor:
        value = loss()
        if self._combined is not None:
            value = self._combined(value)
        if self._max_norm is not None:
            clip(self.loss.parameters, self._max_norm)
        for optimizer in self._optimizers:
            optimizer.step()
        return value


def _step(made: Made, max_norm: float | None, *values: Tensor) -> tuple[Tensor]:
    """The graph's function: moves what it is given, and gives the loss."""
    rest = iter(values)
    inputs = [next(rest) for _ in range(made.traced.num_inputs)]
    loss, *gradients = made.traced.graph(*inputs)
    if max_norm is not None:
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        gradients = [gradient * factor for gradient in gradients]
    own = {id(old): new for old, new in zip(made.traced.held, inputs, strict=False)}
    found = {id(p): g for p, g in zip(made.traced.reached, gradients, strict=True)}
    states = [
        [[next(rest) for _ in kept] for kept in update.state(members)]
        for update, members in made.moved
    ]
    for (update, members), kept in zip(made.moved, states, strict=True):
        numbers = next(rest)
        for parameter, state in zip(members, kept, strict=True):
            update.apply(own[id(parameter)], found[id(parameter)], state, numbers)
    return (loss,)


def _with(step: Traced, function: Callable) -> Callable:
    """The function, given what the graph takes besides."""
    return lambda *values: function(*step.inputs(values))
