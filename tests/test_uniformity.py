"""The simultaneous band of uniform ranks: exact where all ranks can be gone through, and by draws.

Shapes: N ranks, L draws, U units of a latent site.
"""

import itertools
import math

import pytest
import torch
from oracle import linear, off_posterior
from scipy import stats

from ppl_vae.evaluate import Calibration, calibration
from ppl_vae.evaluate.uniformity import ecdf_difference, uniform_band


def uniform(num_data, num_draws, num_units):
    ranks = torch.randint(num_draws + 1, (num_data, num_units))
    return Calibration({"z": ranks}, num_draws)


def test_the_difference_is_that_of_the_distribution_functions():
    found = ecdf_difference(torch.tensor([0, 0, 3, 1, 3]), 3)
    expected = torch.tensor([2 / 5 - 1 / 4, 3 / 5 - 2 / 4, 3 / 5 - 3 / 4])
    torch.testing.assert_close(found, expected)
    ranks = torch.tensor([[0, 2], [0, 1], [3, 0], [1, 3], [3, 3]])
    both = Calibration({"z": ranks, "y": ranks[:, :1]}, 3).ecdf_difference()
    assert both["z"].shape == (2, 3) and both["y"].shape == (1, 3)
    torch.testing.assert_close(both["z"][0], expected)
    torch.testing.assert_close(both["z"][1], ecdf_difference(ranks[:, 1], 3))


@pytest.mark.parametrize("num_data, num_draws", [(1, 1), (7, 1), (5, 3), (4, 5), (6, 3)])
@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5])
def test_its_coverage_is_that_over_all_ranks(num_data, num_draws, alpha):
    band = uniform_band(num_data, num_draws, alpha)
    inside = 0
    for ranks in itertools.product(range(num_draws + 1), repeat=num_data):
        found = ecdf_difference(torch.tensor(ranks), num_draws)
        inside += bool(((found >= band.lower) & (found <= band.upper)).all())
    assert band.coverage == pytest.approx(inside / (num_draws + 1) ** num_data, rel=1e-12)
    assert band.coverage >= 1 - alpha


@pytest.mark.parametrize("num_data, num_draws, alpha", [(200, 99, 0.05), (1000, 19, 0.2)])
def test_of_uniform_ranks_as_many_are_covered_as_it_says(num_data, num_draws, alpha):
    num = 4000
    found = uniform(num_data, num_draws, num)
    covered = found.covers(alpha)["z"]
    coverage = found.band(alpha).coverage
    assert 1 - alpha <= coverage < 1 - alpha + 0.005
    error = math.sqrt(alpha * (1 - alpha) / num)
    assert covered.shape == (num,)
    assert abs(covered.double().mean().item() - coverage) <= 5 * error


def test_the_coverage_of_calibrated_guides_is_that_too():
    """Of exact posteriors, all units of one model are looked at, 30 times 20 of them."""
    model = linear(20)
    guide, like = off_posterior(model), torch.zeros(200, 20)
    found = [calibration(model, guide, like, num_draws=19, seed=s) for s in range(30)]
    covered = torch.cat([each.covers(0.2)["z"] for each in found]).double()
    coverage = found[0].band(0.2).coverage
    assert abs(covered.mean() - coverage) <= 5 * math.sqrt(0.2 * 0.8 / 600)


SHAPES = {
    "narrow": (4, 0.7, 0.0), "broad": (4, 1.5, 0.0), "low": (1, 1.0, -0.4), "high": (1, 1.0, 0.4)
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_other_guides_leave_it_where_it_is_said(name):
    dim, *how = SHAPES[name]
    model = linear(dim)
    found = calibration(model, off_posterior(model, *how), torch.zeros(1500, dim))
    assert not found.covers(1e-6)["z"].any()
    band, curve = found.band(1e-6), found.ecdf_difference()["z"]
    above, below = (curve > band.upper).double(), (curve < band.lower).double()
    left, right = slice(0, 40), slice(60, None)
    if name in ("narrow", "broad"):
        first, second = (above, below) if name == "narrow" else (below, above)
        assert first[:, left].any(1).all() and not first[:, right].any()
        assert second[:, right].any(1).all() and not second[:, left].any()
    else:
        # Draws to the left of the latents: few latents have a low rank.
        there, other = (below, above) if name == "low" else (above, below)
        assert there.any(1).all() and not other.any()


def test_a_band_is_wider_than_one_for_each_rank_and_narrower_than_bonferronis():
    band = uniform_band(500, 99, 0.05)
    share = torch.arange(1, 100) / 100
    width = (band.upper - band.lower) * 500
    for gamma, sign in ((0.05, 1), (0.05 / 99, -1)):
        low, high = (stats.binom.ppf(q, 500, share) for q in (gamma / 2, 1 - gamma / 2))
        assert (sign * (width - torch.as_tensor(high - low)) >= 0).all()
        assert sign * (width.sum() - (high - low).sum()) > 100
    torch.testing.assert_close(band.lower, -band.upper.flip(0))


def test_more_certainty_is_a_wider_band():
    wide, narrow = (uniform_band(300, 19, alpha) for alpha in (0.01, 0.2))
    assert (wide.upper >= narrow.upper).all() and (wide.lower <= narrow.lower).all()
    assert wide.coverage > narrow.coverage


def test_units_are_covered_one_by_one():
    ranks = torch.randint(100, (800, 3))
    ranks[:, 1] = torch.randint(80, (800,))
    found = Calibration({"z": ranks, "y": ranks[:, 1:2]}, 99)
    covers = found.covers(1e-6)
    assert covers["z"].tolist() == [True, False, True] and covers["y"].tolist() == [False]


def test_many_ranks_take_no_simulation():
    band = uniform_band(20_000, 199, 0.05)
    assert 0.95 <= band.coverage < 0.9501
    assert 1.2 < band.upper.max() * math.sqrt(20_000) < 1.7  # Kolmogorov's is 1.36, for all points.


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 5, "0.05", math.nan])
def test_alphas_that_are_none_say_so(alpha):
    with pytest.raises(ValueError, match="alpha is .*; accepted is a number in"):
        uniform(50, 9, 1).covers(alpha)
