"""Baselines of the score function: what is subtracted from the learning signal.

Shapes: M outer samples, K particles, B data.
"""

from abc import ABCMeta, abstractmethod

import torch
from torch import Tensor, nn

from ppl_vae.configurable import Configurable

__all__ = ["Baseline", "DecayingAverage", "LeaveOneOut"]


class Baseline(Configurable, nn.Module, metaclass=ABCMeta):
    """A baseline b: what the signal is compared with, and what leaves the gradient's mean alone.

    To write one: subclass, and define `forward(log_w)`; b of a particle must not depend on that
    particle's own draw. What it remembers belongs in buffers, which are checkpointed.
    """

    #: The smallest K for which the baseline is defined.
    min_particles = 1

    @abstractmethod
    def forward(self, log_w: Tensor) -> Tensor:
        """b, for log weights without gradient, `[M, K, B] -> [M, K, B]` or what expands to it."""


class LeaveOneOut(Baseline):
    """The mean of the other particles of the same datum; K >= 2.

    References:
        Kool, van Hoof and Welling (2019), Buy 4 REINFORCE Samples, Get a Baseline for Free.

    Example:
        >>> LeaveOneOut()(torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1)).flatten()
        tensor([4.0000, 3.5000, 1.5000])
    """

    min_particles = 2

    def forward(self, log_w: Tensor) -> Tensor:
        """The mean of the others."""
        return (log_w.sum(1, keepdim=True) - log_w) / (log_w.shape[1] - 1)


class DecayingAverage(Baseline):
    r"""A decaying average of the mean signal of past steps, one number for all data.

    .. math:: b_t = \frac{m_t}{1 - d^t}, \qquad m_{t+1} = d\, m_t + (1 - d)\, \bar s_t

    It remembers its state from one gradient to the next (not where `torch.no_grad` is in force),
    starts at 0, and passes over signals that are not finite.

    Args:
        decay: d, in [0, 1).

    Raises:
        ValueError: `decay` is not in [0, 1).

    Example:
        >>> baseline = DecayingAverage(0.5)
        >>> [baseline(torch.full((1, 1, 3), 8.0)).item() for _ in range(3)]
        [0.0, 8.0, 8.0]
    """

    average: Tensor
    missing: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"DecayingAverage: decay is {decay}; accepted is a number in [0, 1)")
        self.decay = decay
        # In double: a signal of thousands of nats, averaged over as many steps.
        self.register_buffer("average", torch.zeros((), dtype=torch.float64))
        self.register_buffer("missing", torch.ones((), dtype=torch.float64))

    def forward(self, log_w: Tensor) -> Tensor:
        """The average before this step, to which this step is then added."""
        if self.average.device != log_w.device:
            self.to(log_w.device)  # once
        started = 1 - self.missing
        value = (self.average / started.clamp(min=1e-12)).to(log_w.dtype)
        if torch.is_grad_enabled():
            with torch.no_grad():
                signal = log_w.mean().double()
                # What is not finite would stay for good.
                usable = signal.isfinite()
                decay = torch.where(usable, self.decay, 1.0)
                self.average.lerp_(torch.where(usable, signal, 0.0), 1 - decay)
                self.missing.mul_(decay)
        return value
