"""Triangular matrices from their entries.

Shapes: `*batch` any, D the dimension.
"""

import torch
from torch import Tensor, nn

__all__ = ["Triangle"]


class Triangle(nn.Module):
    """Upper triangles by one gather, without a loop over rows.

    Args:
        dim: D.
    """

    index: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.num_above = dim, dim * (dim - 1) // 2
        # Where each entry is found in (diagonal, above, 0).
        index = torch.full((dim, dim), dim + self.num_above)
        columns, rows = torch.tril_indices(dim, dim, -1)
        index[rows, columns] = dim + torch.arange(self.num_above)
        index.diagonal().copy_(torch.arange(dim))
        self.register_buffer("index", index.flatten(), persistent=False)

    def forward(self, diagonal: Tensor, above: Tensor) -> Tensor:
        """`[*batch, D]` and `[*batch, D (D - 1) / 2]` to `[*batch, D, D]`."""
        entries = torch.cat([diagonal, above, torch.zeros_like(diagonal[..., :1])], -1)
        return entries[..., self.index].unflatten(-1, (self.dim, self.dim))
