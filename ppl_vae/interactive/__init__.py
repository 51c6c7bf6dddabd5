"""What moves in a report: curves with values, and a latent explorer that decodes in the page."""

from ppl_vae.interactive.curves import curves
from ppl_vae.interactive.explorer import explorer

__all__ = ["curves", "explorer"]
