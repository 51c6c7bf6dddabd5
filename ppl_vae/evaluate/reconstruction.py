"""How far data are from what the model makes of their latents.

Shapes: K particles, N data, B data at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.estimators.pair import Pair, trace_pair
from ppl_vae.evaluate.decoding import data_site
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.moments import Moments
from ppl_vae.evaluate.terms import batches, terms_of
from ppl_vae.randomness import check_seed, looking, untouched

__all__ = ["ReconstructionError", "reconstruction_error"]


@dataclass(frozen=True)
class ReconstructionError:
    """Two errors of each datum, value and standard error `[N]` each; `.mean()` is over data.

    Standard errors of single data are over draws of the guide, that of the mean is over data.

    Attributes:
        squared_error: Summed over the numbers of a datum, in the data's unit squared; divided by
            their number it is the mean squared error of a pixel.
        negative_log_likelihood: Nats per datum. Of continuous data it may be below 0.
    """

    squared_error: Estimate
    negative_log_likelihood: Estimate


def reconstruction_error(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *,
    num_particles: int = 100,
    batch_size: int = 1000,
    seed: int = 0,
) -> ReconstructionError:
    r"""How far each datum is from what the model makes of the guide's draws.

    .. math:: E_{q(z|x)} \big\| x - E[x | z] \big\|^2, \qquad - E_{q(z|x)} \log p(x | z)

    Means over K draws of the guide, unbiased, with standard errors :math:`\operatorname{sd} /
    \sqrt K`, which with one draw are not known, and nan. The first is **not** the error of one
    reconstruction from the guide's mean: the spread of the guide is in it. Neither is a measure of
    a model by itself, for a guide that is ever more certain brings both down, and the KL up. What
    `poutine.mask` hides is left out of both. The guide needs no density. Model, guide and the
    global random stream are left as they were.

    Cost: K runs of guide and model.

    Args:
        model: The model; it observes the data at a site named "x", or as its argument.
        guide: The guide.
        x: Data, `[N, *data_shape]`.
        num_particles: K.
        batch_size: Data at once: the bound on memory.
        seed: Of the draws.

    Raises:
        ValueError: p(x | z) has no mean that is known, as classes have none; the model observes no
            data; no data; a number out of range.

    Example:
        >>> model = ppl_vae.models.LinearGaussian([[1.0], [2.0]], 0.5)
        >>> guide = ppl_vae.guides.MeanFieldGuide(model)
        >>> found = reconstruction_error(model, guide, torch.zeros(5, 2))
        >>> found.squared_error.value.shape, found.negative_log_likelihood.mean().value > 0
        (torch.Size([5]), True)
    """
    check_dim(num_particles, "reconstruction_error: num_particles")
    check_dim(batch_size, "reconstruction_error: batch_size")
    check_seed(seed)
    if len(x) == 0:
        raise ValueError(
            f"reconstruction_error: x has the shape {list(x.shape)}; accepted is [N, *data_shape], "
            "N >= 1"
        )
    found = []
    with looking(model, guide), untouched(seed), torch.no_grad():
        for batch in batches(x, batch_size):
            moments = Moments()
            for _ in range(num_particles):
                pair = trace_pair(model, guide, (batch,), {})
                likelihood = terms_of(pair, len(x)).reconstruction
                square = _squared_error(pair, batch)
                moments.add(torch.cat([square.double(), -likelihood.double()]))
            error = (moments.variance / num_particles).sqrt()
            found.append([*moments.mean.chunk(2), *error.chunk(2)])
    square, minus, square_error, minus_error = (
        torch.cat(parts).to(x) if x.is_floating_point() else torch.cat(parts)
        for parts in zip(*found, strict=True)
    )
    return ReconstructionError(Estimate(square, square_error), Estimate(minus, minus_error))


def _squared_error(pair: Pair, x: Tensor) -> Tensor:
    """Of each datum, `[B]`."""
    site, plate = data_site(pair.model_trace, x), pair.data_plate
    fn = site["fn"]
    try:
        mean = fn.mean
    except NotImplementedError:
        mean = None
    if mean is None or mean.isnan().any():
        raise ValueError(
            f"reconstruction_error: p(x | z) at '{site['name']}' is {type(fn).__name__}, which has "
            "no mean that is known; accepted is a distribution that has one (elbo_terms gives "
            "log p(x | z) of any)"
        )
    square = (site["value"] - mean) ** 2
    square = square.sum(list(range(-len(fn.event_shape), 0))) if fn.event_shape else square
    square = scale_and_mask(square, mask=site["mask"])
    return square.movedim(plate.dim, 0).reshape(plate.size, -1).sum(1)
