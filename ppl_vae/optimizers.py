"""Which parameters are trained, and by which of torch's optimizers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils._pytree import tree_map_only

__all__ = [
    "LRSchedule",
    "OptimizerFactory",
    "Optimizers",
    "check_prefix",
    "fits",
    "named_parameters",
]

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
LRSchedule = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]


def named_parameters(model: Any, guide: Any) -> dict[str, Tensor]:
    """Every parameter of a pair by name: `model.…`, `guide.…`, and `param.…` for `pyro.param`.

    The last are those of Pyro's parameter store that belong to no module: the parameters of plain
    functions. They exist once the pair has run.
    """
    found: dict[str, Tensor] = {}
    for prefix, program in (("model", model), ("guide", guide)):
        if isinstance(program, nn.Module):
            found.update({f"{prefix}.{n}": p for n, p in program.named_parameters()})
    seen = {id(parameter) for parameter in found.values()}
    for name, parameter in pyro.get_param_store().named_parameters():
        if id(parameter) not in seen:
            found[f"param.{name}"] = parameter
    unique: dict[int, str] = {}
    for name, parameter in found.items():
        unique.setdefault(id(parameter), name)
    return {name: found[name] for name in unique.values()}


class Optimizers:
    """One optimizer, or one for each group of parameters, with its learning-rate schedule.

    Args:
        parameters: All parameters by name.
        optimizer: From parameters to an optimizer; or a mapping from prefixes of names to such
            functions, `{"model": ..., "guide": ...}`, of which the longest that fits is taken.
        lr_schedule: From an optimizer to a learning-rate schedule.
        freeze: Prefixes of the names of parameters that stay as they are.

    Raises:
        ValueError: A prefix fits no parameter, a parameter fits no prefix, or nothing is left.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        optimizer: OptimizerFactory | Mapping[str, OptimizerFactory],
        lr_schedule: LRSchedule | None = None,
        freeze: Sequence[str] = (),
    ) -> None:
        freeze = (freeze,) if isinstance(freeze, str) else freeze
        for prefix in freeze:
            check_prefix(prefix, parameters, "freeze")
        self.trained = {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.requires_grad and not any(fits(name, prefix) for prefix in freeze)
        }
        if not self.trained:
            raise ValueError(
                "there is nothing to train: "
                + (
                    f"all parameters are frozen by {list(freeze)}"
                    if parameters
                    else "neither model nor guide has parameters that Pyro or torch can see. Make "
                    "them nn.Modules, or register parameters with pyro.param or pyro.module"
                )
            )
        groups = optimizer if isinstance(optimizer, Mapping) else {"": optimizer}
        for prefix in groups:
            check_prefix(prefix, self.trained, "optimizer")
        members: dict[str, list[Tensor]] = {prefix: [] for prefix in groups}
        for name, parameter in self.trained.items():
            fitting = [prefix for prefix in groups if fits(name, prefix)]
            if not fitting:
                raise ValueError(
                    f"no optimizer was given for the parameter '{name}'; its name fits none of "
                    f"{sorted(groups)}. Add a prefix that fits, or freeze it"
                )
            members[max(fitting, key=len)].append(parameter)
        self._all = list(parameters.values())
        self.optimizers = {
            prefix: _make("optimizer", groups[prefix], members[prefix])
            for prefix in groups
            if members[prefix]
        }
        if any(isinstance(o, torch.optim.LBFGS) for o in self.optimizers.values()):
            raise ValueError(
                "optimizer LBFGS evaluates the loss several times a step, and here it differs "
                "each time; accepted are first-order optimizers of torch.optim, as Adam"
            )
        self._ours: dict[str, list[int]] = {}
        self.schedules = (
            {}
            if lr_schedule is None
            else {p: _make("lr_schedule", lr_schedule, o) for p, o in self.optimizers.items()}
        )

    def fuse(self) -> None:
        """Lets torch make the step in one pass over memory, where the user left the choice to it.

        The same step up to rounding. Neither checkpoints nor configs hold it.
        """
        for prefix, optimizer in self.optimizers.items():
            groups = optimizer.param_groups
            self._ours[prefix] = [i for i, group in enumerate(groups) if _may_fuse(group)]
            for index in self._ours[prefix]:
                groups[index]["fused"] = True

    def zero_grad(self) -> None:
        """Drops all gradients, those of frozen parameters too."""
        for parameter in self._all:
            parameter.grad = None

    def step(self) -> None:
        """One step of each optimizer, and of each schedule that goes by steps."""
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.stepped()

    def stepped(self) -> None:
        """One step of each schedule that goes by steps, somebody else having made the step."""
        for optimizer in self.optimizers.values():
            # What torch's schedules look at, to warn of one that begins before its optimizer.
            optimizer._opt_called = True  # type: ignore[attr-defined]
        for schedule in self.schedules.values():
            if not isinstance(schedule, ReduceLROnPlateau):
                schedule.step()

    def validated(self, loss: float) -> None:
        """Steps the schedules that go by the validation loss."""
        for schedule in self.schedules.values():
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(loss)

    @property
    def need_validation(self) -> bool:
        """Whether a schedule goes by the validation loss."""
        return any(isinstance(s, ReduceLROnPlateau) for s in self.schedules.values())

    @property
    def learning_rates(self) -> list[float]:
        """The learning rate of every parameter group."""
        return [
            float(group["lr"])
            for optimizer in self.optimizers.values()
            for group in optimizer.param_groups
        ]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as a tree of plain data and copies of tensors.

        torch's own are the tensors that the next step changes.
        """
        return {
            "optimizers": {
                p: self._marked(p, tree_map_only(Tensor, Tensor.clone, o.state_dict()), None)
                for p, o in self.optimizers.items()
            },
            "schedules": {p: s.state_dict() for p, s in self.schedules.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`.

        Raises:
            ValueError: The state is of other optimizers or other parameters.
        """
        for kind, ours in (("optimizers", self.optimizers), ("schedules", self.schedules)):
            if set(state[kind]) != set(ours):
                raise ValueError(
                    f"the checkpoint has {kind} for {sorted(state[kind])}, this run for "
                    f"{sorted(ours)}; resume with the arguments that the run was started with"
                )
            for prefix, content in state[kind].items():
                if kind == "optimizers":
                    # Before it is loaded: torch then puts the counts of steps where they belong.
                    content = self._marked(prefix, content, True)
                ours[prefix].load_state_dict(content)

    def _marked(self, prefix: str, state: dict[str, Any], fused: bool | None) -> dict[str, Any]:
        """The state of an optimizer, the groups that `fuse` chose marked otherwise."""
        groups = list(state["param_groups"])
        for index in self._ours.get(prefix, ()):
            groups[index] = {**groups[index], "fused": fused}
        return {**state, "param_groups": groups}


def clip(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales all gradients down so that their common norm is at most `max_norm`."""
    return torch.nn.utils.clip_grad_norm_(list(parameters), max_norm)


def _may_fuse(group: dict[str, Any]) -> bool:
    ways = (group.get(name, False) for name in ("fused", "foreach", "differentiable", "capturable"))
    fused, *others = ways
    return fused is None and not any(others)


def _make(option: str, factory: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return factory(argument)
    except (TypeError, ValueError) as error:
        # torch's own messages name neither the class nor the argument's owner.
        arguments = getattr(factory, "keywords", {})
        name = getattr(getattr(factory, "func", factory), "__name__", repr(factory))
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(f"{option} {name}({given}): {error}") from error


def fits(name: str, prefix: str) -> bool:
    """Whether a parameter belongs to a group: the prefix ends where a part of the name does."""
    return prefix == "" or name == prefix or name.startswith(prefix + ".")


def check_prefix(prefix: str, parameters: Mapping[str, Tensor], what: str) -> None:
    """Raises `ValueError` for a prefix, an entry of `what`, that no parameter belongs to."""
    if not any(fits(name, prefix) for name in parameters):
        raise ValueError(
            f"{what} names '{prefix}', which no parameter's name begins with; accepted are "
            f"beginnings of {', '.join(list(parameters)[:8])}, ..."
        )
