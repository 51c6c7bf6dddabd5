"""Estimators made of terms: what is observed, and a KL for each latent site."""

from abc import abstractmethod
from collections.abc import Iterable

from torch import Tensor

from ppl_vae.estimators.base import Estimator
from ppl_vae.estimators.checks import check_reparameterized
from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.sites import Site

__all__ = ["TermwiseEstimator"]


class TermwiseEstimator(Estimator):
    r"""An evidence lower bound as a sum of terms, averaged over all particles.

    .. math:: E_q[\log p(x | z)] - \sum_s KL_s,
        \qquad KL_s = E_q[\log q(z_s | \cdot) - \log p(z_s | \cdot)]

    To write one: subclass, and define `_kl(pair, name)`. Latents outside the data plate are
    welcome. `TraceFreeBits_ELBO` and `TraceCapacity_ELBO` change what is done with the terms.
    """

    @abstractmethod
    def _kl(self, pair: Pair, name: str) -> Tensor:
        """The KL term of a latent site, scales and masks included, `[*plates]`."""

    def terms(self, pair: Pair) -> tuple[Tensor, dict[str, Tensor]]:
        """The terms of one pair: of all that is observed `[]`, and of each latent `[*plates]`.

        Raises:
            ValueError: The guide has a site that is not reparameterized.
        """
        check_reparameterized(pair, type(self).__name__)
        kl = {name: self._kl(pair, name) for name, _, _ in pair.latents}
        kl |= {name: site["log_prob"] for name, site in pair.auxiliary}
        return _sum(site for _, site in pair.observed), kl

    def _loss(self, pairs: list[Pair]) -> Tensor:
        loss = 0.0
        for pair in pairs:
            reconstruction, kl = self.terms(pair)
            loss = loss - reconstruction
            for term in kl.values():
                loss = loss + term.sum()
        return loss / self.num_draws  # type: ignore[return-value, operator]


def _sum(sites: Iterable[Site]) -> Tensor:
    return sum(site["log_prob"].sum() for site in sites)  # type: ignore[return-value]
