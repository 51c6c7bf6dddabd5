"""What goes wrong quietly elsewhere: modes, buffers, weights that move, latents that are shared."""

import math
import signal
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import TensorDataset

from ppl_vae import fit, load_run
from ppl_vae.data import Splits
from ppl_vae.directory import RunDirectory
from ppl_vae.evaluate import active_units, average_terms, posterior_means
from ppl_vae.guides import DeltaGuide, MeanFieldGuide
from ppl_vae.models import VAE
from ppl_vae.schedules import Linear
from ppl_vae.stopping import Stopping


def data(num=48, size=6):
    x = torch.rand(num, size).round()
    return Splits(x, valid=x[:16])


def pair(size=6, **options):
    model = VAE((size,), latent_dim=2, hidden=(8,))
    return model, MeanFieldGuide(model, hidden=(8,), **options)


def normalized(size=6):
    return nn.Sequential(nn.Linear(size, 5), nn.BatchNorm1d(5), nn.ReLU())


@pytest.mark.parametrize("log_every", [1, 100])
def test_running_statistics_are_moved_by_the_steps_alone(log_every):
    model, guide = pair(encoder=normalized())
    fit(model, guide, data(), num_steps=9, log_every=log_every, eval_every=4)
    assert guide.encoder[1].num_batches_tracked == 9


def test_a_part_in_evaluation_mode_stays_there():
    model, guide = pair(encoder=normalized())
    guide.encoder.eval()
    fit(model, guide, data(), num_steps=4, eval_every=2)
    assert guide.training and model.training
    assert not guide.encoder.training and not guide.encoder[1].training


def test_best_of_a_point_mass_is_judged_at_the_last_weight():
    torch.manual_seed(0)
    model = VAE((6,), latent_dim=2, hidden=(8,))
    guide = DeltaGuide(model, hidden=(8,))
    result = fit(model, guide, data(), num_steps=200, schedule=Linear(100), eval_every=20,
                 optimizer=partial(Adam, lr=1e-2))  # fmt: skip
    validations = [line for line in result.metrics if line["split"] == "valid"]
    values = {v["step"]: v["reconstruction"] + v["log_prior"]["z"] for v in validations}
    assert result.best_step == max(values, key=values.get)
    assert result.best_elbo == pytest.approx(max(values.values()), rel=1e-12)


def test_values_under_several_weights_are_not_compared():
    model = VAE((6,), latent_dim=2, hidden=(8,))
    guide = DeltaGuide(model, hidden=(8,))
    result = fit(model, guide, data(), num_steps=20, schedule=Linear(20), eval_every=5,
                 optimizer=partial(SGD, lr=0.0))  # fmt: skip
    line = next(line for line in result.metrics if line["split"] == "valid")
    # Nothing moves: the first is the best, at the last weight, 1, and not at its own.
    expected = line["reconstruction"] + line["log_prior"]["z"]
    assert (result.best_step, result.best_elbo) == (5, pytest.approx(expected, rel=1e-12))


def test_nan_is_never_the_best_for_long():
    stopping = Stopping(None, 1.0)
    seen = [stopping.saw(v, step, 1.0) for step, v in enumerate([math.nan, -3.0, math.nan, -2.0])]
    assert seen == [True, True, False, True] and stopping.best == -2.0


def test_ctrl_c_in_the_last_step_finds_the_run_complete():
    seen = []

    def schedule(step):
        # Not where the arguments are checked, before anybody has taken over the signal.
        if step == 3 and seen[-1:] == [2]:
            signal.raise_signal(signal.SIGINT)
        seen.append(step)
        return 1.0

    assert fit(*pair(), data(), num_steps=4, schedule=schedule).num_steps == 4
    with pytest.raises(KeyboardInterrupt, match="stopped at step 4 of 5"):
        fit(*pair(), data(), num_steps=5, schedule=schedule)


def test_baselines_are_resumed(tmp_path):
    def train(out, num_steps, resume=False):
        torch.manual_seed(0)
        logits = nn.Linear(6, 1)

        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                k = pyro.sample("k", dist.Bernoulli(0.5))
                loc = pyro.param("loc", torch.zeros(6)) * k.unsqueeze(-1)
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

        def guide(x):
            pyro.module("logits", logits)
            baseline = {"use_decaying_avg_baseline": True}
            with pyro.plate("data", len(x), dim=-1):
                fn = dist.Bernoulli(logits=logits(x).squeeze(-1))
                pyro.sample("k", fn, infer={"baseline": baseline})

        x = torch.rand(16, 6)
        estimator = pyro.infer.TraceGraph_ELBO()
        fit(model, guide, x, num_steps=num_steps, estimator=estimator, out=out, resume=resume,
            optimizer=partial(Adam, lr=1e-2))  # fmt: skip
        return RunDirectory(out).load()["param"]

    whole = train(tmp_path / "whole", 12)
    train(tmp_path / "cut", 6)
    resumed = train(tmp_path / "cut", 12, resume=True)
    assert any("baseline" in name for name in whole)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_patience_keeps_the_best_in_memory_and_on_disk(tmp_path):
    model, guide = pair()
    result = fit(model, guide, data(), num_steps=60, eval_every=5, patience=100,
                 optimizer=partial(Adam, lr=0.3), out=tmp_path / "run")  # fmt: skip
    assert not result.stopped_early
    run = load_run(tmp_path / "run")
    assert run.step == result.best_step < 60
    for ours, theirs in zip(run.guide.parameters(), guide.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patience": 2, "data": "train"}, "no validation data; give valid="),
        ({"lr_schedule": ReduceLROnPlateau, "data": "train"}, "no validation data"),
        ({"patience": 2, "schedule": Linear(50)}, "still moving at the last of 4 steps"),
        ({"optimizer": LBFGS}, "LBFGS evaluates the loss several times"),
        ({"schedule": lambda step: {"y": 1.0}}, r"weighs \['y'\].*accepted are .*\['z'\]"),
        ({"seed": -1}, "seed is -1"),
        ({"device": "meta"}, "device is 'meta', which is not here"),
    ],
)
def test_what_cannot_work_is_refused_before_a_run_is_begun(tmp_path, change, message):
    x = data().train if change.pop("data", None) else data()
    with pytest.raises(ValueError, match=message):
        fit(*pair(), x, **{"num_steps": 4, "out": tmp_path / "run", **change})
    assert not (tmp_path / "run").exists()


def test_a_prefix_to_freeze_need_not_be_in_a_list(tmp_path):
    model, guide = pair()
    fit(model, guide, data(), num_steps=1, freeze="model", out=tmp_path / "run")
    assert RunDirectory(tmp_path / "run").config()["freeze"] == ["model"]


class Conditional(PyroModule):
    def __init__(self):
        super().__init__("model")
        self.net = nn.Linear(5, 6)

    def forward(self, x, y):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            hot = nn.functional.one_hot(y, 3).to(x).expand(*z.shape[:-1], 3)
            logits = self.net(torch.cat([z, hot], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def test_a_model_of_more_arguments_is_loaded_and_not_validated_on_x_alone(tmp_path):
    labelled = TensorDataset(data().train, torch.randint(3, (48,)))
    model = Conditional()
    guide = MeanFieldGuide(model, hidden=(4,))
    with pytest.raises(ValueError, match="takes 2 arguments, and validation data are x alone"):
        fit(model, guide, labelled, num_steps=1, valid=data().valid)
    fit(model, guide, labelled, num_steps=2, out=tmp_path / "run")
    run = load_run(tmp_path / "run", model=Conditional())
    assert torch.equal(run.guide.heads["z"].network.weight, guide.heads["z"].network.weight)


def test_integer_items_are_refused():
    integers = TensorDataset(torch.randint(255, (48, 6), dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"uint8 of shape .*Scale integers"):
        fit(*pair(), integers, num_steps=1)


def shared(x):
    with pyro.plate("components", 3, dim=-2):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + w.sum(), 1.0), obs=x)


def test_a_shared_latent_counts_once_however_the_data_are_cut():
    x = torch.randn(60)
    guide = MeanFieldGuide(shared, hidden=(4,))
    guide.setup(x)
    whole, cut = (average_terms(shared, guide, x, batch_size=b, num_particles=200) for b in (60, 7))
    error = (whole.kl["w"].std() + cut.kl["w"].std()) / 60**0.5
    # One draw of w serves a whole chunk: compare the spread over draws, not over data.
    assert abs(whole.kl["w"].mean() - cut.kl["w"].mean()) < 5 * error + 0.2 * whole.kl["w"].mean()


def test_a_shared_latent_is_no_unit_of_a_datum():
    x = torch.randn(60)
    guide = MeanFieldGuide(shared, hidden=(4,))
    guide.setup(x)
    assert {name: v.shape for name, v in posterior_means(guide, x).items()} == {"z": (60, 1)}
    assert set(active_units(guide, x).count) == {"z"}
