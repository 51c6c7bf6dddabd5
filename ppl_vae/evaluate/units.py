"""Latents unit by unit: where a datum stands in a site, and densities that factorize over units.

Shapes: M draws, B data, U units of a site: the entries of its event in each of its further plates;
`*plates` all plates around a site, the data's among them; `*rest` a site of one datum, `*event`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

from ppl_vae.estimators.pair import Pair
from ppl_vae.evaluate.weights import plate_depth

__all__ = ["Given", "Layout", "unitwise"]


class Given(Messenger):
    """Puts values in the place of what sites would draw.

    Args:
        values: By site.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self._values:
            msg["value"], msg["done"] = self._values[msg["name"]], True


class Layout:
    """Where the data stand in the latents of a pair.

    Args:
        pair: The pair; the sites must lie in its data plate.
        names: Of the sites.
    """

    def __init__(self, pair: Pair, names: Iterable[str]) -> None:
        self._dim, self._depth = pair.data_plate.dim, plate_depth(pair)
        nodes = pair.guide_trace.nodes
        self._events = {name: len(nodes[name]["fn"].event_shape) for name in names}

    @property
    def names(self) -> list[str]:
        """Of the sites."""
        return list(self._events)

    def read(self, trace: poutine.Trace) -> dict[str, Tensor]:
        """The latents of each datum, `[B, *rest]` by site."""
        found = {}
        for name, events in self._events.items():
            site: Any = trace.nodes[name]
            value = site["value"].expand(site["fn"].batch_shape + site["fn"].event_shape)
            found[name] = value.movedim(self._dim - events, 0)
        return found

    def write(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Back from `[B, *rest]` to the shapes that the programs have."""
        return {n: row.movedim(0, self._dim - self._events[n]) for n, row in rows.items()}

    def across(self, rows: Mapping[str, Tensor], num_data: int) -> dict[str, Tensor]:
        """Every draw given to every datum: `[M, *rest]` to `[M, *plates, *event]`, a view.

        As in a plate of M draws, left of the programs' own.
        """
        found = {}
        for name, row in rows.items():
            dim = self._dim - self._events[name]
            value = row.unsqueeze(dim)
            lacking = 1 + self._depth + self._events[name] - value.dim()
            value = value.reshape(len(row), *[1] * lacking, *value.shape[1:])
            sizes = list(value.shape)
            sizes[dim] = num_data
            found[name] = value.expand(sizes)
        return found

    def by_datum(self, log_prob: Tensor) -> Tensor:
        """A log-density `[M, *plates]`, summed over all plates but the data's: `[M, B]`."""
        log_prob = log_prob.movedim(self._dim, 1)
        return log_prob.reshape(*log_prob.shape[:2], -1).sum(-1)

    def by_unit(self, name: str, log_prob: Tensor) -> Tensor:
        """A site's log-density of each entry, `[M, *plates, *event]`, as `[M, B, U]`."""
        log_prob = log_prob.movedim(self._dim - self._events[name], 1)
        return log_prob.reshape(*log_prob.shape[:2], -1)


def unitwise(fn: Any) -> Any:
    """A distribution over events as one over their entries, where these are independent.

    Seen through `Independent`, and through transforms that act entry by entry.

    Returns:
        A distribution without an event, whose batch is that of `fn` and its event; none where the
        entries may depend on each other, as in a `MultivariateNormal` or a flow.
    """
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if not fn.event_shape:
        return fn
    if not isinstance(fn, TransformedDistribution):
        return None
    base: Distribution | None = unitwise(fn.base_dist)
    parts = _entrywise(fn.transforms)
    return None if base is None or parts is None else TransformedDistribution(base, parts)


def _entrywise(transforms: Iterable[Transform]) -> list[Transform] | None:
    """The same transforms of single entries; none where one of them mixes these."""
    found: list[Transform] = []
    for transform in transforms:
        while isinstance(transform, IndependentTransform):
            transform = transform.base_transform
        if isinstance(transform, ComposeTransform):
            parts = _entrywise(transform.parts)
        else:
            is_scalar = transform.domain.event_dim == transform.codomain.event_dim == 0
            parts = [transform] if is_scalar else None
        if parts is None:
            return None
        found += parts
    return found
