"""Ranks of the model's own latents among a guide's draws.

Shapes: N data, L draws, U units of a latent site.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import EXACT, linear, off_posterior, one_level
from pyro import poutine

from ppl_vae.evaluate import Calibration, calibration
from ppl_vae.families.base import MIN_SCALE
from ppl_vae.guides import DeltaGuide, FullRankGuide
from ppl_vae.models import VAE

#: As rare as five standard errors.
RARE = 5.7e-7


@pytest.mark.parametrize("name", EXACT)
def test_the_exact_posterior_is_calibrated(name):
    make_model, guide, num_features = EXACT[name]
    found = calibration(make_model(), guide, torch.zeros(2000, num_features))
    assert found.p_value() > RARE
    for ranks in found.ranks.values():
        assert ranks.min() == 0 and ranks.max() == 99
        error = math.sqrt((100**2 - 1) / 12 / 2000)
        assert ((ranks.double().mean(0) - 49.5).abs() <= 5 * error).all()


@pytest.mark.parametrize("dim", [2, 10, 50])
def test_other_guides_are_not(dim):
    model, like = linear(dim), torch.zeros(1000, dim)
    assert calibration(model, off_posterior(model), like).p_value() > RARE
    middle, ends = slice(8, 12), [0, 1, -2, -1]
    narrow, broad, low = (
        calibration(model, off_posterior(model, *how), like)
        for how in ((0.6, 0.0), (1.6, 0.0), (1.0, -0.5))
    )
    for found in (narrow, broad, low):
        assert found.p_value() < 1e-9
    counts = narrow.histogram()["z"]
    assert (counts[:, ends].sum(1) > 2 * counts[:, middle].sum(1)).all()
    counts = broad.histogram()["z"]
    assert (2 * counts[:, ends].sum(1) < counts[:, middle].sum(1)).all()


def test_a_guide_to_the_left_makes_ranks_rise():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.full((len(x), 2), -1.0), 1.0).to_event(1))

    counts = calibration(one_level(), guide, torch.zeros(1000, 3)).histogram(4)["z"]
    assert (counts.diff(dim=-1) > 0).all()


def test_a_guide_of_the_library_at_its_optimum():
    """A FullRankGuide set to the posterior, and the same with deviations of 0.7 of its."""
    model = linear(1, num_features=3)
    guide = FullRankGuide(model, encoder=lambda shape: torch.nn.Flatten())
    at_zero, at_one = model.posterior(torch.zeros(1, 3)), model.posterior(torch.eye(3))
    head = guide.heads["z"].network  # Of a location, and a deviation before softplus.
    for factor, verdict in ((1.0, True), (0.7, False)):
        deviation = factor * at_zero.stddev[0, 0] - MIN_SCALE
        with torch.no_grad():
            head.weight.copy_(torch.stack([at_one.loc[:, 0], torch.zeros(3)]))
            head.bias.copy_(torch.stack([at_zero.loc[0, 0], deviation.expm1().log()]))
        found = calibration(model, guide, torch.zeros(1000, 3))
        assert (found.p_value() > RARE) == verdict and (verdict or found.p_value() < 1e-9)


def test_p_values_are_uniform():
    model, guide, _ = EXACT["one level"]
    values = torch.cat(
        [
            calibration(model(), guide, torch.zeros(200, 3), num_draws=19, seed=s).p_values()["z"]
            for s in range(40)
        ]
    )
    assert abs(values.mean() - 0.5) <= 5 * math.sqrt(1 / 12 / len(values))
    assert ((values < 0.25).double().mean() - 0.25).abs() <= 5 * math.sqrt(3 / 16 / len(values))


@pytest.mark.parametrize("chunk_size", [5000, 20, 3])
def test_ranks_are_counts_whatever_the_plates_and_chunks(chunk_size):
    """The guide's draws stand around x, which is z, at known distances: so are the ranks."""
    seen = []

    def plates(x):
        return pyro.plate("data", len(x), dim=-1), pyro.plate("part", 3, dim=-2)

    def model(x):  # x is [B, 3, 2]
        data, part = plates(x)
        with data, part:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with data:
            pyro.sample("x", dist.Normal(z.movedim(-2, -3), 1e-9).to_event(2), obs=x)

    def guide(x):
        data, part = plates(x)
        seen.append(x)
        with data, part:
            pyro.sample("z", dist.Delta((x + 0.5 * x.sign()).movedim(1, 0), event_dim=1))

    found = calibration(model, guide, torch.zeros(5, 3, 2), num_draws=7, chunk_size=chunk_size)
    data = torch.cat([x for i, x in enumerate(seen) if i == 0 or x is not seen[i - 1]])
    assert torch.equal(found.ranks["z"], torch.where(data > 0, 0, 7).flatten(1))


def test_the_prior_passes_too():
    """As it says: ranks do not see whether a guide looks at x."""
    model = one_level()
    found = calibration(model, poutine.block(model, hide=["x"]), torch.zeros(2000, 3))
    assert found.p_value() > RARE


def test_ties_are_broken_evenly():
    """Classes: the exact posterior stays uniform, a guide that is too sure does not."""
    locs = torch.tensor([-1.0, 0.0, 1.5])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.2, 0.3])))
            pyro.sample("x", dist.Normal(locs[y], 1.0), obs=x)

    def guide(x, sureness=1.0):
        logits = torch.tensor([0.5, 0.2, 0.3]).log() - 0.5 * (x[:, None] - locs) ** 2
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Categorical(logits=sureness * logits))

    like = torch.zeros(4000)
    assert calibration(model, guide, like).p_value() > RARE
    assert calibration(model, lambda x: guide(x, 4.0), like).p_value() < 1e-9


def test_where_all_are_tied_every_rank_is_as_likely():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(1.0)))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Bernoulli(torch.tensor(1.0)))

    found = calibration(model, guide, torch.zeros(1000), num_draws=3)
    assert found.p_value(4) > RARE


def test_the_chi_square_test_is_the_textbooks():
    """Twenty ranks in four bins: 8, 2, 5, 5; the statistic is 3.6 with three degrees of freedom."""
    ranks = torch.tensor([0] * 8 + [1] * 2 + [2] * 5 + [3] * 5)
    found = Calibration({"z": torch.stack([ranks, ranks.flip(0) * 0], 1)}, 3)
    assert found.histogram(4)["z"].tolist() == [[8, 2, 5, 5], [20, 0, 0, 0]]
    assert found.histogram(2)["z"].tolist() == [[10, 10], [20, 0]]
    x = 3.6
    expected = math.erfc(math.sqrt(x / 2)) + math.sqrt(2 * x / math.pi) * math.exp(-x / 2)
    values = found.p_values(4)["z"]
    assert values[0].item() == pytest.approx(expected) and values[1] < 1e-10
    assert found.p_value(4) == pytest.approx(2 * values[1].item(), abs=0)


def test_it_leaves_the_random_stream_alone_and_repeats_itself():
    model, guide, num_features = EXACT["one level"]
    state = torch.get_rng_state()
    one, two, other = (
        calibration(model(), guide, torch.zeros(5, num_features), seed=s).ranks["z"]
        for s in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_a_point_mass_is_as_sure_as_can_be():
    model = VAE((4,), 2, (3,))
    found = calibration(model, DeltaGuide(model), torch.zeros(50, 4))
    assert set(found.ranks["z"].flatten().tolist()) <= {0, 99}


def test_what_cannot_be_ranked_says_so():
    model, guide, _ = EXACT["one level"]
    like = torch.zeros(50, 3)
    with pytest.raises(ValueError, match="num_draws is 0; accepted is an integer >= 1"):
        calibration(model(), guide, like, num_draws=0)
    with pytest.raises(ValueError, match=r"x_like has the shape \[0, 3\]"):
        calibration(model(), guide, like[:0])
    found = calibration(model(), guide, like)
    with pytest.raises(ValueError, match="num_bins is 7; accepted is a divisor >= 2 of the 100"):
        found.histogram(7)
    with pytest.raises(ValueError, match="20 bins needs 100 data, and there are 50"):
        found.p_values()

    def global_site(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def global_guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="calibration weighs each datum by itself.*'w' lies"):
        calibration(global_site, global_guide, torch.zeros(5))
