"""The semi-amortized guide: an encoder proposes, and a few gradient steps dispose.

Shapes: B data, P numbers that a site is drawn from.
"""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.checks import check_dim
from ppl_vae.guides.amortized import AmortizedGuide, Encoded
from ppl_vae.guides.base import Guide
from ppl_vae.guides.mean_field import MeanFieldGuide
from ppl_vae.guides.wrapper import GuideWrapper
from ppl_vae.handlers import borrowed_parameters, same_weights
from ppl_vae.randomness import fork

__all__ = ["SemiAmortizedGuide"]


class SemiAmortizedGuide(GuideWrapper):
    r"""Each datum's numbers, refined by gradient steps on its own ELBO.

    .. math:: \lambda_0 = \text{encoder}(x),\quad
        v_{t+1} = m\, v_t + \nabla_\lambda \operatorname{ELBO}(x; \lambda_t),\quad
        \lambda_{t+1} = \lambda_t + \eta\, v_{t+1},\qquad q(z | x) = q(z; \lambda_T)

    The numbers are those that the heads of the sites in the data plate give, before any of them is
    made positive or normalized. Where a site looks at others, what is refined is added to what it
    comes to. The steps climb under the KL weight in force. Each costs a run of guide and model and
    its gradient, whatever the particles drawn in the end.

    It **reads the model's parameters**. The noise of the steps is a fixed stream, so q(z | x) is a
    function of the batch: path derivatives (STL, DReG) stop it term by term, and their second run,
    of the density, refines once more. The model's networks run once for each particle of each step
    besides their own run: those with batch normalization move their running statistics each time.

    Args:
        guide: The guide whose numbers are refined; or a model, for which `make` makes one.
        num_steps: T >= 1.
        step_size: Eta > 0.
        momentum: m in [0, 1).
        clip: Largest norm of a datum's gradient.
        num_particles: Draws in each step's ELBO.
        second_order: Let the gradient of the encoder go through the steps, as in the paper.
            Without, it is that at the refined numbers (first order), which costs no second
            derivatives, and suits families whose draws have none (`Mixture`).
        make: From a model to the guide to refine.

    Raises:
        ValueError: An argument out of range; a guide that is not amortized; in a run, a model that
            subsamples the data itself.

    References:
        Kim et al. (2018), Semi-Amortized Variational Autoencoders.

    Example:
        >>> guide = SemiAmortizedGuide(MeanFieldGuide(ppl_vae.models.VAE((784,))), num_steps=2)
        >>> guide(torch.zeros(5, 784))["z"].shape
        torch.Size([5, 20])
    """

    base: AmortizedGuide

    def __init__(
        self,
        guide: Guide | Callable,
        num_steps: int = 10,
        step_size: float = 0.1,
        momentum: float = 0.5,
        clip: float = 5.0,
        num_particles: int = 1,
        *,
        second_order: bool = False,
        make: Callable[[Any], Guide] = MeanFieldGuide,
    ) -> None:
        check_dim(num_steps, "SemiAmortizedGuide: num_steps")
        check_dim(num_particles, "SemiAmortizedGuide: num_particles")
        for name, value in (("step_size", step_size), ("clip", clip)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"SemiAmortizedGuide: {name} is {value!r}; accepted is > 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"SemiAmortizedGuide: momentum is {momentum!r}; accepted is 0 to < 1")
        super().__init__(guide, make)
        self._check_sites()
        self.num_steps, self.step_size, self.momentum = num_steps, step_size, momentum
        self.clip, self.num_particles, self.second_order = clip, num_particles, second_order

    @property
    def is_refined(self) -> bool:
        """It is."""
        return True

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The program; see `AmortizedGuide.forward`."""
        with self.running():
            encoded = self.base.encode(x, *args, **kwargs)
            if len(encoded.features) != len(x):
                raise ValueError(
                    "SemiAmortizedGuide refines by runs of the model, which would subsample the "
                    "data anew in each; give the model minibatches, pyro.plate('data', len(x))"
                )
            shifts = self._refine(encoded)
            return self.base.draw(encoded, lambda name, numbers: numbers + shifts[name])

    def setup(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """See `Guide.setup`."""
        super().setup(x, *args, **kwargs)
        self._check_sites()

    def _check_sites(self) -> None:
        for name, site in self.base.latent_sites.items():
            if site.is_discrete:
                raise ValueError(
                    f"SemiAmortizedGuide: the model's site '{name}' is discrete ({site.family}), "
                    "and has no gradient to refine by; accepted are continuous sites"
                )

    def _scale(self, drawn: poutine.Trace) -> float:
        """N/B, which is not to lengthen a datum's steps."""
        frames = {f.name: f for s in drawn.nodes.values() if s["type"] == "sample"
                  for f in s["cond_indep_stack"]}  # fmt: skip
        frame = frames[self.base.data_plate.name]
        return (frame.full_size or frame.size) / frame.size

    def _refine(self, encoded: Encoded) -> dict[str, Tensor]:
        """How far each site's numbers are moved, `[B, P]`."""
        shifts: dict[str, Tensor] = {}
        pace: dict[str, Tensor] = {}
        # Out of reach of what is around the guide: its trace, its replay, its particles.
        with (
            torch.enable_grad(),
            fork(seed=0),
            poutine.block(),
            same_weights(),
            borrowed_parameters(),
        ):
            for _ in range(self.num_steps):
                for name, gradient in self._climb(encoded, shifts).items():
                    pace[name] = gradient + self.momentum * pace.get(name, 0.0)
                    shifts[name] = shifts[name] + self.step_size * pace[name]
                    if not self.second_order:
                        shifts[name] = shifts[name].detach().requires_grad_(True)
        if self.second_order:
            return shifts
        return {name: shift.detach() for name, shift in shifts.items()}

    def _climb(self, encoded: Encoded, shifts: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradient of the batch's ELBO in the shifts; they begin at zero, when first met."""

        def adjust(name: str, numbers: Tensor) -> Tensor:
            numbers = numbers if self.second_order else numbers.detach()
            if name not in shifts:
                shifts[name] = torch.zeros_like(numbers, requires_grad=True)
            return numbers + shifts[name]

        total: Any = 0.0
        for _ in range(self.num_particles):
            drawn = poutine.trace(self.base.draw).get_trace(encoded, adjust)
            replayed = poutine.replay(self.model, trace=drawn)
            seen = poutine.trace(replayed).get_trace(*encoded.args, **encoded.kwargs)
            total = total + seen.log_prob_sum() - drawn.log_prob_sum()
        total = total / (self.num_particles * self._scale(drawn))
        gradients = torch.autograd.grad(
            total, list(shifts.values()), create_graph=self.second_order
        )
        return self._clipped(dict(zip(shifts, gradients, strict=True)))

    def _clipped(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """No longer than `clip` for any datum; 0 where it is not finite."""
        norm = (sum(g.flatten(1).square().sum(-1) for g in gradients.values()) + 1e-12).sqrt()  # type: ignore
        factor = torch.where(norm.isfinite(), (self.clip / norm).clamp(max=1.0), 0.0)
        return {
            name: g.nan_to_num(0.0, 0.0, 0.0) * factor.reshape(-1, *[1] * (g.dim() - 1))
            for name, g in gradients.items()
        }
