"""`sprites`: a sample of the pictures that `render_sprites` can draw, in the manner of dSprites."""

import math
from pathlib import Path

import numpy as np
import torch

from ppl_vae.data.partition import SPLIT_SEED
from ppl_vae.data.rendering import FACTOR_NAMES, render_masks
from ppl_vae.data.splits import SPLIT_NAMES, Splits

__all__ = ["SPRITE_GRID", "sprites"]

SPRITE_GRID = {
    "shape": torch.tensor([1.0, 2.0, 3.0]),
    "scale": torch.linspace(0.5, 1.0, 6, dtype=torch.float32),
    "orientation": torch.linspace(0.0, 2 * math.pi, 40, dtype=torch.float32),
    "x": torch.linspace(0.0, 1.0, 32, dtype=torch.float32),
    "y": torch.linspace(0.0, 1.0, 32, dtype=torch.float32),
}
"""The values of each factor, those of dSprites; 737,280 combinations. 0 and 2 pi look the same."""

_SIZES = (20_000, 2_000, 2_000)
# A few more than are kept, because about one in a thousand repeats an earlier picture.
_NUM_CELLS = 24_100


def sprites(root: Path) -> Splits:
    """Binary pictures `(1, 64, 64)` of a square, an ellipse or a heart: 20,000 / 2,000 / 2,000.

    A random sample, by `SPLIT_SEED` and without replacement, of the grid of factors (`SPRITE_GRID`)
    that dSprites (Matthey et al., 2017) holds in full. Different factors can give one picture (an
    orientation of 0 and of 2 pi; small turns of small shapes): only the first such cell is kept, so
    that no picture is in two splits. Labels are the factor values, float32 `[N, 5]`. Drawn here,
    with no download; the geometry is that of dSprites, up to single pixels at the edge.

    Args:
        root: Not used.
    """
    factors = _sample(_NUM_CELLS)
    masks = render_masks(factors)
    kept = _first_of_each(masks)[: sum(_SIZES)]
    rows = dict(zip(SPLIT_NAMES, kept.split(_SIZES), strict=True))
    return Splits(
        **{split: masks[index].float().unsqueeze(1) for split, index in rows.items()},
        labels={split: factors[index] for split, index in rows.items()},
        label_names=FACTOR_NAMES,
        name="sprites",
    )


def _sample(num_cells: int) -> torch.Tensor:
    """Factors `[num_cells, 5]` of different cells of the grid, in random order."""
    sizes = [len(values) for values in SPRITE_GRID.values()]
    order = np.random.RandomState(SPLIT_SEED).permutation(math.prod(sizes))[:num_cells]
    index = torch.from_numpy(np.stack(np.unravel_index(order, sizes)).astype(np.int64))  # [5, N]
    return torch.stack([v[i] for v, i in zip(SPRITE_GRID.values(), index, strict=True)], dim=1)


def _first_of_each(masks: torch.Tensor) -> torch.Tensor:
    """Row numbers of the first occurrence of every picture, ascending."""
    packed = np.packbits(masks.flatten(1).numpy(), axis=1)
    whole_rows = packed.view(f"V{packed.shape[1]}")[:, 0]
    return torch.from_numpy(np.sort(np.unique(whole_rows, return_index=True)[1]))
