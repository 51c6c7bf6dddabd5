"""The plates in which a guide draws: those that the model has.

Shapes: B data.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import pyro
import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from ppl_vae.guides.sites import LatentSite

__all__ = ["inside", "open_plates"]


def open_plates(
    sites: Iterable[LatentSite], data_plate: CondIndepStackFrame, x: Tensor
) -> dict[str, pyro.plate]:
    """The model's plates. Where the model subsamples the data, so does the guide.

    Args:
        sites: The model's latent sites.
        data_plate: The frame of the plate over the data.
        x: Data, `[B, *data_shape]`.
    """
    plates = {}
    for frame in {f.name: f for site in sites for f in site.frames}.values():
        size, subsample = frame.full_size or frame.size, None
        if frame.name == data_plate.name:
            if size == frame.size:
                size = len(x)  # The plate is as long as the batch of the moment.
            elif len(x) == size:
                subsample = frame.size
            else:
                # The batch is the subsample already; its rows are not the guide's to choose.
                index = torch.arange(len(x), device=x.device)
                plates[frame.name] = pyro.plate(frame.name, size, subsample=index, dim=frame.dim)
                continue
        plates[frame.name] = pyro.plate(frame.name, size, subsample, dim=frame.dim)
    return plates


@contextmanager
def inside(plates: dict[str, pyro.plate], site: LatentSite) -> Iterator[None]:
    """The plates around a site."""
    with ExitStack() as stack:
        for frame in site.frames:
            stack.enter_context(plates[frame.name])
        yield
