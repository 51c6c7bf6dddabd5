"""The sprite renderer: its geometry by properties, and against real dSprites images."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_vae.data import SPRITE_GRID, load, render_sprites

AREAS = {1: 19.2**2, 2: math.pi * 12.8 * 7.2, 3: 180 * math.pi * 0.602 * 0.662}


def factors(**values):
    names = ("shape", "scale", "orientation", "x", "y")
    default = {"shape": 3, "scale": 1.0, "orientation": 0.0, "x": 0.5, "y": 0.5}
    columns = [torch.as_tensor({**default, **values}[name]).float() for name in names]
    return torch.stack(torch.broadcast_tensors(*columns), dim=-1).reshape(-1, 5)


def centre_of_mass(images):
    pixels = torch.arange(64, dtype=torch.float32)
    total = images.sum((1, 2, 3))
    return images.sum((1, 2)) @ pixels / total, images.sum((1, 3)) @ pixels / total  # x, y


def test_shape_dtype_and_values():
    images = render_sprites(factors(shape=[1, 2, 3]).double())
    assert images.shape == (3, 1, 64, 64) and images.dtype == torch.float32
    assert set(images.unique().tolist()) == {0.0, 1.0}
    assert render_sprites(torch.empty(0, 5)).shape == (0, 1, 64, 64)


@pytest.mark.parametrize("shape", AREAS)
@pytest.mark.parametrize("scale", [0.5, 0.7, 1.0])
def test_area_is_that_of_the_shape_at_every_orientation(shape, scale):
    images = render_sprites(
        factors(shape=shape, scale=scale, orientation=SPRITE_GRID["orientation"])
    )
    areas = images.sum((1, 2, 3))
    expected = AREAS[shape] * scale**2
    # An edge pixel is in or out by its centre: at most about half a pixel times the perimeter off.
    assert ((areas - expected).abs() < 2 * math.sqrt(expected)).all()
    assert abs(areas.mean() - expected) < 0.02 * expected


def test_areas_are_ordered_square_ellipse_heart():
    square, ellipse, heart = render_sprites(factors(shape=[1, 2, 3])).sum((1, 2, 3)).tolist()
    assert square > ellipse > heart


@pytest.mark.parametrize("shape", [1, 2, 3])
def test_positions_move_the_centre_of_mass_by_32_pixels_from_0_to_1(shape):
    grid = SPRITE_GRID["x"]
    x, y = centre_of_mass(render_sprites(factors(shape=shape, x=grid)))
    assert ((x - x[0] - 32 * grid).abs() < 0.5).all() and y.max() - y.min() < 0.5
    x, y = centre_of_mass(render_sprites(factors(shape=shape, y=grid)))
    assert ((y - y[0] - 32 * grid).abs() < 0.5).all() and x.max() - x.min() < 0.5
    if shape != 3:  # the heart's mass lies above its middle
        assert abs(y[0] - 15.5) < 0.5


def test_no_sprite_is_cut_off():
    shapes = torch.tensor([1, 2, 3], dtype=torch.float32)
    corners = torch.cartesian_prod(shapes, SPRITE_GRID["orientation"])
    for x in (0.0, 1.0):
        images = render_sprites(factors(shape=corners[:, 0], orientation=corners[:, 1], x=x, y=x))
        border = images[..., [0, -1], :].sum() + images[..., :, [0, -1]].sum()
        assert border == 0


def test_rotation_is_counter_clockwise_as_seen():
    upright, quarter = render_sprites(factors(orientation=[0.0, math.pi / 2], scale=0.93))[:, 0]
    differing = (torch.rot90(upright) != quarter).sum()  # rot90 turns counter-clockwise as seen
    assert differing <= 4
    assert (torch.rot90(upright, -1) != quarter).sum() > 50


def test_symmetries():
    heart, ellipse = render_sprites(factors(shape=[3, 2]))[:, 0]
    assert torch.equal(heart, heart.flip(1)) and not torch.equal(heart, heart.flip(0))
    assert torch.equal(ellipse, ellipse.flip(0)) and torch.equal(ellipse, ellipse.flip(1))
    assert (ellipse.sum(0) > 0).sum() > (ellipse.sum(1) > 0).sum()  # wider than high at angle 0
    assert heart[:32].sum() > heart[32:].sum()  # tip down


@pytest.mark.parametrize(
    "given, message",
    [
        (torch.zeros(3, 6), r"factors must be \[N, 5\] .*got \[3, 6\]"),
        (torch.zeros(5), r"got \[5\]"),
        (factors(shape=[1, 4]), "shape must be 1, 2 or 3, got 4 in row 1"),
        (factors(shape=1.5), "shape must be 1, 2 or 3, got 1.5 in row 0"),
        (factors(scale=0.0), r"scale must be in \(0, 1\], got 0"),
        (factors(orientation=math.nan), "orientation must be finite, got nan"),
        (factors(x=-0.1), r"x must be in \[0, 1\], got -0.1"),
        (factors(y=[0.5, 0.5, 1.5]), r"y must be in \[0, 1\], got 1.5 in row 2"),
    ],
)
def test_refusals_name_the_factor(given, message):
    with pytest.raises(ValueError, match=message):
        render_sprites(given)


def test_pictures_agree_with_real_dsprites():
    path = Path(os.environ.get("PPL_VAE_DATA", "")) / "dSprites_sample" / "dsprites_sample12.npz"
    if "PPL_VAE_DATA" not in os.environ or not path.is_file():
        pytest.skip("the comparison with 12 real dSprites images; set PPL_VAE_DATA to run it")
    with np.load(path, allow_pickle=False) as real:
        pictures = torch.from_numpy(real["imgs"]).bool()
        drawn = render_sprites(torch.from_numpy(real["latents_values"][:, 1:]))[:, 0].bool()
    iou = (pictures & drawn).sum((1, 2)) / (pictures | drawn).sum((1, 2))
    assert iou.min() > 0.99 and (iou == 1).sum() >= 9  # at most one pixel is off


@pytest.fixture(scope="module")
def sprites():
    return load("sprites")


def test_the_set_is_disjoint_in_factors_and_in_pictures(sprites):
    factors_seen, pictures_seen = set(), set()
    for split in ("train", "valid", "test"):
        x = getattr(sprites, split)[:, 0].bool().flatten(1).numpy()
        pictures_seen |= {row.tobytes() for row in np.packbits(x, axis=1)}
        factors_seen |= {row.tobytes() for row in sprites.labels[split].numpy()}
    assert len(pictures_seen) == len(factors_seen) == 24_000


def test_the_set_holds_what_its_labels_say(sprites):
    assert [len(x) for x in (sprites.train, sprites.valid, sprites.test)] == [20_000, 2_000, 2_000]
    assert sprites.label_names == ("shape", "scale", "orientation", "x", "y")
    assert sprites.train.dtype == torch.float32 and sprites.data_shape == (1, 64, 64)
    assert torch.equal(sprites.test, render_sprites(sprites.labels["test"]))
    for column, values in zip(sprites.labels["train"].T, SPRITE_GRID.values(), strict=True):
        counts = torch.stack([(column == value).sum() for value in values])
        assert counts.sum() == 20_000
        expected = 20_000 / len(values)
        assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()


def test_the_grid_is_that_of_dsprites():
    sizes = [len(values) for values in SPRITE_GRID.values()]
    assert sizes == [3, 6, 40, 32, 32] and math.prod(sizes) == 737_280
