"""The arguments of a training, checked, and the training that they ask for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from ppl_vae.data.indexed import DEFAULT_BATCH_SIZE
from ppl_vae.data.minibatches import TrainingData
from ppl_vae.estimators import Estimator
from ppl_vae.estimators.base import forgetting
from ppl_vae.estimators.term_modifier import TermModifier
from ppl_vae.handlers import Weight, weighted
from ppl_vae.loop import Loop
from ppl_vae.memory import Load, explaining
from ppl_vae.optimizers import LRSchedule, OptimizerFactory, Optimizers, named_parameters
from ppl_vae.preparation import Prepared, prepare, resolve_device
from ppl_vae.randomness import fork, looking, seed_all, validation
from ppl_vae.ranks import Ranks
from ppl_vae.recording import run_config
from ppl_vae.stopping import Stopping

__all__ = ["Plan", "among", "own_globals"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `fit` is asked for, besides model, guide and data; see there.

    Raises:
        ValueError: An argument is not acceptable.
    """

    estimator: ELBO
    schedule: Callable[[int], Weight]
    optimizer: OptimizerFactory | Mapping[str, OptimizerFactory]
    num_steps: int
    batch_size: int | None
    seed: int
    device: str | torch.device
    compile: bool | Literal["auto"]
    valid: Tensor | None
    lr_schedule: LRSchedule | None
    clip_grad_norm: float | None
    freeze: Sequence[str]
    patience: int | None
    log_every: int
    eval_every: int
    checkpoint_every: int

    def __post_init__(self) -> None:
        """Checks."""
        freeze = (self.freeze,) if isinstance(self.freeze, str) else tuple(self.freeze)
        object.__setattr__(self, "freeze", freeze)
        counts = ("num_steps", "log_every", "eval_every", "checkpoint_every")
        for name in counts if self.patience is None else (*counts, "patience"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; accepted is an integer >= 1")
        if not isinstance(self.compile, bool) and self.compile != "auto":
            raise ValueError(f"compile is {self.compile!r}; accepted are True, False and 'auto'")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise ValueError(f"clip_grad_norm is {self.clip_grad_norm}; accepted is a number > 0")
        if not isinstance(self.estimator, ELBO):
            raise ValueError(
                f"estimator is {self.estimator!r}; accepted is an instance of a pyro.infer.ELBO, "
                "as in Trace_ELBO()"
            )
        last, final = self.schedule(self.num_steps - 1), self.schedule(self.num_steps)
        if self.patience is not None and last != final:
            raise ValueError(
                f"patience is {self.patience}, but the schedule is still moving at the last of "
                f"{self.num_steps} steps, and patience counts only at its last value; end the ramp "
                "earlier"
            )

    @property
    def particles(self) -> int:
        """Draws of the guide for each datum, as the estimator was asked for."""
        return getattr(self.estimator, "num_particles", 1)

    def described(
        self, model: Any, guide: Any, data: TrainingData, extra: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """What `config.yaml` is to hold."""
        return run_config(
            data, model, guide, self.estimator, self.schedule, self.optimizer, self.lr_schedule,
            extra=extra, num_steps=self.num_steps, batch_size=self.batch_size, seed=self.seed,
            device=str(self.device), compile=self.compile, clip_grad_norm=self.clip_grad_norm,
            freeze=list(self.freeze), patience=self.patience, log_every=self.log_every,
            eval_every=self.eval_every, checkpoint_every=self.checkpoint_every,
        )  # fmt: skip

    def begin(self, model: Any, guide: Any, data: TrainingData, ranks: Ranks | None = None) -> Loop:
        """The training at its first step; seeds the globals, which are to be its own.

        Raises:
            ValueError: The data, the pair or the device is not acceptable.
            OutOfMemoryError: They do not fit into memory.
        """
        place = resolve_device(self.device)
        seed_all(self.seed)
        load = Load(self.batch_size or DEFAULT_BATCH_SIZE, self.particles)
        with explaining("before the first step", load, place):
            prepared = prepare(
                model, guide, data, self.valid, self.batch_size, self.seed, place, ranks
            )
            self._try_once(model, guide, prepared)
        parameters = named_parameters(model, guide)
        optimizers = Optimizers(parameters, self.optimizer, self.lr_schedule, self.freeze)
        if prepared.valid is None and (self.patience is not None or optimizers.need_validation):
            raise ValueError(
                "patience and ReduceLROnPlateau go by the validation elbo, and there are no "
                "validation data; give valid=..., or Splits that have some"
            )
        return Loop(
            model, guide, prepared, self.estimator, self.schedule, optimizers,
            seed=self.seed, clip_grad_norm=self.clip_grad_norm,
            stopping=Stopping(self.patience, self.schedule(self.num_steps)), ranks=ranks,
        )  # fmt: skip

    def _try_once(self, model: Any, guide: Any, prepared: Prepared) -> None:
        """Lets a pair, weight and estimator that do not go together say so."""
        weight, estimator = self.schedule(0), self.estimator
        if isinstance(weight, Mapping) and (unknown := set(weight) - set(prepared.latents)):
            raise ValueError(
                f"the schedule weighs {sorted(unknown)}, which the model does not sample; accepted "
                f"are its latent sites {prepared.latents}"
            )
        if isinstance(estimator, Estimator):
            watched = looking(model, guide)
            with watched, forgetting(estimator), weighted(weight), validation(True):
                estimator.differentiable_loss(model, guide, *prepared.first)


@contextmanager
def among(ranks: Ranks | None, loop: Loop) -> Iterator[None]:
    """A training of one rank among others: begun where the first one stands."""
    if ranks is None:
        yield
        return
    tree = ranks.tree_from_first({"state": loop.state_dict(), "best": loop.best or {}})
    if not ranks.is_first:
        loop.load_state_dict(tree["state"], loop.seconds)
        loop.best = tree["best"] or None
    # An estimator may be used again, alone.
    asks = isinstance(loop.estimator, TermModifier)
    if asks:
        loop.estimator.ranks = ranks
    try:
        yield
    finally:
        if asks:
            loop.estimator.ranks = None


@contextmanager
def own_globals() -> Iterator[Any]:
    """A parameter store of one's own; random state and validation as outside, afterwards."""
    with fork(), pyro.get_param_store().scope() as store, validation(False):
        yield store
