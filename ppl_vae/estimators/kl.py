"""KL divergences of one latent site: in closed form where there is one, sampled where not."""

import math
from typing import Any

from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.sites import Site, is_point
from ppl_vae.handlers import same_scale

__all__ = ["sampled_kl", "site_kl"]


def site_kl(pair: Pair, name: str) -> Tensor:
    r"""The KL term of a latent site, with its scales and masks, `[*plates]`.

    .. math:: E_q[\log q(z_s | \cdot) - \log p(z_s | \cdot)]

    In closed form where the two families have one and the model's prior of the site depends on
    nothing that the guide draws at it or after it; then it is conditional on what was drawn before.
    Otherwise the sampled difference. (With q(z1 | x) q(z2 | z1) against p(z2) p(z1 | z2) the prior
    of z1 depends on z2, drawn from z1: the closed form would be wrong there.)
    """
    model_site, guide_site = pair.model_trace.nodes[name], pair.guide_trace.nodes[name]
    same = model_site["mask"] is guide_site["mask"] and same_scale(model_site, guide_site)
    # An autoguide's point carries a Jacobian, of which Pyro's closed form knows nothing.
    if _is_conditional(pair, name) and same and not is_point(guide_site["fn"]):
        closed = _closed_form(guide_site["fn"], model_site["fn"])
        if closed is not None:
            return scale_and_mask(closed, guide_site["scale"], guide_site["mask"])
    return sampled_kl(pair, name)


def sampled_kl(pair: Pair, name: str) -> Tensor:
    """The KL term of a latent site at its draw, log q - log p, `[*plates]`."""
    return pair.guide_trace.nodes[name]["log_prob"] - pair.model_trace.nodes[name]["log_prob"]


def _is_conditional(pair: Pair, name: str) -> bool:
    """Whether all that the model drew before this site was drawn before it by the guide too.

    By order alone: safe, though independent heads drawn in another order are sampled needlessly.
    """
    order: list[str] = [latent for latent, _, _ in pair.latents]
    drawn = set(order[: order.index(name)])
    upstream: list[str] = []
    for other, site in pair.model_trace.nodes.items():
        if other == name:
            break
        if _is_latent(site):
            upstream.append(other)
    return set(upstream) <= drawn


def _is_latent(site: Site) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _closed_form(q: Any, p: Any) -> Tensor | None:
    # Pyro's plates expand distributions; torch registers KLs for the plain classes underneath.
    p = p.expand(q.batch_shape)
    diagonal = p.base_dist if isinstance(p, Independent) else None
    if isinstance(q, MultivariateNormal | LowRankMultivariateNormal) and (
        isinstance(diagonal, Normal) and p.reinterpreted_batch_ndims == 1
    ):
        # torch has no such pair.
        variance, log_det = diagonal.variance, 2 * diagonal.scale.log().sum(-1)
        distance = (q.variance + (q.mean - diagonal.loc) ** 2) / variance - 1
        # The entropy of a normal is half of log det(2 pi e S).
        entropy = q.entropy() - 0.5 * q.event_shape[0] * math.log(2 * math.pi * math.e)
        return 0.5 * (distance.sum(-1) + log_det) - entropy
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None
