"""Guides around a guide."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from ppl_vae.guides.amortized import AmortizedGuide
from ppl_vae.guides.base import Guide

__all__ = ["GuideWrapper"]


class GuideWrapper(Guide):
    """A guide made of another, which is found as `base`.

    Args:
        guide: The other; or a model, for which `make` makes one.
        make: From a model to a guide.
        amortized: Whether the other must be an `AmortizedGuide`.

    Raises:
        ValueError: It must, and is not.
    """

    base: Guide

    def __init__(
        self, guide: Guide | Callable, make: Callable[[Any], Guide], *, amortized: bool = True
    ) -> None:
        name = type(self).__name__
        base = guide if isinstance(guide, Guide) else make(guide)
        if not isinstance(base, AmortizedGuide if amortized else Guide):
            kind = "an AmortizedGuide, as MeanFieldGuide" if amortized else "a Guide"
            raise ValueError(f"{name}: the guide is {type(base).__name__}; accepted is {kind}")
        super().__init__(base.model)
        # Not as an attribute: Pyro would rename the other for good, and a second wrapper of it
        # would take its parameters away from the first.
        self._modules["base"] = base
        # A config says how to make the other, whichever way it came.
        options = {k: v for k, v in self.init_args.items() if k not in ("guide", "make")}
        self.__dict__["init_args"] = {"make": base, **options}

    @property
    def encoder(self) -> nn.Module:
        """That of the guide inside."""
        return self.base.encoder  # type: ignore[return-value]

    @property
    def is_refined(self) -> bool:
        """Whether q is made by climbing the ELBO, here or further inside."""
        return getattr(self.base, "is_refined", False)

    def running(self) -> AbstractContextManager:
        """Around the halves of the other's run, `encode` and `draw`, as around a whole one."""
        return self.base._pyro_context

    def setup(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """See `Guide.setup`."""
        self.base.setup(x, *args, **kwargs)
