"""What importance sampling says of itself: against known tails, and against known log p(x).

Shapes: K particles, M in the tail, B data.
"""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import exact_one_level, linear, linear_log_p, off_posterior, one_level
from torch.distributions import kl_divergence

from ppl_vae.evaluate import importance_diagnostics, log_marginal, sample_prior
from ppl_vae.evaluate.pareto import Tail, fit_pareto_shape
from ppl_vae.evaluate.weights import Weights, data_at_once
from ppl_vae.guides import DeltaGuide
from ppl_vae.models import VAE
from ppl_vae.randomness import untouched


def drawn(model, num_data, seed=1):
    return sample_prior(model, torch.zeros(num_data, *model.data_shape), seed=seed)


def quietly(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importance_diagnostics(*args, **kwargs)


# ------------------------------------------------------------------------------------- the tail


def pareto(shape, scale, num, num_data):
    """Draws of the generalized Pareto distribution, by its inverse."""
    return scale * torch.expm1(-shape * torch.rand(num, num_data).log()) / shape


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.5, 0.7, 1.0, 1.5])
def test_the_fit_recovers_the_shape(shape):
    num, num_data = 10_000, 40
    found = fit_pareto_shape(pareto(shape, 2.5, num, num_data))
    deviation = (1 + shape) / math.sqrt(num)  # of the most likely shape
    assert abs(found.mean() - shape) <= 5 * deviation / math.sqrt(num_data)
    assert abs(found.std() / deviation - 1) <= 5 / math.sqrt(2 * num_data)


def test_the_fit_knows_no_unit_and_no_order():
    draws = pareto(0.6, 1.0, 200, 3)
    found = fit_pareto_shape(draws)
    torch.testing.assert_close(fit_pareto_shape(1e-9 * draws.flip(0)), found)
    assert len(set(found.tolist())) == 3


def test_few_draws_are_fitted_as_published():
    """The estimator written out for one datum, as in the papers, in the other sign of k."""
    x = pareto(0.4, 1.0, 37, 1).flatten().sort().values
    n, m = 37, 30 + 6
    j = torch.arange(1, m + 1)
    theta = 1 / x[-1] + (1 - (m / (j - 0.5)).sqrt()) / (3 * x[9 - 1])  # 37 / 4 + 1/2 = 9.75
    k = -(1 - theta[:, None] * x).log().mean(1)
    log_l = n * ((theta / k).log() + k - 1)
    weights = 1 / (log_l[None] - log_l[:, None]).exp().sum(1)
    best = (weights * theta).sum()
    expected = (1 - best * x).log().mean()
    torch.testing.assert_close(fit_pareto_shape(x[:, None])[0], expected)


@pytest.mark.parametrize("num_draws, size", [(26, 6), (100, 20), (225, 45), (1000, 95)])
def test_k_hat_is_that_of_the_largest_weights(num_draws, size):
    log_w = 3 * torch.randn(num_draws, 4) - 900
    tail = Tail(num_draws)
    for chunk in log_w.split(17):
        tail.add(chunk)
        assert len(tail._largest) <= size + 1
    ordered = (log_w + 900).exp().sort(0, descending=True).values
    shape = fit_pareto_shape(ordered[:size] - ordered[size])
    torch.testing.assert_close(tail.shape(), (size * shape + 5) / (size + 10))


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.2])
def test_k_hat_of_weights_of_a_known_tail(shape):
    num, num_data, size = 40_000, 50, 600
    tail = Tail(num)
    tail.add(-shape * torch.rand(num, num_data).log())  # P(w > t) = t^(-1/k)
    expected = (size * shape + 5) / (size + 10)
    deviation = size / (size + 10) * (1 + shape) / math.sqrt(size)
    assert abs(tail.shape().mean() - expected) <= 5 * deviation / math.sqrt(num_data)


def test_tails_that_are_none():
    log_w = torch.randn(100, 5)
    log_w[:, 1] = -70 + 1e-14 * log_w[:, 1]  # all the same
    log_w[:, 2] = -math.inf
    log_w[3:, 3] = -math.inf  # three that are not 0
    log_w[:, 4] = 200 * log_w[:, 4]  # one that is all
    tail = Tail(100)
    tail.add(log_w)
    found = tail.shape()
    assert 0 < found[0] < 0.7 and found[1] == -math.inf and found[2].isnan()
    assert found[3] == math.inf and found[4] > 5
    single = Tail(100)
    single.add((-70 + 1e-6 * torch.randn(100, 1)).float())
    assert single.shape() == -math.inf


# ----------------------------------------------------------------------------------- the figures


@pytest.mark.parametrize("chunk_size", [10_000, 160, 60])
def test_every_figure_is_that_of_the_weights(chunk_size):
    num, x = 137, torch.randn(3, 3)
    model = one_level()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    found = quietly(model, guide, x, num_particles=num, chunk_size=chunk_size, seed=4)
    columns, weights = [], Weights(model, guide, False, 1)
    with untouched(4), torch.no_grad():
        for batch in x.split(data_at_once(3, num, chunk_size)):
            columns.append(torch.cat(list(weights.chunks(batch, num, chunk_size))))
    log_w = torch.cat(columns, 1)
    assert list(found.bounds) == [1, 2, 5, 10, 20, 50, 100, 137]
    for k, bound in found.bounds.items():
        blocks = [log_w[i : i + k].exp().mean(0).log() for i in range(0, num - k + 1, k)]
        torch.testing.assert_close(bound, torch.stack(blocks).mean(0))
        curve = found.curve()[k]
        assert curve.value == pytest.approx(bound.mean().item())
        assert curve.standard_error == pytest.approx(bound.std().item() / math.sqrt(3))
    w = log_w.exp()
    torch.testing.assert_close(found.effective_size, w.sum(0) ** 2 / (w**2).sum(0))
    tail = Tail(num)
    tail.add(log_w)
    torch.testing.assert_close(found.pareto_k, tail.shape())
    same = log_marginal(model, guide, x, num_particles=num, chunk_size=chunk_size, seed=4)
    assert torch.equal(found.log_marginal.value, same.value)
    assert torch.equal(found.log_marginal.standard_error, same.standard_error)


def test_the_curve_rises_from_the_elbo_to_log_p():
    model = linear(2)
    x = drawn(model, 500)
    found = quietly(model, off_posterior(model, 2.0, 0.5), x, num_particles=1000)
    q = dist.MultivariateNormal(torch.full((2,), 0.5), 4 * torch.eye(2))
    kl = kl_divergence(q, dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    truth = linear_log_p(model, x)
    lost = {k: truth - bound for k, bound in found.bounds.items()}
    error = {k: 5 * gap.std().item() / math.sqrt(500) for k, gap in lost.items()}
    assert abs(lost[1].mean() - kl) <= error[1]
    assert abs(lost[1000].mean()) <= error[1000] + 0.01
    means = [lost[k].mean() for k in (1, 10, 100, 1000)]
    assert means[0] > 3 * means[1] > 12 * means[2] > 24 * means[3]


BROAD = {2: 2.0, 10: 1.3, 50: 1.1}


@pytest.mark.parametrize("dim", BROAD)
def test_a_broad_guide_is_right_and_known_to_be(dim):
    model = linear(dim)
    x = drawn(model, 30)
    found = importance_diagnostics(model, off_posterior(model, BROAD[dim]), x, num_particles=2500)
    off = (found.log_marginal.value - linear_log_p(model, x)).abs()
    assert (off <= 5 * found.log_marginal.standard_error).all()
    assert (found.log_marginal.standard_error < 0.05).all()
    assert found.is_reliable.all() and found.threshold == 0.7
    # E[w]^2 / E[w^2] of D independent normals
    share = (math.sqrt(2 * BROAD[dim] ** 2 - 1) / BROAD[dim] ** 2) ** dim
    sizes = found.effective_size / 2500
    assert abs(sizes.mean() - share) <= 5 * sizes.std() / math.sqrt(30)


OFF = [(0.8, 0.0), (0.6, 0.0), (0.4, 0.0), (0.2, 0.0), (0.3, 1.0), (1.0, 3.0), (3.0, 0.0)]


@pytest.mark.parametrize("dim", [2, 10, 50])
def test_where_it_is_wrong_k_hat_says_so(dim):
    """Over all data: of one datum k-hat is uncertain by 0.14, low where the draws missed most."""
    model, num_off = linear(dim, noise=0.3), 0
    x = drawn(model, 40)
    for factor, shift in OFF:
        found = quietly(model, off_posterior(model, factor, shift), x, num_particles=2500)
        error = found.log_marginal.value - linear_log_p(model, x)
        off = error.abs() > 5 * found.log_marginal.standard_error
        if error.mean().abs() > 5 * error.std() / math.sqrt(40) or off.sum() > 2:
            num_off += 1
            assert (~found.is_reliable).sum() > 20 and found.pareto_k.median() > 0.7
    assert num_off >= 3


# -------------------------------------------------------------------------------------- the rest


def test_it_warns_of_the_share_that_cannot_be_trusted():
    model = linear(10)
    x = drawn(model, 20)
    with pytest.warns(UserWarning, match=r"above 0.7 for 20 of 20 data \(100%\), where 2500"):
        found = importance_diagnostics(model, off_posterior(model, 0.3), x, num_particles=2500)
    assert not found.is_reliable.any()
    assert quietly(model, off_posterior(model), x, num_particles=100).threshold == 0.5


def test_the_exact_posterior_has_nothing_to_warn_of():
    x = torch.randn(5, 3)
    found = importance_diagnostics(one_level(), exact_one_level, x, num_particles=100)
    assert (found.pareto_k == -math.inf).all()
    torch.testing.assert_close(found.effective_size, torch.full((5,), 100.0))


def test_it_leaves_the_random_stream_alone():
    state = torch.get_rng_state()
    quietly(one_level(), exact_one_level, torch.randn(2, 3), num_particles=30)
    torch.randn(2, 3)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.randn(2, 3)
    torch.randn(2, 3)
    assert torch.equal(torch.get_rng_state(), after)


def test_data_that_are_counts_have_a_log_p_that_is_none():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("rate", dist.Gamma(2.0 + x, 2.0))

    x = torch.tensor([0, 1, 5])
    truth = dist.NegativeBinomial(2.0, torch.tensor(0.5)).log_prob(x)
    found = importance_diagnostics(model, guide, x, num_particles=50)
    torch.testing.assert_close(found.log_marginal.value, truth)
    torch.testing.assert_close(log_marginal(model, guide, x, num_particles=5).value, truth)


def test_what_has_no_diagnostics_says_so():
    with pytest.raises(ValueError, match="num_particles is 24; accepted is >= 25"):
        importance_diagnostics(one_level(), exact_one_level, torch.randn(2, 3), num_particles=24)
    vae = VAE((4,), 2, (3,))
    with pytest.raises(ValueError, match="needs the density of the guide, and a point mass"):
        importance_diagnostics(vae, DeltaGuide(vae), torch.zeros(5, 4))
