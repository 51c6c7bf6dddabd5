"""Moments of a stream of vectors, what each of them does to these, and the jackknife.

Shapes: n draws, P entries of a vector, S segments of it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppl_vae.evaluate.estimate import Estimate

__all__ = [
    "Deviations",
    "Moments",
    "by_segment",
    "jackknife",
    "ratios",
    "squared_length",
    "total_variance",
]


class Moments:
    r"""Mean and squared deviations of vectors that come one by one, in double.

    .. math:: m_n = m_{n-1} + \frac{g_n - m_{n-1}}{n}, \qquad
        S_n = S_{n-1} + (g_n - m_{n-1}) (g_n - m_n)

    Attributes:
        num: n.
        mean: m, `[P]`.
        squares: S, the sum of squared deviations from the mean, `[P]`.

    References:
        Welford (1962), Note on a Method for Calculating Corrected Sums of Squares and Products.
    """

    def __init__(self) -> None:
        self.num = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, vector: Tensor) -> None:
        """Takes one more vector, `[P]`."""
        vector = vector.double()
        if self.num == 0:
            self.mean, self.squares = torch.zeros_like(vector), torch.zeros_like(vector)
        self.num += 1
        before = vector - self.mean
        self.mean = self.mean + before / self.num
        self.squares = self.squares + before * (vector - self.mean)

    @property
    def variance(self) -> Tensor:
        """The unbiased variance of each entry, `[P]`."""
        return self.squares / (self.num - 1)


class Deviations:
    r"""A second pass over the same vectors: numbers of each, from which all jackknives are made.

    With :math:`e_i = g_i - m`, segment by segment; `[n, S]` each once every vector was added.

    Args:
        moments: Of all vectors.
        sizes: Entries of each segment, P in all.
        directions: Vectors by name, `[P]`.

    Attributes:
        squares: :math:`|e_i|^2`.
        along: :math:`e_i \cdot d` for each direction d.
        ratios: The sum over entries of |mean| / standard deviation, both without draw i. An entry
            that does not vary counts as 0.
    """

    def __init__(
        self, moments: Moments, sizes: Sequence[int], directions: Mapping[str, Tensor]
    ) -> None:
        self._moments, self._sizes, self._directions = moments, list(sizes), directions
        self._rows: dict[str, list[Tensor]] = {}

    def add(self, vector: Tensor) -> None:
        """Takes one of the vectors, `[P]`."""
        moments, n = self._moments, self._moments.num
        off = vector.double() - moments.mean
        square = off.square()
        rest = moments.squares - square * (n / (n - 1))
        mean = moments.mean - off / (n - 1)
        self._append("squares", square)
        self._append("ratios", ratios(mean, rest / (n - 2)))
        for name, direction in self._directions.items():
            self._append(f"along {name}", off * direction)

    @property
    def squares(self) -> Tensor:
        """As above, `[n, S]`."""
        return torch.stack(self._rows["squares"])

    @property
    def ratios(self) -> Tensor:
        """As above, `[n, S]`."""
        return torch.stack(self._rows["ratios"])

    def along(self, name: str) -> Tensor:
        """As above, `[n, S]`."""
        return torch.stack(self._rows[f"along {name}"])

    def _append(self, what: str, values: Tensor) -> None:
        self._rows.setdefault(what, []).append(by_segment(values, self._sizes))


def ratios(mean: Tensor, variance: Tensor) -> Tensor:
    """|mean| / standard deviation of each entry, `[P]`; 0 where there is no variance."""
    return torch.where(variance > 0, mean.abs() / variance.sqrt(), 0.0)


def by_segment(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """The sum over each segment, `[P] -> [S]`."""
    return torch.stack([part.sum() for part in values.split(list(sizes))])


def squared_length(square: Tensor, along: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    r"""The squared length of what n noisy vectors are a mean of, without the noise's own share.

    .. math:: |v|^2 - \frac{\operatorname{tr} C}{n}, \qquad v = m - c

    for any constant c; unbiased, and so it may be negative.

    Args:
        square: :math:`|v|^2`, `[]`.
        along: :math:`e_i \cdot v`, `[n]`.
        squares: :math:`|e_i|^2`, `[n]`.

    Returns:
        The value, `[]`, and the same without each of the draws, `[n]`.
    """
    n = len(squares)
    trace, rest = total_variance(squares)
    moved = square - 2 * along / (n - 1) + squares / (n - 1) ** 2
    return square - trace / n, moved - rest / (n - 1)


def total_variance(squares: Tensor) -> tuple[Tensor, Tensor]:
    """The trace of the covariance, `[]`, and the same without each of the draws, `[n]`."""
    n, total = len(squares), squares.sum()
    return total / (n - 1), (total - squares * (n / (n - 1))) / (n - 2)


def jackknife(value: Tensor, without: Tensor) -> Estimate:
    r"""A figure with the jackknife's standard error.

    .. math:: \text{se}^2 = \frac{n - 1}{n} \sum_i (t_{-i} - \bar t)^2

    Args:
        value: From all draws, `[]`.
        without: From all but one, `[n]`.

    References:
        Efron and Stein (1981), The Jackknife Estimate of Variance.
    """
    n = len(without)
    error = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    return Estimate(value.item(), error.item())
