"""The bound that an estimator has at a point, with its standard error.

Shapes: B data, n draws.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro.infer import ELBO
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.estimators.pair import trace_pair
from ppl_vae.evaluate.draws import EstimatorDraws, at_rest, seeds
from ppl_vae.evaluate.estimate import Estimate
from ppl_vae.randomness import on_copies

__all__ = ["Bound", "bound_at"]


@dataclass(frozen=True)
class Bound:
    """A bound of log p(x), in nats per datum.

    Attributes:
        value: The bound, in the mean over the batch; its error is that over draws, the data held.
        gap: log p(x) less the bound, or none where log p(x) is not known. In its error is that of
            log p(x), if that has one.
    """

    value: Estimate
    gap: Estimate | None


def bound_at(
    model: Callable,
    guide: Callable,
    estimator: ELBO,
    x: Tensor,
    num_draws: int = 100,
    *,
    log_marginal: Tensor | Estimate | float | None = None,
    seed: int = 0,
) -> Bound:
    """Minus an estimator's loss per datum, at KL weight 1, averaged over draws.

    Draws have the seeds of `gradient_signal`'s. Everything is left as it was, as there.

    Args:
        model: The model, with a plate over the data.
        guide: The guide.
        estimator: A `pyro.infer.ELBO` whose value is a bound.
        x: Data, `[B, *data_shape]`.
        num_draws: n; with one the error is nan.
        log_marginal: log p(x) of each datum, `[B]`, or in the mean over the batch; or an estimate
            of it, as of `ppl_vae.evaluate.log_marginal`, whose errors of data are independent.
        seed: Of the draws.

    Raises:
        ValueError: An estimator whose value is no bound; n below 1; log p(x) of another shape.

    Example:
        >>> model = ppl_vae.models.LinearGaussian([[1.0], [2.0]], 0.5)
        >>> guide, x = ppl_vae.guides.MeanFieldGuide(model), torch.ones(20, 2)
        >>> elbo = ppl_vae.estimators.Trace_ELBO()
        >>> bound_at(model, guide, elbo, x, log_marginal=model.log_marginal(x)).gap.value > 0
        True
    """
    check_dim(num_draws, "bound_at: num_draws")
    if not getattr(estimator, "is_bound", True):
        raise ValueError(
            f"bound_at: the loss of {type(estimator).__name__} is no bound of log p(x); accepted "
            "are estimators of one, as Trace_ELBO"
        )
    truth = None if log_marginal is None else _mean(log_marginal, len(x))
    with at_rest():
        point = EstimatorDraws(model, guide, estimator, x)
        with on_copies(model, guide), torch.no_grad():
            plate = trace_pair(model, guide, (x,), {}).data_plate
        num_data = plate.full_size or plate.size
        losses = [point.loss(seed) for seed in seeds(seed, num_draws)]
    value = Estimate.of_mean(-torch.tensor(losses, dtype=torch.float64) / num_data)
    if truth is None:
        return Bound(value, None)
    error = math.hypot(truth.standard_error, value.standard_error)
    return Bound(value, Estimate(truth.value - value.value, error))


def _mean(log_marginal: Tensor | Estimate | float, num_data: int) -> Estimate:
    """log p(x) in the mean over the batch."""
    known = isinstance(log_marginal, Estimate)
    given = log_marginal.value if known else log_marginal
    errors = log_marginal.standard_error if known else 0.0
    value, error = (torch.as_tensor(v, dtype=torch.float64) for v in (given, errors))
    if value.dim() == 0:
        return Estimate(value.item(), error.item())
    if tuple(value.shape) != (num_data,):
        raise ValueError(
            f"bound_at: log_marginal has shape {tuple(value.shape)}; accepted is a number or "
            f"[{num_data}], one for each datum"
        )
    error = error.expand(num_data).square().sum().sqrt() / num_data
    return Estimate(value.mean().item(), error.item())
