"""Variational autoencoders as Pyro model/guide pairs.

A model p(x, z) and a guide q(z | x) are two Pyro programs; an estimator turns the pair into a
number to climb; a schedule weighs the KL; `fit` climbs. Each is an argument, and none knows the
others' insides.
"""

from typing import TYPE_CHECKING, Any

from ppl_vae import data, estimators, evaluate, families, guides, handlers, models, schedules
from ppl_vae.checkpoint import CheckpointError
from ppl_vae.config import ConfigError
from ppl_vae.diagnosis import NonFiniteError
from ppl_vae.fit import FitResult, fit
from ppl_vae.replicas import fit_replicas
from ppl_vae.runs import Run, load_run

if TYPE_CHECKING:
    from ppl_vae.laboratory import compare


def __getattr__(name: str) -> Any:
    # Not at once: it brings matplotlib, which training does without.
    if name == "compare":
        from ppl_vae.laboratory import compare

        return compare
    if name == "__version__":
        from importlib.metadata import version

        return version("ppl_vae")
    raise AttributeError(f"module 'ppl_vae' has no attribute '{name}'")


__all__ = [
    "CheckpointError",
    "ConfigError",
    "FitResult",
    "NonFiniteError",
    "Run",
    "compare",
    "data",
    "estimators",
    "evaluate",
    "families",
    "fit",
    "fit_replicas",
    "guides",
    "handlers",
    "load_run",
    "models",
    "schedules",
]
