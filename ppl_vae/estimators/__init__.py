"""Estimators: from a model and a guide to a number to climb. All are `pyro.infer.ELBO`s."""

from ppl_vae.estimators.base import Estimator
from ppl_vae.estimators.trace_capacity_elbo import TraceCapacity_ELBO
from ppl_vae.estimators.trace_elbo import Trace_ELBO

__all__ = ["Estimator", "TraceCapacity_ELBO", "Trace_ELBO"]
