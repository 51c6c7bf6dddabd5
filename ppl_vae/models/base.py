"""The base of the models: a Pyro program p(x, z) that knows the shape of its data."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from ppl_vae.checks import check_shape
from ppl_vae.configurable import Configurable, Program

__all__ = ["Model"]


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
