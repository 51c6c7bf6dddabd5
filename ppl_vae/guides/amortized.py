"""Amortized guides: an encoder reads x, and each family writes q(z | x) from its features.

Shapes: B data, F features, `*plates` the plates around a site, `*event` its event.
"""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.transforms import biject_to
from torch import Tensor, nn

from ppl_vae.guides.base import Guide
from ppl_vae.guides.sites import LatentSite, find_data_plate, find_latent_sites, trace_model
from ppl_vae.models.base import check_hidden
from ppl_vae.models.nn import Activation, DenseEncoder
from ppl_vae.randomness import fork

__all__ = ["AmortizedGuide"]

# The batch on which a model of known data shape is traced at once: 2 tells it from a size of 1.
_PROTOTYPE_BATCH = 2


class AmortizedGuide(Guide):
    """A guide whose encoder reads x: finds the sites, makes the networks, opens the plates.

    A family of guides subclasses it and defines `_make_head(site, num_features)`, called once for
    each site, and `_sample(site, parameters)`, called inside the site's plates at every run.

    Networks are made at once where the model knows its `data_shape` (and needs nothing but `x`),
    else by `setup(x)`. They are made on the device and in the floating type of the model's
    parameters or, if it has none, of `x`.

    Args:
        model: The model, any Pyro program with a plate over the data.
        hidden: Widths of the dense encoder's layers.
        activation: Of the dense encoder, by its name in `torch.nn.functional`.
        encoder: In place of the dense encoder: a network `[B, *data_shape] -> [B, F]`, or a class
            that makes one of `data_shape`.

    Raises:
        ValueError: The model has no latent site, no plate over the data, or a site that the family
            cannot represent.
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
        shape = getattr(model, "data_shape", None)
        if shape is not None and _takes_only_data(model):
            self.setup(_like(model, torch.zeros(_PROTOTYPE_BATCH, *shape)))

    def setup(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Finds the sites and makes the networks, unless that is done; see `Guide.setup`."""
        if self.latent_sites:
            return
        trace = trace_model(self.model, x, *args, **kwargs)
        sites = self._arrange(find_latent_sites(trace))
        plate = find_data_plate(trace, len(x))
        for site in sites:
            self._check_site(site)
        encoder = self._make_encoder(x.shape[1:])
        like = _like(self.model, x)
        encoder = encoder.to(like)
        # In evaluation mode: one datum has no batch statistics, and none are to be kept of it.
        was_training = encoder.training
        with fork(), torch.no_grad(), poutine.block():
            features = encoder.eval()(like[:1])
        encoder.train(was_training)
        if features.dim() != 2 or features.shape[0] != 1:
            raise ValueError(
                f"{type(self).__name__}: the encoder turns {list(like[:1].shape)} into "
                f"{list(features.shape)}; accepted is [1, F]"
            )
        self._data_plate = plate
        self.encoder = encoder
        self.heads = nn.ModuleDict(
            {
                site.name: self._make_head(site, features.shape[-1])
                if site.is_local(self._data_plate)
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
        if not self.latent_sites:
            raise RuntimeError(
                f"{type(self).__name__} has no networks yet: the model has no `data_shape` to make "
                "them from. Call guide.setup(x) with a batch first (fit does)"
            )
        plates = self._open_plates(x)
        if self._data_plate.name in plates:
            with plates[self._data_plate.name] as index:
                if len(index) != len(x):
                    x = x[index]
        features = self.encoder(x)  # [B, F]
        heads = self.heads
        values = {}
        for name, site in self.latent_sites.items():
            parameters = self._read(heads[name], site, features, values)
            with _inside(plates, site):
                values[name] = self._sample(site, parameters)
        return values

    def _arrange(self, sites: list[LatentSite]) -> list[LatentSite]:
        """The order in which the guide draws the sites; the model's, unless a structure differs."""
        return sites

    def _read(
        self, head: nn.Module, site: LatentSite, features: Tensor, values: dict[str, Tensor]
    ) -> Any:
        """A head's output: of the features, unless a structure has it look at earlier sites too."""
        return head(features)

    def _check_site(self, site: LatentSite) -> None:
        """Raises a `ValueError` where the family cannot represent the site: it is discrete."""
        if site.is_discrete:
            raise ValueError(
                f"{type(self).__name__}: the model's site '{site.name}' is discrete "
                f"({type(site.support).__name__.strip('_')}); accepted are continuous sites"
            )

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

    def _unconstrained_shape(self, site: LatentSite) -> torch.Size:
        """What a head gives for one datum: the site's other plates, then the unconstrained event.

        A simplex of 3, for one, has 2 free coordinates before `biject_to(support)`.
        """
        plates = list(site.batch_shape)
        if site.is_local(self._data_plate):
            plates[self._data_plate.dim] = 1  # type: ignore[index]
        return torch.Size([*plates, *biject_to(site.support).inverse_shape(site.event_shape)])

    def _spread(self, values: Tensor, site: LatentSite, event: torch.Size | None = None) -> Tensor:
        """`[B, numel]` to `[*plates, *event]`, with B at the dimension of the data plate.

        The event is that of the site before `biject_to(support)`, if not given.
        """
        shape = self._unconstrained_shape(site)
        if event is not None:
            shape = shape[: len(site.batch_shape)] + event
        values = values.reshape(-1, *shape)
        if site.is_local(self._data_plate):
            event_dim = len(shape) - len(site.batch_shape)
            values = values.transpose(0, self._data_plate.dim - event_dim)  # type: ignore[operator]
        return values.squeeze(0)

    def _open_plates(self, x: Tensor) -> dict[str, pyro.plate]:
        """The model's plates. Where the model subsamples the data, so does the guide."""
        plates = {}
        for frame in {
            f.name: f for site in self.latent_sites.values() for f in site.frames
        }.values():
            size, subsample = frame.full_size or frame.size, None
            if frame.name == self._data_plate.name:
                if size == frame.size:
                    size = len(x)  # The plate is as long as the batch of the moment.
                elif len(x) == size:
                    subsample = frame.size
                else:
                    # The batch is the subsample already; its rows are not the guide's to choose.
                    index = torch.arange(len(x), device=x.device)
                    plates[frame.name] = pyro.plate(
                        frame.name, size, subsample=index, dim=frame.dim
                    )
                    continue
            plates[frame.name] = pyro.plate(frame.name, size, subsample, dim=frame.dim)
        return plates


class _Free(nn.Module):
    """The head of a global site: its parameters depend on no datum."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Any:
        return self.head(features.new_ones(1, 1))


@contextmanager
def _inside(plates: dict[str, pyro.plate], site: LatentSite) -> Iterator[None]:
    with ExitStack() as stack:
        for frame in site.frames:
            stack.enter_context(plates[frame.name])
        yield


def _takes_only_data(model: Callable) -> bool:
    """Whether the program can be run on x alone."""
    forward = model.forward if isinstance(model, nn.Module) else model
    required = [
        p
        for p in inspect.signature(forward).parameters.values()
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
