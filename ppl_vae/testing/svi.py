"""`check_svi`."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI
from torch import Tensor

from ppl_vae.estimators.trace_elbo import Trace_ELBO
from ppl_vae.randomness import seed_all
from ppl_vae.testing.isolation import expect, isolated, keeping, reporting
from ppl_vae.testing.programs import find_leaves

__all__ = ["check_svi", "step"]


def check_svi(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *args: Any,
    loss: ELBO | None = None,
    seed: int = 0,
) -> None:
    """Checks that one step of plain `pyro.infer.SVI` moves every parameter that Pyro sees.

    Those are what `PyroModule` holds, and what `pyro.param` makes.

    Args:
        model: The model.
        guide: The guide.
        x: A few data, `[B, ...]`; enough of them that no unit is idle for all.
        *args: What else both take.
        loss: The estimator; `Trace_ELBO(num_particles=2)` if not given.
        seed: Of what is drawn.

    Raises:
        ConformanceError: A parameter stays where it was, or the loss is no finite number.

    Example:
        >>> from ppl_vae.testing import check_svi
        >>> model = ppl_vae.models.VAE((6,), latent_dim=2, hidden=(5,), activation="tanh")
        >>> check_svi(model, ppl_vae.guides.MeanFieldGuide(model), torch.rand(4, 6))
    """
    args = (x, *args)
    loss = Trace_ELBO(num_particles=2) if loss is None else loss
    with isolated(seed, model, guide):
        leaves = find_leaves(args, guide=guide, model=model)
        with keeping(leaves):
            step(model, guide, args, loss, leaves, seed)


def step(
    model: Callable,
    guide: Callable,
    args: tuple,
    loss: ELBO,
    leaves: dict[str, Tensor],
    seed: int,
) -> None:
    """A step of plain SVI, checked, that leaves the parameters moved."""
    seed_all(seed)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=loss)
    before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    with reporting("a step of plain SVI"):
        found = svi.step(*args), svi.evaluate_loss(*args)
    for value, what in zip(found, ("step", "evaluate_loss"), strict=True):
        expect(
            isinstance(value, float) and math.isfinite(value),
            f"{what} of plain SVI returns {value!r}; expected is a finite float",
        )
    seen = {id(p) for _, p in pyro.get_param_store().named_parameters()}
    for name, leaf in leaves.items():
        expect(
            id(leaf) not in seen or not torch.equal(leaf, before[name]),
            f"{name} did not move in a step of plain SVI; expected was that all are trained",
        )
