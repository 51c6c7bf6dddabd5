"""Annealing along the path of an `Unconstrained` target, in either direction.

Shapes: T steps, C chains, B data, D dimensions of all latents of a datum together.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.evaluate.hamiltonian import transition
from ppl_vae.evaluate.unconstrained import Unconstrained

__all__ = ["Annealer", "Spacing", "anneal", "betas"]

Spacing = Literal["sigmoid", "linear"]

#: Where an acceptance is neither wasted nor wanting (Neal, 2011).
_TARGET = 0.65
# Of the run that sets step sizes: chains; transitions before its first step, and then at least; how
# fast the logarithm of a step size follows the acceptance, before and then.
_CHAINS, _BEFORE, _LEAST, _FAST, _SLOW = 4, 25, 200, 0.5, 0.2


class Annealer:
    """How to anneal; arguments as in `ais`.

    Args:
        what: Who asks, for messages.
        num_steps: T.
        num_chains: C.
        num_leapfrog: Leapfrog steps of a transition.
        step_size: Of the leapfrog; where adapting begins, if it is adapted.
        adapt: Whether to adapt it.
        schedule: How the betas are spaced.

    Raises:
        ValueError: A number out of range, or a schedule that is none.
    """

    def __init__(
        self,
        what: str,
        *,
        num_steps: int,
        num_chains: int,
        num_leapfrog: int,
        step_size: float,
        adapt: bool,
        schedule: Spacing,
    ) -> None:
        counts = {"num_steps": num_steps, "num_chains": num_chains, "num_leapfrog": num_leapfrog}
        for name, value in counts.items():
            check_dim(value, f"{what}: {name}")
        is_number = isinstance(step_size, int | float) and not isinstance(step_size, bool)
        if not is_number or not 0 < step_size < math.inf:
            raise ValueError(f"{what}: step_size is {step_size!r}; accepted is a number > 0")
        if schedule not in get_args(Spacing):
            raise ValueError(f"{what}: schedule is {schedule!r}; accepted are 'sigmoid', 'linear'")
        self._betas = betas(num_steps, schedule)
        self.num_chains, self._num_leapfrog = num_chains, num_leapfrog
        self._step_size, self._adapt = step_size, adapt

    def data_at_once(self, chunk_size: int) -> int:
        """How many data to anneal together."""
        return max(1, chunk_size // max(self.num_chains, _CHAINS))

    def step_sizes(self, target: Unconstrained, num_data: int, like: Tensor) -> Tensor:
        r"""One for each step and datum, `[T - 1, B]`.

        From a run of its own, whose chains are then thrown away: what is measured later uses step
        sizes that do not depend on its own past, so that every transition leaves its pi as it is.
        After each transition the log of the step size moves by a multiple of the mean acceptance of
        the datum's chains minus 0.65. Of short paths that run stays a while at each beta.
        """
        log_step = torch.full((num_data,), math.log(self._step_size), dtype=like.dtype)
        log_step = log_step.to(like.device)
        inner = self._betas[1:-1]
        if not self._adapt or not inner:
            return log_step.exp().expand(len(inner), -1)
        repeats = math.ceil(_LEAST / len(inner))
        moves = [(inner[0], _FAST)] * _BEFORE
        moves += [(beta, _SLOW) for beta in inner for _ in range(repeats)]
        u, found = target.draw(_CHAINS), []
        for beta, rate in moves:
            density = target.tempered(beta)
            u, acceptance = transition(density, u, log_step.exp(), self._num_leapfrog)
            log_step = log_step + rate * (acceptance.mean(0) - _TARGET)
            found.append(log_step.exp())
        return torch.stack(found[_BEFORE + repeats - 1 :: repeats])

    def forward(
        self, target: Unconstrained, u: Tensor, step_sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """From draws of the base to p(x, z): log w, `[C, B]`, and acceptance, `[T - 1, B]`."""
        return anneal(target, u, self._betas, step_sizes, self._num_leapfrog)

    def reverse(
        self, target: Unconstrained, u: Tensor, step_sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """From draws of p(z | x) to the base, by the same transitions: the same two."""
        back = self._betas[::-1]
        log_w, acceptance = anneal(target, u, back, step_sizes.flip(0), self._num_leapfrog)
        return -log_w, acceptance.flip(0)


def anneal(
    target: Unconstrained,
    u: Tensor,
    betas: Sequence[float],
    step_sizes: Tensor,
    num_leapfrog: int,
) -> tuple[Tensor, Tensor]:
    r"""Moves draws of the first pi along a path, and weighs them.

    .. math:: \log w = \sum_{t=1}^T \log \frac{\pi_{\beta_t}(u_{t-1})}{\pi_{\beta_{t-1}}(u_{t-1})}
        = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \log \frac{p(x, z_{t-1})}{\pi_0(z_{t-1})}

    and u_t comes of u_{t-1} by a transition that leaves pi at beta_t as it is. The mean of w is the
    ratio of the integrals of the last and the first pi. After the last step no transition is
    needed.

    Args:
        target: The path.
        u: Draws of the first pi, `[C, B, D]`.
        betas: T + 1 of them, up or down.
        step_sizes: Of each transition and datum, `[T - 1, B]`.
        num_leapfrog: Of each transition.

    Returns:
        log w, `[C, B]`, in double, and the mean acceptance over chains, `[T - 1, B]`.

    References:
        Neal (2001), Annealed Importance Sampling.
    """
    log_w, acceptances = torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device), []
    for t in range(1, len(betas)):
        with torch.no_grad():
            ratio = target.densities(u)[1]
        log_w = log_w + (betas[t] - betas[t - 1]) * ratio.double()
        if t < len(betas) - 1:
            density = target.tempered(betas[t])
            u, acceptance = transition(density, u, step_sizes[t - 1], num_leapfrog)
            acceptances.append(acceptance.mean(0))
    return log_w, torch.stack(acceptances) if acceptances else u.new_zeros(0, u.shape[1])


def betas(num_steps: int, schedule: Spacing) -> list[float]:
    r"""T + 1 numbers from 0 to 1.

    `"linear"` is t / T. `"sigmoid"` is slow at both ends,

    .. math:: \beta_t = \frac{s_t - s_0}{s_T - s_0},\qquad
        s_t = \frac1{1 + \exp(-4 (2 t / T - 1))}
    """
    line = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    if schedule == "sigmoid":
        s = (4 * (2 * line - 1)).sigmoid()
        line = (s - s[0]) / (s[-1] - s[0])
    return line.tolist()
