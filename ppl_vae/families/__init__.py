"""Families of distributions over a real vector: how a guide spreads a site, or a prior its code."""

from ppl_vae.families.autoregressive import InverseAutoregressive, MaskedAutoregressive
from ppl_vae.families.base import Family, Member
from ppl_vae.families.mixture import Mixture
from ppl_vae.families.normals import DiagonalNormal, FullRankNormal, LowRankNormal
from ppl_vae.families.planar import Planar
from ppl_vae.families.spline import NeuralSpline
from ppl_vae.families.sylvester import Sylvester

__all__ = [
    "DiagonalNormal",
    "Family",
    "FullRankNormal",
    "InverseAutoregressive",
    "LowRankNormal",
    "MaskedAutoregressive",
    "Member",
    "Mixture",
    "NeuralSpline",
    "Planar",
    "Sylvester",
]
