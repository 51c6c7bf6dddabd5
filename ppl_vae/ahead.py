"""Compiled steps, made ahead of anybody's look at them.

Whether all is finite is looked at where somebody looks anyway, for a look at a GPU's numbers waits
for all that it has to do. Where it is not, the steps since the last look are made again, eagerly.

Shapes: S steps, B data of a minibatch.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ppl_vae.compiled import CompileError, TraceError
from ppl_vae.diagnosis import NonFiniteError
from ppl_vae.handlers import Weight
from ppl_vae.lines import Line
from ppl_vae.loop import Loop
from ppl_vae.randomness import snapshot
from ppl_vae.schedules import Constant

__all__ = ["Ahead", "Unseen", "as_tensors", "free_weight"]


class Compiled(Protocol):
    """Steps without the programs; see `ppl_vae.compiled`."""

    def of(self, args: tuple, weight: Weight) -> Callable[[], Tensor] | None:
        """The step on a batch, which gives the loss before it; none if it is not for the batch."""
        ...


class Replayed(Protocol):
    """Several compiled steps in a row; see `ppl_vae.compiled.replay`."""

    num_steps: int

    def takes(self, weights: list[Weight]) -> bool:
        """Whether the steps are for these KL weights."""
        ...

    def __call__(
        self, index: Tensor, weights: list[Weight], advanced: Callable[[], None]
    ) -> Tensor:
        """The losses before each step, `[S]`, of the data of these numbers, `[S, B]`."""
        ...


class Unseen:
    """The steps of a training that nobody has looked at yet, and where it was before them."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._safe: dict[str, Any] | None = None
        self._sum: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        """Takes in the loss of a step, `[]`, or the sum over several; nothing waits for it."""
        self._sum = loss if self._sum is None else self._sum + loss

    def is_finite(self) -> bool:
        """Whether these losses are, and all that the steps have changed."""
        norm = sum(torch.stack(torch._foreach_norm(part)).sum() for part in self._moving())
        return self._sum is None or bool(torch.isfinite(norm + self._sum))

    def keep(self) -> None:
        """What was looked at is fine: the next look goes back no further."""
        self._safe, self._sum = self._loop.state_dict(), None

    def again(self, step: int, cause: Exception | None = None) -> None:
        """Makes the steps up to this one again, eagerly.

        Args:
            step: The number of the next step, afterwards.
            cause: What a compiled step failed of; none where they are only not finite.

        Raises:
            NonFiniteError: The first bad one; the parameters are then as they were before it.
        """
        assert self._safe is not None
        loop = self._loop
        loop.load_state_dict(self._safe, loop.seconds)
        while loop.step < step:
            loop.advance(log=False)
        found = "are not finite" if cause is None else f"fail ({type(cause).__name__}: {cause})"
        warnings.warn(
            f"compiled steps before step {step} {found}; made eagerly, the same steps are fine, "
            "and training stays eager from here",
            stacklevel=2,
        )

    def _moving(self) -> Iterator[list[Tensor]]:
        """What a step changes."""
        optimizers = self._loop.optimizers
        yield list(optimizers.trained.values())
        for optimizer in optimizers.optimizers.values():
            state = [v for part in optimizer.state.values() for v in part.values()]
            if values := [v for v in state if isinstance(v, Tensor) and v.is_floating_point()]:
                yield values


class Ahead:
    """A loop whose steps are compiled; it advances as the loop does.

    Args:
        loop: The training.
        step: What makes its steps.
        replays: Several of them at once, the longest first.
        asked_for: Whether a batch that cannot be compiled is an error; else the training stays
            eager from there, with a warning.
    """

    def __init__(
        self,
        loop: Loop,
        step: Compiled,
        replays: Sequence[Replayed] = (),
        *,
        asked_for: bool = True,
    ) -> None:
        self._loop, self._step, self._replays = loop, step, replays
        self._asked_for = asked_for
        self._unseen = Unseen(loop)
        self._unseen.keep()
        self.is_compiled = True

    def advance(self, *, log: bool, most: int = 1) -> Line | None:
        """Makes one step, or as many as are replayed at once; see `Loop.advance`."""
        loop = self._loop
        if not self.is_compiled:
            return loop.advance(log=log)
        if not log:
            for replay in self._replays:
                if replay.num_steps <= most and self._advance_by(replay):
                    return None
        args, weight = loop.next()
        try:
            step = self._step.of(args, free_weight(loop, weight))
        except (TraceError, CompileError) as error:
            if self._asked_for:
                raise
            warnings.warn(f"training stays eager from step {loop.step}: {error}", stacklevel=4)
            if not self._unseen.is_finite():
                self._again(loop.step + 1)
                return None
            self.is_compiled = False
            return loop.make(args, weight, log=log)
        try:
            if step is None:
                return loop.make(args, weight, log=log)
            # Before the step, which moves the parameters.
            line = loop.train_line(args, weight, None, snapshot()) if log else None
            loss = step()
        except (NonFiniteError, RuntimeError) as error:
            # By a step that nobody has looked at, perhaps: who draws by NaN, or inverts it, fails.
            self._again(loop.step + 1, error)
            return None
        self._unseen.add(loss)
        if line is not None:
            line["loss"] = loss.item() / loop.prepared.num_data(args)
            if not math.isfinite(line["loss"]):
                self._again(loop.step + 1)
                return None
        loop.optimizers.stepped()
        loop.step += 1
        return line

    def check(self) -> None:
        """Makes sure that what was not looked at is finite.

        Where it is not, goes back to what was kept, and makes the steps since then eagerly.

        Raises:
            NonFiniteError: As `Loop.advance`.
        """
        if self.is_compiled and not self._unseen.is_finite():
            self._again(self._loop.step)

    def keep(self) -> None:
        """Remembers where the training stands: a validation may have moved learning rates."""
        if self.is_compiled:
            self._unseen.keep()

    def _again(self, step: int, cause: Exception | None = None) -> None:
        self.is_compiled = False
        self._unseen.again(step, cause)

    def _advance_by(self, replay: Replayed) -> bool:
        """Replays; whether it is for these steps."""
        loop, num = self._loop, replay.num_steps
        weights = [loop.schedule(loop.step + i) for i in range(num)]
        if not replay.takes(weights):
            return False
        index = torch.stack([loop.prepared.stream.next_index() for _ in range(num)])
        self._unseen.add(replay(index, weights, loop.optimizers.stepped).sum())
        loop.step += num
        return True


def free_weight(loop: Loop, weight: Weight) -> Weight:
    """A KL weight as a compiled step takes it: tensors, unless it never changes."""
    return weight if isinstance(loop.schedule, Constant) else as_tensors(weight, loop)


def as_tensors(weight: Weight, loop: Loop) -> Weight:
    """A KL weight as tensors beside the data."""
    like = loop.prepared.first[0]
    if isinstance(weight, Mapping):
        return {name: like.new_tensor(float(value)) for name, value in weight.items()}
    return like.new_tensor(float(weight))
