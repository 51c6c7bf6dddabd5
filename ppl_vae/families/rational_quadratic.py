"""Monotone rational-quadratic splines of one variable.

Shapes: `*batch` any; K bins.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["rational_quadratic", "rational_quadratic_inverse"]

# No bin is narrower than this share of the mean bin, and no slope smaller than this.
_LEAST = 1e-2


def rational_quadratic(
    x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float
) -> tuple[Tensor, Tensor]:
    r"""y and log dy/dx: K rational quadratics from -bound to bound, the identity beyond.

    .. math:: y = y_k + \frac{h_k (s_k \xi^2 + d_k \xi (1 - \xi))}
        {s_k + (d_{k+1} + d_k - 2 s_k) \xi (1 - \xi)},\quad \xi = (x - x_k) / w_k,\ s_k = h_k / w_k

    Args:
        x: `[*batch]`.
        widths: `[*batch, K]`, before a softmax.
        heights: `[*batch, K]`, before a softmax.
        slopes: `[*batch, K - 1]` at the inner knots, before a softplus; 0 is slope 1.
        bound: Positive.

    References:
        Gregory and Delbourgo (1982); Durkan et al. (2019), Neural Spline Flows.
    """
    inside = x.abs() < bound
    safe = x.clamp(-bound, bound)
    knots = _Knots(widths, heights, slopes, bound).around(safe, by_height=False)
    xi = (safe - knots.x) / knots.width
    y = knots.y + knots.rise(xi)
    return torch.where(inside, y, x), torch.where(inside, knots.log_slope(xi), 0.0)


def rational_quadratic_inverse(
    y: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float
) -> tuple[Tensor, Tensor]:
    """x and log dy/dx, by the root of a quadratic; see `rational_quadratic`."""
    inside = y.abs() < bound
    safe = y.clamp(-bound, bound)
    knots = _Knots(widths, heights, slopes, bound).around(safe, by_height=True)
    xi = knots.root(safe - knots.y)
    x = knots.x + xi * knots.width
    return torch.where(inside, x, y), torch.where(inside, knots.log_slope(xi), 0.0)


class _Knots:
    def __init__(self, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float) -> None:
        self.xs, self.ys = _grid(widths, bound), _grid(heights, bound)
        # softplus(log(e - 1)) = 1.
        inner = (1 - _LEAST) * F.softplus(slopes + 0.5413248546129181) + _LEAST
        self.slopes = F.pad(inner, (1, 1), value=1.0)

    def around(self, value: Tensor, *, by_height: bool) -> "_Bin":
        """The bin of each value."""
        grid = self.ys if by_height else self.xs
        value = value.unsqueeze(-1)
        # How many inner knots lie at or below.
        k = (value.detach() >= grid[..., 1:-1].detach()).sum(-1, keepdim=True)
        x, y, d = (v.expand(*k.shape[:-1], -1) for v in (self.xs, self.ys, self.slopes))
        left = [v.gather(-1, k).squeeze(-1) for v in (x, y, d)]
        right = [v.gather(-1, k + 1).squeeze(-1) for v in (x, y, d)]
        return _Bin(*left, *right)


class _Bin:
    def __init__(self, x: Tensor, y: Tensor, d: Tensor, x1: Tensor, y1: Tensor, d1: Tensor) -> None:
        self.x, self.y, self.width, self.height = x, y, x1 - x, y1 - y
        self.slope, self.d, self.d1 = self.height / self.width, d, d1
        self.bend = d + d1 - 2 * self.slope

    def rise(self, xi: Tensor) -> Tensor:
        mixed = xi * (1 - xi)
        return (
            self.height * (self.slope * xi**2 + self.d * mixed) / (self.slope + self.bend * mixed)
        )

    def log_slope(self, xi: Tensor) -> Tensor:
        mixed = xi * (1 - xi)
        top = self.d1 * xi**2 + 2 * self.slope * mixed + self.d * (1 - xi) ** 2
        return 2 * self.slope.log() + top.log() - 2 * (self.slope + self.bend * mixed).log()

    def root(self, rise: Tensor) -> Tensor:
        a = self.height * (self.slope - self.d) + rise * self.bend
        b = self.height * self.d - rise * self.bend
        c = -self.slope * rise
        # This form of the root has no cancellation, and is the one in [0, 1].
        return 2 * c / (-b - (b**2 - 4 * a * c).clamp(min=0).sqrt())


def _grid(raw: Tensor, bound: float) -> Tensor:
    num_bins = raw.shape[-1]
    shares = _LEAST / num_bins + (1 - _LEAST) * raw.softmax(-1)
    inner = 2 * bound * shares[..., :-1].cumsum(-1) - bound
    return torch.cat([inner.new_full((*inner.shape[:-1], 1), -bound), inner,
                      inner.new_full((*inner.shape[:-1], 1), bound)], -1)  # fmt: skip
