"""Likelihoods: from a decoder's output to the distribution p(x | z).

A likelihood is a module of one method, `forward(output) -> distribution`, and says which data it
takes. The output has the shape of the data, `[..., *data_shape]`; so has the distribution's event.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.configurable import Configurable

__all__ = ["Bernoulli", "ContinuousBernoulli", "Gaussian", "Laplace", "Likelihood"]


class Likelihood(Configurable, nn.Module):
    """From the decoder's output to p(x | z), independent over the elements of x."""

    #: The interval that the data must lie in.
    interval: tuple[float, float] = (-float("inf"), float("inf"))

    def forward(self, output: Tensor, event_dim: int) -> dist.TorchDistribution:
        """The distribution.

        Args:
            output: The decoder's output, `[..., *data_shape]`.
            event_dim: `len(data_shape)`.

        Returns:
            A distribution of batch shape `[...]` and event shape `[*data_shape]`.
        """
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Raises `ValueError` where `x` has values outside `interval`."""
        low, high = self.interval
        bad = ~((x >= low) & (x <= high))
        if bad.any():
            first = x[bad][0].item()
            raise ValueError(
                f"the data hold {int(bad.sum())} value(s) outside [{low:g}, {high:g}], the first "
                f"is {first:g}; a {type(self).__name__} likelihood takes none. Rescale the data, "
                "or use the likelihood Gaussian or Laplace"
            )

    def is_proper(self, x: Tensor) -> bool:
        """Whether the density is normalized over a set that holds `x`."""
        return True


class Bernoulli(Likelihood):
    r"""Independent Bernoulli pixels; the decoder gives logits.

    .. math:: \log p(x | z) = \sum_i x_i \log \pi_i + (1 - x_i) \log(1 - \pi_i)

    Values strictly between 0 and 1 are taken, as is the custom for grey digits, but lie outside of
    a Bernoulli's support: the result is then no log-probability (`is_proper` is false), and cannot
    be compared with figures on binary data. Use `ContinuousBernoulli` for grey data.
    """

    interval = (0.0, 1.0)

    def forward(self, output: Tensor, event_dim: int) -> dist.TorchDistribution:
        """`output` are logits."""
        # Validation would refuse grey pixels.
        pixel = dist.Bernoulli(logits=output, validate_args=False)
        return dist.Independent(pixel, event_dim, validate_args=False)

    def is_proper(self, x: Tensor) -> bool:
        """Whether `x` is binary."""
        return bool(((x == 0) | (x == 1)).all())


class ContinuousBernoulli(Likelihood):
    """The normalized relative of the Bernoulli on [0, 1]; the decoder gives logits.

    References:
        Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli.
    """

    interval = (0.0, 1.0)

    def forward(self, output: Tensor, event_dim: int) -> dist.TorchDistribution:
        """`output` are logits."""
        # torch's density is unstable where the probability is 1/2 up to rounding; its own `lims`
        # then switch to a Taylor expansion.
        return dist.ContinuousBernoulli(logits=output).to_event(event_dim)


class _LocScale(Likelihood):
    """The decoder gives locations; one scale for all elements, fixed or learned."""

    family: Any

    def __init__(self, scale: float = 1.0, learn_scale: bool = False) -> None:
        super().__init__()
        if not 0 < scale < float("inf"):
            raise ValueError(f"{type(self).__name__}: scale is {scale}; accepted is a number > 0")
        log_scale = torch.tensor(float(scale)).log()
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, output: Tensor, event_dim: int) -> dist.TorchDistribution:
        """`output` are locations."""
        return self.family(output, self.log_scale.exp()).to_event(event_dim)


class Gaussian(_LocScale):
    r"""Normal elements, one scale for all, fixed or learned.

    .. math:: x_i \sim N(\mu_i(z), \sigma^2)

    Args:
        scale: :math:`\sigma`, or where its learning starts.
        learn_scale: Learn it with the decoder (Rybkin et al., 2021, sigma-VAE).
    """

    family = dist.Normal


class Laplace(_LocScale):
    r"""Laplace elements, one scale for all, fixed or learned.

    .. math:: x_i \sim \text{Laplace}(\mu_i(z), b)

    Args:
        scale: :math:`b`, or where its learning starts.
        learn_scale: Learn it with the decoder.
    """

    family = dist.Laplace
