"""How q(z | x) and p(z) factorize over sites and units, found by running the programs.

Shapes: B data.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppl_vae.estimators.checks import check_density, check_local
from ppl_vae.estimators.pair import Pair, join
from ppl_vae.estimators.running import run_guide, run_model
from ppl_vae.estimators.simulation import check_draws_directly
from ppl_vae.estimators.sites import is_masked, quoted
from ppl_vae.evaluate.units import Given, Layout, unitwise
from ppl_vae.randomness import validation

__all__ = ["Factorization", "chosen_sites", "factorization"]

# Log-densities that differ by less are taken for equal, relative and absolute.
_CLOSE = 1e-4


@dataclass(frozen=True)
class Factorization:
    """How the densities of the chosen latents are made up.

    Attributes:
        layout: Of the chosen latents.
        guide_has_chain: Whether the guide draws some site given another; else q(z | x) is a product
            over sites.
        guide_has_units: Whether q(z | x) is a product over units.
        model_has_units: Whether p(z) is.
    """

    layout: Layout
    guide_has_chain: bool
    guide_has_units: bool
    model_has_units: bool


def factorization(
    model: Callable, guide: Callable, x: Tensor, site: str | None, what: str
) -> Factorization:
    """Looks at a pair by running it at draws of its own, and at draws of other data in their place.

    Args:
        model: The model.
        guide: The guide.
        x: Some data, `[B, *data_shape]`.
        site: The latent that is wanted; all together, if not given.
        what: Who asks, for messages.

    Raises:
        ValueError: The pair does not fit; the guide has no density at given values, or is random
            besides its sites; a latent lies outside the data plate, or is masked or scaled; the
            model subsamples the data; p(z) hangs on the data; there is no such site, or its density
            hangs on other latents.
    """
    with validation(True):
        guide_trace = run_guide(guide, (x,), {})
        check_draws_directly(guide_trace, what)
        pair = join(run_model(model, guide_trace, (x,), {}), guide_trace)
        names = chosen_sites(pair, x, site, what)
        check_density(pair, what)
        _check_plain(pair, what)
    every = Layout(pair, [name for name, _, _ in pair.latents])
    own, other = every.read(pair.guide_trace), every.read(run_guide(guide, (x,), {}))
    # Of another draw, and of another datum: classes may well be the same in two draws of one.
    other = {name: row.roll(1, 0) for name, row in other.items()}
    looks = _Looks(every, own, what)
    again, unlike = (looks.at(run_guide, guide, values, x) for values in (own, other))
    if not _same(again, looks.at(run_guide, guide, own, x)):
        raise ValueError(
            f"{what}: two runs of the guide have different densities at the same latents, so that "
            "it is random besides its sites; call eval() first where there is dropout"
        )
    prior, elsewhere = (looks.at(_run, model, own, data) for data in (x, x.roll(1, 0)))
    if not _same(*({n: found[n] for n in names} for found in (prior, elsewhere))):
        raise ValueError(
            f"{what}: the model's density of {quoted(names)} is another for other data, and q(z) "
            "is compared with one p(z) for all; accepted are priors that do not look at x, and "
            "models in eval() where there is dropout"
        )
    hangs = {n for n in own if not _same({n: again[n]}, {n: unlike[n]})}
    prior_unlike = looks.at(_run, model, other, x)
    prior_hangs = {n for n in own if not _same({n: prior[n]}, {n: prior_unlike[n]})}
    if site is not None and site in hangs | prior_hangs:
        whose = "guide" if site in hangs else "model"
        alone = [name for name in own if name not in hangs | prior_hangs]
        raise ValueError(
            f"{what}: the {whose}'s density of '{site}' hangs on other latents, so that its own, "
            f"without them, is not known; accepted are site=None, all latents together"
            + (f", and {quoted(alone)}" if alone else "")
        )
    single = {n for n, row in own.items() if row[0].numel() == 1}
    nodes, model_nodes = pair.guide_trace.nodes, pair.model_trace.nodes
    return Factorization(
        Layout(pair, names),
        any(n in hangs for n in names),
        all(n not in hangs and (n in single or unitwise(nodes[n]["fn"])) for n in names),
        all(n not in prior_hangs and (n in single or unitwise(model_nodes[n]["fn"]))
            for n in names),
    )  # fmt: skip


def chosen_sites(pair: Pair, x: Tensor, site: str | None, what: str) -> list[str]:
    """The latents that are asked for, of a pair that has a draw of each for every datum.

    Raises:
        ValueError: There is no such site; a site lies outside the data plate; the model subsamples.
    """
    names = [name for name, _, _ in pair.latents]
    if site is not None and site not in names:
        raise ValueError(f"{what}: site is {site!r}; accepted are {quoted(names)}, and None")
    check_local(pair, what)
    if (plate := pair.data_plate).size != len(x):
        raise ValueError(
            f"{what}: of {len(x)} data the model takes a subsample of {plate.size} in the plate "
            f"'{plate.name}'; accepted is a plate over all, pyro.plate('data', len(x))"
        )
    return names if site is None else [site]


class _Looks:
    """Log-densities of the sites at the same latents, in runs at others."""

    def __init__(self, layout: Layout, rows: dict[str, Tensor], what: str) -> None:
        self._layout, self._values, self._what = layout, layout.write(rows), what

    def at(
        self, run: Callable, program: Callable, rows: dict[str, Tensor], x: Tensor
    ) -> dict[str, Tensor]:
        """By site, in a run of the program at given latents."""
        with Given(self._layout.write(rows)):
            trace = prune_subsample_sites(run(program, (x,), {}))
        try:
            return {n: trace.nodes[n]["fn"].log_prob(v) for n, v in self._values.items()}
        except (KeyError, NotImplementedError) as error:
            raise ValueError(
                f"{self._what} needs the density of each datum at the draws of all others, and the "
                f"guide has a flow without an inverse ({error}); use a guide whose flows have one, "
                "or aggregate_mmd, which needs no density"
            ) from error


def _run(program: Callable, args: tuple, kwargs: dict) -> poutine.Trace:
    return poutine.trace(program).get_trace(*args, **kwargs)


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(
        torch.allclose(one[n], other[n], rtol=_CLOSE, atol=_CLOSE, equal_nan=True) for n in one
    )


def _check_plain(pair: Pair, what: str) -> None:
    for name, model_site, guide_site in pair.latents:
        for whose, site in (("model", model_site), ("guide", guide_site)):
            if is_masked(site) or not bool(torch.as_tensor(site["scale"] == 1).all()):
                raise ValueError(
                    f"{what}: the {whose}'s site '{name}' is masked or scaled, so that its density "
                    "is none of a distribution; accepted are masks and scales of what is observed"
                )
