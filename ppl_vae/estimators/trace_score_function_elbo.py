"""The evidence lower bound by the score function, with a baseline."""

from collections.abc import Mapping

from torch import Tensor

from ppl_vae.estimators.baselines import Baseline, DecayingAverage, LeaveOneOut
from ppl_vae.estimators.score_estimator import ScoreEstimator

__all__ = ["TraceScoreFunction_ELBO"]


class TraceScoreFunction_ELBO(ScoreEstimator):  # noqa: N801 (Pyro's style)
    r"""The evidence lower bound by the score function (REINFORCE), with a baseline.

    .. math:: \nabla_\phi = E_q\Big[\frac1K \sum_k (\log w_k - b_k)\,
        \nabla_\phi \log q(z_k | x)\Big], \qquad \log w_k = \log p(x, z_k) - \log q(z_k | x)

    The value is that of `Trace_ELBO`. Unbiased for discrete latents as for continuous ones; the
    variance is that of the baseline b, of which each datum has its own learning signal. Under a KL
    weight the latent terms of log w are multiplied by it; unbiased for every weight. Cost: that of
    `Trace_ELBO`.

    Args:
        baseline: b; if not given the mean of the other particles (`LeaveOneOut`), or, for K = 1,
            a decaying average of past signals (`DecayingAverage`).
        num_particles: K.
        pathwise: Take the pathwise derivative of reparameterized sites, and the score of the others
            alone; see `ScoreEstimator`.
        vectorize_particles: Draw the particles at once; see `Estimator`.
        max_plate_nesting: Found by one run if not given; see `Estimator`.
        num_outer: M.

    Raises:
        ValueError: A site lies outside the data plate, or the guide has no density; `LeaveOneOut`
            with K = 1; `pathwise` with nothing left to score.

    References:
        Williams (1992), REINFORCE; Ranganath et al. (2014), Black Box Variational Inference; Mnih
        and Gregor (2014), the baselines; Kool et al. (2019), the leave-one-out one.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> elbo = TraceScoreFunction_ELBO()(model, ppl_vae.guides.MeanFieldGuide(model))
        >>> elbo(torch.rand(3, 784).round()).shape
        torch.Size([])
    """

    def __init__(
        self,
        baseline: Baseline | None = None,
        num_particles: int = 1,
        pathwise: bool = False,
        vectorize_particles: bool = True,
        max_plate_nesting: int | None = None,
        num_outer: int = 1,
    ) -> None:
        super().__init__(num_particles, pathwise, vectorize_particles, max_plate_nesting, num_outer)
        if baseline is None:
            baseline = LeaveOneOut() if num_particles > 1 else DecayingAverage()
        if num_particles < baseline.min_particles:
            raise ValueError(
                f"TraceScoreFunction_ELBO: the baseline {type(baseline).__name__} needs "
                f"{baseline.min_particles} particles, and num_particles is {num_particles}; "
                "accepted there is DecayingAverage"
            )
        self.baseline = baseline

    def state_dict(self) -> dict[str, Tensor]:
        """The buffers of the baseline."""
        return dict(self.baseline.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes the buffers of the baseline back."""
        self.baseline.load_state_dict(state)

    def _value(self, log_w: Tensor) -> Tensor:
        return log_w.mean(1)

    def _signal(self, log_w: Tensor) -> Tensor:
        return (log_w - self.baseline(log_w)) / self.num_particles
