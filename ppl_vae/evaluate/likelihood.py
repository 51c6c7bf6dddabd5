"""The marginal likelihood log p(x), by importance sampling from the guide.

Shapes: K particles, B data.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.terms import batches
from ppl_vae.evaluate.weights import Weights, WeightSums, data_at_once
from ppl_vae.randomness import untouched

__all__ = ["log_marginal"]


def log_marginal(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *,
    num_particles: int = 5000,
    seed: int = 0,
    chunk_size: int = 5000,
    compile: bool | Literal["auto"] = "auto",
) -> Estimate:
    r"""An importance-weighted estimate of log p(x), for each datum.

    .. math:: \log p(x) \approx \log \frac1K \sum_k w_k, \qquad
        w_k = \frac{p(x, z_k)}{q(z_k | x)},\quad z_k \sim q(z | x)

    A lower bound in expectation, which rises to log p(x) with K (Burda et al., 2016). The standard
    error is the delta method's, :math:`\operatorname{sd}(w) / (\bar w \sqrt K)`; it says how far
    another run would fall, not how far the bound is from log p(x), and misleads where few weights
    carry the sum. Leaves the global random stream alone.

    Args:
        model: The model; its latents must all lie in the data plate.
        guide: The guide; it must have a density.
        x: Data, `[B, *data_shape]`.
        num_particles: K.
        seed: Of the draws.
        chunk_size: How many particles times data are held at once: the bound on memory. Of a
            decoder from 20 to 784 by way of 400, 5000 take some 50 MB.
        compile: Make one graph of both programs, and machine code of it: the same draws, and the
            same values up to rounding. `"auto"` does so where there are many draws, and stays with
            the programs where they cannot be compiled.

    Returns:
        Value and standard error, each `[B]`, nats per datum.

    Raises:
        ValueError: K is below 1; the guide has no density; a latent lies outside the data plate;
            `compile` is true, and the programs cannot be compiled.

    References:
        Burda et al. (2016), Importance Weighted Autoencoders.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles is {num_particles}; accepted is >= 1")
    weights = Weights(model, guide, compile, len(x) * num_particles)
    values, errors = [], []
    with untouched(seed), torch.no_grad():
        for batch in batches(x, data_at_once(len(x), num_particles, chunk_size)):
            sums = WeightSums(len(batch), x.device)
            for log_w in weights.chunks(batch, num_particles, chunk_size):
                sums.add(log_w)
            values.append(sums.log_mean.to(sums.dtype))
            errors.append(sums.standard_error.to(sums.dtype))
    return Estimate(torch.cat(values), torch.cat(errors))
