"""The importance-weighted bound with optimal control variates."""

import math

from torch import Tensor

from ppl_vae.estimators.checks import check_unweighted
from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.particles import exclusive_logsumexp, log_mean_exp
from ppl_vae.estimators.score_estimator import ScoreEstimator

__all__ = ["TraceOVIS_ELBO"]


class TraceOVIS_ELBO(ScoreEstimator):  # noqa: N801 (Pyro's style)
    r"""The importance-weighted bound by the score function, with asymptotically optimal variates.

    .. math:: \nabla_\phi = E\Big[\sum_k (\log \hat Z - \tilde w_k - c_k)
        \nabla_\phi \log q(z_k | x)\Big], \qquad
        c_k = \log \hat Z_{-k} - \gamma \tilde w_k + (1 - \gamma) \log(1 - 1/K)

    where :math:`\hat Z` is the mean of the weights and :math:`\hat Z_{-k}` that of the others. The
    value is that of `TraceIWAE_ELBO`. :math:`\gamma = 1` is the limit of a large effective sample
    size and biased, since c then depends on the particle's own draw; :math:`\gamma = 0` is that of
    a small one, and unbiased. A KL weight is refused. Cost: that of `TraceIWAE_ELBO`.

    Args:
        gamma: From 0 to 1.
        num_particles: K >= 2.
        pathwise: Take the pathwise derivative of reparameterized sites, and the score of the others
            alone; see `ScoreEstimator`.
        vectorize_particles: Draw the particles at once; see `Estimator`.
        max_plate_nesting: Found by one run if not given; see `Estimator`.
        num_outer: M.

    Raises:
        ValueError: K is 1, or `gamma` is not in [0, 1]; a KL weight is in force; a site lies
            outside the data plate, or the guide has no density; `pathwise` with nothing left to
            score.

    References:
        Lievin et al. (2020), Optimal Variance Control of the Score-Function Gradient Estimator for
        Importance-Weighted Bounds, equation 17.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = TraceOVIS_ELBO(num_particles=5)(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    min_particles = 2

    def __init__(
        self,
        gamma: float = 1.0,
        num_particles: int = 5,
        pathwise: bool = False,
        vectorize_particles: bool = True,
        max_plate_nesting: int | None = None,
        num_outer: int = 1,
    ) -> None:
        super().__init__(num_particles, pathwise, vectorize_particles, max_plate_nesting, num_outer)
        if not 0 <= gamma <= 1:
            raise ValueError(f"TraceOVIS_ELBO: gamma is {gamma}; accepted is a number from 0 to 1")
        self.gamma = gamma

    def _check(self, pair: Pair) -> None:
        check_unweighted(pair, "TraceOVIS_ELBO", "or TraceVIMCO_ELBO")

    def _value(self, log_w: Tensor) -> Tensor:
        return log_mean_exp(log_w)

    def _signal(self, log_w: Tensor) -> Tensor:
        # The value's own derivative brings the - w_k along.
        w, count = log_w.softmax(1), log_w.shape[1]
        others = exclusive_logsumexp(log_w) - math.log(count - 1)
        control = others - self.gamma * w + (1 - self.gamma) * math.log1p(-1 / count)
        return log_mean_exp(log_w).unsqueeze(1) - control
