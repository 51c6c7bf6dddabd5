"""Amortized guides: an encoder reads x, and each family writes q(z | x) from its features.

Shapes: B data, F features, `*plates` the plates around a site, `*event` its event.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_vae.checks import check_hidden
from ppl_vae.guides.base import Guide
from ppl_vae.guides.plates import inside, open_plates
from ppl_vae.guides.shown import parameters_of, shown_to
from ppl_vae.guides.sites import (
    LatentSite,
    check_supports,
    find_data_plate,
    find_latent_sites,
    trace_model,
)
from ppl_vae.models.nn import Activation, DenseEncoder
from ppl_vae.randomness import fork

__all__ = ["Adjust", "AmortizedGuide", "Encoded"]

#: From a site's name, and the numbers that its head came to, to the numbers to draw from.
Adjust = Callable[[str, Any], Any]

# The batch on which a model of known data shape is traced at once: 2 tells it from a size of 1.
_PROTOTYPE_BATCH = 2


@dataclass(frozen=True)
class Encoded:
    """What one run of a guide has before it draws.

    Attributes:
        features: The encoder's, `[B, F]`; of the subsample where the model subsamples.
        plates: The guide's, by name.
        args: What the guide was called with.
        kwargs: Likewise.
        rows: Which data are encoded, where the model subsamples; else all are.
        kept: What was made of the features alone, by site: once, however often it is drawn.
    """

    features: Tensor
    plates: dict[str, pyro.plate]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: Tensor | None = None
    kept: dict[str, Any] = field(default_factory=dict)


class AmortizedGuide(Guide):
    """A guide whose encoder reads x: finds the sites, makes the networks, opens the plates.

    A family of guides subclasses it and defines `_make_head(site, num_features)`, called once for
    each site, and `_sample(site, parameters)`, called inside the site's plates at every run.

    Networks are made at once where the model knows its `data_shape` (and needs nothing but `x`),
    else by `setup(x)`. They are made on the device and in the floating type of the model's
    parameters or, if it has none, of `x`.

    Sites and their supports are those of the model's run at that moment: one whose bounds move with
    parameters, with the data, or with other sites is not followed, and is refused where a gradient
    or a difference between data shows it.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        activation: Of the dense encoder, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder: a network `[B, *data_shape] -> [B, F]`, or a class
            that makes one of `data_shape`. One whose `forward` takes more than x is given what the
            model takes besides x, labels or a mask, by the model's names; what has another name, by
            its place, unless it has a default. Whether a call gives them by place or by keyword is
            the same.

    Raises:
        ValueError: The model has no latent site, no plate over the data, or a site that the guide
            cannot represent, or whose support moves.
    """

    def __init__(
        self,
        model: Callable,
        hidden: Sequence[int] = (400,),
        *,
        activation: Activation = "relu",
        encoder: nn.Module | Callable[[Sequence[int]], nn.Module] | None = None,
    ) -> None:
        super().__init__(model)
        self._hidden = check_hidden(hidden, f"{type(self).__name__}: hidden")
        self._activation: Activation = activation
        # A list, or `nn.Module` would register an encoder before it is known to fit.
        self._encoder_factory = [encoder]
        self.latent_sites: dict[str, LatentSite] = {}
        shape = self._data_shape = getattr(model, "data_shape", None)
        if shape is not None and _takes_only_data(model):
            self.setup(_like(model, torch.zeros(_PROTOTYPE_BATCH, *shape)))

    def setup(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Finds the sites and makes the networks, unless that is done; see `Guide.setup`."""
        if self.latent_sites:
            return
        trace = trace_model(self.model, x, *args, **kwargs)
        sites = self._arrange(find_latent_sites(trace))
        check_supports(sites, self.model, x, *args, **kwargs)
        self.data_plate = find_data_plate(trace, len(x))
        for site in sites:
            self._check_site(site)
        encoder = self._make_encoder(x.shape[1:])
        like = _like(self.model, x)
        encoder = encoder.to(like)
        # In evaluation mode: one datum has no batch statistics, and none are to be kept of it.
        was_training = encoder.training
        with fork(), torch.no_grad(), poutine.block():
            encoder.eval()
            features = shown_to(encoder, self.model, (like, *args), kwargs).run(_first_row)
        encoder.train(was_training)
        if features.dim() != 2 or features.shape[0] != 1:
            raise ValueError(
                f"{type(self).__name__}: the encoder turns {list(like[:1].shape)} into "
                f"{list(features.shape)}; accepted is [1, F]"
            )
        self.encoder = encoder
        self.heads = nn.ModuleDict(
            {
                site.name: self._make_head(site, features.shape[-1])
                if site.is_local(self.data_plate)
                else _Free(self._make_head(site, 1))
                for site in sites
            }
        ).to(like)
        # Last: whatever raised before this line, the guide is not set up by halves.
        self.latent_sites = {site.name: site for site in sites}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The program.

        Args:
            x: Data, `[B, *data_shape]`.
            *args: Passed by, for the model.
            **kwargs: Passed by, for the model.

        Returns:
            The value of every latent site.

        Raises:
            RuntimeError: The networks are not made yet.
        """
        return self.draw(self.encode(x, *args, **kwargs))

    def encode(self, x: Tensor, *args: Any, **kwargs: Any) -> Encoded:
        """The first half of a run: what the encoder sees in x, and the plates to draw in.

        Args:
            x: Data, `[B, *data_shape]`.
            *args: What else the model takes; given to an encoder that asks for it.
            **kwargs: Likewise.

        Raises:
            RuntimeError: The networks are not made yet.
            ValueError: The model says the shape of its data, and x has another.
        """
        if not self.latent_sites:
            raise RuntimeError(
                f"{type(self).__name__} has no networks yet: the model has no `data_shape` to make "
                "them from. Call guide.setup(x) with a batch first (fit does)"
            )
        if self._data_shape is not None and tuple(x.shape[1:]) != tuple(self._data_shape):
            raise ValueError(
                f"{type(self).__name__} was built for data of shape {tuple(self._data_shape)}, and "
                f"was given {tuple(x.shape[1:])} ({list(x.shape)} with the batch)"
            )
        plates = self._open_plates(x)
        shown = shown_to(self.encoder, self.model, (x, *args), kwargs)
        rows = None
        if self.data_plate.name in plates:
            with plates[self.data_plate.name] as index:
                if len(index) != len(x):
                    rows = index
        features = shown.run(lambda v: v if rows is None or not _is_per_datum(v, x) else v[rows])
        return Encoded(features, plates, (x, *args), kwargs, rows)

    def draw(self, encoded: Encoded, adjust: Adjust | None = None) -> dict[str, Tensor]:
        """The second half of a run: the sites.

        Args:
            encoded: As `encode` gave it.
            adjust: Given the name of a site in the data plate, and the numbers that its head came
                to, gives the numbers to draw from.

        Returns:
            The value of every latent site.
        """
        heads = self.heads
        values: dict[str, Tensor] = {}
        for name, site in self.latent_sites.items():
            parameters = self._read(heads[name], site, encoded, values)
            if adjust is not None and site.is_local(self.data_plate):
                parameters = adjust(name, parameters)
            with inside(encoded.plates, site):
                values[name] = self._sample(site, parameters)
        return values

    def _arrange(self, sites: list[LatentSite]) -> list[LatentSite]:
        """The order in which the guide draws the sites; the model's, unless a structure differs."""
        return sites

    def _read(
        self, head: nn.Module, site: LatentSite, encoded: Encoded, values: dict[str, Tensor]
    ) -> Any:
        """A head's output: of the features, unless a structure has it look at earlier sites too."""
        if site.name not in encoded.kept:
            encoded.kept[site.name] = head(encoded.features)
        return encoded.kept[site.name]

    def _check_site(self, site: LatentSite) -> None:
        """Raises a `ValueError` where the guide cannot represent the site."""

    @abstractmethod
    def _make_head(self, site: LatentSite, num_features: int) -> nn.Module:
        """A network `[B, F] -> parameters of the site`, for `_sample` to read."""

    @abstractmethod
    def _sample(self, site: LatentSite, parameters: Any) -> Tensor:
        """Samples the site, given its head's output."""

    def _make_encoder(self, data_shape: torch.Size) -> nn.Module:
        (encoder,) = self._encoder_factory
        if encoder is None:
            return DenseEncoder(data_shape, self._hidden, self._activation)
        return encoder if isinstance(encoder, nn.Module) else encoder(data_shape)

    def _cells(self, site: LatentSite) -> torch.Size:
        """How many distributions one datum has at a site: the sizes of the site's other plates."""
        sizes = list(site.batch_shape)
        if site.is_local(self.data_plate):
            sizes[self.data_plate.dim] = 1  # type: ignore[index]
        return torch.Size(sizes)

    def _spread(self, values: Tensor, site: LatentSite, event: torch.Size) -> Tensor:
        """`[B, cells * event]` to `[*plates, *event]`, B at the dimension of the data plate."""
        values = values.reshape(-1, *self._cells(site), *event)
        if site.is_local(self.data_plate):
            values = values.transpose(0, self.data_plate.dim - len(event))  # type: ignore[operator]
        return values.squeeze(0)

    def _open_plates(self, x: Tensor) -> dict[str, pyro.plate]:
        """The plates of a run, by name."""
        return open_plates(self.latent_sites.values(), self.data_plate, x)


class _Free(nn.Module):
    """The head of a global site: its parameters depend on no datum."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Any:
        return self.head(features.new_ones(1, 1))


def _first_row(value: Any) -> Any:
    return value[:1] if isinstance(value, Tensor) and value.dim() else value


def _is_per_datum(value: Any, x: Tensor) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(x)


def _takes_only_data(model: Callable) -> bool:
    """Whether the program can be run on x alone."""
    required = [
        p
        for p in parameters_of(model)
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return len(required) == 1


def _like(model: Callable, x: Tensor) -> Tensor:
    """`x` on the device and in the floating type of the model's parameters, if it has any."""
    if isinstance(model, nn.Module):
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                return x.to(value)
    return x
