r"""A model's latents as one vector of real numbers for each datum, and densities there.

Shapes: C chains, B data, D dimensions of all latents of a datum together.
"""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to

from ppl_vae.estimators.checks import check_density, check_local
from ppl_vae.estimators.densities import per_particle
from ppl_vae.estimators.pair import Pair, compute_density, trace_pair
from ppl_vae.estimators.running import run_guide, run_model
from ppl_vae.estimators.simulation import check_draws_directly
from ppl_vae.estimators.sites import PARTICLES, Site, family_of, is_masked, is_point, samples
from ppl_vae.evaluate.hamiltonian import Density
from ppl_vae.evaluate.weights import plate_depth
from ppl_vae.randomness import validation

__all__ = ["Unconstrained"]


class Unconstrained:
    r"""The path from a base to p(x, z), in unconstrained space.

    .. math:: \log \pi_\beta(u) = (1 - \beta) \log \pi_0(z(u)) + \beta \log p(x, z(u))
        + \log \lvert \det \partial z / \partial u \rvert

    where z(u) is `biject_to` of each site's support, bounds that depend on other sites included,
    and :math:`\pi_0` is the prior p(z), or the guide q(z | x) where there is one. All chains and
    data are evaluated together, by one run of the model (and of the guide).

    Args:
        model: The model.
        guide: The guide, or none.
        x: Data, `[B, *data_shape]`.
        what: Who asks, for messages.

    Raises:
        ValueError: A latent site is discrete, a point mass, on a support that no map from the reals
            reaches, masked, scaled, or outside the data plate; the model subsamples the data; the
            guide has no density at a given z.
    """

    def __init__(self, model: Callable, guide: Callable | None, x: Tensor, what: str) -> None:
        self._model, self._guide, self._x = model, guide, x
        with validation(True), torch.no_grad():
            if guide is not None:
                check_draws_directly(run_guide(guide, (x,), {}), what)
            pair = trace_pair(model, _prior(model) if guide is None else guide, (x,), {})
        check_local(pair, what)
        self._data = pair.data_plate
        if self._data.size != len(x):
            raise ValueError(
                f"{what}: of {len(x)} data the model takes a subsample of {self._data.size} in the "
                f"plate '{self._data.name}'; accepted is a plate over all, "
                "pyro.plate('data', len(x))"
            )
        for name, site, _ in pair.latents:
            _check_site(name, site, what)
        if guide is not None:
            check_density(pair, what)
        self._dim = -plate_depth(pair) - 1
        self._sites = _Layout(pair, self._data.dim)

    def draw(self, num_chains: int) -> Tensor:
        """Draws from the base, `[C, B, D]`."""
        plate = self._plate(num_chains)
        with torch.no_grad():
            if self._guide is None:
                trace = poutine.trace(plate(self._model)).get_trace(self._x)
            else:
                guide_trace = run_guide(plate(self._guide), (self._x,), {})
                trace = run_model(plate(self._model), guide_trace, (self._x,), {})
            return self._sites.read(trace)

    def at(self, trace: poutine.Trace, num_chains: int) -> Tensor:
        """The latents of a trace of the model, the same in every chain, `[C, B, D]`."""
        replayed = poutine.replay(self._plate(num_chains)(self._model), trace=trace)
        with torch.no_grad():
            return self._sites.read(poutine.trace(replayed).get_trace(self._x))

    def densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\log \pi_0`, with the determinant, and :math:`\log p(x, z) - \log \pi_0(z)`.

        Args:
            u: `[C, B, D]`.

        Returns:
            Both `[C, B]`.
        """
        plate, move = self._plate(len(u)), _Move(self._sites.split(u))
        with move:
            trace = poutine.trace(plate(self._model)).get_trace(self._x)
        trace = prune_subsample_sites(trace)
        trace.compute_log_prob()
        sites = dict(samples(trace))
        determinant = self._sum(sites, move.log_determinants)
        prior = self._sum({n: sites[n] for n in self._sites.names})
        likelihood = self._sum({n: s for n, s in sites.items() if n not in self._sites.names})
        if self._guide is None:
            return prior + determinant, likelihood
        guide = poutine.replay(plate(self._guide), trace=trace)
        guide_trace = prune_subsample_sites(run_guide(guide, (self._x,), {}))
        compute_density(guide_trace)
        base = self._sum(dict(samples(guide_trace)))
        return base + determinant, prior + likelihood - base

    def tempered(self, beta: float) -> Density:
        r""":math:`\log \pi_\beta`, and its gradient."""

        def density(u: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                base, ratio = self.densities(u)
                value = base + beta * ratio
                (gradient,) = torch.autograd.grad(value.sum(), u)
            return value.detach(), gradient

        return density

    def _plate(self, num_chains: int) -> pyro.plate:
        return pyro.plate(PARTICLES, num_chains, dim=self._dim)

    def _sum(self, sites: dict[str, Site], terms: dict[str, Tensor] | None = None) -> Tensor:
        """Over sites, for each chain and datum, `[C, B]`: their log-densities, or other terms."""
        names = sites if terms is None else terms
        return sum(  # type: ignore[return-value]
            per_particle(sites[name], self._data, None if terms is None else terms[name])
            for name in names
        )


class _Layout:
    """Which numbers of u are whose."""

    def __init__(self, pair: Pair, plate_dim: int) -> None:
        self.names = [name for name, _, _ in pair.latents]
        self._plate_dim = plate_dim
        self._dims: dict[str, int] = {}
        self._shapes: dict[str, torch.Size] = {}

    def read(self, trace: poutine.Trace) -> Tensor:
        """The latents of a trace that has a plate of chains, `[C, B, D]`."""
        rows = []
        for name in self.names:
            site: Any = trace.nodes[name]
            fn = site["fn"]
            transform = biject_to(fn.support)
            u = transform.inv(site["value"].expand(fn.batch_shape + fn.event_shape))
            self._dims[name] = self._plate_dim - transform.domain.event_dim
            u = u.movedim(self._dims[name], 1)
            self._shapes[name] = u.shape[2:]
            rows.append(u.reshape(*u.shape[:2], -1))
        return torch.cat(rows, -1)

    def split(self, u: Tensor) -> dict[str, Tensor]:
        """Each site's part of u, in the shape that the site has."""
        sizes = [self._shapes[name].numel() for name in self.names]
        return {
            name: part.reshape(*u.shape[:2], *self._shapes[name]).movedim(1, self._dims[name])
            for name, part in zip(self.names, u.split(sizes, -1), strict=True)
        }


class _Move(Messenger):
    """Puts z(u) in the place of the latents, and notes what this does to volumes.

    Args:
        values: u by site.

    Attributes:
        log_determinants: By site, in the shape of its log-density.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self._values = values
        self.log_determinants: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: dict) -> None:
        if (u := self._values.get(msg["name"])) is None:
            return
        transform = biject_to(msg["fn"].support)
        z = transform(u)
        self.log_determinants[msg["name"]] = transform.log_abs_det_jacobian(u, z)
        msg["value"], msg["done"] = z, True


def _prior(model: Callable) -> Callable:
    """The model without what it observes: a guide."""
    return poutine.block(model, hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"])


def _check_site(name: str, site: Site, what: str) -> None:
    fn = site["fn"]
    if fn.support.is_discrete:
        raise ValueError(
            f"{what}: the model's site '{name}' is discrete ({family_of(fn)}), and has no gradient "
            "to move by; accepted are continuous sites"
        )
    if is_point(fn):
        raise ValueError(
            f"{what}: the model's site '{name}' is a point mass, which has no density to move in; "
            "write pyro.deterministic in place of a sample from Delta"
        )
    try:
        biject_to(fn.support)
    except NotImplementedError:
        raise ValueError(
            f"{what}: the model's site '{name}' ({family_of(fn)}) has the support {fn.support}, "
            "and there is no map to it from the reals (torch's biject_to); accepted are supports "
            "that have one"
        ) from None
    if is_masked(site) or not bool(torch.as_tensor(site["scale"] == 1).all()):
        raise ValueError(
            f"{what}: the model's site '{name}' is masked or scaled, so that its prior is no "
            "distribution to begin from; accepted are masks and scales of what is observed"
        )
