"""Sticking the landing: the ELBO with path derivatives alone."""

from collections.abc import Callable

from torch import Tensor

from ppl_vae.estimators.checks import check_density
from ppl_vae.estimators.kl import sampled_kl
from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.paths import trace_path_pair
from ppl_vae.estimators.termwise import TermwiseEstimator

__all__ = ["TraceSTL_ELBO"]


class TraceSTL_ELBO(TermwiseEstimator):  # noqa: N801 (Pyro's style)
    r"""The evidence lower bound, its guide's gradient through the path of the samples alone.

    .. math:: \nabla_\phi = E_\epsilon\big[\nabla_z \big(\log p(x, z) - \log q(z | x)\big)
        \, \nabla_\phi z(\epsilon, \phi)\big]

    The value is that of `Trace_ELBO`. The score :math:`\nabla_\phi \log q` at fixed z, which has
    mean zero, is left out by stopping the guide's parameters in a second run of it (not the
    parameters of its distributions: the path through z1 in q(z2 | z1) stays). Unbiased, and zero
    for every draw where the guide is the exact posterior. K particles are averaged; the K-sample
    bound without its score is `TraceIWAESTL_ELBO`, which is biased. Under a KL weight the latent
    terms are multiplied by it; unbiased for every weight. Cost: `Trace_ELBO`'s and one more forward
    run of the guide.

    Raises:
        ValueError: The guide has a site that is not reparameterized, no density, or a density that
            depends on a tensor computed outside of it; with Pyro's validation on (`fit` checks
            once), a density that differs from run to run, as with dropout.

    References:
        Roeder, Wu and Duvenaud (2017), Sticking the Landing.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = TraceSTL_ELBO()(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    def _run(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
        return trace_path_pair(model, guide, args, kwargs)

    def _kl(self, pair: Pair, name: str) -> Tensor:
        check_density(pair, type(self).__name__)
        return sampled_kl(pair, name)
