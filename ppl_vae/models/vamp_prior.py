"""VampPrior: the prior is a mixture of the guide's posteriors at learned pseudo-inputs.

Shapes: C components, B data, `*event` an event of the topmost site.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_vae.checks import check_dim
from ppl_vae.handlers import borrowed_parameters
from ppl_vae.models.base import Model
from ppl_vae.models.vae import VAE
from ppl_vae.randomness import looking, on_copies

__all__ = ["VampPrior"]


class VampPrior(Model):
    r"""Another model, its topmost prior replaced by a mixture of posteriors.

    .. math:: p(z) = \frac1C \sum_{c=1}^C q(z | u_c)

    u_c are pseudo-inputs, learned; q is the guide, its parameters the guide's own. So the model
    **reads the guide's parameters**: gradients of log p reach them, and path derivatives do not
    stop them there. The site is the first that the model samples: z, or the topmost of several.

    The guide is bound late: `fit` and `load_run` bind the one that they are given, elsewhere
    `VampPrior(model, guide)` or `bind(guide)`. Until then the model has its own prior. The guide
    may be made for either, the model inside or this one.

    Args:
        model: The model inside; or the shape of one datum, for which `make` makes one.
        guide: The guide, if it is at hand.
        num_components: C; each step runs the encoder on as many pseudo-inputs.
        bounded: Whether pseudo-inputs stay in (0, 1), as pixels do; else any real numbers.
        make: From the shape of one datum to the model inside.

    Raises:
        ValueError: Sizes below 1. In `bind`: a guide that draws another site first, on which
            q(z | u) would depend; that is a point mass; that has a density at its own draws alone,
            as planar and Sylvester flows; or that is refined against the model whose prior it is.

    References:
        Tomczak and Welling (2018), VAE with a VampPrior.

    Example:
        >>> model = VampPrior(VAE((784,)), num_components=10)
        >>> guide = ppl_vae.guides.MeanFieldGuide(model)
        >>> model.bind(guide)(torch.zeros(5, 784)).shape
        torch.Size([5, 784])
    """

    base: Model

    def __init__(
        self,
        model: Model | Sequence[int],
        guide: Callable | None = None,
        num_components: int = 500,
        *,
        bounded: bool = True,
        make: Callable[[Sequence[int]], Model] = VAE,
    ) -> None:
        check_dim(num_components, "VampPrior: num_components")
        base = model if isinstance(model, Model) else make(model)
        super().__init__(base.data_shape)
        # Not as an attribute: Pyro would rename the model inside for good.
        self._modules["base"] = base
        self.num_components, self.bounded = num_components, bounded
        numbers = torch.randn(num_components, *base.data_shape)
        self.pseudo_numbers = nn.Parameter(numbers.to(next(base.parameters(), numbers)))
        # A tuple, or `nn.Module` would register the guide.
        self._guide: tuple[Callable, ...] = ()
        self._is_open, self._site = False, ""
        # A config says how to make the model inside, whichever way it came.
        options = ("num_components", "bounded")
        kept = {k: v for k, v in self.init_args.items() if k in options}
        self.__dict__["init_args"] = {"model": tuple(base.data_shape), "make": base, **kept}
        if guide is not None:
            self.bind(guide)

    @property
    def pseudo_inputs(self) -> Tensor:
        """u, `[C, *data_shape]`."""
        numbers = self.pseudo_numbers
        return torch.sigmoid(numbers) if self.bounded else numbers

    def start_from(self, x: Tensor) -> "VampPrior":
        """Sets the pseudo-inputs to data drawn from `x`, `[N, *data_shape]`; gives itself."""
        chosen = x[torch.randint(len(x), (self.num_components,), device=x.device)]
        if self.bounded:
            chosen = torch.logit(chosen.clamp(0.05, 0.95))
        with torch.no_grad():
            self.pseudo_numbers.copy_(chosen)
        return self

    def bind(self, guide: Callable) -> "VampPrior":
        """Takes q from this guide; checked by one run that nobody sees. Gives itself."""
        if getattr(guide, "is_refined", False):
            raise ValueError(
                f"VampPrior is made of q(z | u), and {_name(guide)} makes q by climbing the ELBO, "
                "of which the prior is part: each would wait for the other. Accepted is the guide "
                "inside of it, as MeanFieldGuide"
            )
        before, self._guide = self._guide, (guide,)
        try:
            with torch.no_grad(), poutine.block(), borrowed_parameters():
                if hasattr(guide, "setup"):
                    guide.setup(self.pseudo_inputs)
            # Not around `setup`, which draws the first weights of networks.
            with looking(guide, self), torch.no_grad(), poutine.block(), borrowed_parameters():
                finder = _FirstSite(None)
                with finder:
                    self.base(self.pseudo_inputs[:1])
                self._site = finder.name
                self._check(guide, self._posterior(self.pseudo_inputs))
        except Exception:
            self._guide = before
            raise
        return self

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The program: that of the model inside, with another prior."""
        # A guide that runs its model, and the check of a guide, find the prior inside.
        if not self._guide or self._is_open:
            return self.base(x, *args, **kwargs)
        # Here, for within the model's plates the guide could not open its own.
        with _FirstSite(self._posterior(self.pseudo_inputs)):
            return self.base(x, *args, **kwargs)

    def check(self, x: Tensor) -> None:
        """See `Model.check`."""
        self.base.check(x)

    def is_proper(self, x: Tensor) -> bool:
        """See `Model.is_proper`."""
        return self.base.is_proper(x)

    def _posterior(self, u: Tensor) -> "_Posteriors":
        """The mixture of q at the pseudo-inputs, over the events of the site."""
        name = self._site
        guide, self._is_open = self._guide[0], True
        try:
            # Out of reach of what is around the model: its replay, its particles, its trace. And
            # running statistics of batch normalization are the data's.
            with on_copies(guide, self), poutine.block(), borrowed_parameters():
                trace = poutine.trace(guide).get_trace(u)
        finally:
            self._is_open = False
        latent = [n for n, site in trace.nodes.items() if site["type"] == "sample"
                  and type(site["fn"]).__name__ != "_Subsample"]  # fmt: skip
        if not latent or latent[0] != name:
            raise ValueError(
                f"VampPrior needs q({name} | u) of pseudo-inputs alone, and "
                f"{_name(guide)} draws {latent} in this order; accepted are guides that draw "
                f"'{name}' first, as MeanFieldGuide and TopDownGuide"
            )
        return _Posteriors(trace.nodes[name]["fn"])

    def _check(self, guide: Callable, posterior: "_Posteriors") -> None:
        fn = posterior.components
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        what = f"VampPrior needs log q(z | u) at any z, and {_name(guide)}"
        accepted = "accepted are guides with a density, as MeanFieldGuide, FullRankGuide, IAFGuide"
        if isinstance(fn, dist.Delta):
            raise ValueError(f"{what} is a point mass; {accepted}")
        if posterior.components.batch_shape != (self.num_components,):
            raise ValueError(
                f"VampPrior takes a data plate at dim=-1, and {_name(guide)} has at {{C}} = "
                f"{self.num_components} inputs the batch {list(posterior.components.batch_shape)}"
            )
        try:
            posterior.log_prob(posterior.sample())
        except (KeyError, NotImplementedError):
            raise ValueError(f"{what} has a flow without an inverse; {accepted}") from None


class _FirstSite(Messenger):
    """Gives the first latent site of a program another distribution."""

    def __init__(self, fn: Any) -> None:
        super().__init__()
        self._fn, self.name = fn, ""

    def __enter__(self) -> Any:
        self.name = ""
        return super().__enter__()

    def _pyro_sample(self, msg: dict) -> None:
        is_choice = type(msg["fn"]).__name__ == "_Subsample"
        if self.name or is_choice or msg["is_observed"]:
            return
        self.name = msg["name"]
        if self._fn is not None:
            msg["fn"] = self._fn.expand(msg["fn"].batch_shape)


class _Posteriors(dist.TorchDistribution):
    """Equal parts of the distributions along the last batch dimension of another."""

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, components: Any, batch_shape: Sequence[int] = ()) -> None:
        self.components = components
        super().__init__(torch.Size(batch_shape), components.event_shape, validate_args=False)

    @property
    def support(self) -> Any:  # type: ignore[override]
        return self.components.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Posteriors":
        return _Posteriors(self.components, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        count = self.components.batch_shape[-1]
        value = value.unsqueeze(-1 - len(self.event_shape))
        found = self.components.log_prob(value).logsumexp(-1) - math.log(count)
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            count = self.components.batch_shape[-1]
            drawn = self.components.expand((*shape, count)).sample()
            which = torch.randint(count, shape, device=drawn.device)
            events = len(self.event_shape)
            which = which.reshape(*shape, 1, *[1] * events)
            which = which.expand(*shape, 1, *self.event_shape)
            return drawn.gather(len(shape), which).squeeze(len(shape))


def _name(guide: Callable) -> str:
    return getattr(guide, "__name__", type(guide).__name__)
