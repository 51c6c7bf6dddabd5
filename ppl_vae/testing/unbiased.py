"""`check_unbiased`."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_vae.testing import oracle
from ppl_vae.testing.estimator import Factory
from ppl_vae.testing.isolation import expect, isolated, keeping, reporting
from ppl_vae.testing.programs import find_leaves

__all__ = ["check_unbiased"]


def check_unbiased(
    factory: Factory,
    *,
    reference: Callable[..., Tensor] | None = None,
    pair: tuple[Callable, Callable, Tensor] | None = None,
    num_particles: int = 2,
    num_draws: int = 50,
    seed: int = 0,
) -> None:
    r"""Checks that an estimator's gradient is, in mean, the gradient that it is meant to be.

    .. math:: \Big| \frac1n \sum_{i=1}^n g_i - \nabla\,\text{reference} \Big| \le 5\,
        \text{standard errors}, \qquad \text{in each coordinate}

    of the parameters of guide and model, with particles drawn at once, and in a loop. A bias below
    the standard error is not found: take more draws to look closer.

    Args:
        factory: `factory(num_particles=K, vectorize_particles=...)` makes an estimator.
        reference: `reference(model, guide, x)`, a tensor `[]` whose gradient is the true one, of
            the loss, summed over the data. If not given, minus the ELBO in closed form, which is
            right for every estimator whose bound is the ELBO, whatever K.
        pair: Model, guide and data, for which a reference is then needed. If not given, a
            `LinearGaussian` of 2 latent dimensions whose loading is learned, with a diagonal guide
            (`ppl_vae.testing.oracle.learned`).
        num_particles: K.
        num_draws: Gradients of which the mean is taken, on either way.
        seed: Of what is drawn.

    Raises:
        ValueError: A pair without a reference.
        ConformanceError: A coordinate of the gradient is biased.

    Example:
        >>> from ppl_vae.testing import check_unbiased
        >>> check_unbiased(ppl_vae.estimators.TraceSTL_ELBO, num_draws=20)
    """
    if pair is not None and reference is None:
        raise ValueError("the true gradients of a pair of your own are not known; give `reference`")
    model, guide, x = oracle.learned() if pair is None else pair
    truth = oracle.closed_form_loss if reference is None else reference
    with isolated(seed, model, guide):
        leaves = find_leaves((x,), guide=guide, model=model)
        with keeping(leaves):
            with reporting("the reference"):
                truth(model, guide, x).backward()
            expected = _take(leaves)
            for vectorize in (True, False):
                how = f"{num_particles} particles, vectorize_particles={vectorize}"
                draws: list[dict[str, Tensor]] = []
                with reporting(f"the gradient, with {how},"):
                    elbo = factory(num_particles=num_particles, vectorize_particles=vectorize)
                    for _ in range(num_draws):
                        elbo.differentiable_loss(model, guide, x).backward()
                        draws.append(_take(leaves))
                for name, gradient in expected.items():
                    _check(name, torch.stack([draw[name] for draw in draws]), gradient, how)


def _take(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the leaves, which then have none."""
    taken: dict[str, Any] = {}
    for name, leaf in leaves.items():
        taken[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        leaf.grad = None
    return taken


def _check(name: str, draws: Tensor, truth: Tensor, how: str) -> None:
    count = len(draws)
    mean, error = draws.mean(0), draws.std(0) / math.sqrt(count)
    # Where nothing is sampled there is rounding still.
    rounding = torch.finfo(truth.dtype).eps ** 0.6 * truth.abs().max()
    excess = (mean - truth).abs() - 5 * error - rounding
    worst = int(excess.argmax())
    where = [int(i) for i in torch.unravel_index(torch.tensor(worst), truth.shape)]
    values = [float(v.flatten()[worst]) for v in (mean, error, truth)]
    expect(
        bool((excess <= 0).all()),
        f"the gradient of {name}, with {how}, is biased at {where}: its mean over {count} draws is "
        f"{values[0]:.5g}, with a standard error of {values[1]:.2g}; expected was {values[2]:.5g}",
    )
