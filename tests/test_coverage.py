"""A 95 % interval holds the truth 95 times in 100: 500 repetitions on the oracle, of each figure.

The truth is a closed form, or the mean of one over a million data, which is a twentieth of an
interval's error at most.
"""

import math

import numpy as np
import pytest
import torch
from oracle import broad, log_p, mean_field_elbo, one_level, one_level_joint
from scipy import stats

from ppl_vae.estimators import Trace_ELBO
from ppl_vae.evaluate import ais, average_terms, bound_at, importance_diagnostics, log_marginal
from ppl_vae.laboratory import mean_of, paired

NUM_REPEATS, NUM_DATA = 500, 100


def check(values, errors, truth, degrees=math.inf):
    """The share of intervals that hold the truth is 95 %, within 4 binomial errors."""
    values, errors = np.asarray(values, dtype=float), np.asarray(errors, dtype=float)
    half = stats.t.ppf(0.975, degrees) * errors
    share = (np.abs(values - truth) <= half).mean()
    assert abs(share - 0.95) <= 4 * math.sqrt(0.95 * 0.05 / len(values)), share


def population(num):
    """Data of the model, `[num, 3]`."""
    loc, covariance = one_level_joint()
    joint = torch.distributions.MultivariateNormal(loc[2:], covariance[2:, 2:])
    return joint.sample((num,))


def posterior(x):
    """Of the guide `broad`: mean and deviations."""
    loc, covariance = one_level_joint()
    gain = covariance[:2, 2:] @ covariance[2:, 2:].inverse()
    left = covariance[:2, :2] - gain @ covariance[2:, :2]
    return (x - loc[2:]) @ gain.mT + 0.2, 2 * left.diagonal().sqrt()


def closed_elbo(x):
    """The ELBO of each datum under `broad`."""
    return mean_field_elbo(x, *posterior(x))


def test_log_marginal_of_a_datum():
    x = population(1).expand(NUM_REPEATS, 3)
    found = log_marginal(one_level(), broad, x, num_particles=2000)
    check(found.value, found.standard_error, log_p(one_level(), x[:1]).item())


def test_importance_diagnostics_of_a_datum():
    x = population(1).expand(NUM_REPEATS, 3)
    found = importance_diagnostics(one_level(), broad, x, num_particles=2000).log_marginal
    check(found.value, found.standard_error, log_p(one_level(), x[:1]).item())


@pytest.mark.slow
def test_annealed_importance_sampling_of_a_datum():
    x = population(1).expand(NUM_REPEATS, 3)
    found = ais(one_level(), x, guide=broad, num_chains=200, num_steps=4, num_leapfrog=3)
    check(found.value, found.standard_error, log_p(one_level(), x[:1]).item())


@pytest.mark.parametrize("name", ["elbo", "reconstruction", "kl"])
def test_terms_of_data_from_a_population(name):
    many = population(1_000_000)
    (loc, scale), elbo = posterior(many), closed_elbo(many)
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum(1)
    truth = {"elbo": elbo, "reconstruction": elbo + kl, "kl": kl}[name].mean().item()
    values, errors = [], []
    for seed in range(NUM_REPEATS):
        found = average_terms(one_level(), broad, population(NUM_DATA), num_particles=2, seed=seed)
        estimate = found.summary()[name]
        estimate = estimate["z"] if name == "kl" else estimate
        values.append(estimate.value)
        errors.append(estimate.standard_error)
    check(values, errors, truth, NUM_DATA - 1)


@pytest.mark.slow
def test_log_marginal_of_a_population():
    truth = log_p(one_level(), population(1_000_000)).mean().item()
    x = population(NUM_REPEATS * NUM_DATA)
    each = log_marginal(one_level(), broad, x, num_particles=100)
    parts = [type(each)(v, e).mean() for v, e in zip(
        each.value.split(NUM_DATA), each.standard_error.split(NUM_DATA), strict=True)]  # fmt: skip
    check([p.value for p in parts], [p.standard_error for p in parts], truth, NUM_DATA - 1)


@pytest.mark.slow
def test_the_bound_of_an_estimator_at_a_point():
    x = population(4)
    truth = closed_elbo(x).mean().item()
    found = [
        bound_at(one_level(), broad, Trace_ELBO(3), x, 10, seed=seed).value
        for seed in range(NUM_REPEATS)
    ]
    check([f.value for f in found], [f.standard_error for f in found], truth, 9)


def test_means_and_paired_differences_over_few_seeds():
    noise = np.random.default_rng(0).normal(size=(NUM_REPEATS, 2, 3))
    shared = 10 * np.random.default_rng(1).normal(size=(NUM_REPEATS, 1, 3))
    rows = (noise + shared).tolist()
    named = [[dict(zip("abc", values, strict=True)) for values in row] for row in rows]
    means = [mean_of(row[0]) for row in rows]
    check([m.value for m in means], [m.standard_error for m in means], 0.0, 2)
    found = [paired(*row).difference for row in named]
    check([f.value for f in found], [f.standard_error for f in found], 0.0, 2)
    p_values = np.array([paired(*row).p_value for row in named])
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4
