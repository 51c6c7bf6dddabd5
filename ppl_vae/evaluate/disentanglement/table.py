"""The ground that the metrics share: codes beside the factors of the same data, checked once.

A finite table stands in for the generator that some papers draw from: where a factor is to be held
fixed, rows are taken that agree in it.

Shapes: N rows (data), D code dimensions, F factors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.randomness import check_seed

__all__ = ["Table", "check_numbers", "tabulate", "top_gap"]


@dataclass(frozen=True, eq=False)
class Table:
    """Codes and factors of the same data.

    Attributes:
        codes: `[N, D]`, float64.
        factors: `[N, F]`, each value as its place among the factor's values in order.
        values: `[N, F]`, the factors as they were given.
        sizes: How many values each factor has.
    """

    codes: np.ndarray
    factors: np.ndarray
    values: np.ndarray
    sizes: tuple[int, ...]

    @property
    def standardized(self) -> np.ndarray:
        """The codes with mean 0 and variance 1 over the rows; constant codes are 0."""
        return standardize(self.codes, self.codes)

    def active(self, threshold: float) -> np.ndarray:
        """Which codes vary by more than `threshold` (variance) over the rows, bool `[D]`."""
        return (np.ptp(self.codes, axis=0) > 0) & (self.codes.var(axis=0) > threshold)


def standardize(codes: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Codes `[M, D]` shifted and scaled as makes `like`, `[N, D]`, have mean 0 and variance 1.

    Dimensions in which `like` is constant become 0.
    """
    varies = np.ptp(like, axis=0) > 0
    scale = np.where(varies, like.std(axis=0), 1.0)
    return np.where(varies, (codes - like.mean(axis=0)) / scale, 0.0)


def tabulate(
    codes: Tensor,
    factors: Tensor,
    metric: str,
    *,
    min_factors: int = 1,
    continuous: Sequence[int] | None = None,
) -> Table:
    """Codes and factors, checked.

    Args:
        codes: `[N, D]`, floating, finite, D >= 2.
        factors: `[N, F]`, finite. Each is discrete: at most N / 2 values, and two or more of these
            are shared by two rows or more.
        metric: Who asks; begins each message.
        min_factors: The fewest factors that the metric is defined for.
        continuous: Columns of factors that are taken as numbers: any that is not constant. `None`
            where the metric takes no such factors.

    Raises:
        ValueError: One of these does not hold; the message names what was given.
    """
    _check_codes(codes, metric)
    accepted = f"accepted is [N, F], N = {len(codes)} as in codes, F >= {min_factors}"
    if not isinstance(factors, Tensor):
        raise ValueError(f"{metric}: factors is a {type(factors).__name__}; accepted is a Tensor")
    if factors.dim() != 2 or len(factors) != len(codes) or factors.shape[1] < min_factors:
        raise ValueError(f"{metric}: factors has the shape {list(factors.shape)}; {accepted}")
    _check_finite(factors, f"{metric}: factors")
    names = _columns(continuous, factors.shape[1], metric)
    values = factors.detach().cpu().double().numpy()
    columns, sizes = [], []
    for f in range(values.shape[1]):
        found, column = np.unique(values[:, f], return_inverse=True)
        columns.append(column.reshape(-1))
        sizes.append(len(found))
        if len(found) == 1:
            raise ValueError(
                f"{metric}: factor {f} is {found[0]:g} in every row; accepted are factors of two "
                "values or more"
            )
        if f not in names:
            _check_discrete(column, f, metric, continuous is not None)
    return Table(_numbers(codes), np.stack(columns, axis=1), values, tuple(sizes))


def check_numbers(metric: str, seed: int, num_resamples: int, **counts: int) -> None:
    """Raises `ValueError` for a seed, a number of resamples or a count that is out of range."""
    check_seed(seed)
    for name, value in counts.items():
        check_dim(value, f"{metric}: {name}")
    is_count = isinstance(num_resamples, int) and not isinstance(num_resamples, bool)
    if not is_count or num_resamples < 0 or num_resamples == 1:
        raise ValueError(
            f"{metric}: num_resamples is {num_resamples!r}; accepted is an integer >= 2, or 0 for "
            "no standard error"
        )


def top_gap(scores: np.ndarray) -> np.ndarray:
    """The best less the second best over codes: `[..., D, F]` to `[..., F]`."""
    ordered = np.sort(scores, axis=-2)
    return ordered[..., -1, :] - ordered[..., -2, :]


def _check_codes(codes: Tensor, metric: str) -> None:
    if not isinstance(codes, Tensor) or not codes.is_floating_point():
        kind = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
        raise ValueError(f"{metric}: codes is of {kind}; accepted is a Tensor of floats")
    if codes.dim() != 2 or codes.shape[1] < 2:
        raise ValueError(
            f"{metric}: codes has the shape {list(codes.shape)}; accepted is [N, D], D >= 2"
        )
    _check_finite(codes, f"{metric}: codes")


def _check_finite(x: Tensor, what: str) -> None:
    if num_bad := int((~x.isfinite()).sum()):
        raise ValueError(
            f"{what} holds {num_bad} values that are NaN or infinite; accepted are finite values"
        )


def _check_discrete(column: np.ndarray, f: int, metric: str, takes_numbers: bool) -> None:
    counts = np.bincount(column)
    otherwise = f", or continuous=[{f}]" if takes_numbers else ""
    if 2 * len(counts) > len(column):
        raise ValueError(
            f"{metric}: factor {f} has {len(counts)} values in {len(column)} rows; accepted are "
            f"discrete factors, of at most N / 2 values{otherwise}"
        )
    if (counts >= 2).sum() < 2:
        raise ValueError(
            f"{metric}: factor {f} has one value in all rows but {len(column) - counts.max()}; "
            "accepted are factors of which two values or more are shared by two rows or more"
        )


def _columns(continuous: Sequence[int] | None, num_factors: int, metric: str) -> set[int]:
    named = set(continuous or ())
    if not named <= set(range(num_factors)):
        raise ValueError(
            f"{metric}: continuous is {continuous!r}; accepted are columns of factors, "
            f"0 to {num_factors - 1}"
        )
    return named


def _numbers(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()
