"""Other tensors in the place of a program's own, wherever it uses them."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Exchange", "Substitution"]


class Exchange(TorchFunctionMode):
    """Passes every tensor that goes into one of torch's functions through `take`.

    So it is all the same whether a program has its parameters from a module, from `pyro.param`,
    from `pyro.module`, or from a closure, and Pyro goes on seeing the parameters themselves.
    """

    def take(self, value: Tensor) -> Tensor:
        """What the function gets in place of a tensor."""
        raise NotImplementedError

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return func(*self._all(args), **self._all(kwargs or {}))

    def _all(self, value: Any) -> Any:
        # By exact type: a `torch.Size` is a tuple too, and is to stay one of its kind.
        if isinstance(value, Tensor):
            return self.take(value)
        if type(value) in (list, tuple):
            return type(value)(self._all(item) for item in value)
        if type(value) is dict:
            return {key: self._all(item) for key, item in value.items()}
        return value


class Substitution(Exchange):
    """Puts new tensors in the place of old ones, by identity.

    Args:
        old: The tensors that programs use.
        new: As many others.
    """

    def __init__(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
        super().__init__()
        self._old = list(old)  # Alive, so that no other tensor has the same identity.
        self._new = {id(before): after for before, after in zip(old, new, strict=True)}

    def take(self, value: Tensor) -> Tensor:
        """The new tensor, or the same where it is none of the old."""
        return self._new.get(id(value), value)
