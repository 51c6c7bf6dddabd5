"""What a page needs to walk through the latent space of a run: decoders, data, and their places."""

import io
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image
from torch import Tensor

from ppl_vae.evaluate.decoding import decode_units, decoder_of
from ppl_vae.interactive.arrays import Arrays
from ppl_vae.interactive.program import Program, program_of
from ppl_vae.plots.look import CLASSES, spread
from ppl_vae.plots.tiles import rgb
from ppl_vae.randomness import looking, validation

__all__ = ["Labels", "explorer"]

_MAX_DATA = 400
_MAX_NUMBERS = 2_000_000  # of the data shown
_MAX_BYTES = 12_000_000
_NUM_CHECKED = 32
# What half precision may change in a decoded mean; the page's own sums add about 1e-6.
_HALF = 2.5e-4
_TRACE = 2e-5


@dataclass(frozen=True)
class Labels:
    """A colour and a text for each datum; a legend of classes, or of both ends of a scale."""

    colors: Sequence[str]
    texts: Sequence[str]
    legend: Mapping[str, str]
    name: str = ""


def explorer(
    model: Callable,
    x: Tensor,
    means: Mapping[str, Tensor],
    aggregate: Mapping[str, tuple[Tensor, Tensor]],
    labels: Tensor | None = None,
    label_name: str = "",
) -> dict[str, Any]:
    """The explorer of a model, as JSON.

    Args:
        model: The model, in evaluation mode.
        x: Data, `[N, *data_shape]`; the first 400 are shown, of large ones fewer.
        means: For each site to walk in the posterior means of these data, `[N, D]`.
        aggregate: For each site mean and standard deviation of each unit, `[D]` both.
        labels: Classes or a continuous factor of the data, `[N]`.
        label_name: What the labels are called.

    Returns:
        Sites with their programs, points and a check: what the model itself makes of the first
        datum's mean.

    Raises:
        ValueError: There is nothing that a page can show or run; why, the message says.
    """
    if x[0].numel() < 3:
        raise ValueError(
            f"data of {x[0].numel()} numbers are seen better in the latent space itself"
        )
    if not means:
        raise ValueError("no site is real-valued")
    if not all(z.isfinite().all() for z in means.values()):
        raise ValueError("posterior means are not finite")
    num = max(1, min(_MAX_DATA, len(x), _MAX_NUMBERS // x[0].numel()))
    shown = x[:num]
    means = {site: z[:num].cpu().float() for site, z in means.items()}
    programs = {site: _program(model, site, z, shown) for site, z in means.items()}
    targets = {site: _decoded(model, site, z, shown) for site, z in means.items()}
    for site, program in programs.items():
        if not (difference := _error(program, means[site], targets[site])) < _TRACE:
            raise ValueError(
                f"the graph of the decoder differs from the decoder by {difference:.2g}"
            )
    half = all(_error(_halved(programs[s]), means[s], targets[s]) < _HALF for s in means)
    arrays = Arrays(half=half)
    sites = []
    for site, z in means.items():
        mean, deviation = (moment.tolist() for moment in aggregate[site])
        sites.append({
            "name": site, "mean": mean, "deviation": deviation,
            "units": z.var(0, correction=0).argsort(descending=True).tolist(),
            "program": {
                "steps": programs[site].steps, "shape": programs[site].shape,
                "constants": [arrays.add(value) for value in programs[site].constants],
            },
            "points": [[round(v, 4) for v in row] for row in z.tolist()],
            "check": targets[site][0].flatten().tolist(), "checked": z[0].tolist(),
        })  # fmt: skip
    if len(arrays) > _MAX_BYTES:
        raise ValueError(
            f"the decoder takes {len(arrays) / 1e6:.0f} MB, and a page up to {_MAX_BYTES / 1e6:.0f}"
        )
    told = None if labels is None else _labels(labels[:num], label_name)
    return {
        "shape": list(x.shape[1:]), "sites": sites, "arrays": arrays.as_json(),
        "data": _data(shown), "num": num,
        "labels": told and vars(told), "half": half,
    }  # fmt: skip


def _program(model: Callable, site: str, z: Tensor, x: Tensor) -> Program:
    """The decoder of one datum."""
    try:
        with looking(model), validation(False):
            return program_of(decoder_of(model, site, x[:1]), z[:1].to(x))
    except ValueError:
        raise
    except Exception as error:  # whatever a program raises that is run in another way than usual
        first, *_ = [*str(error).strip().splitlines(), "nothing is said"]
        raise ValueError(f"{type(error).__name__}: {first}") from error


def _decoded(model: Callable, site: str, z: Tensor, x: Tensor) -> Tensor:
    """What the model makes of some of the data's codes."""
    return decode_units(model, site, z[:_NUM_CHECKED].to(x), x[:_NUM_CHECKED]).cpu()


def _error(program: Program, z: Tensor, target: Tensor) -> float:
    """The largest difference in what is decoded, for as many data as there are targets.

    Relative where means exceed 1, as those of data that are no images may.
    """
    decoded = torch.cat([program.run(z[i : i + 1].cpu()) for i in range(len(target))])
    return ((decoded - target.cpu()) / target.cpu().abs().clamp(min=1)).abs().max().item()


def _halved(program: Program) -> Program:
    """With constants as they are after float16."""
    rounded = [c.half().float() if c.is_floating_point() else c for c in program.constants]
    return Program(program.steps, tuple(rounded), program.shape)


def _data(x: Tensor) -> dict[str, Any]:
    """Images below one another as one PNG; vectors as numbers."""
    tiles = rgb(x.detach().cpu().double().numpy(), 1)
    if tiles is None:
        return {"vectors": [[round(v, 4) for v in row] for row in x.flatten(1).tolist()]}
    pixels = np.rint(255 * tiles).astype(np.uint8).reshape(-1, *tiles.shape[2:])
    if (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return {"images": "data:image/png;base64," + b64encode(buffer.getvalue()).decode("ascii")}


def _labels(labels: Tensor, name: str) -> Labels:
    values = labels.cpu().numpy()
    classes = np.unique(values).tolist()
    if values.dtype.kind == "f" or len(classes) > 40:
        low, high = float(values.min()), float(values.max())
        place = (values - low) / (high - low or 1.0)
        colors = [to_hex(color) for color in colormaps["viridis"](place)]
        ends = {f"{v:.3g}": to_hex(colormaps["viridis"](p)) for v, p in ((low, 0.0), (high, 1.0))}
        return Labels(colors, [f"{value:.3g}" for value in values], ends, name)
    color = dict(zip(classes, spread(CLASSES, len(classes), "turbo"), strict=True))
    return Labels(
        [color[value] for value in values.tolist()], [str(value) for value in values.tolist()],
        {str(value): color[value] for value in classes}, name,
    )  # fmt: skip
