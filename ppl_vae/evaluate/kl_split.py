"""The KL of the ELBO taken apart: what z tells of the datum, and how q(z) differs from p(z).

Shapes: N data, U units of a latent site, S draws.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.evaluate.aggregate import BLOCK, AggregateDensities, Draws, aggregate_densities, draw
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.factorization import Factorization, factorization
from ppl_vae.randomness import check_seed, looking, untouched, validation

__all__ = ["KLSplit", "kl_split"]

# Nats by which a draw's density may differ between two runs, in the mean: that of rounding.
_ROUNDING = 1e-2


@dataclass(frozen=True)
class KLSplit:
    """The parts of the average KL, numbers in nats, with standard errors over data.

    Attributes:
        total: The average KL of q(z | x) and p(z).
        mutual_information: Of a datum's index and its latents, at most `largest_information`.
        marginal_kl: KL of the aggregate posterior q(z) and p(z).
        total_correlation: KL of q(z) and the product of its units' marginals; none where q(z | x)
            does not factorize over units.
        dimension_kl: The sum over units of KL(q(z_j) || p(z_j)); none where q(z | x) or p(z) does
            not factorize over units.
        by_unit: Each unit's share of `dimension_kl`, `[U]` by site; none where that is.
        num_data: N, of which q(z) is the mixture.
    """

    total: Estimate
    mutual_information: Estimate
    marginal_kl: Estimate
    total_correlation: Estimate | None
    dimension_kl: Estimate | None
    by_unit: dict[str, Estimate] | None
    num_data: int

    @property
    def largest_information(self) -> float:
        """log N: an index tells no more, whatever the guide."""
        return math.log(self.num_data)

    def summary(self) -> dict[str, Estimate]:
        """The parts that there are."""
        names = ("total", "mutual_information", "marginal_kl", "total_correlation", "dimension_kl")
        found = {name: getattr(self, name) for name in names}
        return {name: part for name, part in found.items() if part is not None}


def kl_split(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *,
    site: str | None = None,
    num_particles: int = 1,
    num_data: int | None = None,
    batch_size: int = 1000,
    seed: int = 0,
) -> KLSplit:
    r"""Splits the average KL of a guide and the prior (ELBO surgery).

    .. math:: \underbrace{\frac1N \sum_n KL(q(z | x_n) \| p(z))}_{\text{total}}
        = \underbrace{I_q(n; z)}_{\text{mutual information}}
        + \underbrace{KL\Big(q(z) \Big\| \prod_j q(z_j)\Big)}_{\text{total correlation}}
        + \underbrace{\sum_j KL(q(z_j) \| p(z_j))}_{\text{dimension KL}},
        \qquad q(z) = \frac1N \sum_n q(z | x_n)

    with :math:`I_q = \frac1N \sum_n KL(q(z | x_n) \| q(z))`; the last two are the marginal
    :math:`KL(q(z) \| p(z))`. q(z) is the mixture over **all** of x, evaluated exactly, and so are
    its units' marginals; only the outer expectation is sampled, at the same draws for every part:
    parts add up to the total to rounding. (A minibatch in place of the data would bias each part,
    and differently so for each size.)

    All latents of a datum are taken together, chains of them too; p(z) is the model's own, learned
    or not. Total correlation needs a q(z | x) that is a product over units, as that of
    `MeanFieldGuide`, dimension KL needs such a p(z) besides: under full-rank guides, flows, and
    chains one or both are none. A `site` can be looked at by itself where its densities, in model
    and guide, hang on no other latent. A guide must have a density at any z; in chains its later
    sites are run on draws of all earlier ones at once, in a dimension left of the plates, as for
    vectorized particles.

    **What the figures are of.** The data given. :math:`0 \le I_q \le \log N`, and where it is near
    log N the posteriors hardly overlap: the figure then tells of N, and grows with it; what z tells
    of a draw from the population it does not. Even below, I_q and the marginal KL of N data differ
    from the population's by a bias of order 1/N, upwards in the marginal KL and downwards in I_q.
    A standard error is that of a mean over data, the draws of each averaged first. It covers both
    the noise of the draws and, to first order, which data were drawn from their population (the
    change of q(z) with the data included, for its effect on the expected log q(z) is of second
    order). It does not cover that bias; and it is too large for what another `seed` would do to the
    same data. Sampled, a part may come out below 0.

    Programs run in the mode that they are in; call `eval()` first where there is dropout. Model,
    guide and global state are left as they were. Cost: N times K N densities.

    Args:
        model: The model.
        guide: The guide.
        x: Data, `[N, *data_shape]`.
        site: The latent to look at; all together, if not given.
        num_particles: K, draws of each datum.
        num_data: Of how many data to draw, chosen at random; of all, if not given. q(z) is the
            mixture over all of x in any case. Saves time where N is large.
        batch_size: Data at once in the densities, each of which is given up to 100,000 /
            `batch_size` draws: the bound on memory. Figures are the same to rounding. A guide whose
            q(z | x) hangs on the other data of the batch (`SemiAmortizedGuide`, batch normalization
            in training) needs the default.
        seed: Of the draws.

    Raises:
        ValueError: A number out of range; no data; the guide is a point mass, a flow without an
            inverse, made of auxiliary draws, random besides its sites, or a chain that takes no
            dimension left of the plates; a site that there is not, or whose density hangs on other
            latents; a latent that is masked, scaled, or outside the data plate; p(z) looks at the
            data; the model subsamples them.

    References:
        Hoffman and Johnson (2016), ELBO Surgery; Chen, Li, Grosse and Duvenaud (2018), Isolating
        Sources of Disentanglement in VAEs, of the second split.

    Example:
        >>> model = ppl_vae.models.LinearGaussian([[1.0], [2.0]], 0.5)
        >>> guide = ppl_vae.guides.MeanFieldGuide(model)
        >>> found = kl_split(model, guide, torch.randn(50, 2))
        >>> parts = (found.mutual_information, found.total_correlation, found.dimension_kl)
        >>> abs(sum(part.value for part in parts) - found.total.value) < 1e-5
        True
    """
    check_dim(num_particles, "kl_split: num_particles")
    check_dim(batch_size, "kl_split: batch_size")
    check_seed(seed)
    if len(x) == 0:
        raise ValueError(
            f"kl_split: x has the shape {list(x.shape)}; accepted is [N, *data_shape], N >= 1"
        )
    if num_data is not None:
        check_dim(num_data, "kl_split: num_data")
        if num_data > len(x):
            raise ValueError(f"kl_split: num_data is {num_data}; accepted is at most {len(x)}")
    with looking(model, guide), untouched(seed), torch.no_grad():
        chosen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        chosen[torch.randperm(len(x), device=x.device)[:num_data]] = True
        form = factorization(model, guide, x[:BLOCK], site, "kl_split")
        with validation(False):
            draws = draw(model, guide, x, form, num_particles, chosen)
            densities = aggregate_densities(guide, x, form, draws, batch_size)
    off = (densities.own - draws.log_guide).abs().mean().item()
    if off > _ROUNDING:
        raise ValueError(
            f"kl_split: log q(z | x) of a datum's own draws differs by {off:.2g} nats, in the mean,"
            f" from what it was when they were drawn, {BLOCK} data at once; accepted are guides "
            "whose q(z | x) hangs on x alone, and others with batch_size=1000"
        )
    return _split(form, draws, densities, num_particles, len(x))


def _split(
    form: Factorization, draws: Draws, q: AggregateDensities, num_particles: int, num_data: int
) -> KLSplit:
    def of_mean(values: Tensor) -> Estimate:
        """Over data, of `[S]`."""
        return Estimate.of_mean(values.reshape(num_particles, -1).mean(0))

    log_prior = draws.log_prior.double()
    joint_prior = log_prior.sum(-1)
    correlation = dimensions = by_unit = None
    if q.units is not None:
        correlation = of_mean(q.joint - q.units.sum(-1))
        if form.model_has_units:
            difference = q.units - log_prior
            dimensions, by_unit = (
                of_mean(difference.sum(-1)),
                _by_unit(difference.unflatten(0, (num_particles, -1)).mean(0), draws),
            )
    return KLSplit(
        of_mean(q.own - joint_prior),
        of_mean(q.own - q.joint),
        of_mean(q.joint - joint_prior),
        correlation,
        dimensions,
        by_unit,
        num_data,
    )


def _by_unit(values: Tensor, draws: Draws) -> dict[str, Estimate]:
    """Means over data of `[N, U]`, by site."""
    sizes = [row[0].numel() for row in draws.rows.values()]
    error = values.std(0) / math.sqrt(len(values)) if len(values) > 1 else values[0] * math.nan
    parts = zip(values.mean(0).split(sizes), error.split(sizes), strict=True)
    return {name: Estimate(*part) for name, part in zip(draws.rows, parts, strict=True)}
