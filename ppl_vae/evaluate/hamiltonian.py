"""Hamiltonian Monte Carlo on many chains of many data at once.

Shapes: C chains, B data, D dimensions of all latents of a datum together.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Density", "leapfrog", "transition"]

#: From u, `[C, B, D]`, to a log-density `[C, B]` and its gradient `[C, B, D]`.
Density = Callable[[Tensor], tuple[Tensor, Tensor]]


def leapfrog(
    density: Density,
    u: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    step_size: Tensor,
    num_steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Follows the Hamiltonian :math:`-\log \pi(u) + \lVert p \rVert^2 / 2` for so many steps.

    Reversible: from where it ends, with the momentum turned, it goes back to where it began. Keeps
    volume, and the energy up to an error of second order in the step size.

    Args:
        density: log pi and its gradient.
        u: Positions, `[C, B, D]`.
        momentum: p, `[C, B, D]`.
        gradient: Of log pi at u.
        step_size: `[B]`.
        num_steps: At least 1.

    Returns:
        Positions, momenta, and log pi at the end.
    """
    step = step_size.unsqueeze(-1)
    momentum = momentum + 0.5 * step * gradient
    for _ in range(num_steps - 1):
        u = u + step * momentum
        momentum = momentum + step * density(u)[1]
    u = u + step * momentum
    log_density, gradient = density(u)
    return u, momentum + 0.5 * step * gradient, log_density


def transition(
    density: Density, u: Tensor, step_size: Tensor, num_leapfrog: int
) -> tuple[Tensor, Tensor]:
    r"""One step of each chain, which leaves pi as it is.

    Fresh momenta from N(0, I), a trajectory, and its end with the probability

    .. math:: \min\big(1, \exp(H(u, p) - H(u', p'))\big)

    and else u again. A trajectory that meets what is not finite is not taken. Draws from the global
    random stream.

    Args:
        density: log pi and its gradient.
        u: Positions, `[C, B, D]`.
        step_size: Of the leapfrog, `[B]`.
        num_leapfrog: Its steps.

    Returns:
        Positions, `[C, B, D]`, and the probabilities of acceptance, `[C, B]`.

    References:
        Neal (2011), MCMC Using Hamiltonian Dynamics.
    """
    log_start, gradient = density(u)
    momentum = torch.randn_like(u)
    new, new_momentum, log_end = leapfrog(density, u, momentum, gradient, step_size, num_leapfrog)
    kinetic = 0.5 * (new_momentum.square().sum(-1) - momentum.square().sum(-1))
    probability = (log_end - log_start - kinetic).exp().clamp(max=1).nan_to_num(0.0)
    accepted = torch.rand_like(probability) < probability
    return torch.where(accepted.unsqueeze(-1), new, u), probability
