"""The log weights of M x K particles for each datum: the shared ground of what is made of them.

Shapes: M outer samples, K particles, B data.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ppl_vae.estimators.densities import per_particle, plate_scale
from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.paths import ForkedPair
from ppl_vae.estimators.sites import Site, samples
from ppl_vae.handlers import same_scale

__all__ = [
    "Particles",
    "exclusive_logsumexp",
    "exclusive_mean",
    "log_mean_exp",
    "weigh",
    "with_gradient",
]

# Added to a weight before dividing by it. Far below the rounding of a sum of weights that is 1.
_TINY = 1e-20


class Particles:
    r"""The particles of a pair.

    .. math:: \log w = \log p(x | z) + \beta (\log p(z) - \log q(z | x))

    with the KL weight inside, as are a user's own `poutine.scale` and masks, and the N/B of a
    subsampled data plate outside: it belongs to the sum over data, not into a datum's weight.

    Args:
        pairs: One pair with all particles, or as many pairs with one each.
        num_outer: M.
        num_particles: K.

    Attributes:
        pairs: The pairs.
        scale: N/B of the data plate.
        log_model: Log-densities of the model, observed and latent, `[M, K, B]`.
        log_guide: Log-densities of the guide, `[M, K, B]`.
    """

    def __init__(self, pairs: list[Pair], num_outer: int, num_particles: int) -> None:
        self.pairs = pairs
        self._shape = (num_outer, num_particles, -1)
        plate = pairs[0].data_plate
        self.scale = (plate.full_size or plate.size) / plate.size
        self.log_model = self._stack([_sum(pair, _sites(pair.model_trace)) for pair in pairs])
        self.log_guide = self._stack([_sum(pair, _sites(pair.guide_trace)) for pair in pairs])

    @property
    def log_weights(self) -> Tensor:
        """log w, `[M, K, B]`."""
        return self.log_model - self.log_guide

    def score(self, *, of_all: bool) -> Tensor:
        """The log-density from which the samples were drawn, without weights, scales and masks.

        Args:
            of_all: Of all sites; else of those alone that are not reparameterized.

        Returns:
            `[M, K, B]`; zero where there is no such site.
        """
        rows = []
        for pair in self.pairs:
            sites = [s for s in _sites(pair.guide_trace) if of_all or not s["fn"].has_rsample]
            plate = pair.data_plate
            terms = [per_particle(site, plate, site["unscaled_log_prob"]) for site in sites]
            rows.append(sum(terms) if terms else None)
        if all(row is None for row in rows):
            return torch.zeros_like(self.log_guide)
        return self._stack(rows)  # type: ignore[arg-type]

    @property
    def has_scores(self) -> bool:
        """Whether some site of the guide is not reparameterized."""
        return any(not site["fn"].has_rsample for site in _sites(self.pairs[0].guide_trace))

    @property
    def kl_weight(self) -> float | Tensor:
        """What multiplies log q in the weights: the KL weight times a user's own scale.

        Raises:
            ValueError: It is not the same for all sites.
        """
        first, *others = _sites(self.pairs[0].guide_trace)
        if not all(same_scale(first, other) for other in others):
            raise ValueError(
                "doubly reparameterized gradients (DReG) need one KL weight for all latent sites, "
                "and the sites of the guide have several; use one weight, or TraceIWAE_ELBO"
            )
        return first["scale"] / plate_scale(first)

    def climb(
        self, value: Tensor, *, model: Tensor, path: Tensor, guide: Tensor | None = None
    ) -> Tensor:
        r"""A value with a gradient of one's own making.

        .. math:: \sum_k a_k \nabla_\theta \log p(x, z_k)
            + b_k \nabla_z \log w_k \, \nabla_\phi z_k

        For particles of a `ForkedPair`. A guide's log-density that knows nothing of the aliases
        enters with its own derivative and a factor of its own, :math:`- c_k \nabla \log q(z_k)`.

        Args:
            value: `[M, B]`.
            model: a, `[M, K, B]`, >= 0.
            path: b, `[M, K, B]`.
            guide: c, `[M, K, B]`; a, if not given.
        """
        # Each row of the model is multiplied by a on its way back to the parameters, so what leaves
        # it towards the samples wants b / a. A weight too small for that division is one that no
        # sum of weights would notice.
        kept = model + _TINY * (self.log_weights.detach() > -math.inf)
        self._scale_gradients(path / (model + _TINY))
        guide = kept if guide is None else guide
        surrogate = weigh(kept, self.log_model) - weigh(guide, self.log_guide)
        return with_gradient(value, surrogate.sum(1))

    def _scale_gradients(self, factor: Tensor) -> None:
        rows = factor.reshape(-1, factor.shape[-1])
        for i, pair in enumerate(self.pairs):
            if isinstance(pair, ForkedPair):
                pair.scale_gradients(rows if len(self.pairs) == 1 else rows[i])

    def _stack(self, rows: list[Tensor]) -> Tensor:
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).reshape(self._shape)


def log_mean_exp(log_w: Tensor) -> Tensor:
    """The logarithm of the mean of w over K, `[M, K, B] -> [M, B]`."""
    return log_w.logsumexp(1) - math.log(log_w.shape[1])


def exclusive_logsumexp(log_w: Tensor) -> Tensor:
    r"""The logarithm of the sum of all other w, `[M, K, B] -> [M, K, B]`.

    From sums on both sides: stable where one weight is nearly all of the sum, linear in K.
    """
    end = log_w.new_full((log_w.shape[0], 1, log_w.shape[2]), -math.inf)
    before = torch.cat([end, log_w.logcumsumexp(1)[:, :-1]], 1)
    after = torch.cat([end, log_w.flip(1).logcumsumexp(1)[:, :-1]], 1).flip(1)
    return torch.logaddexp(before, after)


def exclusive_mean(log_w: Tensor) -> Tensor:
    """The mean of all other log w, `[M, K, B] -> [M, K, B]`; one minus infinity spares itself."""
    end = torch.zeros_like(log_w[:, :1])
    before = torch.cat([end, log_w.cumsum(1)[:, :-1]], 1)
    after = torch.cat([end, log_w.flip(1).cumsum(1)[:, :-1]], 1).flip(1)
    return (before + after) / (log_w.shape[1] - 1)


def weigh(weights: Tensor, log_density: Tensor) -> Tensor:
    """The product, 0 where the weight is 0, though the log-density be minus infinity there."""
    return torch.where(weights == 0, 0.0, weights * log_density)


def with_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    """A tensor of one's value, and of the other's gradient."""
    return value.detach() + (surrogate - surrogate.detach())


def _sites(trace: object) -> Iterable[Site]:
    return (site for _, site in samples(trace))  # type: ignore[arg-type]


def _sum(pair: Pair, sites: Iterable[Site]) -> Tensor:
    return sum(per_particle(site, pair.data_plate) for site in sites)  # type: ignore[return-value]
