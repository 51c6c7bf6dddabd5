"""Figures of a run: arrays or tensors in, a matplotlib `Figure` out.

Every function is pure: nothing is read from or left in pyplot or the global rc parameters, and the
same input gives the same bytes in `save`. Names from data (sites, classes) are drawn as they are,
never as mathematics.

Shapes: N data, C channels, H x W pixels, D latent units, U traversed units, S values, K classes,
`*shape` one datum. Images are `[C, H, W]` with C 1 or 3, or `[H, W]`, in 0..1: values are clipped,
never rescaled per picture, and NaN is painted vermilion. Data of any other shape are flattened: one
number or two are drawn as points, longer vectors as line profiles.
"""

from ppl_vae.plots.calibration import calibration
from ppl_vae.plots.curves import learning_curves
from ppl_vae.plots.latents import active_units, latent_scatter
from ppl_vae.plots.look import look, png, save
from ppl_vae.plots.neighbors import neighbors
from ppl_vae.plots.pictures import class_samples, reconstructions, samples, traversals

__all__ = [
    "active_units",
    "calibration",
    "class_samples",
    "latent_scatter",
    "learning_curves",
    "look",
    "neighbors",
    "png",
    "reconstructions",
    "samples",
    "save",
    "traversals",
]
