"""One step after the other: the state of a training, and how it moves on.

Shapes: B data of a minibatch.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from ppl_vae.diagnosis import NonFiniteError, diagnose
from ppl_vae.estimators import Estimator
from ppl_vae.evaluate import average_terms, elbo_terms
from ppl_vae.handlers import Weight, weighted
from ppl_vae.lines import Line, numbers, objective, plain, scalar
from ppl_vae.optimizers import Optimizers, clip, named_parameters
from ppl_vae.preparation import Prepared
from ppl_vae.randomness import looking, restore, snapshot
from ppl_vae.ranks import Ranks
from ppl_vae.state import load_parameters, parameters_of
from ppl_vae.stopping import Stopping

__all__ = ["Loop"]


class Loop:
    """A training at one of its steps.

    Args:
        model: The model.
        guide: The guide.
        prepared: Data, checked and on the device.
        estimator: The ELBO.
        schedule: From steps to KL weights.
        optimizers: What moves the parameters.
        seed: Of the validation's draws, the same at every validation.
        clip_grad_norm: The largest norm of all gradients, or none.
        stopping: Early stopping.
        ranks: The processes that train together, of which this is one; none if it is alone.

    Attributes:
        step: How many steps are made.
        best: State of model and guide at the best validation.
    """

    #: Whether its steps are compiled; see `ppl_vae.ahead`.
    is_compiled = False

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        prepared: Prepared,
        estimator: ELBO,
        schedule: Callable[[int], Weight],
        optimizers: Optimizers,
        *,
        seed: int,
        clip_grad_norm: float | None,
        stopping: Stopping,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.guide = model, guide
        self.prepared, self.estimator = prepared, estimator
        self.schedule, self.optimizers = schedule, optimizers
        self.stopping, self.ranks = stopping, ranks
        self.step = 0
        self.best: dict[str, Any] | None = None
        self._seed, self.clip_grad_norm = seed, clip_grad_norm
        self._trained = list(optimizers.trained.values())
        self._seconds, self._started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent in training, before a resume included."""
        return self._seconds + time.monotonic() - self._started

    def advance(self, *, log: bool, most: int = 1) -> Line | None:
        """Makes one step.

        Args:
            most: How many steps might be made at once.
            log: Also give the metrics of this step's minibatch, at the parameters before the step
                and at the step's own noise: with weight 1 the weighted loss is minus the bound.

        Raises:
            NonFiniteError: The loss or a gradient is NaN or infinite; the parameters are then as
                they were before this step.
        """
        del most
        return self.make(*self.next(), log=log)

    def next(self) -> tuple[tuple, Weight]:
        """The minibatch and the KL weight of the next step, which the estimator is told of."""
        if self.ranks is not None:
            self.ranks.seed(self._seed, self.step)
        args = self.prepared.batch()
        weight = self.schedule(self.step)
        if hasattr(self.estimator, "set_step"):
            self.estimator.set_step(self.step)
        return args, weight

    def make(self, args: tuple, weight: Weight, *, log: bool) -> Line | None:
        """The step on this minibatch; as `advance`."""
        drawn = snapshot()
        self.optimizers.zero_grad()
        with weighted(weight):
            loss = self.combined(self._backward(args))
        if not bool(torch.isfinite(loss + self._gradient_norm())):
            raise self._failure(args, weight, drawn, loss)
        line = self.train_line(args, weight, loss, drawn) if log else None
        if self.clip_grad_norm is not None:
            clip(self._trained, self.clip_grad_norm)
        self.optimizers.step()
        self.step += 1
        return line

    def combined(self, loss: Tensor) -> Tensor:
        """The loss of a minibatch, its gradients made those of all ranks' parts."""
        if self.ranks is None:
            return loss
        return self.ranks.combine(loss, self._trained, scaled=self.prepared.scale != 1)

    def train_line(
        self, args: tuple, weight: Weight, loss: Tensor | None, drawn: dict[str, Any]
    ) -> Line:
        """The metrics of a minibatch.

        Args:
            args: The minibatch.
            weight: The KL weight.
            loss: Where it is not known yet, the line's is NaN, and to be filled in.
            drawn: The random state before the step.
        """
        num_data = self.prepared.num_data(args)
        line = {
            **self._head("train"),
            "loss": math.nan if loss is None else loss.item() / num_data,
            "weight": plain(weight),
            "learning_rate": self.optimizers.learning_rates,
        }
        # The step's own noise, and none of the stream used up: logging changes no result.
        if self.prepared.has_density and getattr(self.estimator, "is_bound", True):
            with looking(self.model, self.guide):
                restore(drawn)
                loss_at_one = self.estimator.loss(self.model, self.guide, *args)
            line["bound"] = -scalar(loss_at_one).item() / num_data
        with looking(self.model, self.guide):
            restore(drawn)
            line |= numbers(elbo_terms(self.model, self.guide, *args))
        return line if self.ranks is None else self.ranks.average(line)

    def check(self) -> None:
        """Every step has been looked at."""

    def keep(self) -> None:
        """There is nothing to go back to."""

    def validate(self) -> Line:
        """The metrics of the validation data at KL weight 1, and what follows from them."""
        assert self.prepared.valid is not None
        if self.ranks is not None and not self.ranks.is_first:
            self._take_in(self.ranks.from_first(0.0))
            return self._head("valid")
        with _evaluating(self.model, self.guide):
            terms = average_terms(self.model, self.guide, self.prepared.valid, seed=self._seed)
        # At the last weight whatever is in force: values under several weights do not compare.
        value = objective(terms, self.stopping.final_weight)
        self._take_in(value if self.ranks is None else self.ranks.from_first(value))
        line = {**self._head("valid"), **numbers(terms)}
        if terms.elbo is not None:
            line["elbo_standard_error"] = terms.summary()["elbo"].standard_error
        return line

    def take_best(self) -> None:
        """Puts the parameters of the best validation in place."""
        if self.best is not None:
            load_parameters(self.model, self.guide, self.best)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as a tree for `ppl_vae.checkpoint`."""
        stream = self.prepared.stream
        stopping = {k: v for k, v in asdict(self.stopping).items() if k[:4] in ("best", "wait")}
        return {
            **parameters_of(self.model, self.guide),
            **self._about(),
            "optimizer": self.optimizers.state_dict(),
            "estimator": self._remembered(),
            "random": snapshot(),
            "progress": {
                "step": self.step,
                "epoch": stream.epoch,
                "position": stream.position,
                "stopping": stopping,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any], seconds: float) -> None:
        """Goes on from `state_dict`."""
        load_parameters(self.model, self.guide, state)
        self.optimizers.load_state_dict(state["optimizer"])
        if state.get("estimator"):
            self.estimator.load_state_dict(state["estimator"])
        progress = state["progress"]
        self.step = progress["step"]
        self.prepared.stream.seek(progress["epoch"], progress["position"])
        for name, value in progress["stopping"].items():
            setattr(self.stopping, name, value)
        self._seconds, self._started = seconds, time.monotonic()
        restore(state["random"])

    def best_state(self) -> dict[str, Any]:
        """The parameters of the best validation, as a tree for `ppl_vae.checkpoint`."""
        assert self.best is not None
        return {**self.best, **self._about(), "progress": {"step": self.stopping.best_step}}

    def _take_in(self, value: float) -> None:
        """What follows from a validation, the same on all ranks."""
        if self.stopping.saw(value, self.step, self.schedule(self.step)):
            self.best = parameters_of(self.model, self.guide)
        self.optimizers.validated(-value)

    def _backward(self, args: tuple) -> Tensor:
        """The programs' own loss and gradients."""
        if not hasattr(self.estimator, "differentiable_loss"):
            # RenyiELBO, TraceGraph_ELBO and ReweightedWakeSleep have only this way in.
            return scalar(self.estimator.loss_and_grads(self.model, self.guide, *args))
        loss = self.estimator.differentiable_loss(self.model, self.guide, *args)
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise ValueError(
                "the loss depends on no parameter that is trained; check `freeze`, and that the "
                "parameters take part in the programs"
            )
        loss.backward(inputs=self._trained)
        return loss.detach()

    def _gradient_norm(self) -> Tensor:
        gradients = [p.grad for p in self._trained if p.grad is not None]
        return torch.stack(torch._foreach_norm(gradients)).sum() if gradients else torch.zeros(())

    def _head(self, split: str) -> Line:
        return {
            "split": split,
            "step": self.step,
            "epoch": round(self.prepared.stream.fractional_epoch, 4),
            "seconds": round(self.seconds, 3),
        }

    def _failure(self, args: tuple, weight: Weight, drawn: dict, loss: Tensor) -> NonFiniteError:
        parameters = named_parameters(self.model, self.guide)
        with looking(self.model, self.guide):
            restore(drawn)
            found = diagnose(self.model, self.guide, args, weight, parameters)
        what = "a gradient" if torch.isfinite(loss) else "the loss"
        return NonFiniteError(
            f"step {self.step}: {what} is not finite. First bad: {found}. Training stopped before "
            "this step changed anything; try a smaller learning rate, clip_grad_norm, or a KL "
            "warm-up"
        )

    def _remembered(self) -> dict[str, Tensor]:
        """What an estimator of ours keeps from step to step, such as a baseline."""
        state = self.estimator.state_dict() if isinstance(self.estimator, Estimator) else {}
        return {name: value.detach().clone() for name, value in state.items()}

    def _about(self) -> dict[str, Any]:
        shape, dtype = self.prepared.data_shape, str(self.prepared.dtype).removeprefix("torch.")
        rest = [
            {"shape": list(v.shape[1:]), "dtype": str(v.dtype).removeprefix("torch.")}
            for v in self.prepared.first[1:]
            if isinstance(v, Tensor)
        ]
        return {"data": {"shape": list(shape), "dtype": dtype, "rest": rest}}


@contextmanager
def _evaluating(*programs: Any) -> Iterator[None]:
    """Modules in evaluation mode; afterwards each as it was, a part that was so already too."""
    roots = [program for program in programs if isinstance(program, nn.Module)]
    was = [(module, module.training) for root in roots for module in root.modules()]
    try:
        for root in roots:
            root.eval()
        yield
    finally:
        for module, training in was:
            module.training = training
