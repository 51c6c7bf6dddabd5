"""Objectives that do something else with the terms of an evidence lower bound than add them."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ppl_vae.estimators.base import Estimator
from ppl_vae.estimators.checks import check_density, check_unweighted
from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.termwise import TermwiseEstimator
from ppl_vae.estimators.trace_analytic_kl_elbo import TraceAnalyticKL_ELBO
from ppl_vae.ranks import Ranks

__all__ = ["TermModifier"]


class TermModifier(Estimator):
    """An objective around an estimator that has a KL for each site.

    Particles, their vectorization and the gradients are the inner estimator's.

    Args:
        estimator: `Trace_ELBO`, `TraceAnalyticKL_ELBO` or `TraceSTL_ELBO`; `TraceAnalyticKL_ELBO()`
            if not given.

    Raises:
        ValueError: The estimator has no KL terms; a KL weight is in force; the guide has no
            density.
    """

    #: Makes means over this process's data those over the data of all ranks; see `ppl_vae.fit`.
    ranks: Ranks | None = None

    def __init__(self, estimator: Estimator | None = None) -> None:
        estimator = TraceAnalyticKL_ELBO() if estimator is None else estimator
        if not isinstance(estimator, TermwiseEstimator):
            raise ValueError(
                f"{type(self).__name__} changes what is done with the KL of each site, and "
                f"{type(estimator).__name__} has none; accepted are Trace_ELBO, "
                "TraceAnalyticKL_ELBO, TraceSTL_ELBO"
            )
        how = estimator.vectorize_particles
        super().__init__(estimator.num_particles, how, num_outer=estimator.num_outer)
        self.estimator = estimator

    def _pairs(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Iterator[Pair]:
        return self.estimator._pairs(model, guide, args, kwargs)

    def _mean(self, x: Tensor) -> Tensor:
        """A mean over a minibatch; over all ranks' parts of it, where there are several."""
        return x if self.ranks is None else self.ranks.mean(x)

    def _check(self, pair: Pair, way_out: str) -> None:
        check_unweighted(pair, type(self).__name__, way_out)
        check_density(pair, type(self).__name__)


def num_data(pair: Pair) -> Any:
    """How many data the terms of a pair sum over: N of the data plate."""
    return pair.data_plate.full_size or pair.data_plate.size
