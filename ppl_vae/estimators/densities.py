"""A site's log-density, for each datum, or for each particle and datum.

Shapes: K particles, B data, `*plates` the plates around a site.
"""

import math
from typing import Any

from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppl_vae.estimators.sites import PARTICLES, Site

__all__ = ["per_datum", "per_particle", "plate_scale"]


def plate_scale(site: Site) -> float:
    """N/B: the factor by which the plates around a site scale it up for subsampling."""
    frames = site["cond_indep_stack"]
    return math.prod((frame.full_size or frame.size) / frame.size for frame in frames)


def per_datum(site: Site, plate: Any, num_data: int | None = None) -> Tensor:
    """A site's log-density for each datum, with masks and scales but not the plates' N/B.

    Returns:
        `[B]`, summed over all plates but the data's; a site outside the data plate gives its sum,
        `[]`, divided by `num_data` (the plate's full size, if not given), so that the sum over all
        data counts it once.
    """
    scale = site["scale"] / plate_scale(site)
    log_prob = scale_and_mask(site["unscaled_log_prob"], scale, site["mask"])
    inside = [frame for frame in site["cond_indep_stack"] if frame.name == plate.name]
    if not inside:
        return log_prob.sum() / (num_data or plate.full_size or plate.size)
    return log_prob.movedim(plate.dim, 0).reshape(plate.size, -1).sum(1)


def per_particle(site: Site, plate: Any, log_prob: Any = None) -> Tensor:
    """A site's log-density for each particle and datum, without the plates' N/B.

    Args:
        site: A site in the data plate, and in the plate of the particles where there is one.
        plate: The frame of the data plate.
        log_prob: In place of the site's own, scaled and masked, log-density: `[*plates]`.

    Returns:
        `[K, B]`, summed over all other plates; K is 1 where there is no plate of particles.
    """
    if log_prob is None:
        scale = plate_scale(site)
        log_prob = site["log_prob"] if scale == 1 else site["log_prob"] / scale
    if not any(frame.name == PARTICLES for frame in site["cond_indep_stack"]):
        log_prob = log_prob.unsqueeze(0)
    kept = log_prob.movedim(plate.dim, 1)
    return kept if kept.dim() == 2 else kept.flatten(2).sum(-1)
