"""A variational autoencoder whose prior is a mixture of Gaussians: one latent is discrete."""

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import embedding

from ppl_vae.checks import check_dim
from ppl_vae.models.likelihoods import Likelihood
from ppl_vae.models.nn import Activation, Decoder
from ppl_vae.models.observation import ObservationModel

__all__ = ["IMPOSSIBLE", "UNKNOWN", "GaussianMixtureVAE", "as_labels", "point_logits"]

#: log p(label | y) where they differ. Finite: an enumeration over y multiplies it by probability 0,
#: and 0 * -inf is nan. Its exponential is 0 in every floating type, so a normalizer is exactly 1.
IMPOSSIBLE = -1e4

#: The label of a datum that has none.
UNKNOWN = -1


class GaussianMixtureVAE(ObservationModel):
    r"""A decoder over a mixture of Gaussians, with labels for some of the data, or for none.

    .. math:: y \sim \text{Categorical}(\pi),\qquad z | y \sim N(\mu_y, \operatorname{diag}
        \sigma_y^2),\qquad x | z \sim p(x | z) = \text{likelihood}(\text{decoder}(z))

    The weights, locations and scales of the mixture are learned. A label is y seen without error:
    where one is known, p(x, label) = p(x, y = label); where none is known, p(x).

    Sites: `y`, `[B]`, in 0, ..., C - 1; `label`, `[B]`, observed, only in runs that are given
    labels, and masked where they are unknown; `z`, `[B, latent_dim]`; `x`, `[B, *data_shape]`. All
    in the plate `data`. A guide may enumerate `y`, which then is `[C, 1]`.

    Args:
        data_shape: Shape of one datum.
        num_components: C, two or more.
        latent_dim: D.
        hidden: Widths of the decoder's dense layers, from `z` to `x`.
        activation: Of the dense layers, by its name in `torch.nn.functional`.
        decoder: In place of the dense decoder, as in `VAE`.
        likelihood: p(x | z); `Bernoulli()` if not given.

    Raises:
        ValueError: A dimension below 1, or fewer than two components; in a run, labels that are not
            integers of shape `[B]`.

    References:
        Kingma et al. (2014), Semi-supervised Learning with Deep Generative Models (its M2 labels
        some of the data; there z does not depend on y). Dilokthanakul et al. (2016), Deep
        Unsupervised Clustering with Gaussian Mixture Variational Autoencoders; Jiang et al. (2017),
        Variational Deep Embedding (this prior).

    Example:
        >>> model = GaussianMixtureVAE((1, 8, 8), num_components=3, latent_dim=2)
        >>> trace = poutine.trace(model).get_trace(torch.zeros(2, 1, 8, 8), torch.tensor([2, -1]))
        >>> {name: tuple(trace.nodes[name]["value"].shape) for name in ("y", "z", "x")}
        {'y': (2,), 'z': (2, 2), 'x': (2, 1, 8, 8)}
        >>> trace.nodes["label"]["mask"]
        tensor([ True, False])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_components: int = 10,
        latent_dim: int = 20,
        hidden: Sequence[int] = (400,),
        *,
        activation: Activation = "relu",
        decoder: Callable[[int, Sequence[int]], Decoder] | None = None,
        likelihood: Likelihood | None = None,
    ) -> None:
        check_dim(num_components, "GaussianMixtureVAE: num_components")
        if num_components < 2:
            raise ValueError(
                f"GaussianMixtureVAE: num_components is {num_components}; accepted is an integer "
                ">= 2. For one component use VAE"
            )
        check_dim(latent_dim, "GaussianMixtureVAE: latent_dim")
        super().__init__(data_shape, latent_dim, hidden, activation, decoder, likelihood)
        self.num_components, self.latent_dim = num_components, latent_dim
        self.logits = nn.Parameter(torch.zeros(num_components))
        # Apart, or all components would get the same gradients for ever.
        self.loc = nn.Parameter(0.5 * torch.randn(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The program.

        Args:
            x: Data, `[B, *data_shape]`.
            y: Labels, integers `[B]`; -1 where unknown. Without, nothing is observed but x.
        """
        if y is not None:
            y = as_labels(y, len(x), type(self).__name__)
        loc, log_scale = self.loc, self.log_scale
        with pyro.plate("data", len(x), dim=-1):
            component = pyro.sample("y", dist.Categorical(logits=self.logits))
            if y is not None:
                known = y != UNKNOWN
                seen = dist.Categorical(logits=point_logits(component, len(loc), like=loc))
                with poutine.mask(mask=known):
                    # The mask hides the value, but a 0 is one that the distribution takes.
                    pyro.sample("label", seen, obs=y.where(known, 0))
            prior = dist.Normal(embedding(component, loc), embedding(component, log_scale).exp())
            z = pyro.sample("z", prior.to_event(1))
            return self.observe(z, x)  # type: ignore[arg-type]

    def check_labels(self, y: Tensor) -> None:
        """Checks the values of labels, once before a training: a run looks at their form only.

        Args:
            y: Labels, `[N]`; -1 where unknown.

        Raises:
            ValueError: Not integers, not one for each datum, or outside -1, ..., C - 1.
        """
        y = as_labels(y, None, type(self).__name__)
        bad = (y < UNKNOWN) | (y >= self.num_components)
        if bad.any():
            raise ValueError(
                f"{type(self).__name__}: the labels hold {int(bad.sum())} value(s) outside "
                f"[-1, {self.num_components - 1}], the first is {y[bad][0].item()}; accepted are "
                f"the {self.num_components} components from 0 on, and -1 for unknown"
            )


def as_labels(y: Tensor, num_data: int | None, what: str) -> Tensor:
    """Labels as `int64`; a `ValueError` that names `what` where they are no integers `[B]`.

    No value is looked at: that would wait for the device at every step.
    """
    accepted = "accepted are integers" + (" [N]" if num_data is None else f" [{num_data}]")
    accepted += ", one label for each datum, -1 where unknown"
    if not isinstance(y, Tensor):
        raise ValueError(f"{what}: the labels are of type {type(y).__name__}; {accepted}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"{what}: the labels are {y.dtype}; {accepted}")
    if y.dim() != 1 or num_data not in (None, len(y)):
        raise ValueError(f"{what}: the labels have shape {tuple(y.shape)}; {accepted}")
    # Of 8 bits without a sign, as labels often are, -1 would be 255.
    return y.long()


def point_logits(y: Tensor, num_components: int, *, like: Tensor) -> Tensor:
    """Logits of a point mass at `y`: 0 there, `IMPOSSIBLE` elsewhere.

    Args:
        y: Components, `[...]`.
        num_components: C.
        like: Of the floating type and on the device wanted.

    Returns:
        `[..., C]`, normalized: the logarithm of the sum of their exponentials is exactly 0.
    """
    other = y.unsqueeze(-1) != torch.arange(num_components, device=y.device)
    return like.new_zeros(other.shape).masked_fill(other, IMPOSSIBLE)
