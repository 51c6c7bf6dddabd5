"""The guide of numbers free for each datum: what its family can do where no encoder is in the way.

Shapes: N data, P numbers that a site is drawn from.
"""

from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_vae.guides.amortized import AmortizedGuide
from ppl_vae.guides.base import Guide
from ppl_vae.guides.wrapper import GuideWrapper
from ppl_vae.randomness import untouched

__all__ = ["PerDatumGuide"]


class PerDatumGuide(GuideWrapper):
    r"""A guide's family with numbers of its own for each of a few data, for **evaluation only**.

    .. math:: q_n(z) = q(z; \lambda(x_n) + \delta_n),\qquad n = 1, \dots, N

    A guide sees x, not its index; so this one serves the data that it was made with, all at once
    and in their order, and refuses others. Trained with the rest frozen (`free_parameters`), it
    measures the amortization gap; see `ppl_vae.evaluate.inference_gaps`. Networks inside a family,
    such as those of a flow, stay shared, and what a family can do is then measured from below.

    Args:
        guide: The amortized guide whose numbers it starts from.
        x: The data, `[N, *data_shape]`.

    Raises:
        ValueError: A guide that is not amortized; in a run, other data.

    References:
        Cremer et al. (2018), Inference Suboptimality in Variational Autoencoders.

    Example:
        >>> x = torch.rand(5, 784)
        >>> base = ppl_vae.guides.MeanFieldGuide(ppl_vae.models.VAE((784,)))
        >>> guide = PerDatumGuide(base, x)
        >>> {name: tuple(delta.shape) for name, delta in guide.deltas.items()}
        {'z': (5, 40)}
    """

    base: AmortizedGuide

    def __init__(self, guide: Guide, x: Tensor) -> None:
        super().__init__(guide, _no_model)
        self.register_buffer("data", x.clone(), persistent=False)
        shapes: dict[str, Tensor] = {}

        def look(name: str, numbers: Any) -> Any:
            shapes[name] = numbers
            return numbers

        self.setup(x)
        with untouched(), torch.no_grad(), poutine.block():
            self.base.draw(self.base.encode(x), look)
        self.deltas = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros_like(numbers)) for name, numbers in shapes.items()}
        )

    def free_parameters(self) -> Iterator[nn.Parameter]:
        """The deltas, which alone are each datum's own."""
        return self.deltas.parameters()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The program; `x` is the data that the guide was made with."""
        if x is not self.data and not (x.shape == self.data.shape and bool((x == self.data).all())):
            raise ValueError(
                f"PerDatumGuide holds numbers for the {len(self.data)} data that it was made with, "
                f"and was given others, of shape {list(x.shape)}; it is for evaluation only. Use "
                "SemiAmortizedGuide to refine numbers for any data"
            )
        deltas = self.deltas
        with self.running():
            encoded = self.base.encode(x, *args, **kwargs)
            return self.base.draw(encoded, lambda name, numbers: numbers + deltas[name])


def _no_model(guide: Any) -> Any:
    return guide
