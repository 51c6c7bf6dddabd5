"""Early stopping, by the validation elbo."""

import math
from dataclasses import dataclass

from ppl_vae.handlers import Weight

__all__ = ["Stopping"]


@dataclass
class Stopping:
    """Early stopping, by the validation elbo.

    Attributes:
        patience: How many validations without a better value; none to never stop.
        final_weight: The schedule's last value. Validations under another weight do not count
            against the patience: a warm-up may well lower the elbo for a while.
        best: The best value.
        best_step: Its step.
        waited: How many validations since.
    """

    patience: int | None
    final_weight: Weight
    best: float | None = None
    best_step: int | None = None
    waited: int = 0

    @property
    def is_due(self) -> bool:
        """Whether the patience has run out."""
        return self.patience is not None and self.waited >= self.patience

    def saw(self, value: float, step: int, weight: Weight) -> bool:
        """Takes in a validation; true if it is the best so far."""
        # A first value of nan gives way to any other, and nan to none.
        if self.best is None or value > self.best or math.isnan(self.best) > math.isnan(value):
            self.best, self.best_step, self.waited = value, step, 0
            return True
        if weight == self.final_weight:
            self.waited += 1
        return False
