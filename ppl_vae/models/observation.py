"""What the autoencoders share: p(x | z) as a likelihood over a decoder's output."""

from collections.abc import Callable, Sequence

import pyro
from torch import Tensor

from ppl_vae.checks import check_hidden
from ppl_vae.models.base import Model
from ppl_vae.models.likelihoods import Bernoulli, Likelihood
from ppl_vae.models.nn import Activation, Decoder, DenseDecoder

__all__ = ["ObservationModel"]


class ObservationModel(Model):
    """A model that ends in p(x | z) = likelihood(decoder(z)): the part the VAEs share."""

    def __init__(
        self,
        data_shape: Sequence[int],
        code_dim: int,
        hidden: Sequence[int],
        activation: Activation,
        decoder: Callable[[int, Sequence[int]], Decoder] | None,
        likelihood: Likelihood | None,
    ) -> None:
        super().__init__(data_shape)
        if decoder is None:
            hidden = check_hidden(hidden, f"{type(self).__name__}: hidden")
            self.decoder = DenseDecoder(code_dim, self.data_shape, hidden, activation)
        else:
            self.decoder = decoder(code_dim, self.data_shape)
        self.likelihood = Bernoulli() if likelihood is None else likelihood

    def observe(self, z: Tensor, x: Tensor) -> Tensor:
        """Observes `"x"` given the code `z`, `[..., B, D]`."""
        fn = self.likelihood(self.decoder(z), len(self.data_shape))
        return pyro.sample("x", fn, obs=x)  # type: ignore[return-value]

    def check(self, x: Tensor) -> None:
        """Checks shape and support; see `Model.check`."""
        super().check(x)
        self.likelihood.check(x)

    def is_proper(self, x: Tensor) -> bool:
        """See `Model.is_proper`."""
        return self.likelihood.is_proper(x)
