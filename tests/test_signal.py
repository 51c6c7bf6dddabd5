"""Signal-to-noise of the guide's gradient in K: Rainforth et al. (2018), Tucker et al. (2019).

Their model: z ~ N(0, I), x ~ N(z, I), so p(z | x) = N(x / 2, I / 2); the guide is N(loc, v I), loc
perturbed by 0.01 from the optimum. The signal is the mean gradient. It is the same for both
estimators, both being unbiased (tests/test_gradients.py), and drowns in IWAE's noise, so DReG's
mean is taken for both.
Shapes: K particles, R draws of the gradient at once, D dimensions.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vae.estimators import TraceDReG_ELBO, TraceIWAE_ELBO

NUM_DRAWS, NUM_REPEATS = 500, 8


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def gradients(estimator, x, loc, variance):
    """`[R, D]`: each row has parameters of its own, so one backward pass makes R draws."""
    loc = loc.repeat(NUM_DRAWS, 1).requires_grad_()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, math.sqrt(variance)).to_event(1))

    loss = estimator.differentiable_loss(model, guide, x.repeat(NUM_DRAWS, 1))
    return torch.autograd.grad(loss, loc)[0]


def exponents(variance, num_dims, num_particles):
    """Slopes of log SNR in log K, one of each repeat; and the variances `[repeats, K, 2]`."""
    slopes, variances = {"iwae": [], "dreg": []}, []
    log_k = torch.tensor(num_particles).log()
    log_k = log_k - log_k.mean()
    for seed in range(NUM_REPEATS):
        torch.manual_seed(seed)
        x = math.sqrt(2) * torch.randn(num_dims)
        loc = x / 2 + 0.01 * torch.randn(num_dims)
        log_snr = {"iwae": [], "dreg": []}
        for k in num_particles:
            iwae = gradients(TraceIWAE_ELBO(int(k)), x, loc, variance)
            dreg = gradients(TraceDReG_ELBO(int(k)), x, loc, variance)
            for name, found in (("iwae", iwae), ("dreg", dreg)):
                log_snr[name].append((dreg.mean(0).abs() / found.std(0)).mean().log())
            variances.append((iwae.var(0).mean().item(), dreg.var(0).mean().item()))
        for name, values in log_snr.items():
            values = torch.stack(values)
            slopes[name].append((log_k * (values - values.mean())).sum() / (log_k**2).sum())
    return {name: interval(torch.stack(v)) for name, v in slopes.items()}, variances


def interval(values):
    """Mean, and 5 standard errors either side."""
    mean, error = values.mean().item(), values.std().item() / math.sqrt(len(values))
    return mean - 5 * error, mean, mean + 5 * error


@pytest.mark.parametrize("variance", [1 / 2, 2 / 3])
def test_iwaes_signal_drowns_with_k_and_dregs_rises(variance):
    found, variances = exponents(variance, 20, [10.0, 30.0, 100.0, 300.0])
    low, mean, high = found["iwae"]
    assert high < 0 and abs(mean + 0.5) < 0.15
    low, mean, high = found["dreg"]
    assert low > 0 and abs(mean - 0.5) < 0.15
    assert all(dreg < iwae for iwae, dreg in variances)


def test_with_a_guide_too_narrow_neither_holds():
    """The squared weights have no variance then, and no K mends that."""
    found, variances = exponents(0.15, 4, [4.0, 16.0, 64.0, 256.0])
    assert found["iwae"][0] > -0.5  # It falls more slowly, if at all,
    assert found["dreg"][2] < 0.5  # this does not rise as it should,
    assert any(dreg > iwae for iwae, dreg in variances)  # and has not always less variance.
