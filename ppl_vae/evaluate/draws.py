"""Draws of an estimator at one point: its value or its gradient, each from a seed of its own."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from ppl_vae.handlers import Weight, weighted
from ppl_vae.optimizers import named_parameters
from ppl_vae.randomness import check_seed, on_copies, seed_all, untouched, validation

__all__ = ["EstimatorDraws", "GradientDraws", "at_rest", "seeds"]


@contextmanager
def at_rest() -> Iterator[None]:
    """Around all draws: random streams and Pyro's parameter store are put back; gradients are on.

    Parameters of plain functions exist in the store inside of it alone.
    """
    with untouched(), torch.enable_grad():
        yield


def seeds(seed: int, num_draws: int, what: str = "draws") -> list[int]:
    """A seed for each draw; the first ones are the same however many there are.

    Those for something else, `what`, are others. Hashed, for torch's generator on the CPU makes
    nothing of a seed's upper half: seeds that differ there would give the same draws.
    """
    check_seed(seed)
    chosen = random.Random(f"{what} {seed}")
    return [chosen.getrandbits(62) for _ in range(num_draws)]


class EstimatorDraws:
    """An estimator at one pair and batch, all of which stay as they are; to be used `at_rest`.

    Draws are made with a copy of the estimator, which starts each time from the state that the
    estimator is in, and with copies of the programs' buffers. The first run is made here, with
    Pyro's validation on.

    Args:
        model: The model.
        guide: The guide.
        estimator: A `pyro.infer.ELBO`.
        x: Data, `[B, *data_shape]`.
        weight: The KL weight.

    Attributes:
        parameters: Those that ask for a gradient, by the names of `fit`'s parameter groups.

    Raises:
        ValueError: The estimator is none, or the pair is not one for it.
    """

    def __init__(
        self, model: Callable, guide: Callable, estimator: Any, x: Tensor, weight: Weight = 1.0
    ) -> None:
        if not isinstance(estimator, ELBO) or not hasattr(estimator, "differentiable_loss"):
            raise ValueError(
                f"the estimator is {estimator!r}; accepted is a pyro.infer.ELBO with a "
                "differentiable_loss, as TraceIWAE_ELBO(5)"
            )
        self._pair, self._x, self._weight = (model, guide), x, weight
        # An estimator that holds one of the programs keeps it.
        memo = {id(program): program for program in self._pair}
        self._estimator = copy.deepcopy(estimator, memo)
        self._state = self._estimator_state()
        with validation(True), self.running(0) as loss:
            loss()
        named = named_parameters(model, guide)
        self.parameters = {name: p for name, p in named.items() if p.requires_grad}

    @contextmanager
    def running(self, seed: int) -> Iterator[Callable[[], Tensor]]:
        """Gives a function that makes one draw of the loss, `[]`, with its graph."""
        seed_all(seed)
        if self._state is not None:
            self._estimator.load_state_dict({k: v.clone() for k, v in self._state.items()})
        with on_copies(*self._pair), weighted(self._weight):
            yield lambda: self._estimator.differentiable_loss(*self._pair, self._x)

    def loss(self, seed: int) -> float:
        """Minus the bound, summed over the batch, in nats."""
        with torch.no_grad(), validation(False), self.running(seed) as loss:
            return loss().item()

    def _estimator_state(self) -> dict[str, Tensor] | None:
        if not hasattr(self._estimator, "state_dict"):  # Pyro's own have nothing to remember.
            return None
        return {name: value.clone() for name, value in self._estimator.state_dict().items()}


class GradientDraws:
    """Gradients of minus the bound, one for each seed; the same each time one goes through them.

    Args:
        draws: The estimator at its point.
        names: Of the parameters wanted.
        seeds: One for each gradient.
        max_entries: How many numbers may be kept. If the gradients have more they are made again
            whenever they are gone through.
    """

    def __init__(
        self, draws: EstimatorDraws, names: Sequence[str], seeds: Sequence[int], max_entries: int
    ) -> None:
        self._draws, self._names, self._seeds = draws, list(names), list(seeds)
        self._leaves = [draws.parameters[name] for name in names]
        num_entries = sum(leaf.numel() for leaf in self._leaves)
        self._keeps = len(self._seeds) * num_entries <= max_entries
        self._kept: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._seeds)

    def __iter__(self) -> Iterator[Tensor]:
        """Each gradient, `[P]`: all parameters wanted, flattened, one after the other."""
        for index, seed in enumerate(self._seeds):
            if index < len(self._kept):
                yield self._kept[index]
                continue
            gradient = self._gradient(index, seed)
            if self._keeps:
                self._kept.append(gradient)
            yield gradient

    def _gradient(self, index: int, seed: int) -> Tensor:
        with validation(False), self._draws.running(seed) as loss:
            value = loss()
            if not value.requires_grad:
                raise ValueError(
                    "the estimator's loss hangs on no parameter that asks for a gradient"
                )
            parts = torch.autograd.grad(value, self._leaves, allow_unused=True)
        for name, part in zip(self._names, parts, strict=True):
            if part is not None and not part.isfinite().all():
                raise ValueError(
                    f"the gradient of '{name}' is not finite in draw {index} (seed {seed}); "
                    "accepted is a point at which every draw has a gradient"
                )
        return torch.cat(
            [
                torch.zeros_like(leaf).flatten() if part is None else part.flatten()
                for leaf, part in zip(self._leaves, parts, strict=True)
            ]
        )
