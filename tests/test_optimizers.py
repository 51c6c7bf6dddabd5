"""Which parameters are trained, by which optimizer, and what is written down of it."""

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from ppl_vae.guides import MeanFieldGuide
from ppl_vae.models import VAE
from ppl_vae.optimizers import Optimizers, clip, named_parameters


def pair():
    model = VAE((4,), 2, (3,))
    return model, MeanFieldGuide(model, hidden=(3,))


def with_gradients(parameters):
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    return {name: p.detach().clone() for name, p in parameters.items()}


def moved(parameters, before):
    """How far each parameter went; the gradient is one everywhere."""
    return {name: (before[name] - p.detach()).mean().item() for name, p in parameters.items()}


# ------------------------------------------------------------------------------------------- names


def test_parameters_are_named_by_side():
    model, guide = pair()
    found = named_parameters(model, guide)
    assert set(found) == {f"model.{n}" for n, _ in model.named_parameters()} | {
        f"guide.{n}" for n, _ in guide.named_parameters()
    }
    assert found["guide.heads.z.network.bias"] is guide.heads["z"].network.bias
    # Pyro's store knows them too, once the pair has run; no parameter has two names.
    model(torch.zeros(2, 4))
    guide(torch.zeros(2, 4))
    assert len(list(pyro.get_param_store())) == len(found)
    assert list(named_parameters(model, guide)) == list(found)


def test_parameters_of_plain_functions_are_found_in_the_store():
    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        return loc, scale

    model, _ = pair()
    guide(None)
    found = named_parameters(model, guide)
    assert {"param.loc", "param.scale"} < set(found)
    # The unconstrained ones: they are what is trained.
    assert found["param.scale"].requires_grad and torch.equal(found["param.scale"], torch.zeros(2))


def test_a_shared_module_is_trained_once():
    shared = nn.Linear(2, 2)
    model, guide = nn.Sequential(shared), nn.Sequential(shared, nn.Linear(2, 1))
    assert list(named_parameters(model, guide)) == [
        "model.0.weight",
        "model.0.bias",
        "guide.1.weight",
        "guide.1.bias",
    ]


# ------------------------------------------------------------------------------------------ groups


def test_one_optimizer_takes_all():
    parameters = named_parameters(*pair())
    optimizers = Optimizers(parameters, partial(SGD, lr=0.1))
    before = with_gradients(parameters)
    optimizers.step()
    assert moved(parameters, before) == pytest.approx(dict.fromkeys(parameters, 0.1))
    assert optimizers.learning_rates == [0.1] and set(optimizers.trained) == set(parameters)
    optimizers.zero_grad()
    assert all(p.grad is None for p in parameters.values())


def test_the_longest_prefix_that_fits_is_taken():
    parameters = named_parameters(*pair())
    optimizers = Optimizers(
        parameters,
        {
            "model": partial(SGD, lr=0.1),
            "guide": partial(SGD, lr=0.2),
            "guide.heads": partial(SGD, lr=0.4),
        },
    )
    before = with_gradients(parameters)
    optimizers.step()
    for name, step in moved(parameters, before).items():
        expected = 0.1 if name.startswith("model") else 0.4 if "heads" in name else 0.2
        assert step == pytest.approx(expected), name
    assert sorted(optimizers.learning_rates) == [0.1, 0.2, 0.4]


def test_a_prefix_ends_at_a_dot():
    parameters = {"guide.a": nn.Parameter(torch.ones(1)), "guide.ab": nn.Parameter(torch.ones(1))}
    optimizers = Optimizers(parameters, partial(SGD, lr=0.1), freeze=["guide.a"])
    assert list(optimizers.trained) == ["guide.ab"]


@pytest.mark.parametrize("freeze", [["model"], "model", ["model.decoder"]])
def test_frozen_parameters_stay(freeze):
    parameters = named_parameters(*pair())
    optimizers = Optimizers(parameters, partial(Adam, lr=0.1, weight_decay=0.1), freeze=freeze)
    before = with_gradients(parameters)
    optimizers.step()
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name]) == name.startswith("model"), name
    # Their gradients are dropped all the same, or they would add up.
    optimizers.zero_grad()
    assert all(p.grad is None for p in parameters.values())


def test_what_needs_no_gradient_is_not_trained():
    model, guide = pair()
    model.requires_grad_(False)
    optimizers = Optimizers(named_parameters(model, guide), partial(SGD, lr=0.1))
    assert all(name.startswith("guide") for name in optimizers.trained) and optimizers.trained


@pytest.mark.parametrize(
    "optimizer, freeze, message",
    [
        (SGD, ["decoder"], "freeze names 'decoder', which no parameter's name begins with"),
        ({"encoder": SGD}, (), "optimizer names 'encoder', which no parameter's name begins with"),
        ({"model": SGD}, (), "no optimizer was given for the parameter 'guide.*freeze it"),
        ({"model": SGD, "guide": SGD}, ["model"], "optimizer names 'model', which no parameter"),
        (SGD, ["model", "guide"], r"nothing to train: all parameters are frozen by \['model', 'gu"),
    ],
)
def test_prefixes_that_fit_nothing_are_refused(optimizer, freeze, message):
    with pytest.raises(ValueError, match=message):
        Optimizers(named_parameters(*pair()), optimizer, freeze=freeze)


def test_a_pair_without_parameters_is_refused():
    parameters = named_parameters(lambda x: None, lambda x: None)
    with pytest.raises(ValueError, match="neither model nor guide has parameters.*pyro.param"):
        Optimizers(parameters, SGD)


# --------------------------------------------------------------------------------------- schedules


def test_a_learning_rate_schedule_goes_by_steps():
    parameters = named_parameters(*pair())
    groups = {"model": partial(SGD, lr=0.1), "guide": partial(SGD, lr=0.2)}
    optimizers = Optimizers(parameters, groups, partial(StepLR, step_size=2, gamma=0.5))
    rates = []
    for _ in range(5):
        with_gradients(parameters)
        optimizers.step()
        rates.append(optimizers.learning_rates[0])
        optimizers.validated(1.0)  # means nothing to it
    assert rates == pytest.approx([0.1, 0.05, 0.05, 0.025, 0.025])
    assert optimizers.learning_rates == pytest.approx([0.025, 0.05])


def test_a_plateau_goes_by_the_validation_loss():
    parameters = named_parameters(*pair())
    schedule = partial(ReduceLROnPlateau, patience=0, factor=0.5)
    optimizers = Optimizers(parameters, partial(SGD, lr=0.1), schedule)
    for _ in range(5):
        with_gradients(parameters)
        optimizers.step()
    assert optimizers.learning_rates == [0.1]
    for loss, expected in ((3.0, 0.1), (2.0, 0.1), (2.5, 0.05), (2.4, 0.025)):
        optimizers.validated(loss)
        assert optimizers.learning_rates == pytest.approx([expected])


# ------------------------------------------------------------------------------------------- state


def trained(parameters, optimizers, num_steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers.step()


@pytest.mark.parametrize("schedule", [None, partial(StepLR, step_size=3)])
def test_a_state_goes_on_exactly(schedule):
    def make():
        torch.manual_seed(0)
        parameters = named_parameters(*pair())
        groups = {"model": partial(Adam, lr=0.1), "guide": partial(SGD, lr=0.2, momentum=0.9)}
        return parameters, Optimizers(parameters, groups, schedule)

    parameters, optimizers = make()
    trained(parameters, optimizers, 4)
    # torch's states share memory with the optimizer; a checkpoint does not.
    state = copy.deepcopy(optimizers.state_dict())
    values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    twin, others = make()
    with torch.no_grad():
        for name, parameter in twin.items():
            parameter.copy_(values[name])
    others.load_state_dict(state)
    assert others.learning_rates == optimizers.learning_rates
    trained(parameters, optimizers, 3, seed=1)
    trained(twin, others, 3, seed=1)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, twin[name]), name


def test_the_state_of_other_optimizers_is_refused():
    parameters = named_parameters(*pair())
    one = Optimizers(parameters, SGD)
    two = Optimizers(parameters, {"model": SGD, "guide": SGD})
    with pytest.raises(ValueError, match=r"has optimizers for \[''\], this run for \['guide', 'mo"):
        two.load_state_dict(one.state_dict())
    scheduled = Optimizers(parameters, SGD, partial(StepLR, step_size=3))
    with pytest.raises(ValueError, match=r"has schedules for \[\], this run for \[''\]"):
        scheduled.load_state_dict(one.state_dict())


def test_clipping_bounds_the_common_norm():
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))]
    for parameter, value in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad = torch.full_like(parameter, value)
    norm = (3 * 9.0 + 4 * 16.0) ** 0.5
    assert clip(iter(parameters), 1.0).item() == pytest.approx(norm)
    # torch adds 1e-6 to the norm.
    assert parameters[0].grad[0].item() == pytest.approx(3 / norm, rel=1e-6)
    assert parameters[1].grad[0].item() == pytest.approx(4 / norm, rel=1e-6)
    assert clip(parameters, 10.0).item() == pytest.approx(1.0, rel=1e-6)
    assert parameters[1].grad[0].item() == pytest.approx(4 / norm, rel=1e-6)
