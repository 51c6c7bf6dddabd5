r"""Schedules: the step's number to the weight of the KL, :math:`t \mapsto \beta_t`.

A schedule is any function `step -> weight`, step counted from 0. The classes here are such
functions with a name; the command line finds them by it. The weight is 1.0 for the ELBO itself, 0.0
is legal, and a dictionary from site names to weights gives every latent site its own.
To write one: subclass `Schedule` as a frozen dataclass and define `__call__`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from ppl_vae.configurable import Configurable

__all__ = ["Constant", "Cosine", "Cyclical", "Linear", "PerSite", "Schedule", "Sigmoid"]


class Schedule(Configurable, ABC):
    """A function of the step's number that gives the weight on the latent terms."""

    @abstractmethod
    def __call__(self, step: int) -> float | dict[str, float]:
        """The weight at `step` (0 is the first)."""


@dataclass(frozen=True)
class Constant(Schedule):
    r"""The same weight at every step: beta-VAE (Higgins et al., 2017).

    Args:
        value: The weight, :math:`\beta \ge 0`.

    Example:
        >>> Constant(4.0)(1000)
        4.0
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        _check_weights(self, value=self.value)

    def __call__(self, step: int) -> float:
        """The weight at `step`."""
        return self.value


@dataclass(frozen=True)
class _Ramp(Schedule):
    """From `start` to `end` in `num_steps` steps, then constant; a leaf gives the shape."""

    num_steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _check_count(self, num_steps=self.num_steps)
        _check_weights(self, start=self.start, end=self.end)

    def __call__(self, step: int) -> float:
        """The weight at `step`."""
        fraction = self._shape(min(step / self.num_steps, 1.0))
        # Not start + (end - start) * fraction, which may miss the end by a rounding.
        return (1 - fraction) * self.start + fraction * self.end

    @abstractmethod
    def _shape(self, fraction: float) -> float:
        """The height of the ramp, 0 to 1, at a fraction of its length."""


@dataclass(frozen=True)
class Linear(_Ramp):
    """A straight line from `start` to `end` over `num_steps` steps (Soenderby et al., 2016).

    Example:
        >>> [Linear(4)(step) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    def _shape(self, fraction: float) -> float:
        return fraction


@dataclass(frozen=True)
class Cosine(_Ramp):
    r"""Half a cosine from `start` to `end` over `num_steps` steps.

    .. math:: \text{start} + (\text{end} - \text{start}) (1 - \cos \pi t / \text{num\_steps}) / 2

    Example:
        >>> [round(Cosine(4)(step), 3) for step in range(6)]
        [0.0, 0.146, 0.5, 0.854, 1.0, 1.0]
    """

    def _shape(self, fraction: float) -> float:
        return (1 - math.cos(math.pi * fraction)) / 2


@dataclass(frozen=True)
class Sigmoid(_Ramp):
    r"""A logistic curve through the middle of the ramp (Bowman et al., 2016).

    The curve :math:`\sigma(s (t - 1/2))`, :math:`s` the steepness, is stretched so that it meets
    `start` and `end` exactly.

    Args:
        num_steps: Length of the ramp.
        start: Weight at step 0.
        end: Weight from step `num_steps` on.
        steepness: Larger is more abrupt; must be positive.

    Example:
        >>> [round(Sigmoid(4)(step), 3) for step in range(6)]
        [0.0, 0.07, 0.5, 0.93, 1.0, 1.0]
    """

    steepness: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.steepness < math.inf:
            raise ValueError(f"Sigmoid: steepness is {self.steepness}; accepted is a number > 0")

    def _shape(self, fraction: float) -> float:
        # tanh is the logistic function stretched to (-1, 1), and does not overflow.
        half = self.steepness / 4
        return (1 + math.tanh(2 * half * (fraction - 0.5)) / math.tanh(half)) / 2


@dataclass(frozen=True)
class Cyclical(Schedule):
    """Linear ramps, one a cycle, each followed by a plateau (Fu et al., 2019).

    Args:
        num_cycles: How many cycles fit into `num_steps`.
        num_steps: Length of all cycles together; the weight is `end` afterwards.
        ratio: The part of a cycle that is ramp, in (0, 1].
        start: Weight at the beginning of each cycle.
        end: Weight on the plateaus.

    Example:
        >>> [Cyclical(num_cycles=2, num_steps=8)(step) for step in range(9)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    """

    num_cycles: int
    num_steps: int
    ratio: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _check_count(self, num_cycles=self.num_cycles, num_steps=self.num_steps)
        _check_weights(self, start=self.start, end=self.end)
        if self.num_cycles > self.num_steps:
            raise ValueError(
                f"Cyclical: num_cycles is {self.num_cycles}, num_steps {self.num_steps}; accepted "
                "are at most as many cycles as steps"
            )
        if not 0 < self.ratio <= 1:
            raise ValueError(f"Cyclical: ratio is {self.ratio}; accepted is 0 < ratio <= 1")

    def __call__(self, step: int) -> float:
        """The weight at `step`."""
        if step >= self.num_steps:
            return self.end
        phase = math.fmod(step * self.num_cycles / self.num_steps, 1.0)
        fraction = min(phase / self.ratio, 1.0)
        return (1 - fraction) * self.start + fraction * self.end


@dataclass(frozen=True)
class PerSite(Schedule):
    """A schedule for each latent site of a hierarchy; sites that are not named keep weight 1.

    Args:
        sites: From site names to schedules.

    Example:
        >>> PerSite({"z1": Constant(1.0), "z2": Linear(10)})(5)
        {'z1': 1.0, 'z2': 0.5}
    """

    sites: dict[str, Schedule]

    def __post_init__(self) -> None:
        if not self.sites:
            raise ValueError("PerSite: sites is empty; accepted is at least one site: schedule")

    def __call__(self, step: int) -> dict[str, float]:
        """The weights at `step`."""
        weights = {name: schedule(step) for name, schedule in self.sites.items()}
        nested = [name for name, weight in weights.items() if isinstance(weight, dict)]
        if nested:
            raise ValueError(f"PerSite: the schedule of site '{nested[0]}' is itself per site")
        return weights  # type: ignore[return-value]


def _check_weights(schedule: Schedule, **weights: float) -> None:
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            kind = type(schedule).__name__
            raise ValueError(f"{kind}: {name} is {value}; accepted is a finite weight >= 0")


def _check_count(schedule: Schedule, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{type(schedule).__name__}: {name} is {value}; accepted is >= 1")
