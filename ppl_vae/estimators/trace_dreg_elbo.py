"""The importance-weighted bound with doubly reparameterized gradients."""

from collections.abc import Callable

from torch import Tensor

from ppl_vae.estimators.checks import check_unmasked
from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.particles import Particles, log_mean_exp
from ppl_vae.estimators.paths import trace_path_pair
from ppl_vae.estimators.weight_estimator import PathwiseEstimator

__all__ = ["TraceDReG_ELBO"]


class TraceDReG_ELBO(PathwiseEstimator):  # noqa: N801 (Pyro's style)
    r"""The importance-weighted bound with the doubly reparameterized gradient of the guide.

    .. math:: \nabla_\phi = E\Big[\sum_k \tilde w_k^2\, \nabla_z \log w_k\, \nabla_\phi z_k\Big],
        \qquad \tilde w_k = \frac{w_k}{\sum_j w_j}

    The value is that of `TraceIWAE_ELBO`, and so is the model's gradient where the guide shares no
    parameter with it. The guide's has the same mean, but a signal-to-noise ratio that rises as
    :math:`\sqrt K` near the optimum, where IWAE's falls; and it is zero for every draw where the
    guide is the exact posterior. With K = 1 it is `TraceSTL_ELBO`. On hierarchies the weight enters
    once along z1 -> z2, and q(z2 | z1) keeps its path through z1. Under a KL weight :math:`\beta`
    the factor is :math:`(1 - \beta) \tilde w + \beta \tilde w^2`; weights that differ from site to
    site are refused. Cost: `TraceIWAE_ELBO`'s and one more forward run of the guide.

    Raises:
        ValueError: A site lies outside the data plate; the guide has a site that is not
            reparameterized, a mask, no density, or a density that depends on a tensor computed
            outside of it; with Pyro's validation on (`fit` checks once), a density that differs
            from run to run, as with dropout; KL weights that differ.

    References:
        Tucker et al. (2019), Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives;
        Bauer and Mnih (2021), Generalized Doubly Reparameterized Gradient Estimators.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = TraceDReG_ELBO(num_particles=5)(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    def _run(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
        return trace_path_pair(model, guide, args, kwargs)

    def _check(self, pair: Pair) -> None:
        super()._check(pair)
        check_unmasked(pair, type(self).__name__)

    def _bound(self, particles: Particles) -> Tensor:
        log_w = particles.log_weights
        w = log_w.detach().softmax(1)
        beta = particles.kl_weight
        return particles.climb(log_mean_exp(log_w), model=w, path=(1 - beta) * w + beta * w**2)
