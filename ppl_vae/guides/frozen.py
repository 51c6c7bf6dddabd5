"""The frozen guide: any guide, parts of which are not trained."""

from collections.abc import Callable, Sequence
from typing import Any, Self

from torch import Tensor, nn

from ppl_vae.guides.base import Guide
from ppl_vae.guides.mean_field import MeanFieldGuide
from ppl_vae.guides.wrapper import GuideWrapper

__all__ = ["FrozenGuide"]


class FrozenGuide(GuideWrapper):
    """Another guide, with its encoder, or any of its modules, as it is.

    Frozen parameters ask for no gradient, and frozen modules stay in evaluation mode: no dropout,
    and the running statistics of batch normalization do not move. The other guide is used itself,
    not a copy, so it is frozen as well; `thaw` undoes that.

    Args:
        guide: The guide; or a model, for which `make` makes one.
        modules: Names of the guide's modules to freeze, dots between levels as in
            `named_modules`; `[""]` is the guide as a whole.
        make: From a model to a guide.

    Raises:
        ValueError: The guide has no such module.

    Example:
        >>> guide = FrozenGuide(MeanFieldGuide(ppl_vae.models.VAE((784,))))
        >>> [name for name, p in guide.named_parameters() if p.requires_grad]
        ['base.heads.z.network.weight', 'base.heads.z.network.bias']
    """

    def __init__(
        self,
        guide: Guide | Callable,
        modules: Sequence[str] = ("encoder",),
        *,
        make: Callable[[Any], Guide] = MeanFieldGuide,
    ) -> None:
        super().__init__(guide, make, amortized=False)
        self.modules_frozen = [modules] if isinstance(modules, str) else list(modules)
        if list(self.base.parameters()):
            self._freeze()

    def setup(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """See `Guide.setup`."""
        super().setup(x, *args, **kwargs)
        self._freeze()

    def train(self, mode: bool = True) -> Self:
        """Training mode, for what is not frozen."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def thaw(self) -> Guide:
        """The guide inside, all of it to be trained again."""
        self.base.requires_grad_(True)
        return self.base.train()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The program: that of the guide inside."""
        return self.base(x, *args, **kwargs)

    def _freeze(self) -> None:
        for module in self._frozen():
            module.requires_grad_(False).eval()

    def _frozen(self) -> list[nn.Module]:
        there = dict(self.base.named_modules())
        if not list(self.base.parameters()):
            return []
        if missing := [name for name in self.modules_frozen if name not in there]:
            accepted = sorted(name for name in there if name and name.count(".") < 2)
            raise ValueError(
                f"FrozenGuide: {type(self.base).__name__} has no module {missing[0]!r}; accepted "
                f"are {', '.join(accepted)}, and '' for all of it"
            )
        return [there[name] for name in self.modules_frozen]
