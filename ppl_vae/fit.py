"""The training loop: stochastic variational inference of any pair, estimator and schedule.

Shapes: N data, B data of a minibatch.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Adam

from ppl_vae.course import Course
from ppl_vae.data.minibatches import TrainingData
from ppl_vae.diagnosis import NonFiniteError
from ppl_vae.estimators import Trace_ELBO
from ppl_vae.handlers import Weight
from ppl_vae.interruption import Interruption
from ppl_vae.loggers import Logger
from ppl_vae.optimizers import LRSchedule, OptimizerFactory
from ppl_vae.plan import Plan, among, own_globals
from ppl_vae.progress import Progress
from ppl_vae.ranks import Ranks
from ppl_vae.recording import Recorder
from ppl_vae.schedules import Constant

__all__ = ["FitResult", "fit"]

Programs = Callable[..., Any]

# Below, no step repays its compiling.
_FEW_STEPS = 1000


@dataclass(frozen=True)
class FitResult:
    """What `fit` leaves.

    Attributes:
        model: The model, trained in place.
        guide: The guide, trained in place.
        metrics: The lines of `metrics.jsonl`; nats per datum.
        num_steps: How many steps were made, those before a resume included.
        stopped_early: Whether `patience` ran out. With `patience` the parameters are the best ones
            in any case.
        best_step: The step of the best validation, or none without validation data.
        best_elbo: The validation `elbo` there, nats per datum; for a guide without a density minus
            the weighted loss.
        path: The run directory, or none.
        compiled: Whether the last step was a compiled one.
        failure: What ended a replica too early (`fit_replicas`); else none.
    """

    model: Programs
    guide: Programs
    metrics: list[dict[str, Any]]
    num_steps: int
    stopped_early: bool
    best_step: int | None
    best_elbo: float | None
    path: Path | None
    compiled: bool
    failure: NonFiniteError | None = None
    _store: dict = field(repr=False, default_factory=dict)

    def __repr__(self) -> str:
        names = (getattr(p, "__name__", type(p).__name__) for p in (self.model, self.guide))
        best = "" if self.best_elbo is None else f", best_elbo={self.best_elbo:.2f}"
        where = "" if self.path is None else f", path={str(self.path)!r}"
        return f"FitResult({', '.join(names)}, num_steps={self.num_steps}{best}{where})"

    @classmethod
    def of(cls, course: Course, store: dict, failure: NonFiniteError | None = None) -> "FitResult":
        """What a course has come to, with its parameter store."""
        loop, stopping = course.loop, course.loop.stopping
        return cls(
            model=loop.model,
            guide=loop.guide,
            metrics=course.recorder.lines,
            num_steps=loop.step,
            stopped_early=stopping.is_due,
            best_step=stopping.best_step,
            best_elbo=stopping.best,
            path=course.recorder.path,
            compiled=course.steps.is_compiled,
            failure=failure,
            _store=store,
        )

    def scope(self) -> AbstractContextManager:
        """The parameter store of the fit: plain functions run in it with what they were trained to.

        Modules hold their own parameters and need no scope.
        """
        return pyro.get_param_store().scope(self._store)


def fit(
    model: Programs,
    guide: Programs,
    data: TrainingData,
    *,
    estimator: ELBO | None = None,
    schedule: Callable[[int], Weight] | None = None,
    optimizer: OptimizerFactory | Mapping[str, OptimizerFactory] = partial(Adam, lr=1e-3),  # noqa: B008
    num_steps: int,
    batch_size: int | None = None,
    seed: int = 0,
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
    loggers: Sequence[Logger] = (),
    progress: bool | None = None,
    config: Mapping[str, Any] | None = None,
    ranks: Ranks | None = None,
) -> FitResult:
    """Trains a model and a guide in place.

    Runs in a parameter-store scope of its own and restores every global that it touches: the store,
    the random state, Pyro's validation. The schedule's weight is put around each step by
    `ppl_vae.handlers.scale_latents`; neither program sees it.

    Args:
        model: p(x, z), any Pyro program `model(x, ...)` that samples in `pyro.plate("data")`.
        guide: q(z | x), any Pyro program of the same arguments.
        data: A tensor `[N, *data_shape]`, `Splits`, `ppl_vae.data.Shards` on a disk (all rows, as
            `split_rows` has not held any out), or a torch `Dataset` or `DataLoader` (whose own
            generator is seeded anew each epoch), or of Hugging Face a `datasets.Dataset` or
            `IterableDataset` with one column of images or arrays. Of items that are tuples
            `(x, ...)` the programs get as many entries as the model takes. A latent outside the
            data plate counts once a minibatch, unless the plate is told the number of all data and
            subsamples.
        estimator: A `pyro.infer.ELBO`, of ours or Pyro's own; `Trace_ELBO()` if not given.
        schedule: From the step's number, counted from 0, to the weight on the latent terms;
            `Constant(1.0)` if not given.
        optimizer: From parameters to a torch optimizer; or a mapping from prefixes of parameter
            names (`model`, `guide.encoder`, ...) to such functions.
        num_steps: How many steps to make in all, >= 1.
        batch_size: B; `min(128, N)` if not given. A remainder of N modulo B is left out of each
            epoch's permutation. Not for a `DataLoader`. With ranks, of all of them together.
        seed: Of the permutations, and of all that is random in training.
        device: `"auto"`, `"cpu"`, `"cuda"`, ... Modules and data are moved there; plain functions
            must make their tensors where x is (`x.new_zeros`).
        compile: Make the programs, the estimator and the gradients one graph, once, and let
            Inductor make machine code of it. The same random stream, and the same losses up to
            rounding; torch's optimizers make their steps fused. `"auto"` does so where the number
            of steps repays the compiling, and warns where something is in the way. What looks at
            the value of a tensor cannot be compiled: Pyro's own ELBOs, enumeration, Python that
            hangs on data. A batch of another shape is compiled anew.
        out: A run directory to write; none is written without.
        resume: Go on from the checkpoint in `out`, bit for bit; start if there is none. A larger
            `num_steps` prolongs a finished run, whose last validation then counts among the others.
        valid: Validation data, `[N, *data_shape]`, where `data` bring none.
        lr_schedule: From an optimizer to one of torch's learning-rate schedules, stepped every
            step (`ReduceLROnPlateau` at every validation, by minus the elbo).
        clip_grad_norm: Clip the norm of all gradients together to this. The loss is a sum over the
            minibatch, so the norm grows with B.
        freeze: Prefixes of the names of parameters to leave as they are; `["model"]` trains the
            guide alone.
        patience: Stop after this many validations without a better `elbo`, counted only where the
            schedule has its last value, and keep the best parameters.
        log_every: Steps between lines of training metrics.
        eval_every: Steps between validations.
        checkpoint_every: Steps between checkpoints.
        tensorboard: Write TensorBoard events into `out`; where installed, if not given.
        loggers: Where the lines of metrics go besides: `ppl_vae.loggers.WeightsAndBiases()`,
            `MLflow()`, or any object with the three methods of `Logger`. One that fails on the way
            is left out with a warning.
        progress: Show a bar; on a terminal, if not given.
        config: Entries of `config.yaml` that say more than `fit` can see, such as the data's name.
        ranks: The processes that train together, of which this is one; each calls `fit` alike.
            Every rank trains on its part of each minibatch, B / R data with noise of its own, and
            the first one validates and writes. The same training for any R, up to noise, and
            resumed with any.

    Returns:
        The trained pair and its metrics.

    Raises:
        ValueError: An argument, the data or the pair is not acceptable; the message says what is.
        TraceError, CompileError: `compile` is true, and the step cannot be compiled. ValueErrors.
        NonFiniteError: The loss or a gradient became NaN or infinite; the message names the step,
            the first bad site and the parameter. The last checkpoint stays as it was.
        LostRankError: Another rank is gone.
        CheckpointError: The checkpoint to resume from is damaged.
        LockedError: Another training is writing `out`. A ValueError.
        WriteError: The disk is full, or `out` cannot be written; the last checkpoint is whole. An
            OSError.
        OutOfMemoryError: The message says which batch may fit, an estimate. A MemoryError.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written first. `Terminated`, a subclass, for
            SIGTERM.

    Example:
        >>> splits = ppl_vae.data.load("digits")
        >>> model = ppl_vae.models.VAE(splits.data_shape, latent_dim=2, hidden=(32,))
        >>> guide = ppl_vae.guides.MeanFieldGuide(model, hidden=(32,))
        >>> result = fit(model, guide, splits, num_steps=200)
        >>> result.metrics[-1]["elbo"] > result.metrics[0]["elbo"]
        True
    """
    if resume and out is None:
        raise ValueError("resume is true, but out is not given; name the run directory to resume")
    plan = Plan(
        estimator=Trace_ELBO() if estimator is None else estimator,
        schedule=Constant() if schedule is None else schedule,
        optimizer=optimizer, num_steps=num_steps,
        batch_size=batch_size, seed=seed, device=device, compile=compile, valid=valid,
        lr_schedule=lr_schedule, clip_grad_norm=clip_grad_norm, freeze=freeze, patience=patience,
        log_every=log_every, eval_every=eval_every, checkpoint_every=checkpoint_every,
    )  # fmt: skip
    described = plan.described(model, guide, data, config)
    with own_globals() as store:
        loop = plan.begin(model, guide, data, ranks)
        writes = ranks is None or ranks.is_first
        recorder = Recorder(
            out if writes else None, described, resume=resume, tensorboard=tensorboard,
            loggers=loggers if writes else (),
        )  # fmt: skip
        bar = Progress(num_steps, progress if writes else False)
        stream = loop.prepared.stream
        with closing(stream), closing(recorder), closing(bar), Interruption() as interruption:
            recorder.begin(loop)
            with among(ranks, loop):
                course = Course(loop, recorder, bar, plan)
                # By all steps, those before a resume too: the second part is to be as the first.
                pays = compile is True or (compile == "auto" and num_steps >= _FEW_STEPS)
                if pays and not course.is_over:
                    # Here, for who does not compile need not wait for torch's compiler.
                    from ppl_vae.compiling import compile_loop

                    with course.explaining():
                        course.steps = compile_loop(loop, num_steps, asked_for=compile is True)
                while not course.is_over:
                    course.advance()
                    asked = interruption.requested
                    if course.is_asked(asked is not None) and not course.is_over:
                        # Of several ranks, it may be another that is asked.
                        raise (asked or KeyboardInterrupt)(course.leave())
                course.end()
        return FitResult.of(course, store)
