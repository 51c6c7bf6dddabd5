"""Models p(x, z): Pyro programs that sample their latents and observe the data."""

from ppl_vae.models.base import Model
from ppl_vae.models.convolutional import ConvDecoder, ConvEncoder
from ppl_vae.models.gated import GatedDecoder, GatedEncoder
from ppl_vae.models.gaussian_mixture import GaussianMixtureVAE
from ppl_vae.models.hierarchical import HierarchicalVAE
from ppl_vae.models.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    Laplace,
    Likelihood,
)
from ppl_vae.models.linear_gaussian import HierarchicalLinearGaussian, LinearGaussian
from ppl_vae.models.nn import (
    Decoder,
    DenseDecoder,
    DenseEncoder,
    Encoder,
)
from ppl_vae.models.vae import VAE
from ppl_vae.models.vamp_prior import VampPrior

__all__ = [
    "VAE",
    "Bernoulli",
    "ContinuousBernoulli",
    "ConvDecoder",
    "ConvEncoder",
    "Decoder",
    "DenseDecoder",
    "DenseEncoder",
    "Encoder",
    "GatedDecoder",
    "GatedEncoder",
    "Gaussian",
    "GaussianMixtureVAE",
    "HierarchicalLinearGaussian",
    "HierarchicalVAE",
    "Laplace",
    "Likelihood",
    "LinearGaussian",
    "Model",
    "VampPrior",
]
