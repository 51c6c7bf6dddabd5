r"""`render_sprites`: white shapes on black, drawn from their factors.

The geometry is that of dSprites (Matthey et al., 2017), recovered from images of it. Lengths are in
pixels at scale 1, in a frame with u to the right and w down whose origin is the sprite's position:

- square: :math:`\max(|u|, |w|) \le 9.6`;
- ellipse: :math:`(u / 12.8)^2 + (w / 7.2)^2 \le 1`;
- heart: the inside of :math:`u = 16 k_u \sin^3 t`, `w = -k_w y(t) + w_0`, with
  `y(t) = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t`, tip down.

A pixel is white where its centre lies in the shape; there is no anti-aliasing.
Shapes: N images, F = 5 factors.
"""

from collections.abc import Callable

import torch

__all__ = ["FACTOR_NAMES", "IMAGE_SIZE", "render_masks", "render_sprites"]

FACTOR_NAMES = ("shape", "scale", "orientation", "x", "y")
IMAGE_SIZE = 64

_HALF_SQUARE = 9.6
_HALF_AXES = (12.8, 7.2)
_HEART_U, _HEART_W, _HEART_SHIFT = 0.602, 0.662, -1.465
# Positions in [0, 1] cover the middle half of the picture, so that no sprite is ever cut off.
_MARGIN, _EXTENT = 16.0, 32.0
# Few enough images at once that the temporaries stay in the processor's cache.
_IMAGES_AT_ONCE = 64


def render_sprites(factors: torch.Tensor) -> torch.Tensor:
    """Draws one sprite per row of factors.

    Args:
        factors: `[N, 5]`, in columns: shape (1 square, 2 ellipse, 3 heart), scale in (0, 1],
            orientation in radians (counter-clockwise as seen, any finite value), x from left 0 to
            right 1, y from top 0 to bottom 1. Any device.

    Returns:
        float32 `[N, 1, 64, 64]` of zeros and ones, on the same device.

    Raises:
        ValueError: Another shape, or a value out of range; the message names the factor.

    Example:
        >>> image = render_sprites(torch.tensor([[1, 1.0, 0.0, 0.5, 0.5]]))
        >>> int(image.sum())  # the area of a 19.2-pixel square, on the pixel grid
        400
    """
    return render_masks(factors).float().unsqueeze(1)


def render_masks(factors: torch.Tensor) -> torch.Tensor:
    """As `render_sprites`, but bool `[N, 64, 64]`: a quarter of the memory."""
    _check(factors)
    # Always float32, so that a picture does not depend on the dtype its factors are kept in.
    factors = factors.float()
    masks = torch.empty(len(factors), IMAGE_SIZE, IMAGE_SIZE, dtype=bool, device=factors.device)
    for number, inside in ((1, _square), (2, _ellipse), (3, _heart)):
        for rows in (factors[:, 0] == number).nonzero()[:, 0].split(_IMAGES_AT_ONCE):
            masks[rows] = _draw(factors[rows], inside)
    return masks


def _draw(
    factors: torch.Tensor, inside: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    scale, angle, x, y = factors[:, 1:, None].unbind(1)  # [N, 1] each
    centres = torch.arange(IMAGE_SIZE, device=factors.device) + 0.5
    right = ((centres - (_MARGIN + _EXTENT * x)) / scale)[:, None, :]  # [N, 1, W]
    down = ((centres - (_MARGIN + _EXTENT * y)) / scale)[:, :, None]  # [N, H, 1]
    cos, sin = angle.cos()[..., None], angle.sin()[..., None]
    return inside(cos * right - sin * down, sin * right + cos * down)


def _square(u: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.maximum(u.abs(), w.abs()) <= _HALF_SQUARE


def _ellipse(u: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (u / _HALF_AXES[0]).square() + (w / _HALF_AXES[1]).square() <= 1


def _heart(u: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    # On each half of the curve (cos t >= 0, the lobes; cos t <= 0, the tip) y is a function of |u|,
    # so the inside lies between the two values of y. With c = cos t, after the double-angle
    # formulas, y = even(c) + odd(c), and the other half has -c.
    sin = (u.abs() / (16 * _HEART_U)).clamp(max=1).pow(1 / 3)
    c2 = 1 - sin.square()
    even = 4 - (2 + 8 * c2) * c2
    odd = c2.clamp(min=0).sqrt() * (19 - 8 * c2)
    y = (_HEART_SHIFT - w) / _HEART_W
    return (u.abs() <= 16 * _HEART_U) & ((y - even).abs() <= odd)


def _check(factors: torch.Tensor) -> None:
    if factors.dim() != 2 or factors.shape[1] != len(FACTOR_NAMES):
        raise ValueError(f"factors must be [N, 5] {FACTOR_NAMES}, got {list(factors.shape)}")
    shape, scale, angle, x, y = factors.unbind(1)
    for name, values, good, accepted in (
        ("shape", shape, (shape == 1) | (shape == 2) | (shape == 3), "1, 2 or 3"),
        ("scale", scale, (scale > 0) & (scale <= 1), "in (0, 1]"),
        ("orientation", angle, torch.isfinite(angle), "finite"),
        ("x", x, (x >= 0) & (x <= 1), "in [0, 1]"),
        ("y", y, (y >= 0) & (y <= 1), "in [0, 1]"),
    ):
        if not good.all():
            row = int((~good).nonzero()[0])
            raise ValueError(f"{name} must be {accepted}, got {values[row].item():g} in row {row}")
