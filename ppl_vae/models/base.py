"""The base of the models: a Pyro program p(x, z) that knows the shape of its data."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_vae.configurable import Configurable, Program

__all__ = ["Model", "check_dim", "check_dims", "check_hidden", "check_shape"]


class Model(Configurable, Program):
    """A generative model p(x, z) whose `forward(x)` is the Pyro program.

    To write one: subclass, call `super().__init__(data_shape)`, and define `forward(x)` that opens
    `pyro.plate("data", len(x), dim=-1)`, samples its latents inside, and observes `"x"`. Networks
    must take any leading batch shape, since estimators add a dimension of particles on the left.
    The command line finds subclasses by name and fills `data_shape` from the data; in Python any
    callable that is a Pyro program serves as a model.

    Args:
        data_shape: Shape of one datum, without the batch.

    Raises:
        ValueError: `data_shape` is empty or holds anything but positive integers.
    """

    def __init__(self, data_shape: Sequence[int]) -> None:
        # The name keeps the model's parameters apart from the guide's in Pyro's parameter store.
        super().__init__(name="model")
        self.data_shape = check_shape(data_shape, f"{type(self).__name__}: data_shape")

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The program.

        Args:
            x: Data, `[B, *data_shape]`.

        Returns:
            The observed value, `[B, *data_shape]`.
        """

    def check(self, x: Tensor) -> None:
        """Checks data against the shape and the support of p(x | z).

        Args:
            x: Data, `[B, *data_shape]`.

        Raises:
            ValueError: Wrong shape, or values that p(x | z) gives no density.
        """
        if tuple(x.shape[1:]) != tuple(self.data_shape):
            raise ValueError(
                f"{type(self).__name__} was built for data of shape {tuple(self.data_shape)}, "
                f"and was given {tuple(x.shape[1:])}"
            )

    def is_proper(self, x: Tensor) -> bool:
        """Whether p(x | z) is a normalized density at `x`.

        It is not for grey pixels under a Bernoulli: the number is then a score, not nats of data.
        """
        return True


def check_shape(shape: Sequence[int], what: str) -> torch.Size:
    """A shape as `torch.Size`; a `ValueError` where it is none."""
    return torch.Size(check_dims(shape, what))


def check_dims(dims: Sequence[int], what: str) -> tuple[int, ...]:
    """Positive integers as a tuple; a `ValueError` that names `what` where they are not."""
    accepted = "accepted are integers >= 1"
    if isinstance(dims, int) or not isinstance(dims, Sequence) or len(dims) == 0:
        raise ValueError(f"{what} is {dims!r}; {accepted}")
    if any(isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in dims):
        raise ValueError(f"{what} is {list(dims)!r}; {accepted}")
    return tuple(dims)


def check_dim(dim: int, what: str) -> None:
    """A `ValueError` that names `what` where `dim` is no positive integer."""
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ValueError(f"{what} is {dim!r}; accepted is an integer >= 1")


def check_hidden(widths: Sequence[int], what: str) -> tuple[int, ...]:
    """`check_dims`, but none at all is accepted: a network without hidden layers."""
    is_empty = isinstance(widths, Sequence) and len(widths) == 0
    return () if is_empty else check_dims(widths, what)
