"""The importance-weighted bound with its score left out."""

from collections.abc import Callable

from torch import Tensor

from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.particles import Particles, log_mean_exp
from ppl_vae.estimators.paths import trace_path_pair
from ppl_vae.estimators.weight_estimator import PathwiseEstimator

__all__ = ["TraceIWAESTL_ELBO"]


class TraceIWAESTL_ELBO(PathwiseEstimator):  # noqa: N801 (Pyro's style)
    r"""The importance-weighted bound with its score left out: biased, to compare with.

    .. math:: \sum_k \tilde w_k\, \nabla_z \log w_k\, \nabla_\phi z_k

    The value is that of `TraceIWAE_ELBO`, and so is the model's gradient. For K > 1 the guide's is
    not the gradient of anything: the score that `TraceSTL_ELBO` may leave out at K = 1 has no mean
    zero here. `TraceDReG_ELBO` is what it should have been. It is here because the papers compare
    with it. Under a KL weight as `TraceIWAE_ELBO`, and biased. Cost: that of `TraceDReG_ELBO`.

    Raises:
        ValueError: A site lies outside the data plate; the guide has a site that is not
            reparameterized, no density, or a density that depends on a tensor computed outside;
            with Pyro's validation on, a density that differs from run to run, as with dropout.

    References:
        Roeder, Wu and Duvenaud (2017), Sticking the Landing; its bias: Tucker et al. (2019).

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = TraceIWAESTL_ELBO(num_particles=5)(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    def _run(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
        return trace_path_pair(model, guide, args, kwargs)

    def _bound(self, particles: Particles) -> Tensor:
        return log_mean_exp(particles.log_weights)
