r"""How heavy the tail of the weights is: the shape of the generalized Pareto that fits it.

Shapes: K weights, M of them in the tail, B data.
"""

import math

import torch
from torch import Tensor

__all__ = ["Tail", "fit_pareto_shape", "reliable_below", "tail_size"]

# Of the prior that keeps a fit to few weights near 0.5: as if that many more had been seen.
_PRIOR_SHAPE, _PRIOR_SIZE = 0.5, 10
# Log weights that differ by so many roundings are taken to be the same.
_ROUNDINGS = 1000


def tail_size(num_draws: int) -> int:
    r"""M, how many of K weights are its tail: :math:`\lceil \min(K / 5,\ 3 \sqrt K) \rceil`."""
    return math.ceil(min(0.2 * num_draws, 3 * math.sqrt(num_draws)))


def reliable_below(num_draws: int) -> float:
    r"""The k-hat up to which K weights do, :math:`\min(1 - 1 / \log_{10} K,\ 0.7)`."""
    return min(1 - 1 / math.log10(num_draws), 0.7)


class Tail:
    """The largest weights of each datum, and nothing of the others.

    Args:
        num_draws: K, how many weights there will be.
    """

    def __init__(self, num_draws: int) -> None:
        self._size = tail_size(num_draws) + 1  # One more: where the tail begins.
        self._largest: Tensor | None = None

    def add(self, log_w: Tensor) -> None:
        """Looks at so many more weights, given as log w, `[k, B]`."""
        if self._largest is not None:
            log_w = torch.cat([self._largest, log_w])
        self._largest = log_w.topk(min(self._size, len(log_w)), dim=0).values

    def shape(self) -> Tensor:
        r"""k-hat of each datum, `[B]`.

        The shape that `fit_pareto_shape` finds for what the M largest weights have above the next,
        drawn towards a half, :math:`(M \hat k + 5) / (M + 10)`. It is -inf where the tail has no
        width but rounding, as at the exact posterior; inf where a quarter of the tail is nothing
        beside the largest weight; nan where no weight is positive.

        References:
            Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
        """
        assert self._largest is not None
        width = torch.finfo(self._largest.dtype).eps * _ROUNDINGS
        largest, cutoff = self._largest[0], self._largest[-1]
        is_flat = (largest - cutoff <= width * (1 + cutoff.abs())) & cutoff.isfinite()
        log_w, cutoff = (self._largest[:-1] - largest).double(), (cutoff - largest).double()
        # w - cutoff, with no difference of two numbers that are nearly the same
        excess = torch.where(log_w == -math.inf, 0, -log_w.exp() * torch.expm1(cutoff - log_w))
        shape = fit_pareto_shape(excess)
        num = len(excess)
        shape = (num * shape + _PRIOR_SIZE * _PRIOR_SHAPE) / (num + _PRIOR_SIZE)
        return torch.where(is_flat, -math.inf, shape)


def fit_pareto_shape(excess: Tensor) -> Tensor:
    r"""The shape k of generalized Pareto distributions, from draws.

    .. math:: P(X > x) = (1 + k x / \sigma)^{-1/k}

    The profile likelihood of :math:`\theta = -k / \sigma`, as a posterior on a grid under a prior
    that the draws' quartile scales; k at the posterior mean. Nothing is iterated, and k may be any
    number.

    Args:
        excess: Draws, `[M, B]`, >= 0.

    Returns:
        k, `[B]`; inf where the lower quartile is 0 and the largest draw is not.

    References:
        Zhang and Stephens (2009), A New and Efficient Estimation Method for the Generalized Pareto
        Distribution.
    """
    excess = excess.sort(0).values
    num = len(excess)
    largest, quartile = excess[-1], excess[max(0, math.floor(num / 4 + 0.5) - 1)]
    size = 30 + math.floor(math.sqrt(num))
    grid, likelihood = [], []
    for j in range(size):
        theta = 1 / largest + (1 - math.sqrt(size / (j + 0.5))) / (3 * quartile)
        shape = torch.log1p(-theta * excess).mean(0)
        grid.append(theta)
        likelihood.append(num * ((-theta / shape).log() - shape - 1))
    posterior = torch.stack(likelihood).softmax(0)
    theta = (posterior * torch.stack(grid)).sum(0)
    shape = torch.log1p(-theta * excess).mean(0)
    return torch.where((quartile == 0) & (largest > 0), math.inf, shape)
