"""Steps of torch's optimizers as operations of a graph: Adam, AdamW, SGD.

The state stays the optimizer's own, and is changed in place: it can be checkpointed, and taken up
by the optimizer itself, at any step. What changes from step to step goes in as numbers.
"""

from abc import ABCMeta, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

__all__ = ["Update", "update_of"]


class Update(metaclass=ABCMeta):
    """The step of one group of parameters.

    Args:
        optimizer: Of torch.
        group: One of its groups.

    Attributes:
        parameters: Those of the group.
    """

    #: How many numbers are different in each step.
    num_numbers: int

    def __init__(self, optimizer: Optimizer, group: dict[str, Any]) -> None:
        self.optimizer, self.group = optimizer, group
        self.parameters: list[Tensor] = group["params"]

    def state(self, parameters: Sequence[Tensor]) -> list[list[Tensor]]:
        """For each of these parameters what the optimizer keeps and `apply` changes.

        Made where it is not there yet, as the optimizer would make it.
        """
        found = []
        for parameter in parameters:
            if not self.optimizer.state.get(parameter) and (begun := self._begin(parameter)):
                self.optimizer.state[parameter].update(begun)
            found.append(self._kept(self.optimizer.state.get(parameter, {})))
        return found

    @property
    def form(self) -> Hashable:
        """What `apply` asks of the group: of another form it is another graph."""
        flags = (bool(self.group.get(name)) for name in ("weight_decay", "momentum", "nesterov"))
        return type(self).__name__, len(self.parameters), *flags

    def is_even(self, parameters: Sequence[Tensor]) -> bool:
        """Whether these have made as many steps, so that one row of numbers is right for all."""
        states = [self.optimizer.state.get(parameter, {}) for parameter in parameters]
        return len({float(state["step"]) for state in states if "step" in state}) <= 1

    @abstractmethod
    def _begin(self, parameter: Tensor) -> dict[str, Any]:
        """The state before the first step."""

    @abstractmethod
    def _kept(self, state: dict[str, Any]) -> list[Tensor]:
        """What `apply` changes."""

    @abstractmethod
    def numbers(self, parameters: Sequence[Tensor]) -> list[float]:
        """What is different in each step; counts the step."""

    @abstractmethod
    def apply(
        self, parameter: Tensor, gradient: Tensor, state: Sequence[Tensor], numbers: Tensor
    ) -> None:
        """Changes a parameter and its state in place."""


class _Adam(Update):
    r""":math:`\theta \leftarrow \theta - \eta_t\, m / (\sqrt{v} / s_t + \epsilon)`.

    With :math:`\eta_t = \eta / (1 - \beta_1^t)` and :math:`s_t = \sqrt{1 - \beta_2^t}`, which are
    computed in double, as torch does.
    """

    num_numbers = 8

    def _begin(self, parameter: Tensor) -> dict[str, Any]:
        # On the host, where it is counted.
        double = torch.get_default_dtype() == torch.float64
        step = torch.zeros((), dtype=torch.float64 if double else torch.float32)
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": step, **moments}

    def _kept(self, state: dict[str, Any]) -> list[Tensor]:
        return [state["exp_avg"], state["exp_avg_sq"]]

    def numbers(self, parameters: Sequence[Tensor]) -> list[float]:
        steps = [self.optimizer.state[parameter]["step"] for parameter in parameters]
        step, group = steps[0].item() + 1, self.group
        for count in steps:
            # Through numpy, for a tenth of the time that torch takes for a number.
            count.numpy()[...] = step
        beta1, beta2 = group["betas"]
        rate, decay = float(group["lr"]), group["weight_decay"]
        decoupled = group.get("decoupled_weight_decay", isinstance(self.optimizer, AdamW))
        return [
            1 - beta1,
            beta2,
            1 - beta2,
            rate / (1 - beta1**step),
            (1 - beta2**step) ** 0.5,
            group["eps"],
            0.0 if decoupled else decay,
            rate * decay if decoupled else 0.0,
        ]

    def apply(
        self, parameter: Tensor, gradient: Tensor, state: Sequence[Tensor], numbers: Tensor
    ) -> None:
        (first, second), (rise, beta2, rest, rate, scale, eps, decay, decoupled) = state, numbers
        if self.group["weight_decay"]:
            parameter.mul_(1 - decoupled)
            gradient = gradient + decay * parameter
        first.add_((gradient - first) * rise)
        second.mul_(beta2).add_(gradient * gradient * rest)
        parameter.sub_(rate * first / (second.sqrt() / scale + eps))


class _SGD(Update):
    r""":math:`b \leftarrow \mu b + g`, :math:`\theta \leftarrow \theta - \eta b`."""

    num_numbers = 3

    def _begin(self, parameter: Tensor) -> dict[str, Any]:
        return {"momentum_buffer": torch.zeros_like(parameter)} if self.group["momentum"] else {}

    def _kept(self, state: dict[str, Any]) -> list[Tensor]:
        return [state["momentum_buffer"]] if self.group["momentum"] else []

    def numbers(self, parameters: Sequence[Tensor]) -> list[float]:
        group = self.group
        return [float(group["lr"]), group["momentum"], group["weight_decay"]]

    def apply(
        self, parameter: Tensor, gradient: Tensor, state: Sequence[Tensor], numbers: Tensor
    ) -> None:
        rate, momentum, decay = numbers
        if self.group["weight_decay"]:
            gradient = gradient + decay * parameter
        if state:
            (buffer,) = state
            buffer.mul_(momentum).add_(gradient)
            gradient = gradient + momentum * buffer if self.group["nesterov"] else buffer
        parameter.sub_(rate * gradient)


def update_of(optimizer: Optimizer, group: dict[str, Any]) -> Update | None:
    """The step of a group as operations of a graph; none where there is no such form."""
    rare = ("amsgrad", "maximize", "differentiable", "capturable", "dampening")
    if any(group.get(name) for name in rare) or isinstance(group["lr"], Tensor):
        return None
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return None
    kinds: dict[type, type[Update]] = {Adam: _Adam, AdamW: _Adam, SGD: _SGD}
    if type(optimizer) not in kinds:
        return None
    update = kinds[type(optimizer)](optimizer, group)
    states = [optimizer.state[p] for p in group["params"] if p in optimizer.state]
    on_host = not any(state["step"].is_cuda for state in states if "step" in state)
    return update if on_host and update.is_even(group["params"]) else None
