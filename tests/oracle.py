"""Truths to test against: linear-Gaussian models, whose log p(x) and posterior are known.

Everything here is worked out by conditioning a joint normal, not by the library.
Shapes: K particles, B data, X dimensions of x, D of a latent.
"""

import math

import pyro
import pyro.distributions as dist
import torch

from ppl_vae.handlers import scale_latents
from ppl_vae.models import HierarchicalLinearGaussian, LinearGaussian

LOADING = torch.tensor([[1.2, -0.3], [0.4, 0.9], [-0.7, 0.2]], dtype=torch.float64)
NOISE = torch.tensor([0.5, 0.8, 1.1], dtype=torch.float64)
BIAS = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
W1 = torch.tensor([[1.0, 0.5, -0.2], [0.3, -0.9, 0.4]], dtype=torch.float64)  # [X, D1]
W2 = torch.tensor([[0.8, 0.1], [-0.5, 0.6], [0.2, 0.7]], dtype=torch.float64)  # [D1, D2]
S1, SX = 0.6, 0.9


def one_level():
    return LinearGaussian(LOADING, NOISE, BIAS)


def two_level():
    return HierarchicalLinearGaussian((W1, W2), (S1, SX))


def normal_log_density(x, loc, covariance):
    """log N(x; loc, covariance), written out."""
    diff = (x - loc).unsqueeze(-1)
    quadratic = (diff.mT @ torch.linalg.inv(covariance) @ diff).flatten(-2).squeeze(-1)
    return -0.5 * (quadratic + torch.logdet(covariance) + len(covariance) * math.log(2 * math.pi))


def condition(loc, covariance, value, given):
    """A joint normal, its last coordinates given: `loc[rest | given]`, `covariance[rest | given]`.

    `given` is how many; `loc` is `[..., n]`, `value` is `[..., given]`.
    """
    rest = loc.shape[-1] - given
    cross, block = covariance[:rest, rest:], covariance[rest:, rest:]
    gain = cross @ torch.linalg.inv(block)
    return (
        loc[..., :rest] + (value - loc[..., rest:]) @ gain.mT,
        covariance[:rest, :rest] - gain @ cross.mT,
    )


def one_level_joint():
    """Mean and covariance of (z, x)."""
    eye = torch.eye(2)
    covariance = torch.cat(
        [
            torch.cat([eye, LOADING.mT], 1),
            torch.cat([LOADING, LOADING @ LOADING.mT + torch.diag(NOISE**2)], 1),
        ]
    )
    return torch.cat([torch.zeros(2), BIAS]), covariance


def two_level_joint():
    """Covariance of (z1, z2, x), as A A^T of the independent noises (e1, z2, ex)."""
    eye1, eye2, eye_x = torch.eye(3), torch.eye(2), torch.eye(2)
    zeros = torch.zeros
    rows = [
        torch.cat([S1 * eye1, W2, zeros(3, 2)], 1),
        torch.cat([zeros(2, 3), eye2, zeros(2, 2)], 1),
        torch.cat([S1 * W1, W1 @ W2, SX * eye_x], 1),
    ]
    factor = torch.cat(rows)
    return factor @ factor.mT


# Exact posteriors, as plain Pyro functions.


def exact_one_level(x):
    loc, covariance = one_level_joint()
    loc, covariance = condition(loc, covariance, x, given=3)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.MultivariateNormal(loc, covariance))


def exact_top_down(x):
    loc, covariance = condition(torch.zeros(7), two_level_joint(), x, given=2)  # of (z1, z2)
    with pyro.plate("data", len(x), dim=-1):
        z2 = pyro.sample("z2", dist.MultivariateNormal(loc[..., 3:], covariance[3:, 3:]))
        loc1, covariance1 = condition(loc, covariance, z2, given=2)
        pyro.sample("z1", dist.MultivariateNormal(loc1, covariance1))


def exact_bottom_up(x):
    loc, covariance = condition(torch.zeros(7), two_level_joint(), x, given=2)  # of (z1, z2)
    order = [3, 4, 0, 1, 2]  # (z2, z1)
    loc, covariance = loc[..., order], covariance[order][:, order]
    with pyro.plate("data", len(x), dim=-1):
        z1 = pyro.sample("z1", dist.MultivariateNormal(loc[..., 2:], covariance[2:, 2:]))
        loc2, covariance2 = condition(loc, covariance, z1, given=3)
        pyro.sample("z2", dist.MultivariateNormal(loc2, covariance2))


EXACT = {
    "one level": (one_level, exact_one_level, 3),
    "two levels, top-down": (two_level, exact_top_down, 2),
    "two levels, bottom-up": (two_level, exact_bottom_up, 2),
}


def log_p(model, x):
    """log p(x) from the joint covariance of this file."""
    if isinstance(model, LinearGaussian):
        loc, covariance = one_level_joint()
        return normal_log_density(x, loc[2:], covariance[2:, 2:])
    return normal_log_density(x, torch.zeros(2), two_level_joint()[5:, 5:])


def mean_field_elbo(x, loc, scale, weight=1.0):
    """E_q[log p(x|z)] - weight KL(q || p) of the one-level model, per datum, without sampling."""
    residual = (x - BIAS - loc @ LOADING.mT) ** 2 + scale**2 @ (LOADING**2).mT
    reconstruction = (-0.5 * residual / NOISE**2 - NOISE.log() - 0.5 * math.log(2 * math.pi)).sum(1)
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum(1)
    return reconstruction - weight * kl


def hierarchical_mean_field_elbo(x, q1, q2):
    """The same for q(z1 | x) q(z2 | x) of the two-level model."""
    (loc1, scale1), (loc2, scale2) = q1, q2
    residual = (x - loc1 @ W1.mT) ** 2 + scale1**2 @ (W1**2).mT
    elbo = (-0.5 * residual / SX**2 - math.log(SX) - 0.5 * math.log(2 * math.pi)).sum(1)
    residual = (loc1 - loc2 @ W2.mT) ** 2 + scale1**2 + scale2**2 @ (W2**2).mT
    elbo = elbo + (-0.5 * residual / S1**2 - math.log(S1) + 0.5 + scale1.log()).sum(1)
    return elbo - 0.5 * (loc2**2 + scale2**2 - 1 - 2 * scale2.log()).sum(1)


def assert_unbiased(samples, truth):
    """`samples` is `[N, ...]`; every element within 5 standard errors."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert (error > 0).all()
    assert ((samples.mean(0) - truth).abs() <= 5 * error).all()


def draws(elbo, model, guide, x, leaves, num_draws, weight=None):
    """`num_draws` losses, and their gradients flattened."""
    losses, gradients = [], []
    for _ in range(num_draws):
        for leaf in leaves:
            leaf.grad = None
        if weight is None:
            losses.append(elbo.loss_and_grads(model, guide, x))
        else:
            with scale_latents(weight):
                losses.append(elbo.loss_and_grads(model, guide, x))
        gradients.append(torch.cat([leaf.grad.flatten() for leaf in leaves]))
    return torch.tensor(losses), torch.stack(gradients)


# Guides whose parameters are leaves, at the exact posterior to begin with.


class Leaves:
    """A Gaussian guide N(x A + b, L L^T) of each site in turn, given x and the sites before it.

    `names` are the sites in the guide's order; the first sees x, each other the one before and x.
    """

    def __init__(self, joint_loc, joint_covariance, blocks, num_x):
        # `blocks`: name -> indices of the site in the joint; x comes last, `num_x` of it.
        total = len(joint_loc)
        x_index = list(range(total - num_x, total))
        self.parameters, self.names, seen = {}, list(blocks), []
        for name, index in blocks.items():
            given = [*seen, *x_index]
            cross = joint_covariance[index][:, given]
            gain = cross @ torch.linalg.inv(joint_covariance[given][:, given])
            bias = joint_loc[index] - gain @ joint_loc[given]
            covariance = joint_covariance[index][:, index] - gain @ cross.mT
            tril = torch.linalg.cholesky(covariance)
            self.parameters[name] = [v.clone().requires_grad_() for v in (gain, bias, tril)]
            seen = [*seen, *index]

    @property
    def leaves(self):
        return [leaf for leaves in self.parameters.values() for leaf in leaves]

    def __call__(self, x):
        given = None
        with pyro.plate("data", len(x), dim=-1):
            for name in self.names:
                gain, bias, tril = self.parameters[name]
                if given is None:
                    features = x
                else:
                    features = torch.cat([given, x.expand(*given.shape[:-1], -1)], -1)
                loc = features @ gain.mT + bias
                z = pyro.sample(name, dist.MultivariateNormal(loc, scale_tril=tril.tril()))
                given = z if given is None else torch.cat([given, z], -1)


def one_level_leaves():
    return Leaves(*one_level_joint(), {"z": [0, 1]}, 3)


def top_down_leaves():
    blocks = {"z2": [3, 4], "z1": [0, 1, 2]}
    return Leaves(torch.zeros(7), two_level_joint(), blocks, 2)


def bottom_up_leaves():
    blocks = {"z1": [0, 1, 2], "z2": [3, 4]}
    return Leaves(torch.zeros(7), two_level_joint(), blocks, 2)


LEAVES = {
    "one level": (one_level, one_level_leaves, 3),
    "two levels, top-down": (two_level, top_down_leaves, 2),
    "two levels, bottom-up": (two_level, bottom_up_leaves, 2),
}


def broad(x):
    """The exact posterior with its standard deviations doubled, and off its mean."""
    loc, covariance = one_level_joint()
    loc, covariance = condition(loc, covariance, x, given=3)
    with pyro.plate("data", len(x), dim=-1):
        scale = 2 * covariance.diagonal().sqrt()
        pyro.sample("z", dist.Normal(loc + 0.2, scale).to_event(1))


def loc_scale(guide, x, site="z"):
    """Location and scale of a `MeanFieldGuide`'s normal, from its head's numbers."""
    loc, log_variance = guide.heads[site](guide.encoder(x)).chunk(2, -1)
    return loc, (0.5 * log_variance).exp()


# Linear-Gaussian models of any size.


def linear(dim, *, num_features=None, noise=0.5, seed=0):
    """D latents, as many features or so many; x has a variance of about 1 + noise^2."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_features or dim, dim)
    loading = torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(dim)
    return LinearGaussian(loading, noise)


def linear_log_p(model, x):
    covariance = model.loading @ model.loading.mT + model.noise_scale**2 * torch.eye(x.shape[1])
    return normal_log_density(x, torch.zeros(x.shape[1]), covariance)


def linear_posterior(model, x):
    """Mean `[B, D]` and covariance `[D, D]` of the latents of a `linear` model given x."""
    loading, eye = model.loading, torch.eye(model.loading.shape[0])
    top = torch.cat([torch.eye(loading.shape[1]), loading.mT], 1)
    bottom = torch.cat([loading, loading @ loading.mT + model.noise_scale**2 * eye], 1)
    joint = torch.cat([top, bottom])
    return condition(torch.zeros(len(joint)), joint, x, given=x.shape[1])


def off_posterior(model, factor=1.0, shift=0.0):
    """The exact posterior, its deviations multiplied, its means moved by so many of them."""

    def guide(x):
        loc, covariance = linear_posterior(model, x)
        tril = torch.linalg.cholesky(covariance)
        with pyro.plate("data", len(x), dim=-1):
            moved = loc + shift * tril.sum(-1)
            pyro.sample("z", dist.MultivariateNormal(moved, scale_tril=factor * tril))

    return guide
