"""What one gradient of an estimator costs: seconds and bytes."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro.infer import ELBO
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.evaluate.draws import EstimatorDraws, at_rest, seeds
from ppl_vae.handlers import Weight
from ppl_vae.randomness import validation

__all__ = ["StepCost", "saved_bytes", "step_cost"]


@dataclass(frozen=True)
class StepCost:
    """The cost of one gradient.

    Attributes:
        seconds: Loss and gradients of all parameters, the median over repeats. Neither the data's
            way to the device nor an optimizer's step is in it.
        quartiles: The lower and the upper one, in seconds.
        peak_bytes: On a GPU, the most that torch's allocator held above what it held before. On a
            CPU, where torch keeps no such count, what autograd keeps from the loss to its gradient,
            each storage counted once, without parameters, buffers and x; what lives for a moment
            only is not in it, so it is a lower bound.
        device: Where it was measured, as `"cpu"`.
    """

    seconds: float
    quartiles: tuple[float, float]
    peak_bytes: int
    device: str


def step_cost(
    model: Callable,
    guide: Callable,
    estimator: ELBO,
    x: Tensor,
    *,
    num_repeats: int = 20,
    num_warmup: int = 3,
    weight: Weight = 1.0,
    seed: int = 0,
) -> StepCost:
    """Times the programs' own gradients, as they are without compiling.

    Everything is left as it was, as by `gradient_signal`; on a GPU torch's record of its peak
    memory starts anew.

    Args:
        model: The model.
        guide: The guide.
        estimator: A `pyro.infer.ELBO`.
        x: Data, `[B, *data_shape]`.
        num_repeats: How many gradients are timed.
        num_warmup: How many are made before.
        weight: The KL weight.
        seed: Of the draws.

    Raises:
        ValueError: No estimator; a number below 1; no parameters.

    Example:
        >>> model = ppl_vae.models.VAE((784,))
        >>> guide = ppl_vae.guides.MeanFieldGuide(model)
        >>> elbos = [ppl_vae.estimators.TraceIWAE_ELBO(k) for k in (1, 10)]
        >>> one, ten = (step_cost(model, guide, e, torch.zeros(8, 784)) for e in elbos)
        >>> one.peak_bytes < ten.peak_bytes
        True
    """
    check_dim(num_repeats, "step_cost: num_repeats")
    check_dim(num_warmup, "step_cost: num_warmup")
    times: list[float] = []
    with at_rest(), validation(False):
        point = EstimatorDraws(model, guide, estimator, x, weight)
        if not point.parameters:
            raise ValueError(
                "step_cost: neither model nor guide has a parameter that asks for a gradient"
            )
        leaves = list(point.parameters.values())
        first, *rest = seeds(seed, num_warmup + num_repeats)
        with point.running(first) as loss:
            peak = _peak_bytes(lambda: _gradients(loss(), leaves), loss, leaves, model, guide, x)
        for each in rest:
            with point.running(each) as loss:
                _synchronize(x)
                start = time.perf_counter()
                _gradients(loss(), leaves)
                _synchronize(x)
                times.append(time.perf_counter() - start)
    times = times[-num_repeats:]
    low, middle, high = (
        statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    )
    return StepCost(middle, (low, high), peak, x.device.type)


def _gradients(loss: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, leaves, allow_unused=True)


def _peak_bytes(
    step: Callable[[], object],
    loss: Callable[[], Tensor],
    leaves: list[Tensor],
    model: Callable,
    guide: Callable,
    x: Tensor,
) -> int:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
        before = torch.cuda.memory_allocated(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        step()
        torch.cuda.synchronize(x.device)
        return torch.cuda.max_memory_allocated(x.device) - before
    modules = [p for p in (model, guide) if isinstance(p, torch.nn.Module)]
    there = [x, *leaves, *(t for m in modules for t in (*m.parameters(), *m.buffers()))]
    return saved_bytes(loss, there)


def saved_bytes(loss: Callable[[], Tensor], there: list[Tensor]) -> int:
    """How many bytes a loss keeps for its gradient, but for those of tensors already `there`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in there}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage  # Held, so that no address serves twice.
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = loss()
    del kept
    return sum(storage.nbytes() for storage in storages.values())


def _synchronize(x: Tensor) -> None:
    """Waits for a GPU."""
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
