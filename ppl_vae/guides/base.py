"""The base of the guides."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ppl_vae.configurable import Configurable, Program

__all__ = ["Guide"]


class Guide(Configurable, Program):
    """An inference program q(z | x) for a given model.

    To write one: subclass with `__init__(self, model, ...)`, and define `forward(x)` that samples
    every latent site of the model under the model's plates, and observes nothing. The command line
    finds subclasses by name; in Python any such Pyro program serves.

    Args:
        model: The model, any Pyro program. It is not registered as a submodule: its parameters are
            not the guide's.
    """

    def __init__(self, model: Callable) -> None:
        # The name keeps the guide's parameters apart from the model's in Pyro's parameter store.
        super().__init__(name="guide")
        if not callable(model):
            raise ValueError(
                f"{type(self).__name__}: model is {model!r}; accepted is a Pyro program, "
                f"as in {type(self).__name__}(model)"
            )
        # A tuple, or `nn.Module` would register the model.
        self._model = (model,)

    @property
    def model(self) -> Callable:
        """The model that the guide was made for."""
        return self._model[0]

    def setup(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Makes what can only be made with data at hand; `fit` calls it first.

        Args:
            x: A batch, `[B, *data_shape]`.
            *args: What else the model takes.
            **kwargs: What else the model takes.
        """

    @abstractmethod
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The program; `x` is `[B, *data_shape]`."""
