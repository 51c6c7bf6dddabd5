"""One of several trainings in one process, with globals of its own.

Each has its random streams and its parameter store, as if it were alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor

from ppl_vae.course import Course
from ppl_vae.diagnosis import NonFiniteError
from ppl_vae.randomness import restore, snapshot

__all__ = ["Replica"]


class Replica:
    """One of several trainings, with random streams and a parameter store of its own.

    Attributes:
        course: Its course, once there is one.
        store: Its parameter store.
        failure: What ended it too early, or none.
        together: Whether it makes its steps with the others.
    """

    def __init__(self) -> None:
        self.course: Course
        self.store: dict = {"params": {}, "constraints": {}}
        self.failure: NonFiniteError | None = None
        self.together = False
        self._random = snapshot()

    @property
    def is_over(self) -> bool:
        """Whether no step is left to make."""
        return self.failure is not None or self.course.is_over

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Its own globals, in the place of the others'."""
        restore(self._random)
        try:
            with pyro.get_param_store().scope(self.store):
                yield
        finally:
            self._random = snapshot()

    def advance(self) -> None:
        """Makes steps by itself, up to the next look."""
        with self.awake(), self.failing():
            self.course.advance()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What is not finite ends this training, and not the others."""
        try:
            yield
        except NonFiniteError as error:
            self.failure = error

    def generator(self, device: torch.device) -> torch.Generator:
        """A generator that goes on where its stream on this device stands."""
        generator = torch.Generator(device)
        generator.set_state(self.stream(device))
        return generator

    def moved(self, generator: torch.Generator, device: torch.device) -> None:
        """Takes the stream on this device to where a generator stands."""
        if device.type == "cuda":
            streams = list(self._random["cuda"])
            streams[device.index or 0] = generator.get_state()
            self._random["cuda"] = tuple(streams)
        else:
            self._random["torch"] = generator.get_state()

    def stream(self, device: torch.device) -> Tensor:
        """The state of its stream on this device."""
        if device.type == "cuda":
            return self._random["cuda"][device.index or 0]
        return self._random["torch"]
