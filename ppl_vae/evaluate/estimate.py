"""A number and its standard error, never one without the other."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate.

    Attributes:
        value: The estimate; its shape and unit are its maker's.
        standard_error: Of the value, in the same shape and unit.
    """

    value: Any
    standard_error: Any

    @staticmethod
    def of_mean(values: Tensor) -> "Estimate":
        """The mean of independent values, `[N]`, as numbers.

        The standard error is that of the mean; with one value it is not known, and is nan.
        """
        values = values.double()
        error = values.std() / math.sqrt(len(values)) if len(values) > 1 else torch.tensor(math.nan)
        return Estimate(values.mean().item(), error.item())

    def mean(self) -> "Estimate":
        r"""The mean over data, as numbers, of per-datum estimates `[B]`.

        The standard error is that of the mean over data as draws from their population,
        :math:`\operatorname{sd}(\text{value}) / \sqrt B`; the noise of each estimate is in it.
        """
        return Estimate.of_mean(self.value)

    def __str__(self) -> str:
        """The value and its standard error, two digits of the latter."""
        if not isinstance(self.value, int | float):
            return repr(self)
        if not (0 < self.standard_error < math.inf):
            return f"{self.value:.4g}"
        digits = max(0, 1 - math.floor(math.log10(self.standard_error)))
        return f"{self.value:.{digits}f} ± {self.standard_error:.{digits}f}"
