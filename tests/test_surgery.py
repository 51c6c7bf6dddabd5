"""The KL taken apart, against quadrature, enumeration and closed forms; two-sample tests.

Shapes: N data, D units, R repetitions, G points of a grid.
"""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from oracle import (
    condition,
    exact_bottom_up,
    exact_top_down,
    normal_log_density,
    two_level,
    two_level_joint,
)
from pyro.distributions import constraints
from pyro.distributions import transforms as T
from torch.nn import functional as F

from ppl_vae.evaluate import aggregate_mmd, kl_split
from ppl_vae.evaluate.units import unitwise
from ppl_vae.guides import (
    DeltaGuide,
    IAFGuide,
    MeanFieldGuide,
    PerDatumGuide,
    PlanarGuide,
    SemiAmortizedGuide,
    TopDownGuide,
)
from ppl_vae.models import VAE, HierarchicalVAE

PARTS = ("total", "mutual_information", "marginal_kl", "total_correlation", "dimension_kl")


def model(x, loc=0.0, scale=1.0):
    """z ~ N(loc, scale^2) of as many units as x has."""
    with pyro.plate("data", len(x), dim=-1):
        prior = dist.Normal(x.new_zeros(x.shape[1]) + loc, x.new_zeros(x.shape[1]) + scale)
        z = pyro.sample("z", prior.to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x, scale=0.5):
    """q(z | x) = N(x, scale(x)^2)."""
    scale = scale(x) if callable(scale) else scale
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x, scale).to_event(1))


def correlated(x):
    with pyro.plate("data", len(x), dim=-1):
        tril = torch.tensor([[0.7, 0.0], [0.4, 0.3]], dtype=x.dtype)
        pyro.sample("z", dist.MultivariateNormal(x, scale_tril=tril))


def prior_itself(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))


def within(found, truths, num_repetitions=20):
    """Means over seeds within 5 standard errors of the truth, which are those of the draws alone.

    `found` gives the split for a seed.
    """
    splits = [found(seed).summary() for seed in range(num_repetitions)]
    for name, truth in truths.items():
        values = torch.tensor([split[name].value for split in splits])
        error = values.std() / math.sqrt(num_repetitions)
        assert error < 0.05, name
        assert abs(values.mean() - truth) <= 5 * error + 1e-12, (name, values.mean(), truth)


def normal(grid, loc, scale):
    """Densities, `[..., G]`."""
    loc, scale = torch.as_tensor(loc).unsqueeze(-1), torch.as_tensor(scale).unsqueeze(-1)
    return torch.exp(-0.5 * ((grid - loc) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))


def kl(p, q, cell):
    """Of densities on a grid; the sum over all that is left of the grid's own dimensions."""
    return (torch.where(p > 0, p * (p.clamp(min=1e-300) / q.clamp(min=1e-300)).log(), 0.0)).sum(
        tuple(range(-cell, 0))
    )


# -------------------------------------------------------------------------------- against the truth


def test_one_dimension_by_quadrature():
    x = torch.tensor([[-2.0], [-1.7], [0.1], [0.3], [0.8], [2.5], [2.6]])
    scale = lambda x: 0.2 + 0.3 * x.abs()  # noqa: E731
    grid = torch.linspace(-12, 14, 20_001)
    step = grid[1] - grid[0]
    q = normal(grid, x[:, 0], scale(x)[:, 0])
    mixture, prior = q.mean(0), normal(grid, 0.4, 1.5)
    assert (mixture.sum() * step).item() == pytest.approx(1, abs=1e-8)
    truths = {
        "total": kl(q, prior, 1).mean() * step,
        "mutual_information": kl(q, mixture, 1).mean() * step,
        "marginal_kl": kl(mixture, prior, 1) * step,
        "total_correlation": 0.0,
        "dimension_kl": kl(mixture, prior, 1) * step,
    }
    p, q_of = partial(model, loc=0.4, scale=1.5), partial(guide, scale=scale)
    # Of data that are there many times the mixture is the same.
    x = x.repeat(50, 1)
    within(lambda seed: kl_split(p, q_of, x, num_particles=6, seed=seed), truths)


def test_two_dimensions_by_quadrature():
    """Data along a diagonal: each q factorizes, and their mixture does not."""
    x = torch.tensor([[-1.5, -1.0], [-0.5, -0.2], [0.5, 0.7], [1.5, 0.9], [1.4, -0.6]])
    scale = lambda x: torch.stack([0.3 + 0.1 * x[:, 1].abs(), 0.4 + 0.1 * x[:, 0] ** 2], 1)  # noqa: E731
    grid = torch.linspace(-7, 7, 701)
    step = grid[1] - grid[0]
    units = normal(grid, x, scale(x))  # [N, 2, G]
    q = units[:, 0].unsqueeze(-1) * units[:, 1].unsqueeze(-2)  # [N, G, G]
    first, second = units.mean(0)
    mixture, product = q.mean(0), torch.outer(first, second)
    priors = normal(grid, torch.tensor([0.2, -0.3]), torch.tensor([1.3, 0.9]))
    by_unit = torch.stack([kl(first, priors[0], 1), kl(second, priors[1], 1)]) * step
    truths = {
        "total": kl(q, torch.outer(*priors), 2).mean() * step**2,
        "mutual_information": kl(q, mixture, 2).mean() * step**2,
        "marginal_kl": kl(mixture, torch.outer(*priors), 2) * step**2,
        "total_correlation": kl(mixture, product, 2) * step**2,
        "dimension_kl": by_unit.sum(),
    }
    assert truths["total_correlation"] > 0.1 and (by_unit > 0.01).all()
    p = partial(model, loc=torch.tensor([0.2, -0.3]), scale=torch.tensor([1.3, 0.9]))
    q_of = partial(guide, scale=scale)
    x = x.repeat(80, 1)
    found = lambda seed: kl_split(p, q_of, x, num_particles=4, seed=seed)  # noqa: E731
    within(found, truths)
    shares = torch.stack([found(seed).by_unit["z"].value for seed in range(20)])
    assert ((shares.mean(0) - by_unit).abs() <= 5 * shares.std(0) / math.sqrt(20)).all()


def test_a_posterior_that_is_correlated_itself():
    x = torch.tensor([[-1.5, 1.0], [0.5, 0.7], [1.5, -0.9]])
    grid = torch.linspace(-7, 7, 351)
    points = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)
    cell = (grid[1] - grid[0]) ** 2
    tril = torch.tensor([[0.7, 0.0], [0.4, 0.3]])
    q = torch.stack([normal_log_density(points, loc, tril @ tril.mT).exp() for loc in x])
    prior, mixture = normal_log_density(points, torch.zeros(2), torch.eye(2)).exp(), q.mean(0)
    truths = {
        "total": kl(q, prior, 2).mean() * cell,
        "mutual_information": kl(q, mixture, 2).mean() * cell,
        "marginal_kl": kl(mixture, prior, 2) * cell,
    }
    x = x.repeat(100, 1)
    within(lambda seed: kl_split(model, correlated, x, num_particles=3, seed=seed), truths)
    found = kl_split(model, correlated, x)
    assert found.total_correlation is found.dimension_kl is found.by_unit is None


def test_binary_units_by_enumeration():
    def p(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.3, 0.6])).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def q_of(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(x).to_event(1))

    x = torch.tensor([[0.9, 0.8], [0.1, 0.3], [0.95, 0.6], [0.2, 0.1]])
    states = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0))  # [4, 2]
    q = (x.unsqueeze(1) * states + (1 - x.unsqueeze(1)) * (1 - states)).prod(-1)  # [N, 4]
    mean, given = x.mean(0), torch.tensor([0.3, 0.6])
    product = (mean * states + (1 - mean) * (1 - states)).prod(-1)
    prior = (given * states + (1 - given) * (1 - states)).prod(-1)
    truths = {
        "total": kl(q, prior, 1).mean(),
        "mutual_information": kl(q, q.mean(0), 1).mean(),
        "marginal_kl": kl(q.mean(0), prior, 1),
        "total_correlation": kl(q.mean(0), product, 1),
        "dimension_kl": kl(product, prior, 1),
    }
    x = x.repeat(100, 1)
    within(lambda seed: kl_split(p, q_of, x, num_particles=3, seed=seed), truths)


@pytest.mark.parametrize("q_of", [exact_top_down, exact_bottom_up])
def test_a_chain_is_taken_as_one(q_of):
    """Against draws of the joint posterior, and the density of its mixture, from the covariance."""
    x = torch.tensor([[1.5, 0.0], [-1.0, 2.0], [0.3, -0.4], [-2.0, -1.0]])
    covariance = two_level_joint()
    locs, given = condition(torch.zeros(7), covariance, x, given=2)  # of (z1, z2)
    draws = dist.MultivariateNormal(locs, given).sample((20_000,))
    density = torch.stack([normal_log_density(draws, loc, given) for loc in locs])
    own = normal_log_density(draws, locs, given)
    mixture = density.logsumexp(0) - math.log(4)
    prior = normal_log_density(draws, torch.zeros(5), covariance[:5, :5])
    truths = {
        "total": own - prior,
        "mutual_information": own - mixture,
        "marginal_kl": mixture - prior,
    }
    x = x.repeat(50, 1)
    splits = [kl_split(two_level(), q_of, x, num_particles=2, seed=s) for s in range(20)]
    for name, values in truths.items():
        means = torch.tensor([getattr(split, name).value for split in splits])
        error = math.hypot(means.std() / math.sqrt(20), values.mean(1).std() / math.sqrt(20_000))
        error = math.hypot(error, values.std() / math.sqrt(80_000))
        assert abs(means.mean() - values.mean()) <= 5 * error
        assert error < 0.05
    assert splits[0].total_correlation is None and splits[0].dimension_kl is None


def test_where_all_data_share_one_posterior_nothing_tells_them_apart():
    x = torch.tensor([[0.7, -0.4]]).expand(30, 2)
    for q_of in (guide, correlated):
        found = kl_split(model, q_of, x, num_particles=3)
        information = found.mutual_information
        assert abs(information.value) < 1e-12 and information.standard_error < 1e-12
        assert found.marginal_kl.value == pytest.approx(found.total.value)
    found = kl_split(model, guide, x, num_particles=100)
    assert abs(found.total_correlation.value) < 1e-12
    truth = 0.5 * (x[0] ** 2 + 0.25 - 1 - math.log(0.25))
    share = found.by_unit["z"]
    assert ((share.value - truth).abs() <= 5 * share.standard_error).all()
    assert (share.standard_error < 0.05).all()


@pytest.mark.parametrize("q_of", [guide, correlated])
def test_an_index_tells_no_more_than_log_n(q_of):
    """Data far apart: exactly log N. Each of them twice: log (N / 2)."""
    x = 1000.0 * torch.arange(12.0).unsqueeze(1).expand(12, 2)
    for data, information in ((x, math.log(12)), (x.repeat(2, 1), math.log(12))):
        found = kl_split(model, q_of, data, num_particles=2)
        assert found.mutual_information.value == pytest.approx(information, rel=1e-12)
        assert found.mutual_information.standard_error < 1e-12
        assert found.largest_information == math.log(len(data))
    # Nor of any draw, however the data lie.
    close = kl_split(model, q_of, torch.randn(12, 2), num_particles=50)
    assert 0 < close.mutual_information.value < math.log(12)


def test_data_in_several_blocks_find_their_own_density():
    x = 1000.0 * torch.randperm(2300).double().unsqueeze(1)
    for how in ({"num_particles": 2, "batch_size": 700}, {"num_data": 1100, "batch_size": 3000}):
        found = kl_split(model, partial(guide, scale=lambda x: 1 + x / 1e6), x, **how)
        assert found.mutual_information.value == pytest.approx(math.log(2300), rel=1e-12)
        assert found.num_data == 2300


def test_of_fewer_data_it_is_the_mean_over_these():
    """Of all of them, in the mean over seeds; under the mixture of all."""
    x = torch.linspace(-3, 3, 40).unsqueeze(1)
    full = kl_split(model, guide, x, num_particles=500).summary()
    means = {name: [] for name in full}
    for seed in range(60):
        found = kl_split(model, guide, x, num_data=5, num_particles=20, seed=seed)
        for name, part in found.summary().items():
            means[name].append(part.value)
    for name, part in full.items():
        values = torch.tensor(means[name])
        error = 5 * values.std() / math.sqrt(60)
        assert abs(values.mean() - part.value) <= error + 1e-12
    assert kl_split(model, guide, x, num_data=40).total == kl_split(model, guide, x).total


# ---------------------------------------------------------------------------------- standard errors


def test_standard_errors_are_those_of_data_from_a_population():
    """x ~ N(0, C), q(z | x) = N(x, s^2): the aggregate posterior is N(0, C + s^2).

    68 % of the figures lie within a standard error of the population's; one of N data is biased by
    1/N, so N is no smaller than that this does not show.
    """
    covariance = torch.tensor([[1.0, 0.5], [0.5, 0.6]])
    tril, scale, num, repetitions = torch.linalg.cholesky(covariance), 0.8, 300, 150
    aggregate = covariance + scale**2 * torch.eye(2)
    variances = aggregate.diagonal()
    dimension = 0.5 * (variances - 1 - variances.log()).sum()
    correlation = 0.5 * (variances.log().sum() - torch.logdet(aggregate))
    information = 0.5 * (torch.logdet(aggregate) - 4 * math.log(scale))
    marginal = dimension + correlation
    values = (information + marginal, information, marginal, correlation, dimension)
    truths = dict(zip(PARTS, values, strict=True))
    assert correlation > 0.02
    hits = dict.fromkeys(PARTS, 0)
    for seed in range(repetitions):
        x = torch.randn(num, 2) @ tril.mT
        found = kl_split(model, partial(guide, scale=scale), x, num_particles=2, seed=seed)
        for name, part in found.summary().items():
            hits[name] += abs(part.value - truths[name]) <= part.standard_error
    share = math.erf(1 / math.sqrt(2))
    allowed = 5 * math.sqrt(share * (1 - share) / repetitions)
    for name, hit in hits.items():
        assert abs(hit / repetitions - share) <= allowed, (name, hit)


def test_draws_of_a_datum_are_averaged_first():
    """Two data, far apart: one mean each, whose spread is the error, however many the draws."""
    x = torch.tensor([[0.0], [30.0]])
    found = kl_split(model, guide, x, num_particles=400)
    means = 0.5 * (x[:, 0] ** 2 + 0.25 - 1 - math.log(0.25))
    assert found.total.standard_error == pytest.approx(means.std().item() / math.sqrt(2), rel=0.05)
    alone = kl_split(model, guide, x[:1], num_particles=50)
    assert alone.mutual_information.value == 0 and math.isnan(alone.total.standard_error)
    assert alone.by_unit["z"].standard_error.isnan().all()


# ----------------------------------------------------------------------------------------- identity

BOTH, CORRELATION, NEITHER = ("total_correlation", "dimension_kl"), ("total_correlation",), ()


@pytest.mark.parametrize(
    "pair, units",
    {
        ("VAE", "MeanFieldGuide"): BOTH,
        ("VAE", "FullRankGuide"): NEITHER,
        ("VAE-linear", "FullRankGuide"): BOTH,  # of one unit
        ("VAE", "MixtureGuide"): NEITHER,
        ("VAE", "IAFGuide"): NEITHER,
        ("VAE", "SemiAmortizedGuide"): BOTH,
        ("VAE-mixture", "MeanFieldGuide"): CORRELATION,
        ("VampPrior", "MeanFieldGuide"): CORRELATION,
        ("HierarchicalVAE", "MeanFieldGuide"): CORRELATION,
        ("HierarchicalVAE", "TopDownGuide"): NEITHER,
        ("HierarchicalVAE", "BottomUpGuide"): NEITHER,
        ("HierarchicalVAE", "LadderGuide"): NEITHER,
        ("GaussianMixtureVAE", "MeanFieldGuide"): CORRELATION,
        ("GaussianMixtureVAE", "GaussianMixtureGuide"): NEITHER,
    }.items(),
    ids=lambda value: "-".join(value) or "neither",
)
def test_the_parts_add_up_whatever_the_pair(pair, units):
    p, q_of = zoo.pair(*pair)
    x = zoo.batch(p, 12)
    found = kl_split(p, q_of, x, num_particles=3)
    parts = {name: part.value for name, part in found.summary().items()}
    assert tuple(parts) == PARTS[:3] + units
    total, information, marginal, *rest = parts.values()
    assert information + marginal == pytest.approx(total, abs=1e-12)
    if units is BOTH:
        assert sum(rest) == pytest.approx(marginal, abs=1e-12)
        shares = sum(share.value.sum().item() for share in found.by_unit.values())
        assert shares == pytest.approx(rest[1], abs=1e-12)
    else:
        assert found.by_unit is None
    if "Semi" in pair[1]:
        return
    # How many data and draws are held at once is nothing to it.
    for batch_size in (1, 5, 100):
        again = kl_split(p, q_of, x, num_particles=3, batch_size=batch_size)
        for name, part in again.summary().items():
            assert part.value == pytest.approx(parts[name], abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_floating_types(dtype):
    torch.set_default_dtype(dtype)
    p = HierarchicalVAE((4,), (3, 2), (5,), (4,)).to(dtype)
    x = torch.rand(25, 4, dtype=dtype).round()
    for q_of in (MeanFieldGuide(p, (5,)), TopDownGuide(p, (5,), (4,)), IAFGuide(p, (5,))):
        found = kl_split(p, q_of, x)
        again = kl_split(p, q_of, x, batch_size=4)
        for name, part in found.summary().items():
            assert math.isfinite(part.value) and isinstance(part.value, float)
            tolerance = 1e-3 if dtype is torch.float32 else 1e-9
            assert again.summary()[name].value == pytest.approx(part.value, abs=tolerance)
        assert math.isfinite(aggregate_mmd(p, q_of, x).squared.value)


def test_far_data_do_not_underflow_in_single_precision():
    x = torch.tensor([[0.0], [50.0], [1e4]], dtype=torch.float32)
    found = kl_split(model, partial(guide, scale=0.01), x)
    assert found.mutual_information.value == pytest.approx(math.log(3), rel=1e-5)


def test_memory_is_bounded(monkeypatch):
    """No density of more draws times data at once than there may be, of all that there are."""
    sizes = []

    class Watched(dist.Normal):
        def log_prob(self, value):
            sizes.append(value.numel())
            return super().log_prob(value)

    def q_of(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Watched(x, 0.5).to_event(1))

    x = torch.randn(600, 3)
    found = kl_split(model, q_of, x, num_particles=2, batch_size=100)
    assert sum(sizes) >= 2 * 600 * 600 * 3 and max(sizes) == 3 * 100_000
    limits = {"_DENSITIES_AT_ONCE": 2000, "_NUMBERS_AT_ONCE": 3000}
    for name, limit in limits.items():
        monkeypatch.setattr(f"ppl_vae.evaluate.aggregate.{name}", limit)
        sizes.clear()
        again = kl_split(model, q_of, x, num_particles=2, batch_size=100)
        # Besides the runs that draw, of 600 data at once.
        assert max(sizes) <= max(3 * 600, min(3 * 2000, limit * 3))
        for part in PARTS:
            one, other = getattr(found, part), getattr(again, part)
            assert one.value == pytest.approx(other.value, abs=1e-12)
    assert max(size for size in sizes if size != 3 * 600) <= 3000


# ---------------------------------------------------------------------------------- sites and units


def chain_model(x):
    with pyro.plate("data", len(x), dim=-1):
        z2 = pyro.sample("z2", dist.Normal(torch.tensor(0.4), 1.5))
        z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z1 + w.sum(-1), 1.0), obs=x)


def chain_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        w = pyro.sample("w", dist.Normal(x.unsqueeze(-1) * torch.ones(2), 0.5).to_event(1))
        pyro.sample("z2", dist.Normal(x, 0.3))
        pyro.sample("z1", dist.Normal(w.sum(-1), 0.2))


def test_a_site_by_itself():
    x = torch.tensor([-2.0, -1.7, 0.1, 0.8, 2.5])
    grid = torch.linspace(-10, 10, 8001)
    step = grid[1] - grid[0]
    q, prior = normal(grid, x, torch.full((5,), 0.3)), normal(grid, 0.4, 1.5)
    truths = {
        "total": kl(q, prior, 1).mean() * step,
        "mutual_information": kl(q, q.mean(0), 1).mean() * step,
        "dimension_kl": kl(q.mean(0), prior, 1) * step,
    }
    x = x.repeat(80)
    within(lambda seed: kl_split(chain_model, chain_guide, x, site="z2", seed=seed), truths)
    found = kl_split(chain_model, chain_guide, x, site="w")
    assert list(found.by_unit) == ["w"] and found.by_unit["w"].value.shape == (2,)
    match = (
        r"the guide's density of 'z1' hangs on other latents.*all latents together, and 'w', 'z2'"
    )
    with pytest.raises(ValueError, match=match):
        kl_split(chain_model, chain_guide, x, site="z1")
    p, q_of = zoo.pair("HierarchicalVAE", "MeanFieldGuide")
    with pytest.raises(ValueError, match=r"the model's density of 'z1' hangs.*, and 'z2'"):
        kl_split(p, q_of, zoo.batch(p), site="z1")
    with pytest.raises(ValueError, match="site is 'z3'; accepted are 'z2', 'z1', and None"):
        kl_split(p, q_of, zoo.batch(p), site="z3")
    for function in (kl_split, aggregate_mmd):
        with pytest.raises(ValueError, match=f"{function.__name__}: site is 'x'"):
            function(chain_model, chain_guide, x, site="x")


def test_a_class_that_each_datum_is_sure_of_still_tells():
    """Two draws of a datum's class are the same; that z hangs on it must be found out."""
    locs = torch.tensor([-3.0, 0.0, 3.0])

    def p(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(torch.ones(3) / 3))
            z = pyro.sample("z", dist.Normal(locs[y], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def q_of(x):
        with pyro.plate("data", len(x), dim=-1):
            logits = -100.0 * (x.unsqueeze(-1) - locs) ** 2
            y = pyro.sample("y", dist.Categorical(logits=logits))
            pyro.sample("z", dist.Normal(locs[y], 0.5))

    x = locs.repeat(4)
    found = kl_split(p, q_of, x, num_particles=100)
    assert found.total_correlation is None
    # y is its datum's third of the data; z tells nothing more.
    assert found.mutual_information.value == pytest.approx(math.log(3), abs=1e-6)
    assert found.marginal_kl.value == pytest.approx(math.log(2) - 0.375, abs=0.05)
    with pytest.raises(ValueError, match="density of 'z' hangs on other latents.*, and 'y'"):
        kl_split(p, q_of, x, site="z")


def test_further_plates_and_events():
    """Units are a site's entries, plate by plate: their KLs are those of closed forms."""
    locs = torch.arange(6.0).reshape(3, 2) / 4

    def plates(x):
        return pyro.plate("data", len(x), dim=-1), pyro.plate("part", 3, dim=-2)

    def p(x):
        data, part = plates(x)
        with data:
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 2.0))
            with part:
                pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    def q_of(x):
        data, part = plates(x)
        with data:
            with part:
                loc = locs.unsqueeze(1) + 0 * x.unsqueeze(-1)  # [3, N, 2]
                pyro.sample("b", dist.Normal(loc, 0.5).to_event(1))
            pyro.sample("a", dist.Normal(x, 0.5))

    x = torch.full((5,), 0.8)
    found = kl_split(p, q_of, x, num_particles=400)
    assert found.by_unit["b"].value.shape == (6,) and found.by_unit["a"].value.shape == (1,)
    truth = 0.5 * (locs.flatten() ** 2 + 0.25 - 1 - math.log(0.25))
    share = found.by_unit["b"]
    # Of 2000 draws; log q - log p of one has a variance of 0.28 + loc^2 / 4.
    error = ((0.29 + locs.flatten() ** 2 / 4) / 2000).sqrt()
    assert ((share.value - truth).abs() <= 5 * error).all()
    x = 1000.0 * torch.arange(5.0)
    for batch_size in (2, 100):
        found = kl_split(p, q_of, x, batch_size=batch_size)
        assert found.mutual_information.value == pytest.approx(math.log(5))
        assert kl_split(p, q_of, x, site="b").mutual_information.value == pytest.approx(0, abs=1e-9)


def test_a_chain_into_a_further_plate():
    """b of each part is drawn given a of the datum: the same as a and b in a row of one plate."""
    offset = torch.tensor([0.0, 0.5, 1.5])

    def p(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 2.0))
            with pyro.plate("part", 3, dim=-2):
                b = pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(a + b.sum(-2), 1.0), obs=x)

    def q_of(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(x, 0.5))
            with pyro.plate("part", 3, dim=-2):
                pyro.sample("b", dist.Normal(a + offset.unsqueeze(-1), 0.3))

    x = torch.tensor([-1.0, 0.3, 2.0])
    # Given a, b tells nothing of the datum; so this is the information of a alone.
    grid = torch.linspace(-8, 9, 4001)
    q = normal(grid, x, torch.full((3,), 0.5))
    information = kl(q, q.mean(0), 1).mean() * (grid[1] - grid[0])
    x = x.repeat(60)
    truths = {"mutual_information": information}

    def narrow(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(x, 0.5))
            with pyro.plate("part", 3, dim=-2):
                pyro.sample("b", dist.Normal(a.unsqueeze(0) + offset.unsqueeze(-1), 0.3))

    with pytest.raises(ValueError, match="guides that take a dimension left of their plates"):
        kl_split(p, narrow, x)
    within(lambda seed: kl_split(p, q_of, x, seed=seed), truths)
    within(lambda seed: kl_split(p, q_of, x, seed=seed, batch_size=7), truths)


FACTORIZED = [
    dist.Normal(torch.zeros(3, 2), 1.0).to_event(1),
    dist.Normal(torch.zeros(4, 3, 2), 1.0).to_event(1).to_event(1),
    dist.Bernoulli(torch.full((3, 2), 0.3)).to_event(1),
    dist.Normal(torch.zeros(2), 1.0).to_event(1).expand([3]),
    dist.TransformedDistribution(
        dist.Normal(torch.zeros(3, 2), 1.0).to_event(1),
        [T.biject_to(constraints.independent(constraints.interval(1.0, 3.0), 1))],
    ),
    dist.TransformedDistribution(
        dist.Normal(torch.zeros(3, 2), 1.0).to_event(1),
        [T.ComposeTransform([T.AffineTransform(1.0, 2.0), T.ExpTransform()])],
    ),
    dist.LogNormal(torch.zeros(3, 2), 1.0).to_event(1),
]


@pytest.mark.parametrize("number", range(len(FACTORIZED)))
def test_densities_by_unit_add_up(number):
    fn = FACTORIZED[number]
    value = fn.sample((6,))
    found = unitwise(fn).log_prob(value)
    assert found.shape == value.shape
    summed = found.flatten(value.dim() - len(fn.event_shape)).sum(-1)
    torch.testing.assert_close(summed, fn.log_prob(value))


def test_densities_that_are_of_no_unit():
    base = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
    for fn in (
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        dist.Dirichlet(torch.ones(3)),
        dist.OneHotCategorical(torch.ones(2, 3)).to_event(1),
        dist.TransformedDistribution(base, [T.StickBreakingTransform()]),
        dist.TransformedDistribution(base, [T.ExpTransform(), T.LowerCholeskyAffine(
            torch.zeros(2), torch.tensor([[1.0, 0.0], [0.5, 1.0]]))]),
    ):  # fmt: skip
        assert unitwise(fn) is None


def test_positive_units_of_the_librarys_guide():
    def p(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(2.0 * torch.ones(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = torch.rand(30, 2)
    q_of = MeanFieldGuide(p, (4,))
    q_of.setup(x)
    found = kl_split(p, q_of, x, num_particles=3)
    parts = [found.mutual_information, found.total_correlation, found.dimension_kl]
    assert sum(part.value for part in parts) == pytest.approx(found.total.value, abs=1e-10)


# ---------------------------------------------------------------------------- refusals, and globals


def test_it_leaves_everything_as_it_was_and_repeats_itself():
    p = VAE((4,), 2, (3,))
    encoder = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5))
    q_of = MeanFieldGuide(p, encoder=encoder)
    x = torch.rand(40, 4).round()
    before = {name: value.clone() for name, value in q_of.state_dict().items()}
    for function, of in ((kl_split, "total"), (aggregate_mmd, "squared")):
        state = torch.get_rng_state()
        one, two, other = (getattr(function(p, q_of, x, seed=s), of) for s in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), state)
        assert one == two and one.value != other.value
    after = q_of.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(pyro.get_param_store()) == 0


def test_guides_whose_q_hangs_on_the_batch():
    p = VAE((4,), 2, (3,))
    x = torch.rand(40, 4).round()
    refined = SemiAmortizedGuide(MeanFieldGuide(p, (5,)), num_steps=2)
    encoder = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5))
    normalized = MeanFieldGuide(p, encoder=encoder)
    for q_of in (refined, normalized):
        assert math.isfinite(kl_split(p, q_of, x).total.value)
        with pytest.raises(ValueError, match=r"own draws differs by 0\.\d+ nats.*batch_size=1000"):
            kl_split(p, q_of, x, batch_size=6)
    normalized.eval()
    found = kl_split(p, normalized, x).total.value
    assert kl_split(p, normalized, x, batch_size=6).total.value == pytest.approx(found)
    alone = PerDatumGuide(MeanFieldGuide(p, (5,)), x)
    assert math.isfinite(kl_split(p, alone, x).total.value)
    assert math.isfinite(aggregate_mmd(p, alone, x).squared.value)


def test_what_cannot_be_split_says_so():
    p = VAE((4,), 2, (3,))
    q_of, x = MeanFieldGuide(p, (5,)), torch.rand(20, 4).round()
    for how, match in (
        ({"num_particles": 0}, "kl_split: num_particles is 0; accepted is an integer >= 1"),
        ({"batch_size": 2.5}, r"kl_split: batch_size is 2\.5"),
        ({"num_data": 0}, "kl_split: num_data is 0"),
        ({"num_data": 21}, "num_data is 21; accepted is at most 20"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(ValueError, match=match):
            kl_split(p, q_of, x, **how)
    with pytest.raises(ValueError, match=r"kl_split: x has the shape \[0, 4\]"):
        kl_split(p, q_of, x[:0])
    with pytest.raises(ValueError, match="kl_split needs the density of the guide, and a point"):
        kl_split(p, DeltaGuide(p, (5,)), x)
    match = "density of each datum at the draws of all others.*without an inverse.*aggregate_mmd"
    with pytest.raises(ValueError, match=match):
        kl_split(p, PlanarGuide(p, (5,)), x)
    dropping = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Dropout())
    with pytest.raises(ValueError, match=r"random besides its sites; call eval\(\)"):
        kl_split(p, MeanFieldGuide(p, encoder=dropping), x)


def test_programs_that_are_refused():
    x = torch.randn(20, 2)

    def observe(z, x):
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def conditional(x):
        with pyro.plate("data", len(x), dim=-1):
            observe(pyro.sample("z", dist.Normal(0.1 * x, 1.0).to_event(1)), x)

    with pytest.raises(ValueError, match="the model's density of 'z' is another for other data"):
        kl_split(conditional, guide, x)

    def masked(x):
        with pyro.plate("data", len(x), dim=-1):
            fn = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            observe(pyro.sample("z", fn.mask(x[:, 0] > 0)), x)

    def scaled(x):
        with pyro.poutine.scale(scale=0.5):
            guide(x)

    with pytest.raises(ValueError, match="the model's site 'z' is masked or scaled"):
        kl_split(masked, guide, x)
    with pytest.raises(ValueError, match="the guide's site 'z' is masked or scaled"):
        kl_split(model, scaled, x)

    def shared(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            observe(z, x)

    def shared_guide(x):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def part(x, program):
        with pyro.plate("data", len(x), subsample_size=5, dim=-1) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            if program == "model":
                observe(z, x[index])

    def auxiliary(x):
        with pyro.plate("data", len(x), dim=-1):
            fn = dist.Normal(x, 0.5).to_event(1)
            u = pyro.sample("u", fn, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u, event_dim=1))

    halves = partial(part, program="model"), partial(part, program="guide")
    for function in (kl_split, aggregate_mmd):
        name = function.__name__
        with pytest.raises(ValueError, match=f"{name} weighs each datum by itself.*'z' lies"):
            function(shared, shared_guide, x)
        with pytest.raises(
            ValueError, match=f"{name}: of 20 data the model takes a subsample of 5"
        ):
            function(*halves, x)
    with pytest.raises(ValueError, match="makes its latents of the auxiliary site 'u'"):
        kl_split(model, auxiliary, x)
    assert math.isfinite(aggregate_mmd(model, auxiliary, x).squared.value)


# --------------------------------------------------------------------------------- two-sample tests


def watched():
    """A model and a guide that keep what they draw."""
    seen = {}

    def p(x):
        model(x)

    def keep(program, name):
        def run(x):
            trace = pyro.poutine.trace(program).get_trace(x)
            seen[name] = trace.nodes["z"]["value"]

        return run

    return keep(p, "model"), keep(partial(guide, scale=1.2), "guide"), seen


def test_the_discrepancy_is_the_textbooks():
    p, q_of, seen = watched()
    x = 0.3 + torch.randn(25, 2)
    found = aggregate_mmd(p, q_of, x, num_permutations=4000)
    a, b = seen["guide"], seen["model"]  # The model's last run is the one by itself.
    pooled = torch.cat([a, b])
    assert found.bandwidth == pytest.approx(F.pdist(pooled).median().item())

    def k(u, v):
        return math.exp(-((u - v) ** 2).sum() / (2 * found.bandwidth**2))

    def discrepancy(a, b):
        num = len(a)
        within = sum(
            k(s[i], s[j]) for s in (a, b) for i in range(num) for j in range(num) if i != j
        )
        return within / (num * (num - 1)) - 2 * sum(k(u, v) for u in a for v in b) / num**2

    value = discrepancy(a, b)
    assert found.squared.value == pytest.approx(value, rel=1e-10)
    assert found.num_draws == 25
    orders = [torch.randperm(50) for _ in range(200)]
    beyond = sum(discrepancy(pooled[o[:25]], pooled[o[25:]]) >= value for o in orders) / 200
    assert abs(found.p_value - beyond) <= 5 * math.sqrt(0.25 / 200)
    given = aggregate_mmd(p, q_of, x, bandwidth=0.7)
    assert given.bandwidth == 0.7 and given.squared.value != found.squared.value


@pytest.mark.parametrize(("shift", "ratio"), [(0.0, 4 / 3), (0.7, 1.0)])
def test_the_discrepancy_has_no_bias_and_its_error_is_right(shift, ratio):
    """N(shift, 1) against N(0, 1) under a kernel of bandwidth 1.

    Where they are one the error is too large by a third, as it says.
    """
    truth = 2 / math.sqrt(3) * (1 - math.exp(-(shift**2) / 6))
    repetitions = 600
    q_of = lambda x: guide(torch.full_like(x, shift), 1.0)  # noqa: E731
    found = [
        aggregate_mmd(model, q_of, torch.zeros(40, 1), bandwidth=1.0, num_permutations=1, seed=s)
        for s in range(repetitions)
    ]
    values = torch.tensor([each.squared.value for each in found])
    errors = torch.tensor([each.squared.standard_error for each in found])
    assert abs(values.mean() - truth) <= 5 * values.std() / math.sqrt(repetitions)
    assert (values < 0).any() or shift
    kurtosis = ((values - values.mean()) ** 4).mean() / values.var() ** 2
    found = errors.square().mean().sqrt() / values.std()
    assert abs(found / ratio - 1) <= 5 * ((kurtosis - 1) / (4 * repetitions)).sqrt()


def test_p_values_are_uniform_where_the_guide_is_the_prior():
    p_values = torch.tensor(
        [
            aggregate_mmd(
                model, prior_itself, torch.zeros(20, 2), num_permutations=199, seed=s
            ).p_value
            for s in range(300)
        ]
    )
    ranks = torch.arange(1, 301) / 300
    distance = (p_values.sort().values - ranks).abs().max()
    # Kolmogorov's bound, as rare as five standard errors, and a step of p.
    assert distance <= math.sqrt(math.log(2 / 5.7e-7) / 600) + 1 / 200
    assert abs(p_values.mean() - 0.5) <= 5 * math.sqrt(1 / 12 / 300) + 1 / 200


def test_p_values_are_small_where_it_is_not():
    near = partial(guide, scale=0.8)
    assert aggregate_mmd(model, near, torch.randn(200, 2) + 1.0).p_value <= 0.002
    assert aggregate_mmd(model, guide, torch.zeros(200, 2)).p_value <= 0.002  # narrower
    # Four modes of the prior's mean and variance: nothing at the median distance, as it says.
    modes, sharp = 2.0 * torch.randint(2, (200, 2)) - 1, partial(guide, scale=0.1)
    assert aggregate_mmd(model, sharp, modes).p_value > 0.01
    assert aggregate_mmd(model, sharp, modes, bandwidth=0.3).p_value <= 0.002
    x = 0.6 * torch.randn(300, 2)  # With a scale of 0.8 it is the prior in the aggregate.
    assert aggregate_mmd(model, near, x, num_draws=150).num_draws == 150
    assert aggregate_mmd(model, near, x).p_value > 5.7e-7


@pytest.mark.parametrize("name", ["DeltaGuide", "PlanarGuide", "TopDownGuide", "SylvesterGuide"])
def test_every_guide_can_be_tested(name):
    p, q_of = zoo.pair("HierarchicalVAE", name)
    x = zoo.batch(p, 30)
    whole, top = (aggregate_mmd(p, q_of, x, site=site, batch_size=7) for site in (None, "z2"))
    assert 0 < whole.p_value <= 1 and whole.squared.standard_error > 0
    assert whole.squared.value != top.squared.value


def test_draws_that_are_tied():
    def p(x, probability=1.0):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(x.new_tensor(probability)))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def q_of(x, probability=1.0):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Bernoulli(x.new_tensor(probability)))

    found = aggregate_mmd(p, q_of, torch.zeros(30))
    assert found.p_value == 1 and found.squared.value == pytest.approx(0, abs=1e-12)
    assert found.bandwidth == 1
    rare = aggregate_mmd(partial(p, probability=0.02), partial(q_of, probability=0.1),
                         torch.zeros(100))  # fmt: skip
    assert rare.bandwidth == 1 and rare.squared.standard_error > 0


def test_what_cannot_be_tested_says_so():
    x = torch.randn(20, 2)
    for how, match in (
        ({"num_draws": 3}, "num_draws is 3, of 20 data; accepted are both >= 4"),
        ({"num_draws": 0}, "aggregate_mmd: num_draws is 0"),
        ({"bandwidth": 0.0}, r"aggregate_mmd: bandwidth is 0\.0; accepted is a number > 0"),
        ({"bandwidth": math.nan}, "bandwidth is nan"),
        ({"num_permutations": 0}, "aggregate_mmd: num_permutations is 0"),
        ({"batch_size": 0}, "aggregate_mmd: batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(ValueError, match=match):
            aggregate_mmd(model, guide, x, **how)
    with pytest.raises(ValueError, match="of 3 data; accepted"):
        aggregate_mmd(model, guide, x[:3])

    def far(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(math.inf * torch.ones_like(x), event_dim=1))

    def aside(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="draws of the guide or of the prior are not finite"):
        aggregate_mmd(aside, far, x)
