"""Evaluation: figures with their standard errors, and what the latents do."""

from ppl_vae.evaluate.ais import AnnealedEstimate, ais
from ppl_vae.evaluate.bdmc import AnnealedBracket, bdmc
from ppl_vae.evaluate.bounds import Bound, bound_at
from ppl_vae.evaluate.bracket import Bracket, bracket
from ppl_vae.evaluate.calibration import Calibration, calibration
from ppl_vae.evaluate.copying import DataCopying, data_copying
from ppl_vae.evaluate.cost import StepCost, step_cost
from ppl_vae.evaluate.decoding import decode, reconstruct, sample_prior, traverse
from ppl_vae.evaluate.disentanglement import (
    DCI,
    MIG,
    SAP,
    beta_vae_score,
    codes_and_factors,
    dci,
    explicitness,
    factor_vae_score,
    mig,
    modularity,
    sap,
)
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.gradients import GradientSignal, GroupSignal, gradient_signal
from ppl_vae.evaluate.importance import ImportanceDiagnostics, importance_diagnostics
from ppl_vae.evaluate.inference_gaps import InferenceGaps, inference_gaps
from ppl_vae.evaluate.kl_split import KLSplit, kl_split
from ppl_vae.evaluate.latents import (
    ActiveUnits,
    active_units,
    aggregate_posterior,
    class_probabilities,
    posterior_means,
    unit_kl,
)
from ppl_vae.evaluate.likelihood import log_marginal
from ppl_vae.evaluate.mmd import AggregateMMD, aggregate_mmd
from ppl_vae.evaluate.neighbors import Neighbors, nearest_neighbors
from ppl_vae.evaluate.reconstruction import ReconstructionError, reconstruction_error
from ppl_vae.evaluate.representation import knn_accuracy, linear_probe
from ppl_vae.evaluate.terms import Terms, average_terms, elbo_terms
from ppl_vae.evaluate.uniformity import EcdfBand

__all__ = [
    "DCI",
    "MIG",
    "SAP",
    "ActiveUnits",
    "AggregateMMD",
    "AnnealedBracket",
    "AnnealedEstimate",
    "Bound",
    "Bracket",
    "Calibration",
    "DataCopying",
    "EcdfBand",
    "Estimate",
    "GradientSignal",
    "GroupSignal",
    "ImportanceDiagnostics",
    "InferenceGaps",
    "KLSplit",
    "Neighbors",
    "ReconstructionError",
    "StepCost",
    "Terms",
    "active_units",
    "aggregate_mmd",
    "aggregate_posterior",
    "ais",
    "average_terms",
    "bdmc",
    "beta_vae_score",
    "bound_at",
    "bracket",
    "calibration",
    "class_probabilities",
    "codes_and_factors",
    "data_copying",
    "dci",
    "decode",
    "elbo_terms",
    "explicitness",
    "factor_vae_score",
    "gradient_signal",
    "importance_diagnostics",
    "inference_gaps",
    "kl_split",
    "knn_accuracy",
    "linear_probe",
    "log_marginal",
    "mig",
    "modularity",
    "nearest_neighbors",
    "posterior_means",
    "reconstruct",
    "reconstruction_error",
    "sample_prior",
    "sap",
    "step_cost",
    "traverse",
    "unit_kl",
]
