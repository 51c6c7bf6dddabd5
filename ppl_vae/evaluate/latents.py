"""What the guide makes of the data: posterior means, aggregate posterior, active units, unit KLs.

Units are entries of real-valued sites: a class has neither a mean nor a variance. Sites of classes
have `class_probabilities`; other discrete sites, such as counts, are left out of both.

Shapes: N data, D units of a latent site, C classes of a categorical one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from ppl_vae.estimators.pair import trace_pair
from ppl_vae.estimators.sites import samples
from ppl_vae.evaluate.terms import batches
from ppl_vae.randomness import untouched

__all__ = [
    "ActiveUnits",
    "active_units",
    "aggregate_posterior",
    "class_probabilities",
    "posterior_means",
    "unit_kl",
]


def posterior_means(
    guide: Callable, x: Tensor, *, num_particles: int = 10, batch_size: int = 1000, seed: int = 0
) -> dict[str, Tensor]:
    """The guide's mean of every real-valued latent site for each datum.

    The mean of the site's distribution where it has one, averaged over draws of the sites before
    it; the mean of the draws where it has none.

    Args:
        guide: The guide.
        x: Data, `[N, *data_shape]`.
        num_particles: Draws to average.
        batch_size: Data at once.
        seed: Of the draws; the global random stream is left alone.

    Returns:
        For each real-valued site in the data plate `[N, D]`, events and further plates flattened
        to D.
    """

    def read(batch: Tensor) -> dict[str, Tensor]:
        return _local(guide, batch, lambda site: mean_of(site["fn"], site))

    return _averaged(read, x, num_particles, batch_size, seed)


def class_probabilities(
    guide: Callable, x: Tensor, *, num_particles: int = 10, batch_size: int = 1000, seed: int = 0
) -> dict[str, Tensor]:
    """The guide's probability of each class of every categorical latent site, for each datum.

    Those of the site's distribution, averaged over draws of the sites before it. Their mean over
    data is the share of the data that each class takes.

    Args:
        guide: The guide.
        x: Data, `[N, *data_shape]`.
        num_particles: Draws to average.
        batch_size: Data at once.
        seed: Of the draws; the global random stream is left alone.

    Returns:
        For each site that is `Categorical`, in the data plate and in no other, `[N, C]`.
    """
    return _averaged(lambda batch: _classes(guide, batch), x, num_particles, batch_size, seed)


def aggregate_posterior(
    guide: Callable, x: Tensor, *, batch_size: int = 1000, seed: int = 0
) -> dict[str, tuple[Tensor, Tensor]]:
    r"""Mean and standard deviation of each unit under :math:`\frac1N \sum_n q(z | x_n)`.

    Args:
        guide: The guide.
        x: Data, `[N, *data_shape]`.
        batch_size: Data at once.
        seed: Of the draws, one for each datum; the global random stream is left alone.

    Returns:
        For each real-valued site in the data plate two tensors `[D]`.
    """
    with untouched(seed), torch.no_grad():
        chunks = [
            _local(guide, batch, lambda site: site["value"]) for batch in batches(x, batch_size)
        ]
    draws = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return {name: (z.mean(0), z.std(0, correction=0)) for name, z in draws.items()}


@dataclass(frozen=True)
class ActiveUnits:
    """Which units of each real-valued latent site carry information about the data.

    Attributes:
        variance: For each site the variance over data of each unit's posterior mean, `[D]`.
        threshold: Above it a unit is active.
    """

    variance: dict[str, Tensor]
    threshold: float

    @property
    def count(self) -> dict[str, int]:
        """How many units of each site are active."""
        return {name: int((v > self.threshold).sum()) for name, v in self.variance.items()}


def active_units(
    guide: Callable, x: Tensor, *, threshold: float = 0.01, seed: int = 0
) -> ActiveUnits:
    r"""Burda et al.'s active units: :math:`\operatorname{Var}_x E_{q(z|x)}[z_u] >` `threshold`.

    Args:
        guide: The guide.
        x: Data, `[N, *data_shape]`, two or more.
        threshold: 0.01 in the paper.
        seed: Of the guide's draws.

    References:
        Burda et al. (2016), Importance Weighted Autoencoders, section 5.1.
    """
    means = posterior_means(guide, x, seed=seed)
    return ActiveUnits({name: mean.var(0) for name, mean in means.items()}, threshold)


def unit_kl(model: Callable, guide: Callable, x: Tensor, *, seed: int = 0) -> dict[str, Tensor]:
    r"""The KL of each unit, :math:`E_x KL(q(z_u | x) \| p(z_u | \cdot))`, where both are normal.

    Conditional on one draw of the sites above it; for a diagonal guide and prior the units' KLs add
    up to the site's. Sites of other families are left out.

    Args:
        model: The model.
        guide: The guide.
        x: Data, `[N, *data_shape]`.
        seed: Of the draws; the global random stream is left alone.

    Returns:
        `[D]` for each site, nats.
    """
    found = {}
    with untouched(seed), torch.no_grad():
        for name, model_site, guide_site in trace_pair(model, guide, (x,), {}).latents:
            q, p = guide_site["fn"], model_site["fn"]
            q, p = getattr(q, "base_dist", q), getattr(p, "base_dist", p)
            if isinstance(q, Normal) and isinstance(p, Normal) and q.loc.dim() == 2:
                found[name] = kl_divergence(q, p).mean(0)
    return found


def _averaged(
    read: Callable[[Tensor], dict[str, Tensor]],
    x: Tensor,
    num_particles: int,
    batch_size: int,
    seed: int,
) -> dict[str, Tensor]:
    """What `read` finds for each datum, by site, in the mean over `num_particles` times."""

    def average(batch: Tensor) -> dict[str, Tensor]:
        draws = [read(batch) for _ in range(num_particles)]
        return {name: torch.stack([draw[name] for draw in draws]).mean(0) for name in draws[0]}

    with untouched(seed), torch.no_grad():
        chunks = [average(batch) for batch in batches(x, batch_size)]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _local(guide: Callable, x: Tensor, read: Callable[[dict], Tensor]) -> dict[str, Tensor]:
    """What `read` finds at each real-valued site in one run of the guide, `[B, D]`."""
    found = {}
    for name, site, plate in _sites(guide, x):
        if site["value"].is_floating_point() and not is_discrete(site["fn"]):
            dim = plate.dim - len(site["fn"].event_shape)
            found[name] = read(site).movedim(dim, 0).reshape(plate.size, -1)
    return found


def _classes(guide: Callable, x: Tensor) -> dict[str, Tensor]:
    """The probabilities of each categorical site in one run of the guide, `[B, C]`."""
    found = {}
    for name, site, plate in _sites(guide, x):
        fn = site["fn"]
        while hasattr(fn, "base_dist"):  # a mask hides nothing here
            fn = fn.base_dist
        if isinstance(fn, Categorical) and fn.batch_shape.numel() == plate.size:
            found[name] = fn.probs.reshape(plate.size, -1)
    return found


def _sites(guide: Callable, x: Tensor) -> Iterator[tuple[str, Any, Any]]:
    """Name, site and data plate of each site in that plate, in one run of the guide."""
    for name, site in samples(poutine.trace(guide).get_trace(x)):
        plate = plate_around(site, len(x))
        if plate is None or plate.dim is None or type(site["fn"]).__name__ == "_Subsample":
            continue
        yield name, site, plate


def plate_around(site: Any, num_data: int) -> Any:
    """The data plate around a site: `"data"`, else one of the batch's size; none without."""
    frames = {frame.name: frame for frame in site["cond_indep_stack"]}
    fitting = (frame for frame in frames.values() if frame.size == num_data)
    return frames.get("data") or next(fitting, None)


def is_discrete(fn: Any) -> bool:
    """Whether a distribution is one of classes, counts and the like; unknown supports are not."""
    try:
        return bool(fn.support.is_discrete)
    except NotImplementedError:
        return False


def mean_of(fn: Any, site: dict | None = None) -> Tensor:
    """The mean of a distribution, or a draw where it has none in closed form."""
    try:
        return fn.mean
    except NotImplementedError:
        return fn.sample() if site is None else site["value"]
