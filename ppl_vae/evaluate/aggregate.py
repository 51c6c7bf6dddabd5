r"""Draws of the data's posteriors, and their densities under the mixture of all of these.

.. math:: q(z) = \frac1N \sum_{m=1}^N q(z | x_m)

Shapes: N data, B data at once, S draws, M draws at once, U units of all chosen latents.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.estimators.pair import trace_pair
from ppl_vae.estimators.running import run_guide
from ppl_vae.estimators.sites import Site
from ppl_vae.evaluate.factorization import Factorization
from ppl_vae.evaluate.terms import batches
from ppl_vae.evaluate.units import Given, Layout, unitwise

__all__ = ["BLOCK", "AggregateDensities", "Draws", "aggregate_densities", "draw"]

#: Data at once where the guide draws; always so many, for the draws not to hang on the chunks.
BLOCK = 1000
# Densities, draws times data, that are held at once, and numbers in them.
_DENSITIES_AT_ONCE, _NUMBERS_AT_ONCE = 100_000, 2_000_000


@dataclass(frozen=True)
class Draws:
    """S draws, each of the posterior of one datum.

    Attributes:
        rows: The draws, `[S, *rest]` by site.
        datum: Of which datum each is, `[S]`.
        log_guide: log q(z | x) of its own datum, as it was when drawn, `[S]`.
        log_prior: log p(z), `[S, U]`; `[S, 1]`, all units together, where it has none by unit.
    """

    rows: dict[str, Tensor]
    datum: Tensor
    log_guide: Tensor
    log_prior: Tensor


@dataclass(frozen=True)
class AggregateDensities:
    """Log-densities of draws, in double.

    Attributes:
        own: log q(z | x) at the datum of which the draw is, `[S]`.
        joint: log q(z), `[S]`.
        units: log q(z_j) of each unit, `[S, U]`; none where q(z | x) does not factorize.
    """

    own: Tensor
    joint: Tensor
    units: Tensor | None


def draw(
    model: Callable,
    guide: Callable,
    x: Tensor,
    form: Factorization,
    num_particles: int,
    chosen: Tensor,
) -> Draws:
    """Draws from the posteriors of some of the data.

    Args:
        model: The model.
        guide: The guide.
        x: Data, `[N, *data_shape]`.
        form: Of the pair.
        num_particles: K, draws of each datum.
        chosen: Of which data, `[N]`, bool.

    Returns:
        K draws of each datum chosen: of all data the first draw, then of all the second.
    """
    layout, parts = form.layout, []
    for batch, kept in zip(batches(x, BLOCK), batches(chosen, BLOCK), strict=True):
        if not kept.any():
            continue
        for _ in range(num_particles):
            pair = trace_pair(model, guide, (batch,), {})
            sites = {name: (p, q) for name, p, q in pair.latents if name in layout.names}
            value = {name: q["value"].unsqueeze(0) for name, (_, q) in sites.items()}
            prior = _log_prob(layout, {n: p for n, (p, _) in sites.items()}, value,
                              form.model_has_units)  # fmt: skip
            own = sum(layout.by_datum(q["log_prob"].unsqueeze(0)) for _, q in sites.values())
            rows = {name: row[kept] for name, row in layout.read(pair.guide_trace).items()}
            parts.append((rows, own[0, kept], prior[0, kept]))  # type: ignore[index]
    ordered = [p for k in range(num_particles) for p in parts[k::num_particles]]
    return Draws(
        {name: torch.cat([rows[name] for rows, _, _ in ordered]) for name in layout.names},
        chosen.nonzero().flatten().repeat(num_particles),
        torch.cat([own for _, own, _ in ordered]),
        torch.cat([prior for _, _, prior in ordered]),
    )


def aggregate_densities(
    guide: Callable, x: Tensor, form: Factorization, draws: Draws, batch_size: int
) -> AggregateDensities:
    """The density of every draw under every datum's posterior, summed as it goes.

    Cost: N S densities. Memory, besides the draws and what comes back: `batch_size` data in the
    guide, and 100,000 densities at once, or fewer of many units.

    Args:
        guide: The guide.
        x: All data, `[N, *data_shape]`.
        form: Of the pair.
        draws: The draws.
        batch_size: Data at once.
    """
    layout, num_draws = form.layout, len(draws.datum)
    num_units = sum(row[0].numel() for row in draws.rows.values())
    most = max(1, min(_DENSITIES_AT_ONCE, _NUMBERS_AT_ONCE // num_units) // min(batch_size, len(x)))
    width = num_units if form.guide_has_units else 1
    own, joint = (torch.full((num_draws,), -math.inf, dtype=torch.float64, device=x.device)
                  for _ in range(2))  # fmt: skip
    units = joint.new_full((num_draws, width), -math.inf)
    start = 0
    for batch in batches(x, batch_size):
        sites = None if form.guide_has_chain else _sites(guide, batch, layout)
        for first in range(0, num_draws, most):
            part = slice(first, first + most)
            rows = {name: row[part] for name, row in draws.rows.items()}
            values = layout.across(rows, len(batch))
            found = sites
            if found is None:
                with Given(values):
                    found = _sites(guide, batch, layout)
            by_unit = _log_prob(layout, found, values, form.guide_has_units)  # [M, B, U]
            log_q = by_unit.sum(-1)
            joint[part] = torch.logaddexp(joint[part], log_q.logsumexp(1).double())
            if form.guide_has_units:
                units[part] = torch.logaddexp(units[part], by_unit.logsumexp(1).double())
            column = draws.datum[part] - start
            here = ((column >= 0) & (column < len(batch))).nonzero().flatten()
            own[first + here] = log_q[here, column[here]].double()
        start += len(batch)
    log_num = math.log(len(x))
    return AggregateDensities(
        own, joint - log_num, units - log_num if form.guide_has_units else None
    )


def _sites(guide: Callable, x: Tensor, layout: Layout) -> dict[str, Site]:
    trace = run_guide(guide, (x,), {})
    return {name: trace.nodes[name] for name in layout.names}  # type: ignore[return-value]


def _log_prob(
    layout: Layout, sites: dict[str, Site], values: dict[str, Tensor], by_unit: bool
) -> Tensor:
    """Log-densities at values `[M, *plates, *event]`.

    Returns:
        `[M, B, U]`, units of all sites side by side; `[M, B, 1]` if not by unit.
    """
    parts = []
    for name, site in sites.items():
        fn = unitwise(site["fn"]) if by_unit else None
        if fn is not None:
            parts.append(layout.by_unit(name, fn.log_prob(values[name])))
        else:  # By unit only if it has a single one.
            parts.append(layout.by_datum(site["fn"].log_prob(values[name])).unsqueeze(-1))
    shapes = {name: tuple(part.shape[:2]) for name, part in zip(sites, parts, strict=True)}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            "kl_split runs the later sites of a guide on draws of the earlier ones at once, and "
            f"densities of draws and data come out in the shapes {shapes}; accepted are guides "
            "that take a dimension left of their plates, as for vectorized particles"
        )
    return torch.cat(parts, -1) if by_unit else torch.stack(parts).sum(0)
