"""Estimators that use the score of the guide: discrete latents, and all others too.

Shapes: M outer samples, K particles, B data.
"""

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.particles import Particles, with_gradient
from ppl_vae.estimators.paths import trace_stopped_pair
from ppl_vae.estimators.weight_estimator import WeightEstimator

__all__ = ["ScoreEstimator"]


class ScoreEstimator(WeightEstimator):
    r"""An estimator whose guide may be anything that has a density, discrete sites included.

    .. math:: \nabla E_q[f] = E_q\Big[\nabla f
        + \sum_k c_k \nabla_\phi \log q(z_k | x)\Big]

    To write one: subclass, and define `_value(log_w)`, the bound f, and `_signal(log_w)`, c.

    Args:
        num_particles: K.
        pathwise: Take the pathwise derivative of the sites that are reparameterized, and the score
            of the others alone; else the score of every site, as the papers do. Which of them has
            less variance depends on the pair.
        vectorize_particles: Draw the particles at once; see `Estimator`.
        max_plate_nesting: Found by one run if not given; see `Estimator`.
        num_outer: M.

    Raises:
        ValueError: A site lies outside the data plate, the guide has no density, or it is
            `pathwise` and every site of the guide is reparameterized: nothing is left to score.
    """

    def __init__(
        self,
        num_particles: int = 5,
        pathwise: bool = False,
        vectorize_particles: bool = True,
        max_plate_nesting: int | None = None,
        num_outer: int = 1,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting, num_outer)
        self.pathwise = pathwise

    @abstractmethod
    def _value(self, log_w: Tensor) -> Tensor:
        """The bound, `[M, K, B] -> [M, B]`."""

    @abstractmethod
    def _signal(self, log_w: Tensor) -> Tensor:
        """What multiplies the scores, `[M, K, B] -> [M, K, B]`; no gradient flows through it."""

    def _run(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
        if self.pathwise:
            return super()._run(model, guide, args, kwargs)
        return trace_stopped_pair(model, guide, args, kwargs)

    def _bound(self, particles: Particles) -> Tensor:
        if self.pathwise and not particles.has_scores:
            raise ValueError(
                f"{type(self).__name__}: pathwise is true, and every site of the guide is "
                "reparameterized, so there is no score to take; use pathwise=False for the score "
                "of all sites, or TraceIWAE_ELBO or Trace_ELBO for their pathwise derivatives"
            )
        log_w = particles.log_weights
        value = self._value(log_w)
        score = particles.score(of_all=not self.pathwise)
        signal = self._signal(log_w.detach())
        return with_gradient(value, value + (signal * score).sum(1))
