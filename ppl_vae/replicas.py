"""Several runs at once: other seeds, KL weights, learning rates, in the time of one where it pays.

Shapes: R replicas, N data, B data of a minibatch.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Adam
from torch.utils.data import DataLoader

from ppl_vae.course import Course
from ppl_vae.data.minibatches import TrainingData
from ppl_vae.estimators import Trace_ELBO
from ppl_vae.fit import FitResult
from ppl_vae.handlers import Weight
from ppl_vae.interruption import Interruption
from ppl_vae.optimizers import LRSchedule, OptimizerFactory
from ppl_vae.plan import Plan
from ppl_vae.preparation import resident, resolve_device
from ppl_vae.progress import Progress
from ppl_vae.randomness import fork, seed_all, untouched, validation
from ppl_vae.recording import Recorder
from ppl_vae.replica import Replica
from ppl_vae.schedules import Constant

if TYPE_CHECKING:
    from ppl_vae.together import Together

__all__ = ["fit_replicas"]

Pair = tuple[Callable[..., Any], Callable[..., Any]]
Schedule = Callable[[int], Weight]
Optimizer = OptimizerFactory | Mapping[str, OptimizerFactory]


def fit_replicas(
    pairs: Callable[[], Pair] | Sequence[Pair],
    data: TrainingData,
    *,
    seeds: Sequence[int],
    estimator: ELBO | None = None,
    schedule: Schedule | Sequence[Schedule] | None = None,
    optimizer: Optimizer | Sequence[Optimizer] = partial(Adam, lr=1e-3),  # noqa: B008
    num_steps: int,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    compile: bool | Literal["auto"] = "auto",
    out: str | Path | None = None,
    resume: bool = False,
    valid: Tensor | None = None,
    lr_schedule: LRSchedule | None = None,
    clip_grad_norm: float | None = None,
    freeze: Sequence[str] = (),
    patience: int | None = None,
    log_every: int = 100,
    eval_every: int = 500,
    checkpoint_every: int = 1000,
    tensorboard: bool | None = None,
    progress: bool | None = None,
    config: Mapping[str, Any] | None = None,
) -> list[FitResult]:
    """Trains R pairs of one kind at once; each run is the one that `fit` makes of it alone.

    Replica r is `fit(model_r, guide_r, data, seed=seeds[r], ...)`: its own initial parameters,
    permutations, binarization, noise, KL weights and learning rates, and its own run directory,
    which `fit` or another `fit_replicas` may resume. The losses are those of the single run up to
    rounding. Only noise whose distribution hangs on what the programs compute (discrete latents,
    rejection samplers) is other noise of the same distribution.

    The graph of one step is traced once and vmapped over what the replicas hold (`[R, ...]`), so
    that a step costs R times the arithmetic, but only once what every operation costs besides: it
    pays where networks and batches are small, and on a GPU that one run does not fill.

    Args:
        pairs: R pairs of model and guide, made alike but for their parameters, none of which two
            pairs share; or what makes a pair, called for each seed with the globals seeded by it.
        data: As for `fit`, except a `DataLoader`.
        seeds: One for each replica.
        estimator: The ELBO; each replica has a copy.
        schedule: One for all, or one for each.
        optimizer: As for `fit`; one for all, or a sequence of one for each.
        num_steps: How many steps to make of each.
        batch_size: B, of each; as for `fit`.
        device: As for `fit`.
        compile: Compile the step of all; if not, the graph is interpreted. `"auto"` compiles where
            the number of steps repays it. Pairs that cannot be traced, or are not of one kind, are
            trained one after the other, with a warning; if true, that is an error.
        out: A folder to write, with a run directory `00`, `01`, ... for each.
        resume: Go on from their checkpoints.
        valid: As for `fit`.
        lr_schedule: As for `fit`; of each.
        clip_grad_norm: As for `fit`; of each.
        freeze: As for `fit`; in each.
        patience: As for `fit`; each ends by itself.
        log_every: As for `fit`.
        eval_every: As for `fit`.
        checkpoint_every: As for `fit`.
        tensorboard: As for `fit`; for each.
        progress: As for `fit`; one bar for all.
        config: As for `fit`; the same for all.

    Returns:
        What `fit` returns, for each; metrics in nats per datum. A replica that becomes NaN or
        infinite ends, the others go on, and `failure` of its result says what `fit` would raise.
        `seconds` in the metrics are those of all.

    Raises:
        ValueError: As `fit`; or the numbers of pairs, seeds, schedules, optimizers differ.
        TraceError, CompileError: As `fit`.
        LockedError, WriteError, OutOfMemoryError: As `fit`.
        KeyboardInterrupt: Ctrl-C, or SIGTERM as for `fit`; checkpoints were written first.

    Example:
        >>> splits = ppl_vae.data.load("digits")
        >>> def make():
        ...     model = ppl_vae.models.VAE(splits.data_shape, latent_dim=2, hidden=(32,))
        ...     return model, ppl_vae.guides.MeanFieldGuide(model, hidden=(32,))
        >>> results = ppl_vae.fit_replicas(make, splits, seeds=range(4), num_steps=200)
        >>> len([result.metrics[-1]["elbo"] for result in results])
        4
    """
    if resume and out is None:
        raise ValueError("resume is true, but out is not given; name the folder to resume")
    if isinstance(data, DataLoader):
        raise ValueError(
            "the data are a DataLoader, whose order several runs cannot share; accepted are a "
            "tensor, Splits or a Dataset"
        )
    seeds = list(seeds)
    if not seeds:
        raise ValueError("seeds is empty; accepted is one seed for each replica")
    schedules = _each("schedule", Constant() if schedule is None else schedule, len(seeds))
    optimizers = _each("optimizer", optimizer, len(seeds))
    plan = Plan(
        estimator=Trace_ELBO() if estimator is None else estimator, schedule=schedules[0],
        optimizer=optimizers[0], num_steps=num_steps, batch_size=batch_size, seed=seeds[0],
        device=device, compile=compile, valid=valid, lr_schedule=lr_schedule,
        clip_grad_norm=clip_grad_norm, freeze=freeze, patience=patience, log_every=log_every,
        eval_every=eval_every, checkpoint_every=checkpoint_every,
    )  # fmt: skip
    plans = [
        replace(plan, seed=seed, schedule=s, optimizer=o, estimator=copy.deepcopy(plan.estimator))
        for seed, s, o in zip(seeds, schedules, optimizers, strict=True)
    ]
    made = [_made(pairs, seed) for seed in seeds] if callable(pairs) else list(pairs)
    if len(made) != len(seeds):
        raise ValueError(f"there are {len(made)} pairs and {len(seeds)} seeds; accepted is as many")
    described = [p.described(*pair, data, config) for p, pair in zip(plans, made, strict=True)]
    # Moved to the device once, and not for each.
    data, valid = resident(made[0][0], data, valid, resolve_device(device))
    plans = [replace(p, valid=valid) for p in plans]
    with fork(), validation(False), ExitStack() as closers:
        bar = closers.enter_context(closing(Progress(num_steps, progress)))
        replicas = []
        for number, (p, pair, about) in enumerate(zip(plans, made, described, strict=True)):
            replica = Replica()
            with replica.awake():
                loop = p.begin(*pair, data)
                closers.enter_context(closing(loop.prepared.stream))
                path = None if out is None else Path(out) / f"{number:02d}"
                recorder = Recorder(path, about, resume=resume, tensorboard=tensorboard)
                closers.enter_context(closing(recorder))
                recorder.begin(loop)
                replica.course = Course(loop, recorder, bar, p)
            replicas.append(replica)
        _check_own(replicas)
        with Interruption() as interruption:
            _train(replicas, plan, interruption)
        return [FitResult.of(r.course, r.store, r.failure) for r in replicas]


def _train(replicas: Sequence[Replica], plan: Plan, interruption: Interruption) -> None:
    # Resumed from checkpoints of different steps, those behind catch up by themselves.
    last = max((r.course.loop.step for r in replicas if not r.is_over), default=0)
    for replica in replicas:
        while not (replica.is_over or interruption.requested) and replica.course.loop.step < last:
            replica.advance()
    going = [replica for replica in replicas if not replica.is_over]
    together = None
    if going and not interruption.requested:
        with going[0].course.explaining(len(going)):
            together = _together(going, plan)
    while any(not replica.is_over for replica in replicas):
        if interruption.requested:
            raise interruption.requested(_leave(replicas, together))
        if together is not None and together.members:
            with replicas[together.members[0]].course.explaining(len(together.members)):
                together.advance()
        for replica in replicas:
            if not (replica.together or replica.is_over):
                replica.advance()
    for replica in replicas:
        with replica.awake():
            replica.course.end()


def _together(replicas: Sequence[Replica], plan: Plan) -> "Together | None":
    # Here, for who does not compile need not wait for torch's compiler.
    from ppl_vae.compiling import compile_replicas

    return compile_replicas(replicas, plan.num_steps, plan.compile)


def _leave(replicas: Sequence[Replica], together: "Together | None") -> str:
    """Keeps all where they stand; says where that is."""
    if together is not None:
        together.part()
    said = []
    for replica in replicas:
        if not replica.is_over:
            with replica.awake(), replica.failing():
                said.append(replica.course.leave())
    return "; ".join(said)


def _made(make: Callable[[], Pair], seed: int) -> Pair:
    with untouched():
        seed_all(seed)
        return make()


def _each(name: str, value: Any, num: int) -> list[Any]:
    """One for each replica."""
    if not isinstance(value, Sequence):
        return [value] * num
    if len(value) != num:
        raise ValueError(f"there are {len(value)} of {name} and {num} seeds; accepted is as many")
    return list(value)


def _check_own(replicas: Sequence[Replica]) -> None:
    owners: dict[int, int] = {}
    for number, replica in enumerate(replicas):
        for name, parameter in replica.course.loop.optimizers.trained.items():
            other = owners.setdefault(id(parameter), number)
            if other != number:
                raise ValueError(
                    f"the pairs {other} and {number} share the parameter '{name}'; accepted are "
                    "pairs of their own, as from a function that makes one"
                )
