"""The hierarchical variational autoencoder's model: two levels or more."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.checks import check_dims, check_hidden
from ppl_vae.families import Family
from ppl_vae.models.likelihoods import Likelihood
from ppl_vae.models.nn import Activation, Decoder, NormalHead, dense
from ppl_vae.models.observation import ObservationModel
from ppl_vae.models.priors import make_prior

__all__ = ["HierarchicalVAE"]


class HierarchicalVAE(ObservationModel):
    r"""A chain of latent levels above the data.

    .. math:: p(x, z_{1:L}) = p(x | z_1)\, p(z_1 | z_2) \cdots p(z_{L-1} | z_L)\, p(z_L),
        \qquad p(z_L) = N(0, I),\ p(z_l | z_{l+1}) = N(\mu_l, \operatorname{diag} \sigma_l^2)

    With `skip` the data depend on every level, :math:`p(x | z_1, \dots, z_L)`.

    Sites: `zL`, ..., `z1` in this order, each `[B, latent_dims[l - 1]]`; `x`; in the plate `data`.

    Args:
        data_shape: Shape of one datum.
        latent_dims: Dimensions of `(z1, z2, ...)`, from the data upwards; two or more.
        hidden: Widths of the decoder's dense layers, from `z1`, or from all levels, to `x`.
        latent_hidden: Widths of the dense layers between two latent levels.
        activation: Of the dense layers, by its name in `torch.nn.functional`.
        decoder: In place of the dense decoder, as in `VAE`.
        likelihood: p(x | z1); `Bernoulli()` if not given.
        prior: A family of which p(z_L) is a member, its numbers learned, as in `VAE`.
        skip: Whether the decoder is given all levels, side by side from the data upwards, in place
            of `z1`.

    Raises:
        ValueError: A dimension below 1, or fewer than two levels; a prior whose density is known at
            its own draws alone.

    References:
        Burda et al. (2016), Importance Weighted Autoencoders (two levels); Soenderby et al.
        (2016), Ladder Variational Autoencoders (five); Tomczak and Welling (2018), VAE with a
        VampPrior (`skip`).

    Example:
        >>> model = HierarchicalVAE((784,), latent_dims=(20, 10))
        >>> poutine.trace(model).get_trace(torch.zeros(5, 784)).stochastic_nodes
        ['data', 'z2', 'z1']
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dims: Sequence[int] = (20, 10),
        hidden: Sequence[int] = (400,),
        latent_hidden: Sequence[int] = (200,),
        *,
        activation: Activation = "relu",
        decoder: Callable[[int, Sequence[int]], Decoder] | None = None,
        likelihood: Likelihood | None = None,
        prior: Family | None = None,
        skip: bool = False,
    ) -> None:
        latent_dims = check_dims(latent_dims, "HierarchicalVAE: latent_dims")
        if len(latent_dims) < 2:
            raise ValueError(
                f"HierarchicalVAE: latent_dims is {list(latent_dims)}; accepted are two levels or "
                "more, from the data upwards, as in [20, 10]. For one level use VAE"
            )
        code_dim = sum(latent_dims) if skip else latent_dims[0]
        super().__init__(data_shape, code_dim, hidden, activation, decoder, likelihood)
        self.latent_dims, self.skip = latent_dims, skip
        self.prior = make_prior(prior, latent_dims[-1], "HierarchicalVAE")
        latent_hidden = check_hidden(latent_hidden, "HierarchicalVAE: latent_hidden")
        self.priors = nn.ModuleList(
            nn.Sequential(
                *dense([above, *latent_hidden], activation),
                NormalHead([above, *latent_hidden][-1], below),
            )
            for below, above in pairwise(latent_dims)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The program; `x` is `[B, *data_shape]`."""
        priors = self.priors
        top, prior = len(self.latent_dims), self.prior(x)
        with pyro.plate("data", len(x), dim=-1):
            levels: list[Tensor] = [pyro.sample(f"z{top}", prior)]  # type: ignore[list-item]
            for level in range(top - 1, 0, -1):
                loc, scale = priors[level - 1](levels[0])
                z = pyro.sample(f"z{level}", dist.Normal(loc, scale).to_event(1))
                levels.insert(0, z)  # type: ignore[arg-type]
            if not self.skip:
                return self.observe(levels[0], x)
            # Levels may be held at values of fewer particles than others.
            shape = torch.broadcast_shapes(*(z.shape[:-1] for z in levels))
            code = torch.cat([z.expand(*shape, z.shape[-1]) for z in levels], -1)
            return self.observe(code, x)
