"""From names to a finished run: what `ppl-vae train` does."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

from pyro.infer import ELBO
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ppl_vae.data import load
from ppl_vae.estimators import Estimator
from ppl_vae.fit import fit
from ppl_vae.guides import Guide, MeanFieldGuide
from ppl_vae.loggers import TRACKERS
from ppl_vae.models import VAE, Model
from ppl_vae.preparation import resolve_device
from ppl_vae.randomness import seed_all, untouched
from ppl_vae.ranks import joined, own_device
from ppl_vae.results import evaluate_run
from ppl_vae.runs import load_run
from ppl_vae.schedules import Constant, Schedule

__all__ = ["train"]

# The evaluation at the end of `train` is a first look, and takes seconds.
_NUM_PARTICLES, _NUM_DATA = 100, 1000


def train(
    data: str = "digits",
    root: str | None = None,
    binarize: Literal["dynamic", "fixed"] | None = None,
    model: Callable[[Sequence[int]], Model] = VAE,
    guide: Callable[[Model], Guide] = MeanFieldGuide,
    estimator: Estimator | ELBO | None = None,
    schedule: Schedule = Constant(),  # noqa: B008 (frozen)
    optimizer: Callable[[Iterable[Any]], Optimizer] = partial(Adam, lr=1e-3),  # noqa: B008
    num_steps: int = 5000,
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    compile: bool | Literal["auto"] = "auto",
    out: str | None = None,
    resume: bool = False,
    lr_schedule: Callable[[Optimizer], LRScheduler] | None = None,
    clip_grad_norm: float | None = None,
    freeze: Sequence[str] = (),
    patience: int | None = None,
    log_every: int = 100,
    eval_every: int = 500,
    checkpoint_every: int = 1000,
    tensorboard: bool | None = None,
    track: Literal["wandb", "mlflow"] | None = None,
    progress: bool | None = None,
    report: bool = True,
    allow: Sequence[str] = (),
) -> Path:
    """Trains a model and a guide, evaluates them, and writes the run with its report.

    Args:
        data: A name (see `ppl-vae list data`), or a path to a .npz, a .npy, a folder of
            .npy shards or a folder of images. What is large stays on the disk.
        root: Where named data lie; $PPL_VAE_DATA or a cache folder if not given.
        binarize: Make grey data binary: once (fixed) or anew at every step (dynamic).
        model: p(x, z); see `ppl-vae list models`.
        guide: q(z | x); see `ppl-vae list guides`.
        estimator: The ELBO; ppl_vae.estimators.Trace_ELBO if not given.
        schedule: The weight of the KL, by step.
        optimizer: One of torch.optim.
        num_steps: How many steps to make in all.
        batch_size: Data of a step, of all ranks together; 128, or all if fewer, if not given.
        seed: Of initialization, permutations, and all that is random in training.
        device: auto, cpu, cuda, ...
        compile: Compile the step: true, false, or auto, where the number of steps repays it.
        out: The run directory; runs/<time> if not given.
        resume: Go on from the checkpoint in `out`; start if there is none.
        lr_schedule: One of torch.optim.lr_scheduler, stepped every step.
        clip_grad_norm: The largest norm of all gradients together.
        freeze: Beginnings of the names of parameters to leave as they are.
        patience: Stop after this many validations without a better elbo.
        log_every: Steps between lines of training metrics.
        eval_every: Steps between validations.
        checkpoint_every: Steps between checkpoints.
        tensorboard: Write TensorBoard events; where installed, if not given.
        track: Send the metrics to Weights & Biases or MLflow too; their environment variables say
            where.
        progress: Show a bar; on a terminal, if not given.
        report: Evaluate, and write the report; else only the run.
        allow: Modules whose classes a config may name, besides ppl_vae's.

    Under torchrun all processes train together: each on its part of every minibatch, on the CPU or
    on the GPU of its own number. The first one validates, evaluates and writes.

    Returns:
        The run's folder.

    Raises:
        ValueError: As `ppl_vae.data.load` and `ppl_vae.fit`.
    """
    if resume and out is None:
        raise ValueError("resume is true, but out is not given; name the run directory to resume")
    path = Path(out) if out is not None else _new_path()
    splits = load(data, root=root, binarize=binarize)
    device = own_device(device)
    with untouched(), joined(resolve_device(device)) as ranks:
        seed_all(seed)
        built = model(splits.data_shape)
        paired = guide(built)
        fit(
            built, paired, splits,
            estimator=estimator, schedule=schedule, optimizer=optimizer, num_steps=num_steps,
            batch_size=batch_size, seed=seed, device=device, compile=compile, out=path,
            resume=resume, lr_schedule=lr_schedule, clip_grad_norm=clip_grad_norm, freeze=freeze,
            patience=patience, log_every=log_every, eval_every=eval_every,
            checkpoint_every=checkpoint_every, tensorboard=tensorboard, progress=progress,
            loggers=() if track is None else [TRACKERS[track]()],
            config={"data": data, "root": root, "binarize": binarize}, ranks=ranks,
        )  # fmt: skip
        if not report or (ranks is not None and not ranks.is_first):
            return path
        # Here, since it brings matplotlib, which neither `--help` nor an error need wait for.
        from ppl_vae.report import write_report

        run = load_run(path, allow, model=built, guide=paired, device=device)
        split = next(name for name in ("test", "valid", "train") if len(getattr(splits, name)))
        size = min(_NUM_DATA, len(getattr(splits, split)))
        evaluate_run(run, splits, split=split, num_particles=_NUM_PARTICLES, num_data=size)
        write_report(run, splits, split=split)
        return path


def _new_path() -> Path:
    """A folder that is not there yet; a clock may show the same time twice."""
    name = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())
