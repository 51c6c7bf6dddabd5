"""The guide of a model with one discrete and one continuous latent: which component, then where."""

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor, nn

from ppl_vae.checks import check_hidden
from ppl_vae.guides.base import Guide
from ppl_vae.guides.sites import LatentSite, find_latent_sites, trace_model
from ppl_vae.models.gaussian_mixture import UNKNOWN, as_labels, point_logits
from ppl_vae.models.nn import Activation, DenseEncoder, Nonlinearity
from ppl_vae.randomness import fork

__all__ = ["GaussianMixtureGuide"]

# The batch on which the model is traced: 2 tells it from a size of 1.
_PROTOTYPE_BATCH = 2


class GaussianMixtureGuide(Guide):
    r"""A classifier q(y | x), and a diagonal normal for each of its classes.

    .. math:: q(y, z | x) = q(y | x)\, N(z; \mu(x, y), \operatorname{diag} \sigma^2(x, y))

    For models of two latent sites, `y` categorical and `z` a real vector, as `GaussianMixtureVAE`.
    Where a label is known, q(y | x, label) is the point mass at it: log q(label) is exactly 0, and
    the classifier gets no gradient. The encoder runs once per datum, whatever the particles and
    classes.

    `y` is not reparameterized. With `enumerate` its site is marked, and `pyro.infer.TraceEnum_ELBO`
    sums over all of its values, which has no noise of y at all and costs C runs of the decoder.
    Other estimators take no notice of the mark; Pyro's draw y and use the score function.

    Args:
        model: The model; it must know its `data_shape`.
        hidden: Widths of the dense encoder's layers. The last is also the width of the layer at
            which y joins the features; with none, y joins at the linear map to `z`.
        activation: Of the dense layers, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder: a network `[B, *data_shape] -> [B, F]`, or a class
            that makes one of `data_shape`.
        enumerate: Mark `y` to be summed out.

    Raises:
        ValueError: The model has other latent sites, or no `data_shape`; the encoder's output has
            another shape; in a run, labels that are not integers of shape `[B]`.

    References:
        Kingma et al. (2014), Semi-supervised Learning with Deep Generative Models; Dilokthanakul
        et al. (2016), Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders.

    Example:
        >>> model = ppl_vae.models.GaussianMixtureVAE((784,), num_components=3, latent_dim=2)
        >>> guide = GaussianMixtureGuide(model, enumerate=True)
        >>> guide(torch.zeros(2, 784), torch.tensor([1, -1]))["y"][0]
        tensor(1)
        >>> guide.classify(torch.zeros(2, 784)).exp().sum(-1).allclose(torch.ones(2))
        True
    """

    def __init__(
        self,
        model: Callable,
        hidden: Sequence[int] = (400,),
        *,
        activation: Activation = "relu",
        encoder: nn.Module | Callable[[Sequence[int]], nn.Module] | None = None,
        enumerate: bool = False,
    ) -> None:
        super().__init__(model)
        hidden = check_hidden(hidden, f"{type(self).__name__}: hidden")
        data_shape = getattr(model, "data_shape", None)
        if data_shape is None:
            raise ValueError(
                f"{type(self).__name__}: the model {_name(model)} has no data_shape; accepted is a "
                "model that has one, as GaussianMixtureVAE"
            )
        like = torch.zeros(_PROTOTYPE_BATCH, *data_shape).to(_prototype(model))
        num_components, latent_dim = self._sizes(like)
        if encoder is None:
            encoder = DenseEncoder(data_shape, hidden, activation)
        elif not isinstance(encoder, nn.Module):
            encoder = encoder(data_shape)
        encoder = encoder.to(like)
        num_features = self._count_features(encoder, like[:1])
        self.enumerate = enumerate
        self.encoder = encoder
        self.classifier = nn.Linear(num_features, num_components).to(like)
        self.head = _Head(num_features, num_components, latent_dim, hidden[-1:], activation)
        self.head.to(like)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """The program.

        Args:
            x: Data, `[B, *data_shape]`.
            y: Labels, integers `[B]`; -1 where unknown.

        Returns:
            The values of `y` and `z`.
        """
        features = self.encoder(x)  # [B, F]
        logits = self.classifier(features)  # [B, C]
        if y is not None:
            y = as_labels(y, len(x), type(self).__name__)
            point = point_logits(y, logits.shape[-1], like=logits)
            logits = torch.where((y != UNKNOWN).unsqueeze(-1), point, logits)
        head = self.head
        infer = {"enumerate": "parallel"} if self.enumerate else {}
        with pyro.plate("data", len(x), dim=-1):
            component = pyro.sample("y", dist.Categorical(logits=logits), infer=infer)
            loc, scale = head(features, component)
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
        return {"y": component, "z": z}  # type: ignore[dict-item]

    def classify(self, x: Tensor) -> Tensor:
        """log q(y | x) of every component, `[B, C]`; `x` is `[B, *data_shape]`."""
        return self.classifier(self.encoder(x)).log_softmax(-1)

    def _sizes(self, x: Tensor) -> tuple[int, int]:
        """C and D, as the model's own sites have them."""
        sites = find_latent_sites(trace_model(self.model, x))
        found = {site.name: site for site in sites}
        fits = found.keys() == {"y", "z"} and all(
            [(f.name, f.dim, f.size, f.full_size) for f in site.frames]
            == [("data", -1, len(x), len(x))]
            for site in sites
        )
        if not (fits and _is_categorical(found["y"]) and _is_real_vector(found["z"])):
            given = ", ".join(f"'{s.name}' ({_kind(s)})" for s in sites)
            raise ValueError(
                f"{type(self).__name__}: the model {_name(self.model)} has the latent sites "
                f"{given}; accepted are 'y', categorical and scalar, and 'z', a real vector, both "
                "in the plate 'data' alone, as in GaussianMixtureVAE"
            )
        return found["y"].support.upper_bound + 1, found["z"].event_shape[0]

    def _count_features(self, encoder: nn.Module, x: Tensor) -> int:
        # In evaluation mode: one datum has no batch statistics, and none are to be kept of it.
        was_training = encoder.training
        with fork(), torch.no_grad(), poutine.block():
            features = encoder.eval()(x)
        encoder.train(was_training)
        if features.dim() != 2 or features.shape[0] != 1:
            raise ValueError(
                f"{type(self).__name__}: the encoder turns {list(x.shape)} into "
                f"{list(features.shape)}; accepted is [1, F]"
            )
        return features.shape[-1]


class _Head(nn.Module):
    """Location and scale of z from the features of x and the number y.

    The first layer is a linear map of both, in two parts: that of x is computed once for each
    datum, whatever the leading shape of y.
    """

    def __init__(
        self,
        num_features: int,
        num_components: int,
        latent_dim: int,
        hidden: Sequence[int],
        activation: Activation,
    ) -> None:
        super().__init__()
        (width,) = hidden or (2 * latent_dim,)
        self.from_x = nn.Linear(num_features, width)
        self.from_y = nn.Embedding(num_components, width)
        # As small as a linear map's weights, where an embedding's are of size 1.
        nn.init.normal_(self.from_y.weight, std=0.1)
        rest = [Nonlinearity(activation), nn.Linear(width, 2 * latent_dim)] if hidden else []
        self.rest = nn.Sequential(*rest)

    def forward(self, features: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, F]` and `[..., B]` or `[..., 1]` to `[..., B, D]`, `[..., B, D]`."""
        joined = self.from_x(features) + self.from_y(y)
        loc, log_variance = self.rest(joined).chunk(2, dim=-1)
        return loc, (0.5 * log_variance).exp()


def _is_categorical(site: LatentSite) -> bool:
    """Whether the site's values are 0, ..., C - 1 with a known C."""
    support = site.support
    if not isinstance(support, constraints.integer_interval):
        return False
    return support.lower_bound == 0 and isinstance(support.upper_bound, int)


def _is_real_vector(site: LatentSite) -> bool:
    base = getattr(site.support, "base_constraint", site.support)
    return len(site.event_shape) == 1 and base in (constraints.real, constraints.real_vector)


def _kind(site: LatentSite) -> str:
    kind = "discrete" if site.is_discrete else "continuous"
    return f"{kind}, event {list(site.event_shape)}, plates {[f.name for f in site.frames]}"


def _name(model: Callable) -> str:
    return getattr(model, "__name__", type(model).__name__)


def _prototype(model: Callable) -> Tensor:
    """A tensor on the device and in the floating type of the model's parameters."""
    values = (*model.parameters(), *model.buffers()) if isinstance(model, nn.Module) else ()
    return next((v for v in values if v.is_floating_point()), torch.zeros(()))
