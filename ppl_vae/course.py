"""The course of a training: what is logged, validated and kept along its steps."""

from contextlib import AbstractContextManager
from typing import Protocol

from ppl_vae.evaluate.terms import AT_ONCE
from ppl_vae.lines import Line
from ppl_vae.loop import Loop
from ppl_vae.memory import Load, allocated, explaining
from ppl_vae.plan import Plan
from ppl_vae.progress import Progress
from ppl_vae.recording import Recorder

__all__ = ["Course"]


class Steps(Protocol):
    """How a training moves on: a `Loop`, or what makes its steps in another way."""

    is_compiled: bool

    def advance(self, *, log: bool, most: int = 1) -> Line | None:
        """Makes a step, or several."""
        ...

    def check(self) -> None:
        """Makes sure that all is finite."""
        ...

    def keep(self) -> None:
        """Remembers where the training stands, all that is due there being done."""
        ...


class Course:
    """A training on its way.

    Args:
        loop: The training.
        recorder: What it writes.
        bar: Where it is shown.
        plan: When to log, to validate, to write checkpoints, and to stop.

    Attributes:
        steps: What makes the steps, the loop itself at first.
    """

    def __init__(self, loop: Loop, recorder: Recorder, bar: Progress, plan: Plan) -> None:
        self.loop, self.recorder = loop, recorder
        self.steps: Steps = loop
        self._bar, self._plan = bar, plan
        self._device = loop.prepared.first[0].device
        self._held = allocated(self._device)
        bar.update(loop.step)

    @property
    def is_over(self) -> bool:
        """Whether all steps are made, or the patience has run out."""
        return self.loop.step >= self._plan.num_steps or self.loop.stopping.is_due

    @property
    def logs(self) -> bool:
        """Whether the next step is logged."""
        return self.loop.step % self._plan.log_every == 0

    @property
    def most(self) -> int:
        """How many steps there are up to the next one that somebody looks into."""
        step, plan = self.loop.step, self._plan
        every = (plan.log_every, plan.eval_every, plan.checkpoint_every)
        return min(*(e - step % e for e in every), plan.num_steps - step)

    @property
    def is_due(self) -> bool:
        """Whether something is to be done after the last step."""
        return self._is_last or self._is_due(self._plan.eval_every, self._plan.checkpoint_every)

    def advance(self) -> None:
        """Makes a step, or several, and what is to be done after them.

        Raises:
            OutOfMemoryError: The message says what may fit.
        """
        with self.explaining():
            line = self.steps.advance(log=self.logs, most=self.most)
        self.saw(line)
        if self.is_due:
            self.look()

    def explaining(self, replicas: int = 1) -> AbstractContextManager[None]:
        """A context of steps, of so many trainings at once, that says what of them may fit."""
        load = Load(len(self.loop.prepared.first[0]), self._plan.particles, replicas)
        return self._explaining(f"step {self.loop.step}", load)

    def saw(self, line: Line | None) -> None:
        """Takes in that steps were made, and the line of the last one, if it has any."""
        self._bar.update(self.loop.step)
        if line is not None:
            self._write(line)

    def look(self) -> None:
        """Checks, validates and keeps what is due.

        Raises:
            NonFiniteError: Steps that nobody has looked at were not finite.
        """
        loop = self.loop
        self.steps.check()
        evaluates = self._is_last or self._is_due(self._plan.eval_every)
        if (valid := loop.prepared.valid) is not None and evaluates:
            load = Load(min(len(valid), AT_ONCE), option="{} validation data")
            with self._explaining(f"the validation after step {loop.step}", load):
                line = loop.validate()
            self._write(line)
            if loop.stopping.best_step == loop.step:
                self.recorder.save_best(loop)
        if self.is_over or self._is_due(self._plan.checkpoint_every):
            self.recorder.save(loop)
        self.steps.keep()

    def leave(self) -> str:
        """Keeps the training where it stands; says where that is."""
        self.steps.check()
        self.recorder.save(self.loop)
        path = self.recorder.path
        where = f"; {path} holds the checkpoint" if path else ""
        return f"stopped at step {self.loop.step} of {self._plan.num_steps}{where}"

    def is_asked(self, wish: bool) -> bool:
        """Whether the training is asked to stop; with ranks, whether any of them is."""
        ranks = self.loop.ranks
        return wish if ranks is None else ranks.any(wish, self.loop.step)

    def end(self) -> None:
        """Puts the best parameters in place, where patience asks for them."""
        if self._plan.patience is not None:
            self.loop.take_best()

    def _explaining(self, what: str, load: Load) -> AbstractContextManager[None]:
        tidy = self.loop.optimizers.zero_grad
        return explaining(what, load, self._device, held=self._held, tidy=tidy)

    @property
    def _is_last(self) -> bool:
        return self.loop.step == self._plan.num_steps

    def _is_due(self, *every: int) -> bool:
        return any(self.loop.step % e == 0 for e in every)

    def _write(self, line: Line) -> None:
        self.recorder.write(line)
        self._bar.show(line)
