"""How well codes are disentangled, given the factors that made the data.

Every metric is a function of codes `[N, D]` and factors `[N, F]`; `codes_and_factors` makes both of
a guide and labelled data. Ceilings and chance levels differ from one metric to the next, and stand
in each docstring.
"""

from ppl_vae.evaluate.disentanglement.beta_vae import beta_vae_score
from ppl_vae.evaluate.disentanglement.codes import codes_and_factors
from ppl_vae.evaluate.disentanglement.dci import DCI, dci
from ppl_vae.evaluate.disentanglement.explicitness import explicitness
from ppl_vae.evaluate.disentanglement.factor_vae import factor_vae_score
from ppl_vae.evaluate.disentanglement.mig import MIG, mig
from ppl_vae.evaluate.disentanglement.modularity import modularity
from ppl_vae.evaluate.disentanglement.sap import SAP, sap

__all__ = [
    "DCI",
    "MIG",
    "SAP",
    "beta_vae_score",
    "codes_and_factors",
    "dci",
    "explicitness",
    "factor_vae_score",
    "mig",
    "modularity",
    "sap",
]
