"""Supports with bounds: a guide takes them once, from the run of the model that it is set up on.

Shapes: `*batch` of a distribution, `*event` its event.
"""

import copy
from typing import Any

from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor, nn

__all__ = ["Support", "bounds_of", "check_constant", "fixed_support"]

_WAY_OUT = (
    "a guide takes a support once, in its setup. Sample the site on a fixed support, as "
    "Uniform(0, 1), and move it to its place in the model"
)


class Support(nn.Module):
    """A support whose bounds follow the guide to its device, and are no part of its state.

    Args:
        support: The support.
    """

    def __init__(self, support: constraints.Constraint) -> None:
        super().__init__()
        self._support = support
        for name, bound in bounds_of(support).items():
            self.register_buffer(name, bound, persistent=False)

    def forward(self) -> constraints.Constraint:
        """The support, its bounds where the guide is."""
        return _with_bounds(self._support, self._buffers) if self._buffers else self._support


def bounds_of(support: constraints.Constraint) -> dict[str, Tensor]:
    """The bounds of a support that are tensors, by the names they have in it."""
    return {
        name: value for name, value in vars(_inner(support)).items() if isinstance(value, Tensor)
    }


def fixed_support(name: str, fn: Any) -> constraints.Constraint:
    """A site's support, its bounds no larger than an event.

    Args:
        name: The site's.
        fn: Its distribution in a run of the model.

    Raises:
        ValueError: The bounds differ within the batch.
    """
    found = {}
    for key, bound in bounds_of(fn.support).items():
        event = bound.shape[max(0, bound.dim() - len(fn.event_shape)) :]
        rows = bound.detach().reshape(-1, *event)
        if not bool((rows == rows[:1]).all()):
            raise ValueError(
                f"the model's site '{name}' has a support ({_kind(fn)}) whose bounds differ from "
                f"datum to datum or within another plate; {_WAY_OUT}"
            )
        found[key] = rows[0]
    return _with_bounds(fn.support, found) if found else fn.support


def check_constant(trace: poutine.Trace) -> None:
    """Raises a `ValueError` where the bounds of a latent site's support have a gradient.

    Args:
        trace: Of the model, parameters and data asking for gradients.
    """
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"]:
            continue
        if any(bound.requires_grad for bound in bounds_of(site["fn"].support).values()):
            raise ValueError(
                f"the model's site '{name}' has a support ({_kind(site['fn'])}) whose bounds move "
                f"with parameters, with x, or with other sites; {_WAY_OUT}"
            )


def _with_bounds(support: constraints.Constraint, bounds: dict) -> constraints.Constraint:
    support = copy.copy(support)
    if isinstance(support, constraints.independent):
        support.base_constraint = _with_bounds(support.base_constraint, bounds)
    else:
        vars(support).update(bounds)
    return support


def _inner(support: constraints.Constraint) -> constraints.Constraint:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _kind(fn: Any) -> str:
    return type(_inner(fn.support)).__name__.lstrip("_")
