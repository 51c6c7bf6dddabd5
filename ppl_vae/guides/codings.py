"""How one site is spread, given numbers, and how its values are written for other sites to read.

Shapes: `*batch` whatever stands left of an event, P numbers that choose a distribution, D the
dimension of a value written as a vector, `*event` the site's event.
"""

import math
from abc import abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import biject_to
from torch import Tensor, nn
from torch.distributions.transforms import ReshapeTransform

from ppl_vae.families import Family, Member
from ppl_vae.guides.sites import LatentSite
from ppl_vae.guides.supports import Support

__all__ = ["Coding", "coding_of", "is_real"]


class Coding(nn.Module):
    """One site: from P numbers to a distribution over its events, and from a value to a vector.

    Attributes:
        size: P.
        dim: D.
    """

    size: int
    dim: int

    @abstractmethod
    def forward(self, values: Tensor) -> Any:
        """`[*batch, P]` to a distribution of batch `[*batch]` and the site's event."""

    @abstractmethod
    def write(self, value: Tensor) -> Tensor:
        """`[*batch, *event]` to `[*batch, D]`."""


def coding_of(site: LatentSite, family: Family, whose: str) -> Coding:
    """What a site's support asks for.

    A family over R^D, pushed through `biject_to(support)`; a projected normal on a sphere; and
    where the site is discrete, a probability for each value.

    Args:
        site: The site.
        family: Of the continuous sites.
        whose: Name of the guide, for messages.

    Raises:
        ValueError: The support is discrete with no end, or one that nothing here can reach.
    """
    support = site.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.boolean:
        return _Binary(site)
    if isinstance(support, constraints.integer_interval):
        return _Categorical(site, support)
    if support is constraints.one_hot:
        return _OneHot(site)
    if support is constraints.sphere:
        return _Sphere(site, whose)
    kind = str(support).removesuffix("()")
    if site.is_discrete:
        raise ValueError(
            f"{whose}: the model's site '{site.name}' is discrete with the support {kind}; "
            "accepted are discrete sites of finitely many values: Bernoulli, Categorical, "
            "OneHotCategorical"
        )
    try:
        return _Continuous(site, family)
    except NotImplementedError:
        raise ValueError(
            f"{whose}: the model's site '{site.name}' has the support {kind}, which no bijection "
            "of torch or Pyro reaches from real numbers; accepted are supports that have one "
            "(pyro.distributions.transforms.biject_to), spheres, and finite ones"
        ) from None


class _Continuous(Coding):
    """A family over R^D, reshaped to the event and pushed through `biject_to(support)`."""

    def __init__(self, site: LatentSite, family: Family) -> None:
        super().__init__()
        self.support = Support(site.support)
        self._event = self._bijection.inverse_shape(site.event_shape)
        self._is_real = is_real(site.support)
        self.dim = math.prod(self._event)
        self.member: Member = family.make(self.dim)
        self.size = self.member.size

    @property
    def _bijection(self) -> Any:
        return biject_to(self.support())

    def forward(self, values: Tensor) -> Any:
        fn = self.member(values)
        parts = []
        if self._event != fn.event_shape:
            if _is_diagonal(fn):
                # Kept normal, for KLs in closed form.
                loc, scale = (v.unflatten(-1, self._event) if self._event else v.squeeze(-1)
                              for v in (fn.base_dist.loc, fn.base_dist.scale))  # fmt: skip
                fn = dist.Normal(loc, scale).to_event(len(self._event))
            else:
                parts.append(ReshapeTransform(fn.event_shape, self._event, cache_size=1))
        if not self._is_real:
            parts.append(_remembering(self._bijection))
        return dist.TransformedDistribution(fn, parts) if parts else fn

    def write(self, value: Tensor) -> Tensor:
        value = self._bijection.inv(value)
        return value.flatten(-len(self._event)) if self._event else value.unsqueeze(-1)


class _Binary(Coding):
    """A probability for each element of the event."""

    def __init__(self, site: LatentSite) -> None:
        super().__init__()
        self._event = site.event_shape
        self.size = self.dim = math.prod(site.event_shape)

    def forward(self, values: Tensor) -> Any:
        logits = values.unflatten(-1, self._event) if self._event else values.squeeze(-1)
        return dist.Bernoulli(logits=logits).to_event(len(self._event))

    def write(self, value: Tensor) -> Tensor:
        return value.flatten(-len(self._event)) if self._event else value.unsqueeze(-1)


class _Categorical(Coding):
    """Probabilities of 0, ..., C - 1, for each element of the event."""

    def __init__(self, site: LatentSite, support: Any) -> None:
        super().__init__()
        lower, upper = int(support.lower_bound), int(support.upper_bound)
        if lower != 0:
            raise ValueError(
                f"the model's site '{site.name}' takes the values {lower} to {upper}; accepted are "
                "values from 0, as of Categorical and Binomial"
            )
        self._event, self._num_values = site.event_shape, upper + 1
        self.size = self.dim = math.prod(site.event_shape) * self._num_values

    def forward(self, values: Tensor) -> Any:
        logits = values.unflatten(-1, (*self._event, self._num_values))
        return dist.Categorical(logits=logits).to_event(len(self._event))

    def write(self, value: Tensor) -> Tensor:
        # Not `one_hot`, which looks at the values.
        every = torch.arange(self._num_values, device=value.device)
        return (value.unsqueeze(-1) == every).long().flatten(-len(self._event) - 1)


class _OneHot(Coding):
    """Probabilities of the C unit vectors, for each element of the event."""

    def __init__(self, site: LatentSite) -> None:
        super().__init__()
        self._event = site.event_shape
        self.size = self.dim = math.prod(site.event_shape)

    def forward(self, values: Tensor) -> Any:
        logits = values.unflatten(-1, self._event)
        return dist.OneHotCategorical(logits=logits).to_event(len(self._event) - 1)

    def write(self, value: Tensor) -> Tensor:
        return value.flatten(-len(self._event))


class _Sphere(Coding):
    """A projected normal: a direction, and how sure it is. Reparameterized, as Pyro has it."""

    def __init__(self, site: LatentSite, whose: str) -> None:
        super().__init__()
        self._event = site.event_shape
        if len(self._event) != 1 or not 2 <= self._event[0] <= 4:
            raise ValueError(
                f"{whose}: the model's site '{site.name}' lies on a sphere and has the event "
                f"{list(self._event)}; accepted are unit vectors of 2, 3 or 4 numbers, for which "
                "pyro.distributions.ProjectedNormal has a density"
            )
        self.size = self.dim = self._event[0]

    def forward(self, values: Tensor) -> Any:
        return dist.ProjectedNormal(values)

    def write(self, value: Tensor) -> Tensor:
        return value


def is_real(support: constraints.Constraint) -> bool:
    """Whether the support is the whole space, of any event shape."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support in (constraints.real, constraints.real_vector)


def _remembering(bijection: Any) -> Any:
    """A flow without inverse has a density at its own draws, if these can be recognized."""
    try:
        return bijection.with_cache(1)
    except NotImplementedError:
        return bijection


def _is_diagonal(fn: Any) -> bool:
    return type(fn).__name__ == "Independent" and isinstance(fn.base_dist, dist.Normal)
