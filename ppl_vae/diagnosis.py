"""What went wrong first: the site and the parameter behind a loss that is not finite."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae.estimators.pair import trace_pair
from ppl_vae.estimators.sites import Site, samples
from ppl_vae.handlers import Weight, weighted
from ppl_vae.randomness import validation

__all__ = ["NonFiniteError", "diagnose"]


class NonFiniteError(ArithmeticError):
    """The loss or a gradient became NaN or infinite."""


def diagnose(
    model: Callable,
    guide: Callable,
    args: tuple,
    weight: Weight,
    parameters: Mapping[str, Tensor],
) -> str:
    """Runs the pair once more, and says what is not finite first.

    Looks at, in the order of computation: the data, the parameters, every site of the guide, every
    site of the model (the distribution's own parameters, the value, the log-density), and last the
    gradients.

    Args:
        model: The model.
        guide: The guide.
        args: The batch.
        weight: The KL weight in force.
        parameters: All parameters by name, with the gradients of the bad step.
    """
    for index, value in enumerate(args):
        if isinstance(value, Tensor) and not value.isfinite().all():
            return f"the data: argument {index} of the batch holds {_what(value)}"
    for name, value in parameters.items():
        if not value.isfinite().all():
            return f"the parameter '{name}', which holds {_what(value)}"
    with validation(False), torch.no_grad(), weighted(weight):
        pair = trace_pair(model, guide, args, {})
    for program, trace in (("guide", pair.guide_trace), ("model", pair.model_trace)):
        for name, site in samples(trace):
            if (found := _bad_in_site(site)) is not None:
                return f"site '{name}' of the {program}: {found}{_blame(parameters)}"
    return f"no site in the forward pass{_blame(parameters)}"


def _bad_in_site(site: Site) -> str | None:
    for name, value in _distribution_parameters(site["fn"]):
        if not value.isfinite().all():
            return f"its {name} holds {_what(value)}"
    for what in ("value", "log_prob"):
        if not site[what].isfinite().all():
            return f"its {what.replace('_', '-')} holds {_what(site[what])}"
    return None


def _distribution_parameters(fn: Any) -> Iterator[tuple[str, Tensor]]:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    for name in fn.arg_constraints:
        # Both forms of a parameter are constraints; only the given one is an attribute already.
        value = vars(fn).get(name)
        if isinstance(value, Tensor):
            yield name, value


def _blame(parameters: Mapping[str, Tensor]) -> str:
    for name, value in parameters.items():
        if value.grad is not None and not value.grad.isfinite().all():
            return f"; the first parameter whose gradient is bad is '{name}' ({_what(value.grad)})"
    if not parameters:
        return ""
    name = max(parameters, key=lambda key: parameters[key].detach().abs().max().item())
    size = parameters[name].detach().abs().max().item()
    return f"; all parameters are finite, the largest value is {size:.3g} in '{name}'"


def _what(value: Tensor) -> str:
    bad = ~value.isfinite()
    kind = "nan" if value.isnan().any() else "inf"
    return f"{kind} at {int(bad.sum())} of {value.numel()} places"
