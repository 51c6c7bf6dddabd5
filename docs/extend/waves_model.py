"""A model of waves: how loud, times what shape, with heavy tails for the glitches."""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.models import DenseDecoder, Model


class Waves(Model):
    """p(a) p(z) p(x | a, z): a Gamma loudness, normal shapes, Student's t around their product."""

    def __init__(self, data_shape: Sequence[int], latent_dim: int = 3, hidden: int = 64) -> None:
        super().__init__(data_shape)
        self.shape = DenseDecoder(latent_dim, data_shape, hidden=(hidden,))
        self.log_noise = torch.nn.Parameter(torch.tensor(-2.0))
        self.latent_dim = latent_dim

    def forward(self, x: Tensor) -> Tensor:
        """The program; `x` is `[B, T]`."""
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Gamma(x.new_tensor(3.0), 2.0))
            prior = dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            loc = a.unsqueeze(-1) * self.shape(z)
            noise = dist.StudentT(3.0, loc, self.log_noise.exp())
            return pyro.sample("x", noise.to_event(1), obs=x)
