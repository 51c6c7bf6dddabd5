"""Guides q(z | x): Pyro programs that sample every latent site of a model."""

from ppl_vae.guides.amortized import AmortizedGuide
from ppl_vae.guides.base import Guide
from ppl_vae.guides.delta import DeltaGuide
from ppl_vae.guides.gaussian_mixture import GaussianMixtureGuide
from ppl_vae.guides.mean_field import MeanFieldGuide

__all__ = ["AmortizedGuide", "DeltaGuide", "GaussianMixtureGuide", "Guide", "MeanFieldGuide"]
