"""Estimators made of the log weights of each datum.

Shapes: M outer samples, K particles, B data.
"""

from abc import abstractmethod

from torch import Tensor

from ppl_vae.estimators.base import Estimator
from ppl_vae.estimators.checks import check_density, check_local, check_reparameterized
from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.particles import Particles

__all__ = ["PathwiseEstimator", "WeightEstimator"]


class WeightEstimator(Estimator):
    """An estimator that is a function of the log weights, `[M, K, B]`, of each datum.

    The loss is minus N/B times the sum over data of the mean over the M outer samples. The N/B of
    a subsampled data plate stands outside of the leaf's formula, the KL weight inside.

    To write one: subclass, and define `_bound(particles)`; override `_check` to ask more of the
    pair, and `_run` to stop parts of the gradient (`ppl_vae.estimators.paths`).

    Args:
        num_particles: K.
        vectorize_particles: Draw the particles at once; see `Estimator`.
        max_plate_nesting: Found by one run if not given; see `Estimator`.
        num_outer: M.

    Raises:
        ValueError: A site lies outside the data plate, another plate is subsampled, or the guide
            has no density.
    """

    def __init__(
        self,
        num_particles: int = 5,
        vectorize_particles: bool = True,
        max_plate_nesting: int | None = None,
        num_outer: int = 1,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting, num_outer)

    @abstractmethod
    def _bound(self, particles: Particles) -> Tensor:
        """The bound, with the estimator's gradient, `[M, B]`."""

    def _check(self, pair: Pair) -> None:
        """Raises a `ValueError` for a pair that the estimator is not made for."""

    def _loss(self, pairs: list[Pair]) -> Tensor:
        name = type(self).__name__
        for pair in pairs:
            check_density(pair, name)
            check_local(pair, name)
            self._check(pair)
        particles = Particles(pairs, self.num_outer, self.num_particles)
        return -particles.scale * self._bound(particles).mean(0).sum()


class PathwiseEstimator(WeightEstimator):
    """A `WeightEstimator` that differentiates through the samples: reparameterized guides alone.

    To write one: subclass, and define `_bound(particles)`.
    """

    def _check(self, pair: Pair) -> None:
        check_reparameterized(pair, type(self).__name__)
