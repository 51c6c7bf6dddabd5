"""The ladder guide: what x says of a level, merged with what the model says of it.

Shapes: B data, F features, H hidden units, D dimension of a site.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_vae.checks import check_hidden
from ppl_vae.guides.amortized import Adjust, AmortizedGuide, Encoded
from ppl_vae.guides.codings import is_real
from ppl_vae.guides.sites import LatentSite
from ppl_vae.models.nn import Activation, dense

__all__ = ["LadderGuide"]


class LadderGuide(AmortizedGuide):
    r"""The model's own top-down pass, each level corrected by what x says of it.

    .. math:: q(z_{1:L} | x) = N(z_L; \hat\mu_L, \hat\sigma_L^2) \prod_{l < L}
        N\Big(z_l; \frac{\hat\mu_l \hat\sigma_l^{-2} + \mu_l \sigma_l^{-2}}
        {\hat\sigma_l^{-2} + \sigma_l^{-2}}, \frac{1}{\hat\sigma_l^{-2} + \sigma_l^{-2}}\Big)

    with :math:`\hat\mu_l, \hat\sigma_l` of x, from a deterministic pass upwards that gives each
    level a layer of its own, and :math:`\mu_l, \sigma_l` those of the model's
    p(z_l | z_{l+1}, ...) at the guide's own draws. Any number of levels. The model is run within
    the guide up to its last latent site; p(x | z) is not.

    It **reads the model's parameters**: gradients of log q reach them, and path derivatives (STL,
    DReG) stop them there, term by term. Reparameterized; a density at given samples costs no more
    than a draw. Networks of the model above its last latent site run in the guide and again in the
    model: those with batch normalization move their running statistics more than once a step.

    Args:
        model: The model: a Pyro program whose latent sites are independent normals; the first may
            be any real vector.
        hidden: Widths of the dense encoder's layers.
        latent_hidden: Widths of the layers from one level up to the next.
        activation: Of the dense layers, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder, as in `MeanFieldGuide`.

    Raises:
        ValueError: A latent site that is not normal, lies outside the data plate, or in a second
            plate.

    References:
        Soenderby et al. (2016), Ladder Variational Autoencoders.

    Example:
        >>> guide = LadderGuide(ppl_vae.models.HierarchicalVAE((784,), latent_dims=(20, 10)))
        >>> list(guide(torch.zeros(5, 784)))
        ['z2', 'z1']
    """

    def __init__(
        self,
        model: Callable,
        hidden: Sequence[int] = (400,),
        latent_hidden: Sequence[int] = (200,),
        *,
        activation: Activation = "relu",
        encoder: nn.Module | Callable[[Sequence[int]], nn.Module] | None = None,
    ) -> None:
        widths = check_hidden(latent_hidden, f"{type(self).__name__}: latent_hidden")
        # Before `nn.Module` is: the networks may be made by the constructor that comes next.
        self.__dict__.update(latent_hidden=widths, _names=[])
        super().__init__(model, hidden, activation=activation, encoder=encoder)

    def setup(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Finds the sites and makes the networks, unless that is done; see `Guide.setup`."""
        if self.latent_sites:
            return
        super().setup(x, *args, **kwargs)
        # Bottom first: from the features to those of the second site, then of the third.
        bottom = self.heads[self._names[-1]].in_features
        starts = [bottom, *[[bottom, *self.latent_hidden][-1]] * len(self._names)]
        self.upwards = nn.ModuleList(
            nn.Sequential(*dense([start, *self.latent_hidden], self._activation))
            for start, _ in zip(starts, self._names[1:], strict=False)
        ).to(next(self.heads.parameters()))

    def draw(self, encoded: Encoded, adjust: Adjust | None = None) -> dict[str, Tensor]:
        """The second half of a run: the model, its latent sites drawn from the merged normals."""
        numbers, features = {}, encoded.features
        upwards, heads = self.upwards, self.heads
        for level, name in enumerate(reversed(self._names)):
            features = upwards[level - 1](features) if level else features
            numbers[name] = heads[name](features)
            if adjust is not None:
                numbers[name] = adjust(name, numbers[name])
        chosen = {self.data_plate.name: encoded.rows} if encoded.plates else {}
        merging = _Merge({n: self._aligned(v) for n, v in numbers.items()}, self._names, chosen)
        # Nothing below the last latent site is wanted, the decoder least of all.
        with suppress(_Drawn), merging:
            self.model(*encoded.args, **encoded.kwargs)
        return merging.values

    def _open_plates(self, x: Tensor) -> dict[str, pyro.plate]:
        # The model opens its own. Where it would choose among the data, the guide chooses before
        # it, for the encoder to see the same.
        frame = self.data_plate
        chooses = len(x) == frame.full_size != frame.size
        return super()._open_plates(x) if chooses else {}

    def _arrange(self, sites: list[LatentSite]) -> list[LatentSite]:
        self._names[:] = [site.name for site in sites]
        return sites

    def _check_site(self, site: LatentSite) -> None:
        # The first is drawn from x alone.
        is_merged = site.name != self._names[0]
        fits = site.family == "Normal" if is_merged else is_real(site.support)
        is_alone = site.is_local(self.data_plate) and len(site.frames) == 1
        if not (fits and is_alone and len(site.event_shape) <= 1):
            plates = [frame.name for frame in site.frames]
            raise ValueError(
                f"LadderGuide: the model's site '{site.name}' is {site.family} with the event "
                f"{list(site.event_shape)}, in the plates {plates or 'none'}; accepted are "
                "independent normals, scalars or vectors, in the data plate alone. For others use "
                f"{'TopDownGuide' if is_alone else 'MeanFieldGuide'}"
            )

    def _make_head(self, site: LatentSite, num_features: int) -> nn.Module:
        is_lowest = site.name == self._names[-1]
        width = num_features if is_lowest else [num_features, *self.latent_hidden][-1]
        return nn.Linear(width, 2 * math.prod(site.event_shape))

    def _sample(self, site: LatentSite, parameters: Any) -> Tensor:
        raise NotImplementedError  # The model samples; see `draw`.

    def _aligned(self, numbers: Tensor) -> Tensor:
        """B of the numbers to where the data plate has it."""
        return numbers.reshape(len(numbers), *[1] * (-self.data_plate.dim - 1), -1)  # type: ignore


class _Drawn(Exception):  # noqa: N818 (nothing went wrong)
    """The last latent site has its value."""


class _Merge(Messenger):
    """Gives each latent site of the model a normal of two sources, and hides all else."""

    def __init__(
        self, numbers: dict[str, Tensor], names: Sequence[str], chosen: dict[str, Any]
    ) -> None:
        super().__init__()
        self._chosen = chosen
        self.values: dict[str, Tensor] = {}
        self._numbers, self._first, self._last = numbers, names[0], names[-1]

    def _pyro_sample(self, msg: dict) -> None:
        name, fn = msg["name"], msg["fn"]
        if type(fn).__name__ == "_Subsample":
            if name in self._chosen:
                # Seen by the handlers outside of this one when the guide opened its own plate.
                msg["value"], msg["done"], msg["stop"] = self._chosen[name], True, True
            return
        if name not in self._numbers or msg["is_observed"]:
            msg["stop"] = True
            return
        numbers = self._numbers[name]
        loc, log_variance = numbers.chunk(2, -1) if fn.event_shape else numbers.unbind(-1)
        scale = (0.5 * log_variance).exp()
        if name != self._first:
            normal = fn.base_dist if fn.event_shape else fn
            loc, scale = _merged(loc, scale, normal.loc, normal.scale)
        msg["fn"] = dist.Normal(loc, scale).to_event(len(fn.event_shape))

    def _pyro_post_sample(self, msg: dict) -> None:
        if msg["name"] in self._numbers:
            self.values[msg["name"]] = msg["value"]
            # The handlers outside of this one have seen the value.
            if msg["name"] == self._last:
                raise _Drawn


def _merged(loc: Tensor, scale: Tensor, other: Tensor, other_scale: Tensor) -> tuple:
    """The normal proportional to the product of two densities."""
    one, two = scale**-2, other_scale**-2
    precision = one + two
    return (loc * one + other * two) / precision, precision**-0.5
