"""The base of the estimators: what every `pyro.infer.ELBO` of ours promises.

Shapes: M outer samples, K particles, B data.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from ppl_vae.configurable import Configurable
from ppl_vae.estimators.pair import Pair, trace_pair
from ppl_vae.estimators.running import OneSubsample
from ppl_vae.estimators.sites import PARTICLES
from ppl_vae.randomness import looking

__all__ = ["Estimator", "forgetting"]


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

    To write one: subclass `TermwiseEstimator` (a KL for each site), `WeightEstimator` (log weights
    of each datum) or `ScoreEstimator` (no reparameterization), which do the rest; or this class,
    and define `_loss(pairs)`.

    Args:
        num_particles: K, how many times the guide is drawn.
        vectorize_particles: Draw them at once, in a plate left of the model's own; programs must
            take a leading batch dimension. Otherwise one after the other, in a loop.
        max_plate_nesting: How many plate dimensions the programs use; found by one run of the pair
            if not given, and kept: use one estimator for one pair.
        num_outer: M, how many times the whole estimate with its K particles is made; their mean is
            taken.

    Raises:
        ValueError: `num_particles` or `num_outer` is below 1; model and guide do not sample the
            same sites.
    """

    #: Whether minus the loss is a lower bound of log p(x), or a point estimate of one.
    is_bound = True
    #: The smallest K for which the estimator is defined.
    min_particles = 1

    def __init__(
        self,
        num_particles: int = 1,
        vectorize_particles: bool = True,
        max_plate_nesting: int | None = None,
        num_outer: int = 1,
    ) -> None:
        least = self.min_particles
        for what, value, low in (("particles", num_particles, least), ("outer", num_outer, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(
                    f"{type(self).__name__}: num_{what} is {value!r}; accepted is >= {low}"
                )
        self.num_outer = num_outer
        self.num_draws = num_outer * num_particles
        nesting = float("inf") if max_plate_nesting is None else max_plate_nesting
        super().__init__(
            num_particles=self.num_draws,
            max_plate_nesting=nesting,
            vectorize_particles=vectorize_particles,
        )
        self.num_particles = num_particles

    def state_dict(self) -> dict[str, Tensor]:
        """What the estimator remembers from step to step, for a checkpoint; most: nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes `state_dict` back."""

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
        """The loss, `[]`, from one pair with all M K particles, or from M K pairs with one each."""

    def _run(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
        """Runs the guide, and the model against it; what is stopped on the way is up to this."""
        return trace_pair(model, guide, args, kwargs)

    def _evaluate(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Tensor:
        return self._loss(list(self._pairs(model, guide, args, kwargs)))

    def _pairs(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Iterator[Pair]:
        if not (self.vectorize_particles and self.num_draws > 1):
            # All particles are of the same data, where a plate draws a subsample.
            with OneSubsample():
                yield from [self._run(model, guide, args, kwargs) for _ in range(self.num_draws)]
            return
        if self.max_plate_nesting == float("inf"):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        # Pyro counts the particles' own dimension into `max_plate_nesting`.
        plate = pyro.plate(PARTICLES, self.num_draws, dim=-self.max_plate_nesting)
        yield self._run(plate(model), plate(guide), args, kwargs)

    def _guess_max_plate_nesting(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> None:
        # Pyro's own guess draws from the training's random stream, and moves running statistics.
        with looking(model, guide), torch.no_grad(), poutine.block():
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


@contextmanager
def forgetting(estimator: ELBO) -> Iterator[None]:
    """What an estimator remembers from step to step is afterwards as it was."""
    state = estimator.state_dict() if isinstance(estimator, Estimator) else {}
    state = {name: value.clone() for name, value in state.items()}
    try:
        yield
    finally:
        if isinstance(estimator, Estimator):
            estimator.load_state_dict(state)
