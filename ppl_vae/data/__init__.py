"""Data sets by name or by path, as three fixed splits of float tensors, or read from the disk.

>>> from ppl_vae.data import load
>>> splits = load("digits", binarize="dynamic")
>>> splits.data_shape, len(splits.train), len(splits.valid), len(splits.test)
((1, 8, 8), 1297, 250, 250)

Every file here reads one kind of source and hands back a `Splits`; `load` only chooses among them.
"""

from ppl_vae.data.binarization import binarize
from ppl_vae.data.held_out import split_rows
from ppl_vae.data.huggingface import HuggingFaceRows
from ppl_vae.data.loading import DESCRIPTIONS, NAMES, load
from ppl_vae.data.order import Blocks
from ppl_vae.data.rendering import render_sprites
from ppl_vae.data.rows import Rows
from ppl_vae.data.shards import Shards
from ppl_vae.data.splits import Splits
from ppl_vae.data.sprites import SPRITE_GRID

__all__ = [
    "DESCRIPTIONS",
    "NAMES",
    "SPRITE_GRID",
    "Blocks",
    "HuggingFaceRows",
    "Rows",
    "Shards",
    "Splits",
    "binarize",
    "load",
    "render_sprites",
    "split_rows",
]
