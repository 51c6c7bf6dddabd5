"""Guides q(z | x): Pyro programs that sample every latent site of a model."""

from ppl_vae.guides.amortized import AmortizedGuide
from ppl_vae.guides.base import Guide
from ppl_vae.guides.bottom_up import BottomUpGuide
from ppl_vae.guides.delta import DeltaGuide
from ppl_vae.guides.family_guide import FamilyGuide
from ppl_vae.guides.frozen import FrozenGuide
from ppl_vae.guides.full_rank import FullRankGuide
from ppl_vae.guides.gaussian_mixture import GaussianMixtureGuide
from ppl_vae.guides.iaf import IAFGuide
from ppl_vae.guides.ladder import LadderGuide
from ppl_vae.guides.low_rank import LowRankGuide
from ppl_vae.guides.mean_field import MeanFieldGuide
from ppl_vae.guides.mixture import MixtureGuide
from ppl_vae.guides.neural_spline import NeuralSplineGuide
from ppl_vae.guides.per_datum import PerDatumGuide
from ppl_vae.guides.planar import PlanarGuide
from ppl_vae.guides.semi_amortized import SemiAmortizedGuide
from ppl_vae.guides.structured import StructuredGuide
from ppl_vae.guides.sylvester import SylvesterGuide
from ppl_vae.guides.top_down import TopDownGuide

__all__ = [
    "AmortizedGuide",
    "BottomUpGuide",
    "DeltaGuide",
    "FamilyGuide",
    "FrozenGuide",
    "FullRankGuide",
    "GaussianMixtureGuide",
    "Guide",
    "IAFGuide",
    "LadderGuide",
    "LowRankGuide",
    "MeanFieldGuide",
    "MixtureGuide",
    "NeuralSplineGuide",
    "PerDatumGuide",
    "PlanarGuide",
    "SemiAmortizedGuide",
    "StructuredGuide",
    "SylvesterGuide",
    "TopDownGuide",
]
