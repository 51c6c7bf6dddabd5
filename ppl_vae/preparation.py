"""What `fit` makes sure of before the first step: data, device, floating type, and the pair.

Shapes: N data, B data of a minibatch.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ppl_vae.data.minibatches import Minibatches, TrainingData, minibatches
from ppl_vae.data.parts import Parts
from ppl_vae.data.splits import Splits
from ppl_vae.estimators.pair import Pair, trace_pair
from ppl_vae.estimators.sites import samples
from ppl_vae.randomness import fork, looking, validation
from ppl_vae.ranks import Ranks

__all__ = ["Prepared", "prepare", "resident", "resolve_device"]


@dataclass
class Prepared:
    """Data and programs, ready to train.

    Attributes:
        stream: Minibatches.
        valid: Validation data on the device, `[N, *data_shape]`, or none.
        data_shape: Shape of one datum.
        dtype: Floating type of the data as the programs see them.
        has_density: Whether the guide has one; a point mass has none.
        latents: Names of the latent sites.
        first: The first minibatch.
        scale: N / B in a data plate that is told of all data and subsamples, else 1.
    """

    stream: Minibatches
    valid: Tensor | None
    data_shape: torch.Size
    dtype: torch.dtype
    has_density: bool
    latents: list[str]
    first: tuple[Any, ...]
    scale: float
    _cast: Callable[[tuple[Any, ...]], tuple[Any, ...]]

    def batch(self) -> tuple[Any, ...]:
        """The next minibatch, on the device: as many arguments as the model takes."""
        return self._cast(self.stream.next())

    def take(
        self, index: Tensor, generators: Sequence[torch.Generator] | None = None
    ) -> tuple[Any, ...]:
        """The data of these numbers, as a minibatch; see `Minibatches.take`."""
        return self._cast(self.stream.take(index, generators))

    def num_data(self, args: tuple[Any, ...]) -> float:
        """How many data the loss of this minibatch sums over: B, or N in a subsampled plate."""
        return self.scale * len(args[0])


def prepare(
    model: Callable,
    guide: Callable,
    data: TrainingData,
    valid: Tensor | None,
    batch_size: int | None,
    seed: int,
    device: torch.device,
    ranks: Ranks | None = None,
) -> Prepared:
    """Moves everything to the device, sets the guide up, and runs the pair once to check it.

    With ranks the stream is of this one's parts of the minibatches.

    Raises:
        ValueError: Data that the model does not take, or a pair that does not fit.
        TypeError: Data or programs of no known kind.
    """
    for name, program in (("model", model), ("guide", guide)):
        if isinstance(program, type):
            called = f"{program.__name__}({'model' if name == 'guide' else '...'})"
            raise TypeError(f"{name} is the class {program.__name__}; accepted is {called}")
        if not callable(program):
            raise TypeError(f"{name} is {program!r}; accepted is a Pyro program, any callable")
        if isinstance(program, nn.Module):
            program.to(device)
    data, valid = resident(model, data, valid, device)
    _check(model, data, valid)
    stream = minibatches(data, batch_size, seed)
    stream = stream if ranks is None else Parts(stream, ranks)
    dtype = _dtype(model, guide)
    num_args = _num_args(model)

    def cast(batch: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = (v.to(device) if isinstance(v, Tensor) else v for v in batch[:num_args])
        castable = isinstance(x, Tensor) and x.is_floating_point() and dtype is not None
        return (x.to(dtype) if castable else x, *rest)

    with fork():
        first = cast(stream.next())
    stream.seek(0, 0)
    x = first[0]
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() == 0:
        what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(type(x))
        raise ValueError(
            f"a minibatch of the data is {what}; accepted are floating tensors [B, *data_shape]. "
            "Scale integers to [0, 1] first"
        )
    if valid is not None and len(first) > 1:
        raise ValueError(
            f"the model takes {len(first)} arguments, and validation data are x alone; leave valid "
            "out, and evaluate after the fit"
        )
    if not stream.is_resident:
        _check_values(model, x, "the first minibatch")
    if len(first) > 1 and hasattr(model, "check_labels"):
        # Of data that are made as they are asked for, only the first minibatch can be seen.
        whole = isinstance(data, TensorDataset)
        model.check_labels(data.tensors[1] if whole else first[1])  # type: ignore[attr-defined]
    if hasattr(guide, "setup"):
        guide.setup(*first)
        if isinstance(guide, nn.Module):
            guide.to(device)
    if hasattr(model, "bind"):
        model.bind(guide)
    if (takes := _num_args(guide)) is not None and takes < len(first):
        raise ValueError(
            f"the guide takes {takes} argument(s), and the model is given {len(first)}; a guide "
            "takes what the model takes, as in `def guide(x):`"
        )
    # With Pyro's checks on for this once, whatever they are set to outside.
    watched = looking(model, guide)
    with watched, torch.no_grad(), poutine.block(), validation(True):
        pair = trace_pair(model, guide, first, {})
        plate = pair.data_plate
    scale = (plate.full_size or plate.size) / len(x)
    if ranks is not None and scale == 1:
        _check_global(pair)
    return Prepared(
        stream=stream,
        valid=valid,
        data_shape=x.shape[1:],
        dtype=x.dtype,
        has_density=pair.has_density,
        latents=[name for name, _, _ in pair.latents],
        first=first,
        scale=scale,
        _cast=cast,
    )


def _check_global(pair: Pair) -> None:
    """Refuses what would count once for each rank, and not once a minibatch."""
    plate = pair.data_plate.name
    for trace in (pair.model_trace, pair.guide_trace):
        for name, site in samples(trace):
            if all(frame.name != plate for frame in site["cond_indep_stack"]):
                raise ValueError(
                    f"the site '{name}' lies outside the plate '{plate}', and would count once for "
                    "each rank. Accepted with ranks is a plate that is told the number of all "
                    f'data, as `pyro.plate("{plate}", N, subsample=x)`'
                )


def resolve_device(device: str | torch.device) -> torch.device:
    """`"auto"` is CUDA where there is any, else the CPU.

    Raises:
        ValueError: torch knows no such device, or it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    accepted = "accepted are auto, cpu" + (", cuda" if torch.cuda.is_available() else "")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r}, which torch does not know; {accepted}") from None
    try:
        torch.zeros(1, device=resolved).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"device is {device!r}, which is not here; {accepted}") from None
    return resolved


def resident(
    model: Callable, data: TrainingData, valid: Tensor | None, device: torch.device
) -> tuple[TrainingData, Tensor | None]:
    """Tensors and splits on the device, in the model's floating type; validation data likewise.

    Rows on a disk stay there.
    """
    if isinstance(data, Splits):
        if valid is None and len(data.valid) > 0:
            valid = data.valid
        train = data.train
        if isinstance(train, Tensor):
            train = _cast(model, train, device)
        none = torch.empty(0, device=device)
        data = replace(data, train=train, valid=none, test=none, labels={})
    elif isinstance(data, Tensor):
        data = _cast(model, data, device)
    return data, None if valid is None else _cast(model, valid, device)


def _cast(model: Callable, x: Tensor, device: torch.device) -> Tensor:
    dtype = _dtype(model)
    return x.to(device=device, dtype=dtype if dtype and x.is_floating_point() else x.dtype)


def _check(model: Callable, data: TrainingData, valid: Tensor | None) -> None:
    x = data.train if isinstance(data, Splits) else data
    if isinstance(x, Tensor):
        if x.dim() < 1 or len(x) == 0:
            raise ValueError(
                f"the training data have shape {tuple(x.shape)}; accepted is [N, *data_shape] with "
                "at least one datum"
            )
        _check_values(model, x, "the training data")
    if valid is not None:
        _check_values(model, valid, "the validation data")


def _check_values(model: Callable, x: Tensor, what: str) -> None:
    if not x.is_floating_point():
        raise ValueError(
            f"{what} are {x.dtype}; accepted are floating tensors. Scale integers to [0, 1] first"
        )
    if not x.isfinite().all():
        bad = int((~x.isfinite()).sum())
        first = (~x.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"{what} hold {bad} value(s) that are not finite, the first at index {first}"
        )
    if hasattr(model, "check"):
        model.check(x)


def _dtype(*programs: Any) -> torch.dtype | None:
    """The floating type of the first parameter or buffer; none where there is none to see."""
    for program in programs:
        if isinstance(program, nn.Module):
            for value in (*program.parameters(), *program.buffers()):
                if value.is_floating_point():
                    return value.dtype
    return None


def _num_args(model: Callable) -> int | None:
    """How many positional arguments the program takes; none for any number."""
    forward = model.forward if isinstance(model, nn.Module) else model
    kinds = [p.kind for p in inspect.signature(forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    positional = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return sum(kind in positional for kind in kinds)
