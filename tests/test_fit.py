"""`fit`: trains, logs what it says, leaves no trace, refuses what it must."""

import json
import math
import re
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

import ppl_vae
import ppl_vae.directory
from ppl_vae import NonFiniteError, fit
from ppl_vae.data import Splits
from ppl_vae.estimators import Trace_ELBO, TraceCapacity_ELBO
from ppl_vae.guides import DeltaGuide, GaussianMixtureGuide, MeanFieldGuide
from ppl_vae.models import VAE, Gaussian, GaussianMixtureVAE, HierarchicalVAE, LinearGaussian
from ppl_vae.schedules import Constant, Linear, PerSite


def binary(num: int = 64, size: int = 12) -> torch.Tensor:
    prototypes = torch.rand(4, size).round()
    noise = (torch.rand(num, size) < 0.1).to(prototypes)
    return (prototypes[torch.randint(4, (num,))] - noise).abs()


def pair(size: int = 12, **options):
    model = VAE((size,), latent_dim=3, hidden=(16,), **options)
    return model, MeanFieldGuide(model, hidden=(16,))


def two_level(size: int = 12):
    model = HierarchicalVAE((size,), latent_dims=(3, 2), hidden=(16,), latent_hidden=(8,))
    return model, MeanFieldGuide(model, hidden=(16,))


def lines(result, split):
    return [line for line in result.metrics if line["split"] == split]


def test_fit_climbs_to_the_exact_optimum():
    # W = 0.5 I makes the posterior diagonal: a mean-field guide with a linear encoder can be exact.
    model = LinearGaussian(0.5 * torch.eye(2), noise_scale=0.7)
    guide = MeanFieldGuide(model, hidden=())
    x = torch.randn(500, 2) @ torch.diag(torch.tensor([0.86, 0.86]))
    fit(model, guide, x, num_steps=1500, optimizer=partial(Adam, lr=3e-2), lr_schedule=decay)
    gap = (model.log_marginal(x) - ppl_vae.evaluate.average_terms(model, guide, x).elbo).mean()
    assert abs(gap) < 2e-3


def decay(optimizer):
    return StepLR(optimizer, step_size=500, gamma=0.1)


def test_the_weighted_loss_and_the_bound_agree_only_at_weight_one():
    result = fit(*pair(), binary(), num_steps=12, log_every=1, schedule=Linear(6))
    assert [line["weight"] for line in result.metrics[:3]] == [0.0, pytest.approx(1 / 6), 2 / 6]
    for line in result.metrics:
        kl = sum(line["kl"].values())
        weighted = -line["reconstruction"] + line["weight"] * kl
        assert line["loss"] == pytest.approx(weighted, rel=1e-10)
        assert line["bound"] == pytest.approx(line["elbo"], rel=1e-10)
        assert line["elbo"] == pytest.approx(line["reconstruction"] - kl, rel=1e-10)
        assert (line["loss"] == pytest.approx(-line["bound"], rel=1e-10)) == (line["step"] >= 6)


def test_weights_per_site_reach_their_sites():
    schedule = PerSite({"z1": Constant(0.25), "z2": Constant(0.0)})
    result = fit(*two_level(), binary(), num_steps=3, log_every=1, schedule=schedule)
    line = result.metrics[-1]
    expected = -line["reconstruction"] + 0.25 * line["kl"]["z1"]
    assert line["loss"] == pytest.approx(expected, rel=1e-10)
    assert line["weight"] == {"z1": 0.25, "z2": 0.0}


def test_metrics_do_not_depend_on_how_often_they_are_written():
    def final(log_every, eval_every):
        torch.manual_seed(3)
        model, guide = pair()
        x = binary()
        fit(model, guide, Splits(x, valid=x[:8]), num_steps=9, log_every=log_every,
            eval_every=eval_every)  # fmt: skip
        return torch.cat([p.flatten() for p in (*model.parameters(), *guide.parameters())])

    assert torch.equal(final(1, 2), final(5, 7))


def test_globals_are_left_as_they_were():
    pyro.param("mine", torch.tensor(1.0))
    pyro.enable_validation(False)
    model, guide = pair()
    x = binary()
    before = torch.get_rng_state(), dict(pyro.get_param_store().items()).keys()
    fit(model, guide, x, num_steps=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert dict(pyro.get_param_store().items()).keys() == before[1] == {"mine"}
    assert not pyro.settings.get("validate_distributions_pyro")
    assert torch.get_default_dtype() == torch.float64
    pyro.enable_validation(True)


def test_two_guides_in_one_process_share_nothing():
    x = binary()

    def train(seed):
        torch.manual_seed(seed)
        model, guide = pair()
        fit(model, guide, x, num_steps=5)
        return [p.detach().clone() for p in guide.parameters()]

    alone = train(2)
    train(1)
    for ours, theirs in zip(alone, train(2), strict=True):
        assert torch.equal(ours, theirs)


def test_under_plain_svi_a_second_guide_of_the_same_names_never_trains_and_a_scope_helps():
    x = binary()

    def train():
        model, guide = pair()
        before = guide.heads["z"].network.weight.detach().clone()
        adam = pyro.optim.Adam({"lr": 1e-2})
        svi = pyro.infer.SVI(model, guide, adam, loss=Trace_ELBO())
        for _ in range(3):
            svi.step(x)
        return not torch.equal(before, guide.heads["z"].network.weight)

    assert train()
    assert not train()
    with pyro.get_param_store().scope():
        assert train()


@pytest.mark.parametrize(
    "name", ["TraceMeanField_ELBO", "TraceGraph_ELBO", "RenyiELBO", "ReweightedWakeSleep"]
)
def test_pyros_own_elbos_train(name):
    model, guide = pair()
    x = binary()
    before = ppl_vae.evaluate.average_terms(model, guide, x).elbo.mean()
    several = {"RenyiELBO": {"num_particles": 2}, "ReweightedWakeSleep": {"num_particles": 5}}
    options = several.get(name, {})
    estimator = getattr(pyro.infer, name)(**options)
    result = fit(model, guide, x, num_steps=60, estimator=estimator,
                 optimizer=partial(Adam, lr=1e-2))  # fmt: skip
    assert ppl_vae.evaluate.average_terms(model, guide, x).elbo.mean() > before + 1
    assert "bound" in result.metrics[0]


def test_pyros_autoguides_are_guides_too():
    # w ~ N(0, 1), x_n ~ N(w, 1): the posterior is normal, so AutoNormal can be exact.
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    x = torch.randn(8) + 1
    guide = pyro.infer.autoguide.AutoNormal(model)
    fit(model, guide, x, num_steps=1500, optimizer=partial(Adam, lr=5e-2), lr_schedule=halving)
    exact = dist.MultivariateNormal(torch.zeros(8), torch.eye(8) + 1).log_prob(x)
    for seed in range(3):
        terms = ppl_vae.evaluate.average_terms(model, guide, x, seed=seed)
        assert set(terms.kl) == {"w", "w_unconstrained"}
        # What is left is the optimizer's; without the auxiliary site it would be 1 nat and more.
        assert terms.elbo.sum().item() == pytest.approx(exact.item(), abs=0.03)


def halving(optimizer):
    return StepLR(optimizer, step_size=100, gamma=0.5)


def test_plain_functions_keep_their_parameters_in_the_results_scope():
    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, scale).to_event(1))

    x = torch.randn(100, 2) + 3
    result = fit(model, guide, x, num_steps=300, optimizer=partial(Adam, lr=5e-2))
    assert "loc" not in pyro.get_param_store()
    with result.scope():
        # q = N(x, scale): the optimum is loc = mean(x), scale^2 = 1 / (1 + 1 / 0.25)
        assert torch.allclose(pyro.param("loc"), x.mean(0), atol=0.1)
        assert torch.allclose(pyro.param("scale"), torch.tensor(0.2).sqrt(), atol=0.05)


def test_point_mass_has_no_elbo_and_with_weight_zero_is_an_autoencoder():
    model = VAE((12,), latent_dim=3, hidden=(16,))
    guide = DeltaGuide(model, hidden=(16,))
    x = binary()
    result = fit(model, guide, Splits(x, valid=x[:16]), num_steps=40, schedule=Constant(0.0),
                 eval_every=10, optimizer=partial(Adam, lr=1e-2))  # fmt: skip
    for line in result.metrics:
        assert not {"elbo", "bound", "kl"} & line.keys()
        assert set(line["log_prior"]) == {"z"}
    train, valid = lines(result, "train")[0], lines(result, "valid")[-1]
    assert train["loss"] == pytest.approx(-train["reconstruction"], rel=1e-10)
    # "best" goes by minus the weighted loss, here the reconstruction alone
    assert result.best_elbo == max(v["reconstruction"] for v in lines(result, "valid"))
    assert valid["reconstruction"] > train["reconstruction"] + 1


def test_capacity_pulls_the_kl_to_its_target():
    model, guide = pair()
    x = binary()
    estimator = TraceCapacity_ELBO(gamma=100.0, capacity=Linear(200, end=1.5))
    result = fit(model, guide, Splits(x, valid=x), num_steps=600, estimator=estimator,
                 optimizer=partial(Adam, lr=1e-2), eval_every=600)  # fmt: skip
    assert lines(result, "valid")[-1]["kl"]["z"] == pytest.approx(1.5, abs=0.35)
    assert "bound" not in result.metrics[0]
    assert "elbo" in result.metrics[0]


def test_frozen_parameters_stay_and_the_others_move():
    model, guide = pair()
    before = [p.detach().clone() for p in model.parameters()]
    moved = guide.encoder.layers[0].weight.detach().clone()
    fit(model, guide, binary(), num_steps=3, freeze=["model", "guide.heads"])
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.requires_grad
    assert not torch.equal(guide.encoder.layers[0].weight, moved)


def test_an_optimizer_for_each_group():
    model, guide = pair()
    before = model.decoder.layers[0].weight.detach().clone()
    optimizers = {"model": partial(SGD, lr=0.0), "guide": partial(Adam, lr=1e-2)}
    result = fit(model, guide, binary(), num_steps=3, optimizer=optimizers, log_every=1)
    assert torch.equal(model.decoder.layers[0].weight, before)
    assert result.metrics[0]["learning_rate"] == [0.0, 1e-2]


def test_clipping_bounds_the_step():
    model, guide = pair()
    before = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]
    fit(model, guide, binary(), num_steps=1, optimizer=partial(SGD, lr=1.0), clip_grad_norm=1e-3)
    after = (*model.parameters(), *guide.parameters())
    norm = sum((a - b).square().sum() for a, b in zip(after, before, strict=True)).sqrt()
    assert norm.item() == pytest.approx(1e-3, rel=1e-4)


def test_learning_rate_schedules_step_each_step_and_by_validation():
    x = binary()
    result = fit(*pair(), x, num_steps=5, log_every=1,
                 lr_schedule=partial(StepLR, step_size=2, gamma=0.5))  # fmt: skip
    assert [v["learning_rate"][0] for v in result.metrics] == [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4]
    result = fit(
        *pair(),
        Splits(x, valid=x[:4]),
        num_steps=8,
        log_every=1,
        eval_every=2,
        optimizer=partial(SGD, lr=0.0),
        lr_schedule=partial(ReduceLROnPlateau, patience=0),
    )
    # Validations see the same noise: without movement no validation is better than the first.
    assert lines(result, "valid")[0]["elbo"] == lines(result, "valid")[-1]["elbo"]


def test_early_stopping_waits_for_the_warm_up_and_keeps_the_best():
    x = binary()
    model, guide = pair()
    result = fit(model, guide, Splits(x, valid=binary(16)), num_steps=400, eval_every=5,
                 patience=2, schedule=Linear(20), optimizer=partial(Adam, lr=0.2))  # fmt: skip
    assert result.stopped_early
    assert result.num_steps < 400
    validations = lines(result, "valid")
    assert validations[-1]["step"] >= 20 + 5
    best = max(validations, key=lambda line: line["elbo"])
    assert (best["step"], best["elbo"]) == (result.best_step, result.best_elbo)
    assert best["step"] < validations[-1]["step"]


def test_the_remainder_of_a_small_batch_and_the_default_batch():
    result = fit(*pair(), binary(40), num_steps=2, log_every=1)
    assert [line["epoch"] for line in result.metrics] == [1.0, 2.0]


@pytest.mark.parametrize("kind", ["dataset", "loader"])
def test_datasets_and_loaders_train_and_labels_go_where_they_are_wanted(kind):
    seen = []

    class Conditional(PyroModule):
        def __init__(self):
            super().__init__("model")
            self.net = nn.Linear(2 + 4, 12)

        def forward(self, x, y):
            seen.append(y.shape)
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                hot = nn.functional.one_hot(y, 4).to(x).expand(*z.shape[:-1], 4)
                logits = self.net(torch.cat([z, hot], -1))
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    dataset = TensorDataset(binary(32), torch.randint(4, (32,)))
    data = DataLoader(dataset, batch_size=8, shuffle=True) if kind == "loader" else dataset
    options = {} if kind == "loader" else {"batch_size": 8}
    model = Conditional()
    result = fit(model, MeanFieldGuide(model, hidden=(4,)), data, num_steps=5, **options)
    assert result.num_steps == 5
    assert set(seen) == {(8,)}
    # A model that takes x alone never sees the label.
    fit(*pair(), data, num_steps=2, **options)


@pytest.mark.parametrize("kind", ["dataset", "loader"])
def test_wrong_labels_are_said_before_the_first_step(kind, tmp_path):
    model = GaussianMixtureVAE((6,), num_components=3, latent_dim=2, hidden=(4,))
    guide = GaussianMixtureGuide(model, hidden=(4,))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def train(labels):
        dataset = TensorDataset(binary(40, 6), labels)
        data = DataLoader(dataset, batch_size=20) if kind == "loader" else dataset
        options = {} if kind == "loader" else {"batch_size": 1}
        estimator, out = pyro.infer.Trace_ELBO(), tmp_path / "run"
        return fit(model, guide, data, estimator=estimator, num_steps=1, out=out, **options)

    labels = torch.arange(40) % 4 - 1
    # Of a dataset all are seen, whatever the minibatch; of a loader the first minibatch alone.
    labels[:2] = 3
    with pytest.raises(ValueError, match=r"labels hold 2 value\(s\) outside \[-1, 2\].*is 3;"):
        train(labels)
    with pytest.raises(ValueError, match="GaussianMixtureVAE: the labels are torch.float64"):
        train(labels.double())
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert train(labels.clamp(max=2)).num_steps == 1


def test_the_callers_floating_type_is_kept():
    model, guide = (program.float() for program in pair())
    result = fit(model, guide, binary().double(), num_steps=2)
    assert {p.dtype for p in (*model.parameters(), *guide.parameters())} == {torch.float32}
    assert math.isfinite(result.metrics[0]["loss"])


def test_nan_names_step_site_and_parameter_and_keeps_the_last_checkpoint(tmp_path):
    model, guide = pair()
    out = tmp_path / "run"
    with pytest.raises(NonFiniteError, match=r"step \d+: .*First bad: .*'\w+.*parameter") as error:
        fit(model, guide, binary(), num_steps=500, out=out, checkpoint_every=1,
            optimizer=partial(SGD, lr=1e3))  # fmt: skip
    step = int(str(error.value).split("step ")[1].split(":")[0])
    state = ppl_vae.directory.RunDirectory(out).load()
    assert state["progress"]["step"] == step
    assert all(v.isfinite().all() for v in state["model"].values())
    assert all(p.isfinite().all() for p in (*model.parameters(), *guide.parameters()))


def test_nan_in_a_site_is_named():
    class Broken(VAE):
        def observe(self, z, x):
            self.calls = getattr(self, "calls", 0) + 1
            return super().observe(z * (float("nan") if self.calls > 8 else 1.0), x)

    model = Broken((12,), latent_dim=2, hidden=(4,))
    guide = MeanFieldGuide(model, hidden=(4,))
    with pytest.raises(NonFiniteError, match=r"site 'x' of the model: its logits holds nan"):
        fit(model, guide, binary(), num_steps=50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0; accepted is an integer >= 1"),
        ({"num_steps": 2.5}, "num_steps is 2.5"),
        ({"batch_size": 65}, r"batch_size is 65; accepted are 1 to 64"),
        ({"patience": 0}, "patience is 0"),
        ({"clip_grad_norm": -1.0}, "clip_grad_norm is -1.0"),
        ({"resume": True}, "out is not given"),
        ({"estimator": Trace_ELBO}, "accepted is an instance"),
        ({"device": "cuda:7" if not torch.cuda.is_available() else "nonsense"}, "device is"),
        ({"freeze": ["modle"]}, "freeze names 'modle'"),
        ({"freeze": ["model", "guide"]}, "nothing to train"),
        ({"optimizer": {"model": Adam}}, "no optimizer was given for the parameter 'guide"),
        ({"schedule": lambda step: -1.0}, "the KL weight is -1.0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fit(*pair(), binary(), **{"num_steps": 2, **change})


def test_bad_data_are_named():
    nan = binary()
    nan[3, 4] = math.nan
    with pytest.raises(ValueError, match=r"not finite, the first at index \[3, 4\]"):
        fit(*pair(), nan, num_steps=1)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        fit(*pair(), binary() * 2, num_steps=1)
    with pytest.raises(ValueError, match=r"built for data of shape \(12,\), and was given \(11,\)"):
        fit(*pair(), binary()[:, 1:], num_steps=1)
    with pytest.raises(ValueError, match="int64; accepted are floating"):
        fit(*pair(), binary().long(), num_steps=1)
    with pytest.raises(ValueError, match="at least one datum"):
        fit(*pair(), binary()[:0], num_steps=1)
    with pytest.raises(TypeError, match="accepted are a Tensor"):
        fit(*pair(), [1, 2], num_steps=1)
    fit(*pair(likelihood=Gaussian()), binary() * 2, num_steps=1)


def test_metrics_are_written_as_they_are_returned(tmp_path):
    x = binary()
    result = fit(*pair(), Splits(x, valid=x[:8]), num_steps=4, log_every=2, out=tmp_path / "run")
    written = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == result.metrics
    assert [(v["split"], v["step"]) for v in result.metrics] == [
        ("train", 0), ("train", 2), ("valid", 4)]  # fmt: skip


def test_a_result_says_in_a_line_what_it_is():
    digits = ppl_vae.data.load("digits")
    model = ppl_vae.models.VAE(digits.data_shape, latent_dim=2, hidden=(4,))
    guide = ppl_vae.guides.MeanFieldGuide(model, hidden=(4,))
    result = ppl_vae.fit(model, guide, digits, num_steps=2, compile=False, progress=False)
    said = f"FitResult(VAE, MeanFieldGuide, num_steps=2, best_elbo={result.best_elbo:.2f})"
    assert repr(result) == said


def test_the_version_is_that_of_the_package():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", ppl_vae.__version__)
