"""The message behind a loss that is not finite: which site, which parameter."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vae.diagnosis import NonFiniteError, diagnose
from ppl_vae.estimators import Trace_ELBO
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.models import VAE, Gaussian, HierarchicalVAE
from ppl_vae.optimizers import named_parameters


def pair(**arguments):
    model = VAE((4,), 2, (3,), activation="tanh", likelihood=Gaussian(), **arguments)
    return model, MeanFieldGuide(model, hidden=(3,), activation="tanh")


def after_a_step(model, guide, x):
    """All parameters with the gradients of one step, validation off as in training."""
    pyro.enable_validation(False)
    loss = Trace_ELBO().differentiable_loss(model, guide, x)
    loss.backward()
    pyro.enable_validation(True)
    return loss.item(), named_parameters(model, guide)


def test_it_is_an_arithmetic_error():
    assert issubclass(NonFiniteError, ArithmeticError)


@pytest.mark.parametrize("bad, word", [(float("nan"), "nan"), (float("inf"), "inf")])
def test_bad_data_are_named_first(bad, word):
    model, guide = pair()
    x = torch.randn(5, 4)
    x[2, 1] = x[3, 0] = bad
    loss, parameters = after_a_step(model, guide, x)
    assert not math.isfinite(loss)
    found = diagnose(model, guide, (x,), 1.0, parameters)
    assert found == f"the data: argument 0 of the batch holds {word} at 2 of 20 places"


def test_a_bad_second_argument_is_counted():
    model, guide = pair()
    args = (torch.randn(5, 4), torch.tensor([0.0, float("nan")]))
    found = diagnose(model, guide, args, 1.0, named_parameters(model, guide))
    assert found == "the data: argument 1 of the batch holds nan at 1 of 2 places"


@pytest.mark.parametrize("name", ["model.decoder.layers.0.weight", "guide.heads.z.network.bias"])
def test_a_bad_parameter_is_named(name):
    model, guide = pair()
    parameters = named_parameters(model, guide)
    with torch.no_grad():
        parameters[name].view(-1)[1] = float("nan")
    found = diagnose(model, guide, (torch.randn(5, 4),), 1.0, parameters)
    size = parameters[name].numel()
    assert found == f"the parameter '{name}', which holds nan at 1 of {size} places"


def test_a_scale_that_overflows_is_named_with_its_site():
    model, guide = pair()
    bias = guide.heads["z"].network.bias  # locations, then log-variances
    with torch.no_grad():
        bias[3] = 2000.0  # exp(1000) is too large
    x = torch.randn(5, 4)
    loss, parameters = after_a_step(model, guide, x)
    assert not math.isfinite(loss)
    found = diagnose(model, guide, (x,), 1.0, parameters)
    assert found.startswith("site 'z' of the guide: its scale holds inf at 5 of 10 places")
    assert "the first parameter whose gradient is bad is '" in found


def test_finite_gradients_point_to_the_largest_parameter():
    model, guide = pair()
    with torch.no_grad():
        guide.heads["z"].network.bias[3] = 2000.0
    parameters = named_parameters(model, guide)
    found = diagnose(model, guide, (torch.randn(5, 4),), 1.0, parameters)
    assert "all parameters are finite, the largest value is 2e+03" in found
    assert found.endswith("in 'guide.heads.z.network.bias'")


def test_a_site_of_the_model_is_named_as_the_models():
    model = HierarchicalVAE((4,), (3, 2), (3,), (3,), activation="tanh", likelihood=Gaussian())
    guide = MeanFieldGuide(model, hidden=(3,))
    with torch.no_grad():
        model.priors[0][-1].linear.bias[-1] = -5000.0  # a scale of 0, and log 0 behind it
    x = torch.randn(5, 4)
    loss, parameters = after_a_step(model, guide, x)
    assert not math.isfinite(loss)
    found = diagnose(model, guide, (x,), 1.0, parameters)
    assert found.startswith("site 'z1' of the model: its log-prob holds ")


def test_a_bad_log_density_at_good_parameters_is_named():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Gamma(2.0, 1.0), obs=x - 0 * z)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.tensor([1.0, -2.0, 3.0])  # outside of the support
    found = diagnose(model, guide, (x,), 1.0, {})
    assert found == "site 'x' of the model: its log-prob holds nan at 1 of 3 places"


def test_bad_gradients_alone_are_named():
    model, guide = pair()
    x = torch.randn(5, 4)
    _, parameters = after_a_step(model, guide, x)
    parameters["guide.encoder.layers.0.bias"].grad[0] = float("inf")
    found = diagnose(model, guide, (x,), 1.0, parameters)
    assert found == (
        "no site in the forward pass; the first parameter whose gradient is bad is "
        "'guide.encoder.layers.0.bias' (inf at 1 of 3 places)"
    )


def test_the_weight_in_force_is_used():
    model, guide = pair()
    huge = 1e308
    x = torch.randn(5, 4)
    with torch.no_grad():
        guide.heads["z"].network.bias[0] = 1e3
    parameters = named_parameters(model, guide)
    assert "no site in the forward pass" in diagnose(model, guide, (x,), 1.0, parameters)
    found = diagnose(model, guide, (x,), huge, parameters)
    assert found.startswith("site 'z' of the guide: its log-prob holds inf at 5 of 5 places")


@pytest.mark.parametrize("on", [True, False])
def test_every_setting_is_left_as_it_was(on):
    pyro.settings.set(
        validate_distributions_pyro=on,
        validate_distributions_torch=not on,
        validate_poutine=on,
        validate_infer=not on,
    )
    before = pyro.settings.get()
    model, guide = pair()
    diagnose(model, guide, (torch.randn(5, 4),), 1.0, named_parameters(model, guide))
    assert pyro.settings.get() == before
