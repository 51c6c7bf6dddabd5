"""Estimators: from a model and a guide to a number to climb. Each is a `pyro.infer.ELBO`."""

from ppl_vae.estimators.base import Estimator
from ppl_vae.estimators.baselines import Baseline, DecayingAverage, LeaveOneOut
from ppl_vae.estimators.score_estimator import ScoreEstimator
from ppl_vae.estimators.term_modifier import TermModifier
from ppl_vae.estimators.termwise import TermwiseEstimator
from ppl_vae.estimators.trace_analytic_kl_elbo import TraceAnalyticKL_ELBO
from ppl_vae.estimators.trace_capacity_elbo import TraceCapacity_ELBO
from ppl_vae.estimators.trace_ciwae_elbo import TraceCIWAE_ELBO
from ppl_vae.estimators.trace_dreg_elbo import TraceDReG_ELBO
from ppl_vae.estimators.trace_elbo import Trace_ELBO
from ppl_vae.estimators.trace_free_bits_elbo import TraceFreeBits_ELBO
from ppl_vae.estimators.trace_iwae_elbo import TraceIWAE_ELBO
from ppl_vae.estimators.trace_iwae_stl_elbo import TraceIWAESTL_ELBO
from ppl_vae.estimators.trace_miwae_elbo import TraceMIWAE_ELBO
from ppl_vae.estimators.trace_ovis_elbo import TraceOVIS_ELBO
from ppl_vae.estimators.trace_piwae_elbo import TracePIWAE_ELBO
from ppl_vae.estimators.trace_renyi_elbo import TraceRenyi_ELBO
from ppl_vae.estimators.trace_rws_elbo import TraceRWS_ELBO
from ppl_vae.estimators.trace_score_function_elbo import TraceScoreFunction_ELBO
from ppl_vae.estimators.trace_stl_elbo import TraceSTL_ELBO
from ppl_vae.estimators.trace_tvo_elbo import TraceTVO_ELBO
from ppl_vae.estimators.trace_vimco_elbo import TraceVIMCO_ELBO
from ppl_vae.estimators.weight_estimator import PathwiseEstimator, WeightEstimator

__all__ = [
    "Baseline",
    "DecayingAverage",
    "Estimator",
    "LeaveOneOut",
    "PathwiseEstimator",
    "ScoreEstimator",
    "TermModifier",
    "TermwiseEstimator",
    "TraceAnalyticKL_ELBO",
    "TraceCIWAE_ELBO",
    "TraceCapacity_ELBO",
    "TraceDReG_ELBO",
    "TraceFreeBits_ELBO",
    "TraceIWAESTL_ELBO",
    "TraceIWAE_ELBO",
    "TraceMIWAE_ELBO",
    "TraceOVIS_ELBO",
    "TracePIWAE_ELBO",
    "TraceRWS_ELBO",
    "TraceRenyi_ELBO",
    "TraceSTL_ELBO",
    "TraceScoreFunction_ELBO",
    "TraceTVO_ELBO",
    "TraceVIMCO_ELBO",
    "Trace_ELBO",
    "WeightEstimator",
]
