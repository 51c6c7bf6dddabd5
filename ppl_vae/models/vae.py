"""The variational autoencoder's model, one level."""

from collections.abc import Callable, Sequence

import pyro
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.families import Family
from ppl_vae.models.likelihoods import Likelihood
from ppl_vae.models.nn import Activation, Decoder
from ppl_vae.models.observation import ObservationModel
from ppl_vae.models.priors import make_prior

__all__ = ["VAE"]


class VAE(ObservationModel):
    r"""The variational autoencoder's generative half, p(z) p(x | z).

    .. math:: z \sim p(z) = N(0, I),\qquad x \sim p(x | z) = \text{likelihood}(\text{decoder}(z))

    Sites: `z`, `[B, latent_dim]`; `x`, `[B, *data_shape]`, both in the plate `data`.

    Args:
        data_shape: Shape of one datum.
        latent_dim: D.
        hidden: Widths of the decoder's dense layers, from `z` to `x`.
        activation: Of the dense layers, by its name in `torch.nn.functional`.
        decoder: In place of the dense decoder: called with `(latent_dim, data_shape)`, gives a
            network `[..., latent_dim] -> [..., *data_shape]`.
        likelihood: p(x | z); `Bernoulli()` if not given.
        prior: A family of which p(z) is a member, its numbers learned with the decoder: `Mixture`,
            a flow; N(0, I) if not given. For the mixture of posteriors see `VampPrior`.

    Raises:
        ValueError: A dimension below 1; a prior whose density is known at its own draws alone.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes.

    Example:
        >>> model = VAE((1, 8, 8), latent_dim=2)
        >>> model(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 20,
        hidden: Sequence[int] = (400,),
        *,
        activation: Activation = "relu",
        decoder: Callable[[int, Sequence[int]], Decoder] | None = None,
        likelihood: Likelihood | None = None,
        prior: Family | None = None,
    ) -> None:
        check_dim(latent_dim, "VAE: latent_dim")
        super().__init__(data_shape, latent_dim, hidden, activation, decoder, likelihood)
        self.latent_dim = latent_dim
        self.prior = make_prior(prior, latent_dim, "VAE")

    def forward(self, x: Tensor) -> Tensor:
        """The program; `x` is `[B, *data_shape]`."""
        prior = self.prior(x)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            return self.observe(z, x)  # type: ignore[arg-type]
