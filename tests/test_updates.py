"""Optimizers' steps as operations of a graph, against torch's own, in double precision."""

from functools import partial

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

from ppl_vae.compiled import CompiledLoss, CompiledStep
from ppl_vae.estimators import Trace_ELBO
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.models import VAE
from ppl_vae.randomness import validation
from ppl_vae.testing.isolation import isolated

X = (
    torch.rand(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) < 0.5
).double()


def pair():
    torch.manual_seed(0)
    model = VAE((6,), latent_dim=2, hidden=(5,))
    return model, MeanFieldGuide(model, hidden=(5,))


def after(make, *, compiled, num_steps=4, max_norm=None, rates=(), turn=None):
    """Parameters and optimizer after some steps, with the noise of the step's number."""
    model, guide = pair()
    parameters = [*model.parameters(), *guide.parameters()]
    optimizer, elbo = make(parameters), Trace_ELBO()
    with isolated(0, model, guide), validation(False):
        elbo.loss(model, guide, X)
        step = CompiledStep(
            CompiledLoss(model, guide, elbo, parameters, lowered=False),
            [optimizer],
            max_norm,
            lowered=False,
        )
        for i in range(num_steps):
            for group in optimizer.param_groups:
                group["lr"] = rates[i] if rates else group["lr"]
            torch.manual_seed(i)
            if compiled if turn is None else (i < turn) == compiled:
                step.of((X,))()
                continue
            optimizer.zero_grad()
            elbo.differentiable_loss(model, guide, X).backward()
            if max_norm is not None:
                clip_grad_norm_(parameters, max_norm)
            optimizer.step()
    return parameters, optimizer, step


def two_groups(parameters):
    return Adam([{"params": parameters[:3], "lr": 0.1}, {"params": parameters[3:]}], lr=0.01)


WHOLE = {
    "Adam": partial(Adam, lr=0.05),
    "Adam, decayed": partial(Adam, lr=0.05, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1),
    "AdamW": partial(AdamW, lr=0.05, weight_decay=0.1),
    "two groups": two_groups,
    "SGD": partial(SGD, lr=0.01),
    "SGD, momentum": partial(SGD, lr=0.01, momentum=0.9, weight_decay=0.1),
    "SGD, Nesterov": partial(SGD, lr=0.01, momentum=0.9, nesterov=True),
}
OUTSIDE = {
    "RMSprop": partial(RMSprop, lr=0.01),
    "Adagrad": partial(Adagrad, lr=0.05),
    "AMSGrad": partial(Adam, lr=0.05, amsgrad=True),
    "dampened": partial(SGD, lr=0.01, momentum=0.9, dampening=0.5),
    "subclass": type("Mine", (Adam,), {}),
}


def check_same(one, other):
    for ours, theirs in zip(one[0], other[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    ours, theirs = one[1].state_dict(), other[1].state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for key, state in theirs["state"].items():
        assert state.keys() == ours["state"][key].keys()
        for name, value in state.items():
            torch.testing.assert_close(ours["state"][key][name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", WHOLE)
def test_a_step_in_the_graph_is_the_optimizers(name):
    compiled, eager = (after(WHOLE[name], compiled=c) for c in (True, False))
    assert compiled[2].is_whole
    check_same(compiled, eager)
    start = pair()[0].parameters()
    assert any((p - q).abs().max() > 1e-3 for p, q in zip(eager[0], start, strict=False))


@pytest.mark.parametrize("name", OUTSIDE)
def test_other_optimizers_make_their_own_step(name):
    compiled, eager = (after(OUTSIDE[name], compiled=c, max_norm=3.0) for c in (True, False))
    assert not compiled[2].is_whole
    check_same(compiled, eager)


@pytest.mark.parametrize("max_norm", [1e-2, 3.0, 1e6])
def test_gradients_are_clipped_together(max_norm):
    make = WHOLE["SGD"]
    compiled, eager, free = (
        after(make, compiled=c, max_norm=m)
        for c, m in ((True, max_norm), (False, max_norm), (False, None))
    )
    check_same(compiled, eager)
    moved = any(not torch.equal(p, q) for p, q in zip(eager[0], free[0], strict=True))
    assert moved == (max_norm < 1e6)


def test_the_learning_rate_is_a_number_of_the_step():
    rates = (0.1, 0.01, 0.001, 0.5)
    check_same(*(after(WHOLE["Adam"], compiled=c, rates=rates) for c in (True, False)))


@pytest.mark.parametrize("name", ["Adam", "SGD, momentum"])
@pytest.mark.parametrize("first", [True, False], ids=["then eager", "then compiled"])
def test_the_optimizer_takes_over_and_gives_back(name, first):
    """At step 2 of 4."""
    check_same(after(WHOLE[name], compiled=first, turn=2), after(WHOLE[name], compiled=False))


def test_what_has_no_gradient_stays_and_has_no_state():
    model, guide = pair()
    idle = torch.nn.Parameter(torch.ones(2))
    parameters = [idle, *model.parameters(), *guide.parameters()]
    optimizer = Adam(parameters, lr=0.1)
    with isolated(0, model, guide), validation(False):
        loss = CompiledLoss(model, guide, Trace_ELBO(), parameters, lowered=False)
        CompiledStep(loss, [optimizer], lowered=False).of((X,))()
    assert torch.equal(idle, torch.ones(2)) and idle not in optimizer.state
    assert len(optimizer.state) == len(parameters) - 1
