"""Flows: maps against their Jacobians and inverses, densities against quadrature.

Shapes: N points, D dimensions.
"""

import pytest
import torch
from torch.autograd.functional import jacobian

from ppl_vae import families
from ppl_vae.families.rational_quadratic import rational_quadratic, rational_quadratic_inverse

FLOWS = {
    "iaf": lambda: families.InverseAutoregressive(2, 4, (7,)),
    "iaf-deep": lambda: families.InverseAutoregressive(3, 4, (7, 9)),
    "maf": lambda: families.MaskedAutoregressive(2, 4, (7,)),
    "spline": lambda: families.NeuralSpline(2, 4, 2.0, 4, (7,)),
    "planar": lambda: families.Planar(3),
    "sylvester": lambda: families.Sylvester(3),
}
INVERTIBLE = [name for name in FLOWS if FLOWS[name]().has_density]


@pytest.fixture(autouse=True)
def in_double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)


def member(name, dim):
    torch.manual_seed(3)
    made = FLOWS[name]().make(dim)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)  # Far from the identity.
    return made, torch.randn(made.size)


@pytest.mark.parametrize("dim", [1, 2, 4])
@pytest.mark.parametrize("name", FLOWS)
def test_the_density_of_a_draw_is_that_of_its_noise_over_the_jacobian(name, dim):
    made, values = member(name, dim)
    fn = made(values)
    assert fn.event_shape == (dim,) and fn.batch_shape == ()
    noise = fn.base_dist.sample()

    def push(u):
        for transform in fn.transforms:
            u = transform(u)
        return u

    # The draw and the density of it, as one expression does in a program.
    z = push(noise)
    found = fn.log_prob(z)
    expected = fn.base_dist.log_prob(noise) - jacobian(push, noise).det().abs().log()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dim", [1, 2, 4])
@pytest.mark.parametrize("name", INVERTIBLE)
def test_a_density_at_anothers_sample_is_the_same(name, dim):
    made, values = member(name, dim)
    values = torch.randn(3, made.size)
    fn = made(values)
    z = fn.rsample((5,))
    with torch.no_grad():
        torch.testing.assert_close(made(values).log_prob(z.clone()), fn.log_prob(z))


@pytest.mark.parametrize("name", [n for n in FLOWS if n not in INVERTIBLE])
def test_a_flow_without_inverse_says_so(name):
    made, values = member(name, 2)
    with pytest.raises((KeyError, NotImplementedError)):
        made(values).log_prob(torch.randn(2))


@pytest.mark.parametrize("name", INVERTIBLE)
def test_a_density_integrates_to_one(name):
    made, values = member(name, 2)
    fn = made(values)
    with torch.no_grad():
        draws = fn.sample((4000,))
        low, high = draws.min(0).values, draws.max(0).values
        margin = (high - low) / 2
        sides = [
            torch.linspace(a, b, 801) for a, b in zip(low - margin, high + margin, strict=True)
        ]
        grid = torch.cartesian_prod(*sides)
        cell = torch.stack([side[1] - side[0] for side in sides]).prod()
        total = (fn.log_prob(grid).exp() * cell).sum()
    assert total.item() == pytest.approx(1, abs=3e-3)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_gradients_flow_through_an_inverse(name):
    made, values = member(name, 3)
    z = torch.randn(2, 3)

    def density(v):
        return made(v).log_prob(z).sum()

    values.requires_grad_(True)
    assert torch.autograd.gradcheck(density, (values,))


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_computes_in_the_type_of_its_numbers(name):
    torch.set_default_dtype(torch.float32)
    made = FLOWS[name]().make(3).double()
    fn = made(torch.randn(2, made.size, dtype=torch.float64))
    z = fn.rsample()
    assert z.dtype == fn.log_prob(z).dtype == torch.float64
    if name in INVERTIBLE:
        assert fn.log_prob(z.clone()).dtype == torch.float64


@pytest.mark.parametrize("name", INVERTIBLE)
def test_every_dimension_hangs_on_the_others_and_on_the_context(name):
    made, values = member(name, 3)
    values.requires_grad_(True)
    fn = made(values)
    z = torch.randn(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(fn.log_prob(z), values)
    assert (gradient != 0).all()
    hessian = torch.autograd.functional.hessian(lambda z: made(values.detach()).log_prob(z), z)
    assert (hessian != 0).all()


# ------------------------------------------------------------------------------------- the spline


def spline_numbers(*batch):
    return torch.randn(*batch, 5), torch.randn(*batch, 5), torch.randn(*batch, 4)


def test_a_spline_goes_back_and_forth():
    x = torch.linspace(-4, 4, 401)
    numbers = spline_numbers()
    y, log_slope = rational_quadratic(x, *numbers, 3.0)
    back, same_slope = rational_quadratic_inverse(y, *numbers, 3.0)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(same_slope, log_slope)
    assert (y.diff() > 0).all()
    outside = x.abs() >= 3
    assert torch.equal(y[outside], x[outside]) and (log_slope[outside] == 0).all()


def test_a_splines_slope_is_its_derivative_and_continuous():
    x = torch.linspace(-2.999, 2.999, 200, requires_grad=True)
    numbers = spline_numbers()
    y, log_slope = rational_quadratic(x, *numbers, 3.0)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope.exp(), slope)
    fine = torch.linspace(-3.2, 3.2, 200_001)
    _, log_slope = rational_quadratic(fine, *numbers, 3.0)
    assert log_slope.diff().abs().max() < 0.05  # No jump at a knot, or at the bounds.


def test_zero_numbers_are_the_identity():
    x = torch.linspace(-4, 4, 81)
    y, log_slope = rational_quadratic(x, torch.zeros(5), torch.zeros(5), torch.zeros(4), 3.0)
    torch.testing.assert_close(y, x, atol=2e-3, rtol=0)
    torch.testing.assert_close(log_slope, torch.zeros(81), atol=3e-3, rtol=0)


# -------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: families.Planar(0), "Planar: num_flows is 0; accepted is an integer >= 1"),
        (lambda: families.Sylvester(0), "Sylvester: num_flows is 0"),
        (lambda: families.NeuralSpline(num_bins=1), "num_bins is 1; accepted is an integer >= 2"),
        (lambda: families.NeuralSpline(bound=0.0), r"bound is 0\.0; accepted is a number > 0"),
        (lambda: families.NeuralSpline(hidden=(0,)), r"NeuralSpline: hidden is \[0\]"),
        (lambda: families.InverseAutoregressive(0), "InverseAutoregressive: num_flows is 0"),
        (lambda: families.MaskedAutoregressive(1, 0), "MaskedAutoregressive: context_dim is 0"),
        (
            lambda: families.InverseAutoregressive(hidden=(8, 3)).make(5),
            r"hidden is \[8, 3\], and a layer of fewer units than the site's 5 dimensions",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
