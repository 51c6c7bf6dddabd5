"""The terms of the ELBO, one by one and datum by datum.

Shapes: B data, N all data.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.estimators.densities import per_datum
from ppl_vae.estimators.pair import Pair, trace_pair
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.randomness import untouched

__all__ = ["Terms", "average_terms", "elbo_terms"]

AT_ONCE = 1000
"""Data that `average_terms` takes at once."""


@dataclass(frozen=True)
class Terms:
    r"""The ELBO of each datum, taken apart, at one draw z of the guide.

    .. math:: \text{elbo} = \log p(x | z)
        - \sum_s \big(\log q(z_s | \cdot) - \log p(z_s | \cdot)\big)

    Every term is sampled, so each is right for every pair, and their expectations are the terms of
    the ELBO. All `[B]`, nats per datum, at KL weight 1. A latent outside the data plate counts as
    a datum's share, its term over the number of all data.

    Attributes:
        reconstruction: :math:`\log p(x | z)`, summed over the observed sites.
        log_prior: :math:`\log p(z_s | \cdot)` for each latent site.
        kl: :math:`\log q - \log p` for each latent site, and :math:`\log q` for what the guide
            samples alone; empty if the guide has no density.
    """

    reconstruction: Tensor
    log_prior: dict[str, Tensor]
    kl: dict[str, Tensor]

    @property
    def elbo(self) -> Tensor | None:
        """The ELBO of each datum, `[B]`; none where the guide has no density."""
        if not self.kl:
            return None
        return self.reconstruction - sum(self.kl.values())  # type: ignore[return-value]

    def summary(self) -> dict[str, Any]:
        """Means over data: `elbo`, `reconstruction`, and `kl` by site (else `log_prior`)."""
        summary: dict[str, Any] = {"reconstruction": Estimate.of_mean(self.reconstruction)}
        if self.elbo is None:
            prior = {name: Estimate.of_mean(value) for name, value in self.log_prior.items()}
            return {**summary, "log_prior": prior}
        kl = {name: Estimate.of_mean(value) for name, value in self.kl.items()}
        return {"elbo": Estimate.of_mean(self.elbo), **summary, "kl": kl}


def elbo_terms(model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Terms:
    """The terms at one draw of the guide; draws from the global random stream, no gradients.

    Args:
        model: The model.
        guide: The guide.
        *args: What both take: x, `[B, *data_shape]`, and what else there is.
        **kwargs: What else there is.

    Raises:
        ValueError: The pair does not fit, or the model has no plate over the data.
    """
    with torch.no_grad():
        return _terms(trace_pair(model, guide, args, kwargs), None)


def average_terms(
    model: Callable,
    guide: Callable,
    data: Tensor,
    *,
    num_particles: int = 1,
    batch_size: int = AT_ONCE,
    seed: int = 0,
) -> Terms:
    """The terms of many data, averaged over draws; leaves the global random stream alone.

    Args:
        model: The model.
        guide: The guide.
        data: x, `[N, *data_shape]`.
        num_particles: Draws of the guide for each datum.
        batch_size: Data at once.
        seed: Of the draws: the same seed gives the same figures.

    Returns:
        Terms with N in place of B.
    """
    with untouched(seed):
        chunks = [
            _mean([_draw(model, guide, x, len(data)) for _ in range(num_particles)])
            for x in batches(data, batch_size)
        ]
    return Terms(
        torch.cat([c.reconstruction for c in chunks]),
        {name: torch.cat([c.log_prior[name] for c in chunks]) for name in chunks[0].log_prior},
        {name: torch.cat([c.kl[name] for c in chunks]) for name in chunks[0].kl},
    )


def batches(data: Tensor, batch_size: int) -> Iterator[Tensor]:
    """The data in order, `batch_size` at once; the last may be shorter."""
    return iter(data.split(batch_size))


def terms_of(pair: Pair, num_data: int) -> Terms:
    """The terms of some data, which are a part of so many."""
    plate = pair.data_plate
    # A plate as long as the chunk does not know of the other data.
    return _terms(pair, num_data if plate.full_size in (None, plate.size) else None)


def _draw(model: Callable, guide: Callable, x: Tensor, num_data: int) -> Terms:
    with torch.no_grad():
        return terms_of(trace_pair(model, guide, (x,), {}), num_data)


def _terms(pair: Pair, num_data: int | None) -> Terms:
    plate = pair.data_plate
    observed = [per_datum(site, plate, num_data) for _, site in pair.observed]
    prior = {name: per_datum(site, plate, num_data) for name, site, _ in pair.latents}
    kl = {name: per_datum(site, plate, num_data) - prior[name] for name, _, site in pair.latents}
    kl |= {name: per_datum(site, plate, num_data) for name, site in pair.auxiliary}
    size = (plate.size,)
    return Terms(
        # Nothing is observed where the likelihood is hidden.
        sum(observed, next(iter(prior.values())).new_zeros(())).expand(size),
        {name: value.expand(size) for name, value in prior.items()},
        {name: value.expand(size) for name, value in kl.items()} if pair.has_density else {},
    )


def _mean(terms: list[Terms]) -> Terms:
    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(values).mean(0)

    return Terms(
        mean([t.reconstruction for t in terms]),
        {name: mean([t.log_prior[name] for t in terms]) for name in terms[0].log_prior},
        {name: mean([t.kl[name] for t in terms]) for name in terms[0].kl},
    )
