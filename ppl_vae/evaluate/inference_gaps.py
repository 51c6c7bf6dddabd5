"""What a guide loses by its family, and what by its encoder.

Shapes: N data, B data at once, K particles.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae.checks import check_dim
from ppl_vae.estimators import Estimator, Trace_ELBO, TraceIWAE_ELBO
from ppl_vae.estimators.checks import check_density, check_local
from ppl_vae.estimators.pair import trace_pair
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.evaluate.likelihood import log_marginal
from ppl_vae.evaluate.terms import average_terms, batches
from ppl_vae.guides.amortized import AmortizedGuide
from ppl_vae.guides.per_datum import PerDatumGuide
from ppl_vae.guides.wrapper import GuideWrapper
from ppl_vae.randomness import check_seed, looking, untouched, validation

__all__ = ["InferenceGaps", "inference_gaps"]

# `log_marginal` draws its particles so many at once: data go by batches that leave room for them.
_PARTICLES_AT_ONCE = 50


@dataclass(frozen=True)
class InferenceGaps:
    r"""log p(x), and the ELBO of the best and of the amortized q, in nats, each `[N]`.

    .. math:: \log p(x) - L[q] = \underbrace{\log p(x) - L[q^*]}_{\text{approximation}}
        + \underbrace{L[q^*] - L[q]}_{\text{amortization}}

    Each is an estimate; a single datum's gap may be negative.

    Attributes:
        log_marginal: log p(x), in mean from below.
        local_elbo: L[q*], the ELBO with numbers free for each datum.
        elbo: L[q], the ELBO of the guide.
    """

    log_marginal: Tensor
    local_elbo: Tensor
    elbo: Tensor

    @property
    def approximation_gap(self) -> Tensor:
        """What the family of q cannot represent, `[N]`."""
        return self.log_marginal - self.local_elbo

    @property
    def amortization_gap(self) -> Tensor:
        """What one encoder for all data costs, `[N]`."""
        return self.local_elbo - self.elbo

    @property
    def inference_gap(self) -> Tensor:
        """Both together, `[N]`."""
        return self.log_marginal - self.elbo

    def summary(self) -> dict[str, Estimate]:
        """Means over the data, with their standard errors; a gap's is that of the differences."""
        bounds = ("log_marginal", "local_elbo", "elbo")
        gaps = ("approximation_gap", "amortization_gap", "inference_gap")
        return {name: Estimate.of_mean(getattr(self, name)) for name in (*bounds, *gaps)}


def inference_gaps(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *,
    num_particles: int = 1000,
    num_draws: int = 100,
    num_steps: int = 500,
    lr: float = 0.1,
    step_particles: int = 10,
    chunk_size: int = 5000,
    seed: int = 0,
) -> InferenceGaps:
    r"""Splits log p(x) - ELBO into what the family of q loses and what its amortization loses.

    .. math:: q_n(z) = q(z; \lambda(x_n)),\qquad q_n^*(z) = q(z; \lambda(x_n) + \delta_n),\quad
        \delta_n = \operatorname{argmax}_\delta L_n[q(z; \lambda(x_n) + \delta)]

    L is the ELBO at KL weight 1, and the deltas are climbed by Adam with a learning rate that falls
    to 0 (`PerDatumGuide`). A q* that lies within the posterior is a poor proposal for log p(x): its
    weights have heavy tails. So the deltas climb on from there, as many steps again, on the
    importance-weighted bound, and K particles are drawn from what that gives. L[q*], by what the
    steps do not reach, and log p(x), by what K particles do not find, are **lower bounds in
    mean**; the inference and the amortization gap are too, the approximation gap may err either
    way. Networks within a family (flows) or between the sites (top-down) stay shared: what they
    could do for one datum counts as approximation.

    Of a wrapper (`SemiAmortizedGuide`, `FrozenGuide`) L[q] is that of the wrapper, and L[q*] that
    of the family of the guide inside. Programs run in the mode that they are in; call `eval()`
    first where there is dropout or batch normalization. Model, guide and global state are left as
    they were. Cost: 2 `num_steps` `step_particles` runs with gradients, K + 2 `num_draws` without.

    Args:
        model: The model; its latents must be continuous, and in the data plate.
        guide: An `AmortizedGuide` that is set up, or a wrapper of one; it must have a density.
        x: Data, `[N, *data_shape]`.
        num_particles: K of log p(x).
        num_draws: Draws of each datum's ELBOs, with the same noise for both.
        num_steps: Of Adam, for each datum and each of the two bounds.
        lr: The learning rate of the first step.
        step_particles: Draws in each step's bound.
        chunk_size: How many particles times data are held at once: the bound on memory.
        seed: Of all draws.

    Raises:
        ValueError: A guide that is not amortized, or a point mass; a discrete site, or one outside
            the data plate; a model that subsamples the data; no data; a number out of range; steps
            that do not stay finite.

    References:
        Cremer, Li and Duvenaud (2018), Inference Suboptimality in Variational Autoencoders.

    Example:
        >>> model = ppl_vae.models.LinearGaussian([[1.0], [2.0]], 0.5)
        >>> guide = ppl_vae.guides.MeanFieldGuide(model)  # untrained
        >>> gaps = inference_gaps(model, guide, torch.ones(20, 2), num_steps=150).summary()
        >>> gaps["approximation_gap"].value < 0.1 < 1 < gaps["amortization_gap"].value
        True
    """
    counts = {"num_particles": num_particles, "num_draws": num_draws, "num_steps": num_steps,
              "step_particles": step_particles, "chunk_size": chunk_size}  # fmt: skip
    for name, value in counts.items():
        check_dim(value, f"inference_gaps: {name}")
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < math.inf:
        raise ValueError(f"inference_gaps: lr is {lr!r}; accepted is a number > 0")
    check_seed(seed)
    if len(x) == 0:
        raise ValueError(
            f"inference_gaps: x has the shape {list(x.shape)}; accepted is [N, *data_shape], N >= 1"
        )
    base = _inside(guide)
    seeds = torch.Generator().manual_seed(seed)
    size = max(1, chunk_size // max(_PARTICLES_AT_ONCE, step_particles))
    found = []
    with looking(model, guide):
        _check(model, guide, x[:size])
        for batch in batches(x, size):
            noise, steps, weights = torch.randint(2**62, (3,), generator=seeds).tolist()
            how = {"num_particles": num_draws, "batch_size": size, "seed": noise}
            elbo = average_terms(model, guide, batch, **how).elbo
            with untouched(steps), _lent(base):
                local = PerDatumGuide(base, batch)
                _climb(model, local, Trace_ELBO(step_particles), num_steps, lr)
                local_elbo = average_terms(model, local, batch, **how).elbo
                _climb(model, local, TraceIWAE_ELBO(step_particles), num_steps, lr)
                log_p = log_marginal(
                    model, local, batch,
                    num_particles=num_particles, seed=weights, chunk_size=chunk_size,
                ).value  # fmt: skip
            found.append((log_p, local_elbo, elbo))
    return InferenceGaps(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _inside(guide: Callable) -> AmortizedGuide:
    """The amortized guide in a guide."""
    base = guide
    while isinstance(base, GuideWrapper) and not isinstance(base, PerDatumGuide):
        base = base.base
    if not isinstance(base, AmortizedGuide):
        name = getattr(base, "__name__", type(base).__name__)
        raise ValueError(
            f"inference_gaps: the guide is {name}; accepted is an AmortizedGuide, as "
            "MeanFieldGuide, or a SemiAmortizedGuide or FrozenGuide around one"
        )
    for site in base.latent_sites.values():
        if site.is_discrete:
            raise ValueError(
                f"inference_gaps: the model's site '{site.name}' is discrete ({site.family}), and "
                "has no gradient to climb by; accepted are continuous sites"
            )
    return base


def _check(model: Callable, guide: Callable, x: Tensor) -> None:
    """Lets a pair that has no gaps say so before it is trained."""
    with untouched(), torch.no_grad(), validation(True):
        pair = trace_pair(model, guide, (x,), {})
    check_density(pair, "inference_gaps")
    check_local(pair, "inference_gaps")
    if (plate := pair.data_plate).size != len(x):
        raise ValueError(
            f"inference_gaps: of {len(x)} data the model takes a subsample of {plate.size} in the "
            f"plate '{plate.name}'; accepted is a plate over all, pyro.plate('data', len(x))"
        )


def _climb(
    model: Callable, guide: PerDatumGuide, bound: Estimator, num_steps: int, lr: float
) -> None:
    """Trains the deltas; gradients reach nothing else."""
    deltas = list(guide.free_parameters())
    optimizer = Adam(deltas, lr=lr)
    schedule = CosineAnnealingLR(optimizer, num_steps)
    with torch.enable_grad(), validation(False):
        for _ in range(num_steps):
            loss = bound.differentiable_loss(model, guide, guide.data)
            gradients = torch.autograd.grad(loss, deltas)
            for delta, gradient in zip(deltas, gradients, strict=True):
                delta.grad = gradient
            optimizer.step()
            schedule.step()
    if not all(bool(delta.isfinite().all()) for delta in deltas):
        raise ValueError(
            f"inference_gaps: with lr {lr} the numbers of a datum do not stay finite; accepted is "
            "a smaller lr"
        )


@contextmanager
def _lent(guide: AmortizedGuide) -> Iterator[None]:
    """Pyro renames a module that becomes part of another; afterwards it has its old name again."""
    modules = [module for module in guide.modules() if isinstance(module, PyroModule)]
    kept = [(module, module._pyro_name, module._pyro_context) for module in modules]
    try:
        for module, _, context in kept:
            module._pyro_context = type(context)()  # Pyro renames no part of what has run.
        yield
    finally:
        for module, name, context in kept:
            module._pyro_name, module._pyro_context = name, context
