"""The base of the estimators: what every `pyro.infer.ELBO` of ours promises.

Shapes: K particles, B data.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from ppl_vae.configurable import Configurable
from ppl_vae.estimators.pair import Pair, trace_pair
from ppl_vae.randomness import fork

__all__ = ["Estimator"]


class Estimator(Configurable, ELBO):
    """A `pyro.infer.ELBO` whose value is always `loss` and whose gradient always the estimator's.

    All three of Pyro's ways in are there, for plain `pyro.infer.SVI`, for `elbo(model, guide)` with
    a torch optimizer, and for `ppl_vae.fit`:

    - `loss(model, guide, *args)`: a number, minus the bound, summed over the batch;
    - `loss_and_grads(model, guide, *args)`: the same number, gradients added to the leaves;
    - `differentiable_loss(model, guide, *args)`: a tensor of `loss`'s value and the estimator's
      gradient. Nothing in it waits for the device.

    Gradients reach every tensor that the programs use, whether or not Pyro saw it as a parameter
    (Pyro's own `loss_and_grads` skips them silently where no `param` statement is in the trace).

    To write one: subclass and define `_loss(pairs)`.

    Args:
        num_particles: K, how many times the guide is drawn.
        vectorize_particles: Draw them at once, in a plate left of the model's own; programs must
            take a leading batch dimension. Otherwise one after the other, in a loop.
        max_plate_nesting: How many plate dimensions the programs use; found by one run of the pair
            if not given, and kept: use one estimator for one pair.

    Raises:
        ValueError: `num_particles` is below 1; model and guide do not sample the same sites.
    """

    #: Whether minus the loss is a lower bound of log p(x), or a point estimate of one.
    is_bound = True

    def __init__(
        self,
        num_particles: int = 1,
        vectorize_particles: bool = True,
        max_plate_nesting: int | None = None,
    ) -> None:
        if num_particles < 1:
            raise ValueError(
                f"{type(self).__name__}: num_particles is {num_particles}; accepted is >= 1"
            )
        nesting = float("inf") if max_plate_nesting is None else max_plate_nesting
        super().__init__(
            num_particles=num_particles,
            max_plate_nesting=nesting,
            vectorize_particles=vectorize_particles,
        )

    def set_step(self, step: int) -> None:
        """Tells the estimator the number of the step to come; `fit` does. Most ignore it."""

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the bound, summed over the batch, in nats."""
        with torch.no_grad():
            return self._evaluate(model, guide, args, kwargs).item()

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """`loss`, with the estimator's gradients added to the leaves."""
        loss = self._evaluate(model, guide, args, kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        """`loss` as a 0-dim tensor whose gradient is the estimator's."""
        return self._evaluate(model, guide, args, kwargs)

    @abstractmethod
    def _loss(self, pairs: list[Pair]) -> Tensor:
        """The loss, `[]`, from one pair with K particles, or from K pairs with one each."""

    def _evaluate(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Tensor:
        return self._loss(list(self._pairs(model, guide, args, kwargs)))

    def _pairs(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Iterator[Pair]:
        if not (self.vectorize_particles and self.num_particles > 1):
            for _ in range(self.num_particles):
                yield trace_pair(model, guide, args, kwargs)
            return
        if self.max_plate_nesting == float("inf"):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        # Pyro counts the particles' own dimension into `max_plate_nesting`.
        plate = pyro.plate(
            "num_particles_vectorized", self.num_particles, dim=-self.max_plate_nesting
        )
        yield trace_pair(plate(model), plate(guide), args, kwargs)

    def _guess_max_plate_nesting(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> None:
        # Pyro's own guess draws from the random stream of the training.
        with fork(), torch.no_grad(), poutine.block():
            pair = trace_pair(model, guide, args, kwargs)
        dims = [
            frame.dim
            for trace in (pair.model_trace, pair.guide_trace)
            for site in trace.nodes.values()
            for frame in site.get("cond_indep_stack", ())
            if frame.vectorized
        ]
        self.max_plate_nesting = 1 - min(dims, default=0)

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Any:
        # Abstract in Pyro's class, and called only by the methods that are overridden here.
        pair = trace_pair(model, guide, args, kwargs)
        return pair.model_trace, pair.guide_trace
