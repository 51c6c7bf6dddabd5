"""Flows at the ends of their numbers: floors that hold, orders, what a draw and a density cost.

Shapes: D dimensions, T maps.
"""

import math

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from ppl_vae import families
from ppl_vae.families.rational_quadratic import rational_quadratic, rational_quadratic_inverse
from ppl_vae.families.triangular_map import GatedMap

BOTH = {
    "iaf": families.InverseAutoregressive,
    "maf": families.MaskedAutoregressive,
    "spline": families.NeuralSpline,
}


def far(made, factor=30):
    """A member whose maps are far from the identity."""
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(factor)
    return made


def push(transforms):
    def pushed(u):
        for transform in transforms:
            u = transform(u)
        return u

    return pushed


def is_triangular(matrix):
    return bool((matrix.tril(-1) == 0).all() or (matrix.triu(1) == 0).all())


# --------------------------------------------------------------------------------- affine maps


def shut(x):
    return x.new_full(x.shape, 3.0), x.new_full(x.shape, -50.0)


def test_a_gate_never_shuts():
    gated, x = GatedMap(shut, range(4)), torch.randn(5, 4)
    y = gated(x)
    torch.testing.assert_close(y, 0.1 * x + 0.9 * 3)
    torch.testing.assert_close(GatedMap(shut, range(4)).inv(y.clone()), x)
    log_det = gated.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(log_det, torch.full((5,), 4 * math.log(0.1)))


def test_a_jacobian_is_that_of_the_pair_asked_for():
    def net(x):
        return torch.zeros_like(x), x.detach().cumsum(-1) - x

    gated, x, other = GatedMap(net, range(3)), torch.randn(3), torch.randn(3)
    y, expected = gated(x), GatedMap(net, range(3)).log_abs_det_jacobian(other, other)
    assert not torch.allclose(expected, gated.log_abs_det_jacobian(x, y))
    torch.testing.assert_close(gated.log_abs_det_jacobian(other, y), expected)
    at_x = GatedMap(net, range(3)).log_abs_det_jacobian(x, x)
    torch.testing.assert_close(gated.log_abs_det_jacobian(x, other), at_x)


@pytest.mark.parametrize("name", BOTH)
def test_every_other_network_counts_from_behind(name):
    made = far(BOTH[name](2, context_dim=4, hidden=(7,)).make(3))
    maps = made(torch.randn(made.size)).transforms[:2]
    u = 0.3 * torch.randn(3)
    for one in maps:
        assert is_triangular(jacobian(one, u))
    together = jacobian(push(maps), u)
    assert (together.tril(-1).abs().sum() > 1e-6) and (together.triu(1).abs().sum() > 1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_in_one_dimension_the_context_counts(name):
    made = far(BOTH[name](2, context_dim=4, hidden=(7,)).make(1))
    values = torch.randn(made.size, requires_grad=True)
    made(values).log_prob(torch.tensor([0.4])).backward()
    assert (values.grad != 0).all()


@pytest.mark.parametrize("name", BOTH)
def test_a_scale_is_never_zero(name):
    made = BOTH[name](2, context_dim=4, hidden=(7,)).make(3)
    values = torch.zeros(made.size)
    values[3:6] = -1000.0
    fn = made(values)
    z = fn.rsample()
    assert fn.log_prob(z).isfinite()
    # Gates of 0.1 and slopes of 0.01 are as far as a map can squeeze; 1e-6 is the scale.
    assert (z != made(values).rsample()).all()


def test_a_draw_and_a_density_cost_what_is_said():
    dim, num_flows = 4, 3
    for family, of_draw, of_density in (
        (families.InverseAutoregressive, num_flows, num_flows * dim),
        (families.NeuralSpline, num_flows, num_flows * dim),
        (families.MaskedAutoregressive, num_flows * dim, num_flows),
    ):
        made, calls = family(num_flows, context_dim=4, hidden=(7,)).make(dim), []
        for net in made.nets:
            net.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        fn = made(torch.randn(made.size))
        z = fn.rsample()
        assert len(calls) == of_draw
        fn.log_prob(z)
        assert len(calls) == of_draw  # It remembers its own.
        calls.clear()
        fn.log_prob(z.clone())
        assert len(calls) == of_density


# ------------------------------------------------------------------------------------- splines


def test_steep_numbers_leave_a_spline_invertible():
    x = torch.linspace(-2.99, 2.99, 301)
    ends = torch.tensor([50.0, -50.0, 50.0, -50.0, -50.0])
    for widths in (ends, -ends):
        for heights in (ends, -ends):
            for slopes in (ends[:4], -ends[:4]):
                numbers = widths, heights, slopes
                y, log_slope = rational_quadratic(x, *numbers, 3.0)
                back, same_slope = rational_quadratic_inverse(y, *numbers, 3.0)
                assert (y.diff() > 0).all() and log_slope.isfinite().all()
                torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
                torch.testing.assert_close(same_slope, log_slope, rtol=1e-5, atol=1e-5)


def test_a_splines_slopes_and_bins_have_a_floor():
    even = torch.zeros(4)
    knots = torch.tensor([-1.5, 0.0, 1.5])
    _, log_slope = rational_quadratic(knots, even, even, torch.full((3,), -50.0), 3.0)
    torch.testing.assert_close(log_slope, torch.full((3,), math.log(0.01)))
    # The narrowest of 4 bins is a hundredth of the mean one: 6 / 4 / 100.
    narrow = torch.tensor([-50.0, 50.0, 50.0, 50.0])
    y, _ = rational_quadratic(torch.tensor([-3.0 + 1.5]), even, narrow, torch.zeros(3), 3.0)
    torch.testing.assert_close(y, torch.tensor([-3.0 + 0.015]))


def test_a_spline_ends_at_its_bound():
    made = far(families.NeuralSpline(1, bound=1.0, context_dim=4, hidden=(7,)).make(1), 100)
    spline = made(torch.randn(made.size)).transforms[0]

    def log_det(x):
        return spline.log_abs_det_jacobian(x, spline(x))

    # The gate of one dimension is of the context alone: outside, one slope everywhere.
    outside = log_det(torch.tensor([[-4.9], [-2.0], [-1.01], [1.01], [3.0]]))
    torch.testing.assert_close(outside, outside[:1].expand(5))
    assert (log_det(torch.tensor([[-0.5], [0.1], [0.6]])) - outside[0]).abs().max() > 0.1


def test_a_spline_is_moved_and_scaled_last():
    made = families.NeuralSpline(1, context_dim=4, hidden=(7,)).make(3)
    values = torch.randn(5, made.size)
    place = made(values).transforms[-1]
    torch.testing.assert_close(place.loc, values[:, :3])
    torch.testing.assert_close(place.scale, F.softplus(values[:, 3:6]) + 1e-6)


# ----------------------------------------------------------------------------------- Sylvester


def sylvester(num_flows, dim=3):
    made = families.Sylvester(num_flows).make(dim)
    return made, torch.randn(made.size)


def test_a_sylvester_map_stays_invertible_at_any_diagonal():
    made, values = sylvester(1)
    values[6:9], values[9:12], values[-3:] = 30.0, -30.0, 0.0
    (residual,) = made(values).transforms
    for x in (torch.zeros(3), 0.1 * torch.randn(3)):
        found = residual.log_abs_det_jacobian(x, residual(x))
        det = jacobian(residual, x).det()
        assert found.isfinite() and det > 0
        torch.testing.assert_close(found, det.log())
    at_zero = residual.log_abs_det_jacobian(torch.zeros(3), residual(torch.zeros(3)))
    torch.testing.assert_close(at_zero, torch.tensor(3 * math.log(1 - 0.999**2)))


def test_every_other_sylvester_map_is_turned():
    for num_flows, triangular in ((1, True), (2, False)):
        made, values = sylvester(num_flows)
        maps = made(values).transforms
        assert is_triangular(jacobian(push(maps), torch.randn(3))) == triangular
