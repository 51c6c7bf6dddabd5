"""The training loop: stochastic variational inference of any pair, estimator and schedule.

Shapes: N data, B data of a minibatch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Adam

from ppl_vae.data.minibatches import TrainingData
from ppl_vae.estimators import Estimator, Trace_ELBO
from ppl_vae.handlers import Weight, weighted
from ppl_vae.interruption import Interruption
from ppl_vae.loop import Loop
from ppl_vae.optimizers import LRSchedule, OptimizerFactory, Optimizers, named_parameters
from ppl_vae.preparation import Prepared, prepare, resolve_device
from ppl_vae.progress import Progress
from ppl_vae.randomness import fork, looking, seed_all, validation
from ppl_vae.recording import Recorder, run_config
from ppl_vae.schedules import Constant
from ppl_vae.stopping import Stopping

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
    _store: dict = field(repr=False, default_factory=dict)

    def scope(self) -> AbstractContextManager:
        """The parameter store of the fit, to run plain functions with their trained `pyro.param`s.

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
    progress: bool | None = None,
    config: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains a model and a guide in place.

    Runs in a parameter-store scope of its own and restores every global that it touches: the store,
    the random state, Pyro's validation. The schedule's weight is put around each step by
    `ppl_vae.handlers.scale_latents`; neither program sees it.

    Args:
        model: p(x, z), any Pyro program `model(x, ...)` that samples in `pyro.plate("data")`.
        guide: q(z | x), any Pyro program of the same arguments.
        data: A tensor `[N, *data_shape]`, `Splits`, or a torch `Dataset` or `DataLoader` (whose own
            generator is seeded anew each epoch). Of items that are tuples `(x, ...)` the programs
            get as many entries as the model takes. A latent outside the data plate counts once a
            minibatch, unless the plate is told the number of all data and subsamples.
        estimator: A `pyro.infer.ELBO`, of ours or Pyro's own; `Trace_ELBO()` if not given.
        schedule: From the step's number, counted from 0, to the weight on the latent terms;
            `Constant(1.0)` if not given.
        optimizer: From parameters to a torch optimizer; or a mapping from prefixes of parameter
            names (`model`, `guide.encoder`, ...) to such functions.
        num_steps: How many steps to make in all, >= 1.
        batch_size: B; `min(128, N)` if not given. A remainder of N modulo B is left out of each
            epoch's permutation. Not for a `DataLoader`.
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
        progress: Show a bar; on a terminal, if not given.
        config: Entries of `config.yaml` that say more than `fit` can see, such as the data's name.

    Returns:
        The trained pair and its metrics.

    Raises:
        ValueError: An argument, the data or the pair is not acceptable; the message says what is.
        TraceError, CompileError: `compile` is true, and the step cannot be compiled. ValueErrors.
        NonFiniteError: The loss or a gradient became NaN or infinite; the message names the step,
            the first bad site and the parameter. The last checkpoint stays as it was.
        CheckpointError: The checkpoint to resume from is damaged.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written first.

    Example:
        >>> splits = ppl_vae.data.load("digits")
        >>> model = ppl_vae.models.VAE(splits.data_shape, latent_dim=2, hidden=(32,))
        >>> guide = ppl_vae.guides.MeanFieldGuide(model, hidden=(32,))
        >>> result = fit(model, guide, splits, num_steps=200)
        >>> result.metrics[-1]["elbo"] > result.metrics[0]["elbo"]
        True
    """
    _check_counts(
        num_steps=num_steps,
        log_every=log_every,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
        **({} if patience is None else {"patience": patience}),
    )
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile is {compile!r}; accepted are True, False and 'auto'")
    if clip_grad_norm is not None and not clip_grad_norm > 0:
        raise ValueError(f"clip_grad_norm is {clip_grad_norm}; accepted is a number > 0")
    if resume and out is None:
        raise ValueError("resume is true, but out is not given; name the run directory to resume")
    freeze = (freeze,) if isinstance(freeze, str) else tuple(freeze)
    estimator = Trace_ELBO() if estimator is None else estimator
    if not isinstance(estimator, ELBO):
        raise ValueError(
            f"estimator is {estimator!r}; accepted is an instance of a pyro.infer.ELBO, as in "
            "Trace_ELBO()"
        )
    schedule = Constant() if schedule is None else schedule
    if patience is not None and schedule(num_steps - 1) != schedule(num_steps):
        raise ValueError(
            f"patience is {patience}, but the schedule is still moving at the last of {num_steps} "
            "steps, and patience counts only at its last value; end the ramp earlier"
        )
    place = resolve_device(device)
    described = run_config(
        data, model, guide, estimator, schedule, optimizer, lr_schedule, extra=config,
        num_steps=num_steps, batch_size=batch_size, seed=seed, device=str(device),
        compile=compile, clip_grad_norm=clip_grad_norm, freeze=list(freeze), patience=patience,
        log_every=log_every, eval_every=eval_every, checkpoint_every=checkpoint_every,
    )  # fmt: skip
    with _own_globals() as store:
        seed_all(seed)
        prepared = prepare(model, guide, data, valid, batch_size, seed, place)
        _try_once(model, guide, estimator, schedule(0), prepared)
        optimizers = Optimizers(named_parameters(model, guide), optimizer, lr_schedule, freeze)
        if prepared.valid is None and (patience is not None or optimizers.need_validation):
            raise ValueError(
                "patience and ReduceLROnPlateau go by the validation elbo, and there are no "
                "validation data; give valid=..., or Splits that have some"
            )
        loop = Loop(
            model, guide, prepared, estimator, schedule, optimizers,
            seed=seed, clip_grad_norm=clip_grad_norm,
            stopping=Stopping(patience, schedule(num_steps)),
        )  # fmt: skip
        recorder = Recorder(out, described, resume=resume, tensorboard=tensorboard)
        recorder.begin(loop)
        bar = Progress(num_steps, progress)
        with closing(recorder), closing(bar), Interruption() as interruption:
            bar.update(loop.step)
            # By all steps, those before a resume too: the second part is to be as the first.
            if compile is True or (compile == "auto" and num_steps >= _FEW_STEPS):
                # Here, for who does not compile need not wait for torch's compiler.
                from ppl_vae.compiling import compile_loop

                compile_loop(loop, num_steps, asked_for=compile is True)
            while loop.step < num_steps and not loop.stopping.is_due:
                # Up to the next step that somebody looks into.
                most = min(e - loop.step % e for e in (log_every, eval_every, checkpoint_every))
                most = min(most, num_steps - loop.step)
                line = loop.advance(log=loop.step % log_every == 0, most=most)
                bar.update(loop.step)
                if line is not None:
                    recorder.write(line)
                    bar.show(line)
                last = loop.step == num_steps
                if last or loop.step % eval_every == 0 or loop.step % checkpoint_every == 0:
                    loop.check()
                if prepared.valid is not None and (last or loop.step % eval_every == 0):
                    line = loop.validate()
                    recorder.write(line)
                    bar.show(line)
                    if loop.stopping.best_step == loop.step:
                        recorder.save_best(loop)
                if last or loop.stopping.is_due or loop.step % checkpoint_every == 0:
                    recorder.save(loop)
                if interruption.requested and not (last or loop.stopping.is_due):
                    loop.check()
                    recorder.save(loop)
                    where = f"; {recorder.path} holds the checkpoint" if recorder.path else ""
                    raise KeyboardInterrupt(f"stopped at step {loop.step} of {num_steps}{where}")
            if patience is not None:
                loop.take_best()
        return FitResult(
            model=model,
            guide=guide,
            metrics=recorder.lines,
            num_steps=loop.step,
            stopped_early=loop.stopping.is_due,
            best_step=loop.stopping.best_step,
            best_elbo=loop.stopping.best,
            path=recorder.path,
            compiled=loop.compiled is not None,
            _store=store,
        )


def _try_once(
    model: Programs, guide: Programs, estimator: ELBO, weight: Weight, prepared: Prepared
) -> None:
    """Lets a pair, weight and estimator that do not go together say so before a run is begun."""
    if isinstance(weight, Mapping) and (unknown := set(weight) - set(prepared.latents)):
        raise ValueError(
            f"the schedule weighs {sorted(unknown)}, which the model does not sample; accepted are "
            f"its latent sites {prepared.latents}"
        )
    if isinstance(estimator, Estimator):
        state = {name: value.clone() for name, value in estimator.state_dict().items()}
        with looking(model, guide), weighted(weight), validation(True):
            estimator.differentiable_loss(model, guide, *prepared.first)
        estimator.load_state_dict(state)


@contextmanager
def _own_globals() -> Iterator[Any]:
    """A parameter store of the fit's own; random state and validation as outside, afterwards."""
    with fork(), pyro.get_param_store().scope() as store, validation(False):
        yield store


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; accepted is an integer >= 1")
