"""log p(x) by annealed importance sampling: where no guide is good enough, or there is none.

Shapes: T steps, C chains, N data.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.evaluate.annealing import Annealer, Spacing
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.terms import batches
from ppl_vae.evaluate.unconstrained import Unconstrained
from ppl_vae.evaluate.weights import WeightSums
from ppl_vae.randomness import check_seed, looking, untouched, validation

__all__ = ["AnnealedEstimate", "ais"]


@dataclass(frozen=True)
class AnnealedEstimate(Estimate):
    """An estimate of log p(x) for each datum, value and standard error `[N]`, in nats.

    Attributes:
        log_weights: log w of each chain, `[C, N]`; log p(x) is estimated by log of the mean of w.
        acceptance: The mean probability of acceptance, for each transition and datum, `[T - 1, N]`.
            Far from 0.65 anywhere along the path, the step size is not a good one there.
    """

    log_weights: Tensor
    acceptance: Tensor


def ais(
    model: Callable,
    x: Tensor,
    *,
    guide: Callable | None = None,
    num_steps: int = 1000,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    step_size: float = 0.1,
    adapt: bool = True,
    schedule: Spacing = "sigmoid",
    seed: int = 0,
    chunk_size: int = 5000,
) -> AnnealedEstimate:
    r"""Estimates log p(x) of each datum by annealed importance sampling.

    .. math:: \pi_\beta(z) \propto \pi_0(z)^{1 - \beta}\, p(x, z)^\beta,\qquad
        \log p(x) \approx \log \frac1C \sum_c \prod_{t=1}^T
        \Big(\frac{p(x, z_{t-1}^c)}{\pi_0(z_{t-1}^c)}\Big)^{\beta_t - \beta_{t-1}}

    :math:`\pi_0` is the prior, or the guide if there is one; z_t comes of z_(t-1) by Hamiltonian
    Monte Carlo at beta_t, over all latents in unconstrained space. Without a bias in p(x), so **a
    lower bound of log p(x) in mean**, which rises with T and with C; how far it has come,
    `evaluate.bdmc` tells on data of the model's own. The standard error is the delta method's over
    chains, as in `log_marginal`, and misleads likewise where few chains carry the sum.

    The step size of each transition and datum is set by a run before the one that counts, of four
    chains, towards an acceptance of 0.65, and then frozen: an adaptation by a chain's own past
    would bias the estimate. Programs run in the mode that they are in; call `eval()` first where
    there is dropout. Model, guide and the global random stream are left as they were.

    Cost: T (`num_leapfrog` + 1) runs of the model with a gradient, T without; to adapt, as many
    with four chains, as if T were 200 at least. Memory: the model's activations at `chunk_size`
    latents, for one gradient; no graph is kept from one gradient to the next.

    Args:
        model: The model; its latents must be continuous, and in the data plate.
        x: Data, `[N, *data_shape]`.
        guide: Where to begin; it must have a density at any z. The prior, if not given. It saves
            steps where it is near the posterior, and costs them where it lies within: a guide that
            is too narrow is a bad beginning.
        num_steps: T; with one step it is importance sampling.
        num_chains: C.
        num_leapfrog: Leapfrog steps of a transition.
        step_size: Of the leapfrog, in unconstrained space; where adapting begins, if it is adapted.
        adapt: Set step sizes by a run before.
        schedule: How the betas are spaced: `"linear"`, or `"sigmoid"`, slow at both ends.
        seed: Of all draws.
        chunk_size: How many chains times data are held at once: the bound on memory.

    Raises:
        ValueError: A discrete site, a point mass, a support that no map from the reals reaches, a
            masked or scaled latent, or one outside the data plate; a model that subsamples the
            data; a guide without density at a given z; a number out of range; no data.

    References:
        Neal (2001), Annealed Importance Sampling; Wu, Burda, Salakhutdinov and Grosse (2017), On
        the Quantitative Analysis of Decoder-Based Generative Models.

    Example:
        >>> model = ppl_vae.models.LinearGaussian([[1.0], [2.0]], 0.5)
        >>> x = torch.tensor([[1.0, 1.0]])
        >>> found = ais(model, x, num_steps=50)
        >>> abs(found.value - model.log_marginal(x)) < 5 * found.standard_error
        tensor([True])
    """
    annealer = Annealer(
        "ais", num_steps=num_steps, num_chains=num_chains, num_leapfrog=num_leapfrog,
        step_size=step_size, adapt=adapt, schedule=schedule,
    )  # fmt: skip
    check_data("ais", x, chunk_size, seed)
    found = []
    with looking(model, guide), untouched(seed), validation(False):
        for batch in batches(x, annealer.data_at_once(chunk_size)):
            target = Unconstrained(model, guide, batch, "ais")
            u = target.draw(num_chains)
            step_sizes = annealer.step_sizes(target, len(batch), u)
            log_w, acceptance = annealer.forward(target, u, step_sizes)
            sums = WeightSums(len(batch), x.device)
            sums.add(log_w)
            found.append(
                [part.to(u.dtype) for part in (sums.log_mean, sums.standard_error, log_w)]
                + [acceptance]
            )
    return AnnealedEstimate(*(torch.cat(parts, -1) for parts in zip(*found, strict=True)))


def check_data(what: str, x: Tensor, chunk_size: int, seed: int) -> None:
    """Raises a `ValueError` for what ais and bdmc cannot begin with."""
    check_dim(chunk_size, f"{what}: chunk_size")
    check_seed(seed)
    if len(x) == 0:
        raise ValueError(
            f"{what}: x has the shape {list(x.shape)}; accepted is [N, *data_shape], N >= 1"
        )
