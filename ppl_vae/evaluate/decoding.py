"""From latents to data: reconstructions, prior samples, traversals.

Shapes: N data, D units of a latent site, U units shown, S values of a unit.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.estimators.pair import samples, trace_pair
from ppl_vae.evaluate.latents import mean_of, posterior_means
from ppl_vae.randomness import untouched

__all__ = ["decode", "reconstruct", "sample_prior", "traverse"]


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
    values: Sequence[float] | Tensor,
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
        values: Which values, S; or `[U, S]`, values of its own for each unit.

    Returns:
        Means of p(x | z), `[U, S, *data_shape]`.
    """
    z = posterior_means(guide, x)[site]  # [1, D]
    rows = torch.as_tensor(values).to(z)
    rows = rows.expand(len(units), rows.shape[-1])  # [U, S]
    grid = z.expand(*rows.shape, -1).clone()  # [U, S, D]
    for row, unit in enumerate(units):
        grid[row, :, unit] = rows[row]
    flat = grid.flatten(0, 1)
    like = x.expand(len(flat), *x.shape[1:])
    return decode(model, {site: flat}, like).unflatten(0, rows.shape)


class _Fix(Messenger):
    """Gives latent sites chosen values, and the mean of their distribution where none is chosen."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict) -> None:
        if msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        value = self.values.get(msg["name"])
        msg["value"] = mean_of(msg["fn"]) if value is None else value
        msg["done"] = True


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
