"""The KL weight: on latent sites only, in model and guide alike."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppl_vae.estimators.pair import trace_pair
from ppl_vae.handlers import is_weighted, same_scale, scale_latents, weight_of, weighted


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
        z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
        pyro.sample("x", dist.Normal(z1, 1.0), obs=x)


def sites(program, *args):
    trace = poutine.trace(program).get_trace(*args)
    trace.compute_log_prob()
    return trace.nodes


X = torch.zeros(3)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0, 7.0, 2, torch.tensor(0.25)])
def test_latent_sites_are_scaled_and_observed_ones_are_not(weight):
    with scale_latents(weight):
        nodes = sites(model, X)
    for name, factor in (("z1", weight), ("z2", weight), ("x", 1.0)):
        site = nodes[name]
        assert site["scale"] == factor
        torch.testing.assert_close(site["log_prob"], site["unscaled_log_prob"] * factor)
        assert site["unscaled_log_prob"].abs().min() > 0
        assert weight_of(site) == factor
    assert weight_of(nodes["x"]) == 1.0 and "kl_weight" not in nodes["x"]["infer"]
    assert nodes["data"]["scale"] == 1.0


def test_a_mapping_weighs_each_site_and_leaves_the_others():
    with scale_latents({"z1": 0.5, "elsewhere": 3.0}):
        nodes = sites(model, X)
    assert [nodes[name]["scale"] for name in ("z1", "z2", "x")] == [0.5, 1.0, 1.0]
    assert "kl_weight" not in nodes["z2"]["infer"] and weight_of(nodes["z2"]) == 1.0


def test_it_works_as_a_wrapper_and_as_a_context():
    wrapped = sites(scale_latents(0.5)(model), X)
    assert wrapped["z1"]["scale"] == 0.5 and wrapped["x"]["scale"] == 1.0
    assert sites(model, X)["z1"]["scale"] == 1.0


def test_nested_weights_multiply():
    with scale_latents(0.5), scale_latents({"z1": 0.5}):
        nodes = sites(model, X)
    assert nodes["z1"]["scale"] == weight_of(nodes["z1"]) == 0.25
    assert nodes["z2"]["scale"] == weight_of(nodes["z2"]) == 0.5


@pytest.mark.parametrize("weight", [0.5, {"z1": 0.5}, torch.tensor(0.5)])
def test_model_and_guide_of_a_pair_have_the_same_weight(weight):
    # Replaying hands the guide's `infer` to the model, in which the weight already is.
    guide = poutine.block(model, hide=["x"])
    with scale_latents(weight):
        pair = trace_pair(model, guide, (X,), {})
    for name, model_site, guide_site in pair.latents:
        expected = 1.0 if name == "z2" and isinstance(weight, dict) else 0.5
        assert weight_of(model_site) == weight_of(guide_site) == expected, name
        assert model_site["scale"] == guide_site["scale"] == expected


def test_the_weight_can_be_told_from_a_plates_and_a_users_scale():
    def subsampling(x):
        with pyro.plate("data", 12, subsample=torch.arange(3), dim=-1):
            with poutine.scale(scale=10.0):
                pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with scale_latents(0.5):
        nodes = sites(subsampling, X)
    assert nodes["z"]["scale"] == 4.0 * 10.0 * 0.5 and weight_of(nodes["z"]) == 0.5
    assert nodes["x"]["scale"] == 4.0


def test_the_subsample_is_no_latent():
    def subsampling(x):
        with pyro.plate("data", 12, subsample_size=3, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with scale_latents(0.5):
        nodes = sites(subsampling, X)
    assert nodes["data"]["scale"] == 1.0 and "kl_weight" not in nodes["data"]["infer"]
    assert nodes["z"]["scale"] == 4.0 * 0.5


def test_a_shared_infer_dictionary_is_not_written_to():
    infer = {"mine": 1}

    def program():
        pyro.sample("a", dist.Normal(0.0, 1.0), infer=infer)
        pyro.sample("b", dist.Normal(0.0, 1.0), infer=infer)

    with scale_latents(0.5):
        nodes = sites(program)
    assert infer == {"mine": 1}
    for name in "ab":
        assert nodes[name]["infer"]["mine"] == 1 and weight_of(nodes[name]) == 0.5


def test_a_tensors_gradient_passes_through():
    weight = torch.tensor(0.5, requires_grad=True)
    with scale_latents(weight):
        nodes = sites(model, X)
    nodes["z1"]["log_prob"].sum().backward()
    assert weight.grad == nodes["z1"]["unscaled_log_prob"].sum()


def test_weight_one_is_no_handler_at_all():
    for weight in (1, 1.0):
        with weighted(weight):
            assert not is_weighted(sites(model, X)["z1"])
    for weight in (0.5, {"z1": 1.0}, torch.tensor(1.0)):
        with weighted(weight):
            site = sites(model, X)["z1"]
        assert is_weighted(site)
        assert weight_of(site) == (weight["z1"] if isinstance(weight, dict) else weight)


@pytest.mark.parametrize(
    "weight, message",
    [
        (-0.1, "the KL weight is -0.1; accepted are a finite number >= 0 or a 0-dim tensor"),
        (float("nan"), "the KL weight is nan"),
        (float("inf"), "the KL weight is inf"),
        ("0.5", "the KL weight is '0.5'"),
        (True, "the KL weight is True"),
        (None, "the KL weight is None"),
        (torch.ones(2), r"the KL weight is a tensor of shape \(2,\)"),
        ({"z1": 1.0, "z2": -1.0}, "the KL weight of site 'z2' is -1.0"),
        ({"z2": torch.ones(1)}, r"the KL weight of site 'z2' is a tensor of shape \(1,\)"),
    ],
)
def test_what_is_no_weight_is_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        scale_latents(weight)


def test_one_scale_is_known_without_a_look_at_tensors():
    one, equal = torch.tensor(0.3), torch.tensor(0.3)

    def sites(weight, scale_of_z1=1.0):
        def program():
            with poutine.scale(scale=scale_of_z1):
                pyro.sample("z1", dist.Normal(0.0, 1.0))
            pyro.sample("z2", dist.Normal(0.0, 1.0))

        with weighted(weight):
            trace = poutine.trace(program).get_trace()
        return trace.nodes["z1"], trace.nodes["z2"]

    for weight in (1.0, 0.3, one, {"z1": 0.3, "z2": 0.3}, {"z1": one, "z2": one}):
        assert same_scale(*sites(weight))
        assert not same_scale(*sites(weight, scale_of_z1=2.0))
    for weight in ({"z1": 0.3}, {"z1": one}, {"z1": one, "z2": equal}, {"z1": one, "z2": 0.3}):
        assert not same_scale(*sites(weight))
