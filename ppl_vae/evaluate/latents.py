"""What the latents do: posterior means, active units, reconstructions, prior samples, traversals.

Shapes: N data, D units of a latent site, U units shown, S values of a unit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ppl_vae.estimators.pair import samples, trace_pair
from ppl_vae.evaluate.terms import batches
from ppl_vae.randomness import untouched

__all__ = [
    "ActiveUnits",
    "active_units",
    "decode",
    "posterior_means",
    "reconstruct",
    "sample_prior",
    "traverse",
    "unit_kl",
]


def posterior_means(
    guide: Callable, x: Tensor, *, num_particles: int = 10, batch_size: int = 1000, seed: int = 0
) -> dict[str, Tensor]:
    """The guide's mean of every latent site for each datum.

    The mean of the site's distribution where it has one, averaged over draws of the sites before
    it; the mean of the draws where it has none.

    Args:
        guide: The guide.
        x: Data, `[N, *data_shape]`.
        num_particles: Draws to average.
        batch_size: Data at once.
        seed: Of the draws; the global random stream is left alone.

    Returns:
        For each site in the data plate `[N, D]`, events and further plates flattened to D.
    """
    with untouched(seed), torch.no_grad():
        chunks = [_means(guide, batch, num_particles) for batch in batches(x, batch_size)]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


@dataclass(frozen=True)
class ActiveUnits:
    """Which units of each latent site carry information about the data.

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


def reconstruct(model: Callable, guide: Callable, x: Tensor, *, seed: int = 0) -> Tensor:
    """The mean of p(x | z) at one draw z of the guide, `[N, *data_shape]`."""
    with untouched(seed), torch.no_grad():
        trace = trace_pair(model, guide, (x,), {}).model_trace
    return _data_site(trace, x)["fn"].mean


def sample_prior(model: Callable, x_like: Tensor, *, mean: bool = False, seed: int = 0) -> Tensor:
    """Draws from the model: z from its prior, x from p(x | z).

    Args:
        model: The model.
        x_like: As many data as wanted, in the shape, type and device wanted; values are not read
            by models that only observe them.
        mean: Give the mean of p(x | z) in place of a draw of x; z is drawn all the same.
        seed: Of the draws; the global random stream is left alone.

    Returns:
        `[N, *data_shape]`.
    """
    with untouched(seed), torch.no_grad():
        fn = _data_site(poutine.trace(model).get_trace(x_like), x_like)["fn"]
        return fn.mean if mean else fn.sample()


def decode(model: Callable, latents: Mapping[str, Tensor], x_like: Tensor) -> Tensor:
    """The mean of p(x | z) at given latents.

    Args:
        model: The model.
        latents: Values of latent sites, `[N, *event]`. A site that is not named takes the mean of
            its prior given the sites above it.
        x_like: As in `sample_prior`.

    Returns:
        `[N, *data_shape]`.
    """
    with untouched(), torch.no_grad(), _Fix(latents):
        return _data_site(poutine.trace(model).get_trace(x_like), x_like)["fn"].mean


def traverse(
    model: Callable,
    guide: Callable,
    x: Tensor,
    site: str,
    units: Sequence[int],
    values: Sequence[float],
) -> Tensor:
    """Moves one unit of a latent at a time, and decodes.

    The other units stay at the posterior mean of the datum; sites below `site` in the model follow
    it by the means of their priors, sites above it do not matter.

    Args:
        model: The model.
        guide: The guide.
        x: One datum, `[1, *data_shape]`.
        site: The latent site, of event shape `[D]`.
        units: Which units, U.
        values: Which values, S.

    Returns:
        Means of p(x | z), `[U, S, *data_shape]`.
    """
    z = posterior_means(guide, x)[site]  # [1, D]
    grid = z.repeat(len(units) * len(values), 1)
    for row, unit in enumerate(units):
        columns = slice(row * len(values), (row + 1) * len(values))
        grid[columns, unit] = torch.as_tensor(values, dtype=z.dtype, device=z.device)
    like = x.expand(len(grid), *x.shape[1:])
    return decode(model, {site: grid}, like).unflatten(0, (len(units), len(values)))


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


class _Fix(Messenger):
    """Gives latent sites chosen values, and the mean of their distribution where none is chosen."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict) -> None:
        if msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        value = self.values.get(msg["name"])
        msg["value"] = _mean(msg["fn"]) if value is None else value
        msg["done"] = True


def _means(guide: Callable, x: Tensor, num_particles: int) -> dict[str, Tensor]:
    draws: dict[str, list[Tensor]] = {}
    for _ in range(num_particles):
        for name, site in samples(poutine.trace(guide).get_trace(x)):
            frames = {frame.name: frame for frame in site["cond_indep_stack"]}
            plate = frames.get("data") or next(iter(frames.values()), None)
            if plate is None or plate.dim is None or type(site["fn"]).__name__ == "_Subsample":
                continue
            dim = plate.dim - len(site["fn"].event_shape)
            mean = _mean(site["fn"], site).movedim(dim, 0)
            draws.setdefault(name, []).append(mean.reshape(plate.size, -1))
    return {name: torch.stack(values).mean(0) for name, values in draws.items()}


def _mean(fn: Any, site: dict | None = None) -> Tensor:
    """The mean of a distribution, or a draw where it has none in closed form."""
    try:
        return fn.mean
    except NotImplementedError:
        return fn.sample() if site is None else site["value"]


def _data_site(trace: poutine.Trace, x: Tensor) -> dict:
    """The site that observes the data."""
    observed = {name: site for name, site in samples(trace) if site["is_observed"]}
    for name, site in observed.items():
        if name == "x" or site["value"] is x:
            return site
    raise ValueError(
        f"the model observes {sorted(observed) or 'nothing'}; accepted is a model that observes "
        "the data at a site named 'x'"
    )
