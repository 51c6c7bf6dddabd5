"""Loss and gradients of a batch, compiled."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from ppl_vae.compiled.lowering import lower
from ppl_vae.compiled.tracing import TracedLoss, held_by, sites_of, tensors_of, trace_loss
from ppl_vae.handlers import Weight
from ppl_vae.randomness import fork

__all__ = ["CompiledLoss"]


class CompiledLoss:
    """The loss of a pair under an estimator, a graph for each shape of batch.

    Draws from torch's own generators as the programs do. What the programs remember is changed in
    place, as by themselves.

    Args:
        model: The model.
        guide: The guide.
        estimator: One of ours.
        parameters: What gradients are wanted of.
        lowered: Compile the graphs; else they are interpreted, operation by operation.
    """

    #: How many graphs are made before shapes of batches are left to the programs.
    max_graphs = 8

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        estimator: ELBO,
        parameters: Sequence[Tensor],
        *,
        lowered: bool = True,
    ) -> None:
        self._pair = model, guide, estimator
        self.parameters, self._lowered = list(parameters), lowered
        self._made: dict[Hashable, tuple[TracedLoss, Callable]] = {}

    def trace(self, args: Sequence[Any], weight: Weight = 1.0) -> TracedLoss:
        """The graph for batches like this one.

        Raises:
            TraceError: The pair cannot be traced.
        """
        return trace_loss(*self._pair, self.parameters, args, weight)

    def held(self) -> tuple[Tensor, ...]:
        """What its graphs hold; see `TracedLoss`."""
        return held_by(*self._pair, self.parameters)

    def prepare(
        self, args: Sequence[Any], weight: Weight = 1.0, traced: TracedLoss | None = None
    ) -> None:
        """Compiles for batches like this one, and draws nothing.

        Raises:
            TraceError: The pair cannot be traced.
            CompileError: The graph cannot be compiled.
        """
        traced = self.trace(args, weight) if traced is None else traced
        function: Callable = traced.graph
        if self._lowered:
            with fork():
                function = lower(traced.graph, self.inputs(traced, args, weight))
        self._made[self.key(args, weight)] = traced, function

    def of(self, args: Sequence[Any], weight: Weight = 1.0) -> Callable[[], Tensor] | None:
        """The loss of a batch, to be called; none if there are too many graphs for another."""
        key = self.key(args, weight)
        if key not in self._made:
            if len(self._made) == self.max_graphs:
                return None
            self.prepare(args, weight)
        return partial(self._call, *self._made[key], args, weight)

    def __call__(self, args: Sequence[Any], weight: Weight = 1.0) -> Tensor:
        """The loss, `[]`, without a gradient; those of the parameters are left in `grad`."""
        loss = self.of(args, weight)
        if loss is None:
            raise ValueError(
                f"there are {self.max_graphs} graphs already, each for one shape of batch"
            )
        return loss()

    def _call(
        self, traced: TracedLoss, function: Callable, args: Sequence[Any], weight: Weight
    ) -> Tensor:
        with torch.no_grad():
            loss, *gradients = function(*self.inputs(traced, args, weight))
        for parameter in self.parameters:
            parameter.grad = None
        for parameter, gradient in zip(traced.reached, gradients, strict=True):
            parameter.grad = gradient
        return loss

    @staticmethod
    def inputs(traced: TracedLoss, args: Sequence[Any], weight: Weight) -> list[Tensor]:
        """What a graph takes, for a batch."""
        batch = [value for value in args if isinstance(value, Tensor)]
        held = [value.detach() for value in traced.held]
        return traced.inputs([*held, *batch, *tensors_of(weight)])

    @staticmethod
    def key(args: Sequence[Any], weight: Weight) -> Hashable:
        """What a graph is for."""
        weights = weight.values() if isinstance(weight, Mapping) else [weight]
        numbers = (None if isinstance(value, Tensor) else value for value in weights)
        return tuple(_kind(value) for value in args), sites_of(weight), *numbers


def _kind(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return repr(value)
