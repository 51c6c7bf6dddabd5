"""Guides q(z | x): Pyro programs that sample every latent site of a model."""

from ppl_vae.guides.amortized import AmortizedGuide
from ppl_vae.guides.base import Guide
from ppl_vae.guides.bottom_up import BottomUpGuide
from ppl_vae.guides.delta import DeltaGuide
from ppl_vae.guides.families import (
    DiagonalNormal,
    Family,
    FullRankNormal,
    LowRankNormal,
    Mixture,
)
from ppl_vae.guides.family_guide import FamilyGuide
from ppl_vae.guides.full_rank import FullRankGuide
from ppl_vae.guides.gaussian_mixture import GaussianMixtureGuide
from ppl_vae.guides.low_rank import LowRankGuide
from ppl_vae.guides.mean_field import MeanFieldGuide
from ppl_vae.guides.mixture import MixtureGuide
from ppl_vae.guides.structured import StructuredGuide
from ppl_vae.guides.top_down import TopDownGuide

__all__ = [
    "AmortizedGuide",
    "BottomUpGuide",
    "DeltaGuide",
    "DiagonalNormal",
    "Family",
    "FamilyGuide",
    "FullRankGuide",
    "FullRankNormal",
    "GaussianMixtureGuide",
    "Guide",
    "LowRankGuide",
    "LowRankNormal",
    "MeanFieldGuide",
    "Mixture",
    "MixtureGuide",
    "StructuredGuide",
    "TopDownGuide",
]
