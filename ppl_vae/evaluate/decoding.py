"""From latents to data: reconstructions, prior samples, traversals.

The mean of p(x | z) is its mode where x has no mean, as classes have none.

Shapes: N data, D units of a latent site, U units shown, S values of a unit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppl_vae.estimators.pair import trace_pair
from ppl_vae.estimators.sites import samples
from ppl_vae.evaluate.latents import is_discrete, mean_of, plate_around, posterior_means
from ppl_vae.randomness import untouched

__all__ = ["decode", "decode_units", "decoder_of", "reconstruct", "sample_prior", "traverse"]


def reconstruct(model: Callable, guide: Callable, x: Tensor, *, seed: int = 0) -> Tensor:
    """The mean of p(x | z) at one draw z of the guide, `[N, *data_shape]`.

    Args:
        model: The model.
        guide: The guide.
        x: Data, `[N, *data_shape]`.
        seed: Of the draw; the global random stream is left alone.

    Raises:
        ValueError: The pair does not fit, or the model observes nothing of the name "x".
    """
    with untouched(seed), torch.no_grad():
        trace = trace_pair(model, guide, (x,), {}).model_trace
        return _mean(data_site(trace, x)["fn"])


def sample_prior(
    model: Callable,
    x_like: Tensor,
    *,
    mean: bool = False,
    latents: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Tensor:
    """Draws from the model: z from its prior, x from p(x | z).

    Args:
        model: The model.
        x_like: As many data as wanted, in the shape, type and device wanted; values are not read
            by models that only observe them.
        mean: Give the mean of p(x | z) in place of a draw of x; z is drawn all the same.
        latents: Values of latent sites, `[N, *event]`, to draw the others given these.
        seed: Of the draws; the global random stream is left alone.

    Returns:
        `[N, *data_shape]`.

    Raises:
        ValueError: `latents` names what the model does not sample.
    """
    latents = latents or {}
    with untouched(seed), torch.no_grad(), poutine.condition(data=latents):
        trace = poutine.trace(model).get_trace(x_like)
        _check_names(latents, trace)
        fn = data_site(trace, x_like)["fn"]
        return _mean(fn) if mean else fn.sample()


def decode(model: Callable, latents: Mapping[str, Tensor], x_like: Tensor) -> Tensor:
    """The mean of p(x | z) at given latents.

    Args:
        model: The model.
        latents: Values of latent sites, `[N, *event]`. A site that is not named takes the mean of
            its prior given the sites above it; the mode where it is discrete or has no mean.
        x_like: As in `sample_prior`.

    Returns:
        `[N, *data_shape]`.

    Raises:
        ValueError: `latents` names what the model does not sample.
    """
    return _decode(model, _Fix(latents), x_like)


def traverse(
    model: Callable,
    guide: Callable,
    x: Tensor,
    site: str,
    units: Sequence[int],
    values: Sequence[float] | Tensor,
) -> Tensor:
    """Moves one unit of a latent at a time, and decodes.

    The other units stay at the posterior mean of the datum; sites below `site` in the model follow
    it by the means of their priors (their modes, as in `decode`), sites above it do not matter.

    Args:
        model: The model.
        guide: The guide.
        x: One datum, `[1, *data_shape]`.
        site: The latent site, real-valued; events and further plates are D units, in order.
        units: Which units, U.
        values: Which values, S; or `[U, S]`, values of its own for each unit.

    Returns:
        Means of p(x | z), `[U, S, *data_shape]`.

    Raises:
        ValueError: `site` is no real-valued site in the guide's data plate.
    """
    means = posterior_means(guide, x)
    if site not in means:
        raise ValueError(
            f"site is {site!r}; accepted are the real-valued latent sites of the data, "
            f"{sorted(means)}"
        )
    z = means[site]  # [1, D]
    rows = torch.as_tensor(values).to(z)
    rows = rows.expand(len(units), rows.shape[-1])  # [U, S]
    grid = z.expand(*rows.shape, -1).clone()  # [U, S, D]
    for row, unit in enumerate(units):
        grid[row, :, unit] = rows[row]
    flat = grid.flatten(0, 1)
    like = x.expand(len(flat), *x.shape[1:])
    return decode_units(model, site, flat, like).unflatten(0, rows.shape)


def decode_units(model: Callable, site: str, z: Tensor, x_like: Tensor) -> Tensor:
    """As `decode`, of one site in units, `[N, D]`: events and further plates in order."""
    return _decode(model, _Fix({site: z}, flat=True), x_like)


def decoder_of(model: Callable, site: str, x_like: Tensor) -> Callable[[Tensor], Tensor]:
    """`decode_units` as a function that looks at no value, and so can be traced.

    Args:
        model: The model.
        site: A real-valued latent site in the data plate.
        x_like: As in `sample_prior`, N data.

    Returns:
        From `[N, D]` to means of p(x | z), `[N, *data_shape]`: nan where there is no mean.
    """

    def decoded(z: Tensor) -> Tensor:
        with torch.no_grad(), _Fix({site: z}, flat=True, center=mean_of):
            trace = poutine.trace(model).get_trace(x_like)
        return mean_of(data_site(trace, x_like)["fn"])

    return decoded


class _Fix(Messenger):
    """Gives latent sites chosen values, and the centre of their prior where none is chosen."""

    def __init__(
        self,
        values: Mapping[str, Tensor],
        *,
        flat: bool = False,
        center: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.values = values
        self._flat = flat  # `[N, D]`, as `posterior_means` gives them
        self._center = center or _mean

    def _pyro_sample(self, msg: dict) -> None:
        if msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        value = self.values.get(msg["name"])
        if value is None:
            # The mean of a discrete site is none of its values: no decoder has seen it.
            value = _mode(msg["fn"]) if is_discrete(msg["fn"]) else self._center(msg["fn"])
        elif self._flat:
            value = _unflattened(value, msg)
        msg["value"] = value
        msg["done"] = True


def _decode(model: Callable, fix: _Fix, x_like: Tensor) -> Tensor:
    with untouched(), torch.no_grad(), fix:
        trace = poutine.trace(model).get_trace(x_like)
        _check_names(fix.values, trace)
        return _mean(data_site(trace, x_like)["fn"])


def _unflattened(value: Tensor, site: dict) -> Tensor:
    """`[N, D]` in the shape of the site, whatever its plates and events."""
    fn = site["fn"]
    dim = plate_around(site, len(value)).dim - len(fn.event_shape)
    shape = list(fn.shape())
    del shape[dim]
    return value.reshape(len(value), *shape).movedim(0, dim)


def _mean(fn: Any) -> Tensor:
    """The mean; where there is none, as of classes, the mode; a draw where neither is known."""
    mean = mean_of(fn)
    missing = mean.isnan()
    return mean.where(~missing, _mode(fn)) if missing.any() else mean


def _mode(fn: Any) -> Tensor:
    """The value of the highest density; a draw where it is not known."""
    try:
        mode = fn.mode
    except NotImplementedError:
        return fn.sample()
    # Of two values that are equally probable, as of a fair coin, torch says nan; 0 is one of them.
    return mode.masked_fill(mode.isnan(), 0)


def _check_names(latents: Mapping[str, Tensor], trace: poutine.Trace) -> None:
    """Refuses values for sites that are not there."""
    names = [name for name, _ in samples(prune_subsample_sites(trace))]
    if unknown := sorted(set(latents) - set(names)):
        raise ValueError(f"latents names {unknown}; the model samples {sorted(names)}")


def data_site(trace: poutine.Trace, x: Tensor) -> dict:
    """The site that observes the data."""
    observed = {name: site for name, site in samples(trace) if site["is_observed"]}
    for name, site in observed.items():
        if name == "x" or site["value"] is x:
            return site
    raise ValueError(
        f"the model observes {sorted(observed) or 'nothing'}; accepted is a model that observes "
        "the data at a site named 'x'"
    )
