"""What a line of metrics says of the terms of the ELBO."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae.evaluate import Terms
from ppl_vae.handlers import Weight

__all__ = ["Line", "numbers", "objective", "plain", "scalar"]

Line = dict[str, Any]


def objective(terms: Terms, weight: Weight) -> float:
    """What validation climbs: the elbo; for a point mass, minus the weighted loss."""
    if terms.elbo is not None:
        return terms.elbo.double().mean().item()
    value = terms.reconstruction.double().mean().item()
    for name, prior in terms.log_prior.items():
        factor = weight.get(name, 1.0) if isinstance(weight, Mapping) else weight
        value += float(factor) * prior.double().mean().item()
    return value


def numbers(terms: Terms) -> Line:
    """Means over data: elbo, reconstruction, and kl by site (or log_prior, without a density)."""
    numbers: Line = {}
    for name, value in terms.summary().items():
        nested = isinstance(value, dict)
        numbers[name] = {k: v.value for k, v in value.items()} if nested else value.value
    return numbers


def scalar(loss: Any) -> Tensor:
    """A loss as a tensor; of the pair that ReweightedWakeSleep gives, that of the model."""
    return torch.as_tensor(loss[0] if isinstance(loss, tuple) else loss).detach()


def plain(weight: Weight) -> Any:
    """A KL weight as numbers."""
    if isinstance(weight, Mapping):
        return {name: float(value) for name, value in weight.items()}
    return float(weight)
