"""Whether the guide's draws are spread as draws of the posterior are, on the model's own data.

Shapes: N data, L draws, U units of a latent site.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.estimators.checks import check_local
from ppl_vae.estimators.pair import Pair, join
from ppl_vae.estimators.running import run_guide, run_model
from ppl_vae.estimators.simulation import simulate
from ppl_vae.estimators.sites import PARTICLES
from ppl_vae.evaluate.terms import batches
from ppl_vae.evaluate.uniformity import EcdfBand, ecdf_difference, uniform_band
from ppl_vae.evaluate.weights import data_at_once, plate_depth
from ppl_vae.randomness import check_seed, looking, untouched, validation

__all__ = ["Calibration", "calibration"]

# Of a chi-square test: below, its distribution is not that of the statistic.
_LEAST_EXPECTED = 5


@dataclass(frozen=True)
class Calibration:
    """Where each datum's own latents stand among the guide's draws.

    Uniform on 0, ..., L where the guide is the posterior. High at both ends: the guide is too
    narrow. High in the middle: too broad. A slope: its draws lie to one side, to the left of the
    latents if it rises.

    Attributes:
        ranks: By latent site, how many of the L draws of a unit are smaller, `[N, U]`, from 0 to L.
        num_draws: L.
    """

    ranks: dict[str, Tensor]
    num_draws: int

    def histogram(self, num_bins: int = 20) -> dict[str, Tensor]:
        """How many data have a rank in each of so many bins of equal width, by site, `[U, bins]`.

        Raises:
            ValueError: `num_bins` does not divide L + 1.
        """
        num_ranks = self.num_draws + 1
        if num_bins < 2 or num_ranks % num_bins:
            raise ValueError(
                f"num_bins is {num_bins}; accepted is a divisor >= 2 of the {num_ranks} ranks that "
                f"{self.num_draws} draws make"
            )
        width = num_ranks // num_bins
        edges = range(num_bins)
        return {
            name: torch.stack([(ranks // width == edge).sum(0) for edge in edges], -1)
            for name, ranks in self.ranks.items()
        }

    def p_values(self, num_bins: int = 20) -> dict[str, Tensor]:
        r"""Of the hypothesis that ranks are uniform, for each unit, by site, `[U]`.

        .. math:: P(\chi^2_{b - 1} \ge X),\qquad X = \sum_{i=1}^b \frac{(n_i - N / b)^2}{N / b}

        Raises:
            ValueError: `num_bins` does not divide L + 1, or there are fewer than 5 data a bin.
        """
        found = {}
        for name, counts in self.histogram(num_bins).items():
            num_data = len(self.ranks[name])
            expected = num_data / num_bins
            if expected < _LEAST_EXPECTED:
                raise ValueError(
                    f"a chi-square test of {num_bins} bins needs {_LEAST_EXPECTED * num_bins} "
                    f"data, and there are {num_data}; accepted are more data or fewer bins"
                )
            statistic = ((counts.double() - expected) ** 2 / expected).sum(-1)
            freedom = torch.full_like(statistic, num_bins - 1)
            found[name] = torch.special.gammaincc(freedom / 2, statistic / 2)
        return found

    def p_value(self, num_bins: int = 20) -> float:
        """The smallest p-value of all units, times their number, at most 1 (Bonferroni)."""
        values = torch.cat(list(self.p_values(num_bins).values()))
        return min(1.0, values.min().item() * len(values))

    def ecdf_difference(self) -> dict[str, Tensor]:
        r"""The ranks' distribution function less that of uniform ones, by site, `[U, L]`.

        .. math:: \frac1N \sum_n [r_n < i] - \frac{i}{L + 1},\qquad i = 1, \dots, L

        All of the ranks, without bins. Guide too narrow: above 0 on the left, below on the right.
        Too broad: the reverse. Below 0 throughout: its draws lie to the left of the latents.
        """
        return {
            name: torch.stack([ecdf_difference(unit, self.num_draws) for unit in ranks.unbind(1)])
            for name, ranks in self.ranks.items()
        }

    def band(self, alpha: float = 0.05) -> EcdfBand:
        """What all differences of a calibrated unit lie in at once, but for a share alpha of units.

        Exact, without simulation: see `uniformity.uniform_band`.

        Raises:
            ValueError: `alpha` is no number in (0, 1).
        """
        return uniform_band(len(next(iter(self.ranks.values()))), self.num_draws, alpha)

    def covers(self, alpha: float = 0.05) -> dict[str, Tensor]:
        """Whether the band covers all differences of a unit, bool by site, `[U]`.

        Each unit by itself: of many calibrated ones a share alpha is not covered. To ask for all of
        U at once, divide alpha by U.

        Raises:
            ValueError: `alpha` is no number in (0, 1).
        """
        band = self.band(alpha)
        return {
            name: ((found >= band.lower) & (found <= band.upper)).all(-1)
            for name, found in self.ecdf_difference().items()
        }


def calibration(
    model: Callable,
    guide: Callable,
    x_like: Tensor,
    *,
    num_draws: int = 99,
    seed: int = 0,
    chunk_size: int = 5000,
) -> Calibration:
    r"""Simulation-based calibration of the guide as a posterior.

    .. math:: z^* \sim p(z),\quad x \sim p(x | z^*),\quad z_l \sim q(z | x),\qquad
        r = \sum_{l=1}^L [z_l < z^*]

    If q(z | x) = p(z | x), the rank r of each unit is uniform on 0, ..., L. The converse does not
    hold: each unit is looked at by itself, over all data together, so that a guide without the
    posterior's correlations, or one that is the prior, can be calibrated in this sense. Ties
    (discrete sites) are broken at random, which keeps exact posteriors uniform. On data of the
    model's own, not on real ones. No density of the guide is needed. Model, guide and the global
    random stream are left as they were.

    Args:
        model: The model; its latents must lie in the data plate, and what it observes must be its
            argument.
        guide: The guide.
        x_like: As many data as wanted, `[N, *data_shape]`, in the type and on the device wanted;
            values are not used.
        num_draws: L; with 99 the ranks fall into 20 bins evenly.
        seed: Of the draws.
        chunk_size: How many draws times data are held at once: the bound on memory.

    Raises:
        ValueError: A number out of range; no data; a site outside the data plate; the model does
            more with its data than to observe them.

    References:
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian Inference
        Algorithms with Simulation-Based Calibration.

    Example:
        >>> model = ppl_vae.models.LinearGaussian([[1.0], [2.0]], 0.5)
        >>> guide = ppl_vae.guides.MeanFieldGuide(model)  # untrained
        >>> calibration(model, guide, torch.zeros(500, 2)).p_value() < 1e-6
        True
    """
    check_dim(num_draws, "calibration: num_draws")
    check_dim(chunk_size, "calibration: chunk_size")
    check_seed(seed)
    if len(x_like) == 0:
        raise ValueError(
            f"calibration: x_like has the shape {list(x_like.shape)}; accepted is [N, "
            "*data_shape], N >= 1"
        )
    found = []
    with looking(model, guide), untouched(seed), torch.no_grad():
        for batch in batches(x_like, data_at_once(len(x_like), num_draws, chunk_size)):
            found.append(_one_batch(model, guide, batch, num_draws, chunk_size))
    ranks = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    return Calibration(ranks, num_draws)


def _one_batch(
    model: Callable, guide: Callable, x_like: Tensor, num_draws: int, chunk_size: int
) -> dict[str, Tensor]:
    with validation(True):
        drawn, (x,), _ = simulate(model, (x_like,), {})
        guide_trace = run_guide(guide, (x,), {})
        pair = join(run_model(model, guide_trace, (x,), {}), guide_trace)
        check_local(pair, "calibration")
    truth = _units(pair, drawn)
    less = {name: torch.zeros_like(value, dtype=torch.long) for name, value in truth.items()}
    equal = {name: value.clone() for name, value in less.items()}
    dim = -plate_depth(pair) - 1
    at_once, left = max(1, chunk_size // len(x)), num_draws
    while left > 0:
        size = min(at_once, left)
        plate = pyro.plate(PARTICLES, size, dim=dim)
        values = _units(pair, run_guide(plate(guide), (x,), {}), size)
        for name, value in truth.items():
            less[name] += (values[name] < value).sum(0)
            equal[name] += (values[name] == value).sum(0)
        left -= size
    return {
        name: less[name]
        + (torch.rand(less[name].shape, device=x.device) * (equal[name] + 1)).long()
        for name in truth
    }


def _units(pair: Pair, trace: object, num_draws: int | None = None) -> dict[str, Tensor]:
    """The latents of a trace, `[B, U]` by site; `[L, B, U]` where it has a plate of L draws."""
    found, dim = {}, pair.data_plate.dim
    for name, site, _ in pair.latents:
        value = trace.nodes[name]["value"]  # type: ignore[attr-defined]
        first = 0 if num_draws is None else 1
        value = value.movedim(dim - len(site["fn"].event_shape), first)
        found[name] = value.reshape(*value.shape[: first + 1], -1)
    return found
