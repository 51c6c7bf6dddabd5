"""Compiled steps ahead of anybody's look at them: what goes back, what goes on, what stays eager.

No compiler here: the graph is interpreted. `test_compiled.py` has what Inductor makes of it.
"""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.optim import SGD, Adam, RMSprop
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from ppl_vae import NonFiniteError, compiling, fit
from ppl_vae.compiled import CompiledLoss, CompiledStep
from ppl_vae.estimators import TraceVIMCO_ELBO
from ppl_vae.guides import GaussianMixtureGuide, MeanFieldGuide
from ppl_vae.models import VAE, GaussianMixtureVAE

X = (torch.rand(64, 6, generator=torch.Generator().manual_seed(1)) < 0.3).double()


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    for kind in (CompiledLoss, CompiledStep):
        monkeypatch.setattr(compiling, kind.__name__, partial(kind, lowered=False))
    monkeypatch.setattr(compiling, "missing_compiler", lambda device: None)


class Exploding(VAE):
    """Its likelihood is NaN once a parameter that counts steps has come to `at`."""

    def __init__(self, at):
        super().__init__((6,), latent_dim=2, hidden=(4,))
        self.at, self.counter = at, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        with pyro.plate("count", 1, dim=-1):
            gone = torch.where(self.counter < 0.5 - self.at, torch.nan, 0.0)
            # Its gradient is 1: a step of 1 lowers the counter by one.
            pyro.factor("tick", (gone - self.counter).expand(1))
        return super().forward(x)


def exploding(at):
    torch.manual_seed(0)
    model = Exploding(at)
    return model, MeanFieldGuide(model, hidden=(4,))


def plain():
    torch.manual_seed(0)
    model = VAE((6,), latent_dim=2, hidden=(4,))
    return model, MeanFieldGuide(model, hidden=(4,))


def trained(compile, pair, data=X, **options):
    how = {"num_steps": 12, "batch_size": 16, "log_every": 100, "progress": False}
    return fit(*pair, data, compile=compile, **{**how, **options})


def parameters(pair):
    return [p.detach() for program in pair for p in program.parameters()]


def check_same(ours, theirs):
    for one, other in zip(parameters(ours), parameters(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


# ------------------------------------------------------------------------------------ going back


def counting(optimizer):
    """One step of the counter is one."""
    return {"model.counter": partial(SGD, lr=1.0), "": optimizer}


OPTIMIZERS = {
    "moments": partial(Adam, lr=0.01),
    "momentum": partial(SGD, lr=1e-4, momentum=0.9),
    "outside": partial(RMSprop, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_back_takes_the_optimizers_along(name):
    """After a look, so that there are moments to go back to."""
    messages, pairs = [], [exploding(7), exploding(7)]
    how = {"optimizer": counting(OPTIMIZERS[name]), "num_steps": 40, "checkpoint_every": 3}
    for compile, pair in zip((True, False), pairs, strict=True):
        with pytest.raises(NonFiniteError, match="step 7: the loss is") as error:
            trained(compile, pair, **how)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    check_same(*pairs)


def test_going_back_keeps_what_a_validation_has_changed():
    """The rate falls where the training goes back to, at the validation of step 6."""

    def falls(optimizer):
        # Any validation but the first is a bad one.
        rate = optimizer.param_groups[0]["lr"]
        return ReduceLROnPlateau(optimizer, patience=0, threshold=0.9, factor=0.5, min_lr=rate // 1)

    how = {"eval_every": 2, "num_steps": 40, "lr_schedule": falls, "valid": X[:8]}
    how["optimizer"] = counting(partial(SGD, lr=1e-3))
    pairs = [exploding(7), exploding(7)]
    for compile, pair in zip((True, False), pairs, strict=True):
        with pytest.raises(NonFiniteError, match="step 7: the loss is"):
            trained(compile, pair, **how)
    check_same(*pairs)


def test_nan_before_a_step_of_the_programs_own_is_found_where_it_was(monkeypatch):
    """Of a shape of batch that there is no graph for any more."""
    monkeypatch.setattr(CompiledLoss, "max_graphs", 1)
    data = DataLoader(TensorDataset(X[:24]), batch_size=16)
    pairs = [exploding(4), exploding(4)]
    how = {"batch_size": None, "optimizer": counting(OPTIMIZERS["moments"])}
    for compile, pair in zip((True, False), pairs, strict=True):
        with pytest.raises(NonFiniteError, match="step 4: the loss is"):
            trained(compile, pair, data, **how)
    check_same(*pairs)


def mixture():
    torch.manual_seed(0)
    model = GaussianMixtureVAE((6,), num_components=2, latent_dim=2, hidden=(4,))
    return model, GaussianMixtureGuide(model, hidden=(4,), enumerate=False)


def test_a_draw_by_nan_is_diagnosed_as_ever():
    """A Categorical of NaN raises an error of torch's, which hides the step before."""
    messages, how = [], {"estimator": TraceVIMCO_ELBO(2), "optimizer": partial(SGD, lr=1e9)}
    for compile in (True, False):
        with pytest.raises(NonFiniteError) as error:
            trained(compile, mixture(), **how)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_what_fails_compiled_alone_goes_on_eagerly(monkeypatch):
    pairs = [plain(), plain()]
    calls, call = [], CompiledStep.run

    def run(*args):
        calls.append(None)
        if len(calls) == 5:
            raise RuntimeError("out of luck")
        return call(*args)

    monkeypatch.setattr(CompiledStep, "run", run)
    with pytest.warns(UserWarning, match="before step 5 fail or are not finite, and the same"):
        result = trained(True, pairs[0], checkpoint_every=3)
    assert not result.compiled and result.num_steps == 12 and len(calls) == 5
    trained(False, pairs[1])
    check_same(*pairs)


# ----------------------------------------------------------------------- what is another graph


class TwoSites(PyroModule):
    """A model, or its guide."""

    def __init__(self, observes):
        super().__init__()
        self.observes, self.locs = observes, nn.Parameter(torch.ones(2))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            one = pyro.sample("z1", dist.Normal(self.locs[0], 1.0))
            two = pyro.sample("z2", dist.Normal(self.locs[1] * one, 1.0))
            if self.observes:
                pyro.sample("x", dist.Normal((one + two)[:, None], 1.0).to_event(1), obs=x)


def two_sites():
    return TwoSites(True), TwoSites(False)


def by_order(step):
    return {"z1": 0.5, "z2": 0.1} if step < 4 else {"z2": 0.1, "z1": 0.5}


def by_sites(step):
    return 0.3 if step < 4 else {"z2": 0.1}


@pytest.mark.parametrize(
    "schedule, at_once",
    [(by_order, ()), (by_sites, ()), (by_sites, (3, 1))],
    ids=["order", "sites", "in a row"],
)
def test_weights_of_other_sites_are_another_graph(monkeypatch, schedule, at_once):
    monkeypatch.setattr(compiling, "_REPLAYED_ON", ("cpu",))
    monkeypatch.setattr(compiling, "_AT_ONCE", at_once)
    pairs = [two_sites(), two_sites()]
    for compile, pair in zip((True, False), pairs, strict=True):
        assert trained(compile, pair, schedule=schedule).compiled == compile
    check_same(*pairs)
