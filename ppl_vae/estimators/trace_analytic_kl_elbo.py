"""The evidence lower bound, KL terms in closed form where there is one."""

from torch import Tensor

from ppl_vae.estimators.checks import check_density
from ppl_vae.estimators.kl import site_kl
from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.termwise import TermwiseEstimator

__all__ = ["TraceAnalyticKL_ELBO"]


class TraceAnalyticKL_ELBO(TermwiseEstimator):  # noqa: N801 (Pyro's style)
    r"""The evidence lower bound with the KL of each site in closed form, where it has one.

    .. math:: \log p(x) \ge E_q\Big[\log p(x | z)
        - \sum_s KL\big(q(z_s | \cdot) \,\|\, p(z_s | \cdot)\big)\Big]

    The KL of a site is conditional on the sampled sites before it. It is sampled where the two
    families have no closed form, and where the model's prior of the site depends on something that
    the guide draws after it: for q(z1 | x) q(z2 | z1) against p(z2) p(z1 | z2) the closed form of
    z1 would be wrong, and Pyro's `TraceMeanField_ELBO` takes it all the same. Under a KL weight
    every KL is multiplied by it, closed or sampled. Cost: that of `Trace_ELBO`.

    Raises:
        ValueError: The guide has a site that is not reparameterized, or no density, or does not
            fit the model.

    References:
        Kingma and Welling (2014), the estimator of their equation 7.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = TraceAnalyticKL_ELBO()(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    def _kl(self, pair: Pair, name: str) -> Tensor:
        check_density(pair, type(self).__name__)
        return site_kl(pair, name)
