"""Compiled steps ahead of anybody's look at them: what goes back, what goes on, what stays eager.

No compiler here: the graph is interpreted. `test_compiled.py` has what Inductor makes of it.
"""

import sys
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.optim import SGD, Adam, RMSprop
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ppl_vae import NonFiniteError, compiling, fit
from ppl_vae.compiled import CompiledLoss, CompiledStep, TraceError
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
    with pytest.warns(UserWarning, match=r"before step 5 fail \(RuntimeError: out of luck\)"):
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
    [(by_order, ()), (by_sites, ()), (by_sites, (4, 1))],
    ids=["order", "sites", "in a row"],
)
def test_weights_of_other_sites_are_another_graph(monkeypatch, schedule, at_once):
    monkeypatch.setattr(compiling, "_REPLAYED_ON", ("cpu",))
    monkeypatch.setattr(compiling, "_AT_ONCE", at_once)
    pairs = [two_sites(), two_sites()]
    for compile, pair in zip((True, False), pairs, strict=True):
        assert trained(compile, pair, schedule=schedule).compiled == compile
    check_same(*pairs)


class Sided(PyroModule):
    """Half of it takes part in a batch with a flag; data that are no tensor give it shapes."""

    def __init__(self, observes):
        super().__init__()
        self.observes = observes
        self.loc, self.side = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))

    def forward(self, x, flag):
        with pyro.plate("data", len(x)):
            flag = flag["flag"].item() if isinstance(flag, dict) else flag
            scale = 1.0 + (self.side**2 if flag else 0.0)
            z = pyro.sample("z", dist.Normal(self.loc, scale * torch.ones(6)).to_event(1))
            if self.observes:
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


class Batches(Dataset):
    def __init__(self, wrap):
        self.wrap = wrap

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X[16 * index : 16 * index + 16], self.wrap(index % 3 == 1)


def sided(wrap):
    loader = DataLoader(Batches(wrap), batch_size=None)
    return (Sided(True), Sided(False)), loader


def test_what_takes_part_in_some_steps_counts_its_own():
    """Adam's corrections go by the steps of each parameter."""
    pairs = []
    for compile in (True, False):
        pair, data = sided(bool)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = trained(compile, pair, data, batch_size=None, optimizer=OPTIMIZERS["moments"])
        assert result.compiled == compile
        pairs.append(pair)
    check_same(*pairs)


def test_values_in_containers_are_not_compiled_in():
    pair, data = sided(lambda flag: {"flag": torch.tensor(flag)})
    with pytest.raises(TraceError, match="a minibatch holds a dict, whose values would be"):
        trained(True, pair, data, batch_size=None)


def test_a_later_batch_that_cannot_be_compiled_is_an_error_only_where_that_was_asked(monkeypatch):
    def wrap(flag):
        return {"flag": torch.tensor(flag)} if flag else flag

    with pytest.raises(TraceError, match="a minibatch holds a dict"):
        trained(True, *sided(wrap), batch_size=None)
    monkeypatch.setattr(sys.modules["ppl_vae.fit"], "_FEW_STEPS", 1)
    monkeypatch.setattr(compiling, "_pays", lambda traced, num_steps: True)
    (pair, data), (other, same) = sided(wrap), sided(wrap)
    with pytest.warns(UserWarning, match="stays eager from step 1: a minibatch holds a dict"):
        result = trained("auto", pair, data, batch_size=None)
    assert not result.compiled and result.num_steps == 12
    trained(False, other, same, batch_size=None)
    check_same(pair, other)


def test_nan_before_a_batch_that_cannot_be_compiled_is_found_where_it_was(monkeypatch):
    monkeypatch.setattr(sys.modules["ppl_vae.fit"], "_FEW_STEPS", 1)
    monkeypatch.setattr(compiling, "_pays", lambda traced, num_steps: True)
    asked, of = [], CompiledStep.of

    def refuses(*args):
        asked.append(None)
        if len(asked) == 7:
            raise TraceError("no more")
        return of(*args)

    monkeypatch.setattr(CompiledStep, "of", refuses)
    with (
        pytest.warns(UserWarning, match="training stays eager from step 6: no more"),
        pytest.raises(NonFiniteError, match="step 4: the loss is"),
    ):
        trained("auto", exploding(4), optimizer=counting(partial(SGD, lr=1e-3)))


def test_hooks_are_not_passed_by():
    def hooked(optimizer):
        def make(parameters):
            made = optimizer(parameters)
            made.register_step_post_hook(lambda o, *args: [p.data.mul_(0.9) for p in parameters])
            return made

        return make

    pairs = [plain(), plain()]
    for compile, pair in zip((True, False), pairs, strict=True):
        trained(compile, pair, num_steps=3, optimizer=hooked(partial(Adam, lr=0.01)))
    check_same(*pairs)
    model, guide = plain()
    parameter = next(model.parameters())
    for register in (parameter.register_hook, parameter.register_post_accumulate_grad_hook):
        handle = register(lambda value: None)
        with pytest.raises(TraceError, match="a parameter has a hook"):
            trained(True, (model, guide))
        handle.remove()


def test_gradients_of_a_sums_terms_are_clipped_once():
    class Summed(TwoSites):
        def __init__(self):
            super().__init__(True)
            self.one, self.two = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))

        def forward(self, x):
            return super().forward(x + (self.one + self.two))

    pairs = [(Summed(), TwoSites(False)) for _ in range(2)]
    for compile, pair in zip((True, False), pairs, strict=True):
        trained(compile, pair, num_steps=2, optimizer=partial(RMSprop, lr=0.1), clip_grad_norm=0.01)
    check_same(*pairs)


def test_a_finished_run_is_not_compiled(tmp_path, monkeypatch):
    trained(False, plain(), out=tmp_path)
    monkeypatch.setattr(compiling, "compile_loop", lambda *args, **how: pytest.fail("compiled"))
    assert trained(True, plain(), out=tmp_path, resume=True).num_steps == 12
