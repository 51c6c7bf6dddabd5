"""Models and networks against their formulas, written out."""

import pytest
import torch
from pyro import poutine
from torch.distributions import Bernoulli, Normal

from ppl_vae.models import GatedDecoder, GatedEncoder, HierarchicalVAE


def test_with_skip_the_data_depend_on_every_level():
    torch.manual_seed(0)
    model = HierarchicalVAE((4,), (3, 2, 1), (5,), (4,), skip=True).double()
    x = torch.randint(2, (6, 4)).double()
    values = {f"z{i}": torch.randn(6, 4 - i).double() for i in (1, 2, 3)}
    trace = poutine.trace(poutine.condition(model, values)).get_trace(x)
    z1, z2, z3 = values.values()
    expected = Normal(0.0, 1.0).log_prob(z3).sum()
    for below, above, prior in ((z1, z2, model.priors[0]), (z2, z3, model.priors[1])):
        expected = expected + Normal(*prior(above)).log_prob(below).sum()
    logits = model.decoder(torch.cat([z1, z2, z3], -1))
    expected = expected + Bernoulli(logits=logits).log_prob(x).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_levels_held_at_fewer_particles_are_joined_with_skip():
    model = HierarchicalVAE((4,), (3, 2), (5,), (4,), skip=True)
    held = {"z2": torch.randn(6, 2), "z1": torch.randn(7, 6, 3)}
    trace = poutine.trace(poutine.condition(model, held)).get_trace(torch.zeros(6, 4))
    assert trace.nodes["x"]["fn"].batch_shape == (7, 6)


def test_gated_layers_are_their_formula():
    torch.manual_seed(0)
    encoder, decoder = GatedEncoder((2, 3), (4, 5)), GatedDecoder(3, (2, 2), (4,))
    x, z = torch.randn(7, 2, 3), torch.randn(6, 7, 3)

    def gate(layer, h):
        (w, v), (b, c) = layer.linear.weight.chunk(2), layer.linear.bias.chunk(2)
        return (h @ w.T + b) * torch.sigmoid(h @ v.T + c)

    hidden = gate(encoder.layers[1], gate(encoder.layers[0], x.reshape(7, 6)))
    torch.testing.assert_close(encoder(x), hidden)
    out = gate(decoder.layers[0], z) @ decoder.last.weight.T + decoder.last.bias
    torch.testing.assert_close(decoder(z), out.reshape(6, 7, 2, 2))


@pytest.mark.parametrize("hidden", [(), (4, 0), 3])
def test_gated_networks_refuse_no_layers(hidden):
    with pytest.raises(ValueError, match=r"GatedEncoder: hidden is .*; accepted are integers >= 1"):
        GatedEncoder((4,), hidden)
    with pytest.raises(ValueError, match=r"GatedDecoder: hidden is .*; accepted are integers >= 1"):
        GatedDecoder(3, (4,), hidden)
