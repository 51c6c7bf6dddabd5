"""A guide that knows what loudness is: it is measured, and divided out before the network looks."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppl_vae.guides import Guide
from ppl_vae.models import DenseEncoder
from ppl_vae.models.nn import NormalHead


class LoudnessFirst(Guide):
    """q(a | x) q(z | x): a log-normal around the measured loudness, and normals of what is left."""

    def __init__(self, model: Callable, hidden: int = 64) -> None:
        super().__init__(model)
        self.encoder = DenseEncoder(model.data_shape, hidden=(hidden,))
        self.loudness = NormalHead(hidden, 1)
        self.shape = NormalHead(hidden, model.latent_dim)

    def forward(self, x: Tensor) -> None:
        """The program; `x` is `[B, T]`."""
        measured = x.square().mean(-1).sqrt().clamp(min=1e-3)
        features = self.encoder(x / measured.unsqueeze(-1))
        with pyro.plate("data", len(x), dim=-1):
            loc, scale = self.loudness(features)
            loud = dist.LogNormal(loc.squeeze(-1) + measured.log(), scale.squeeze(-1))
            pyro.sample("a", loud)
            pyro.sample("z", dist.Normal(*self.shape(features)).to_event(1))
