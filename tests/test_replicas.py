"""Several runs at once: each is the run that it would be alone."""

import copy
import json
import math
import os
import signal
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch.optim import SGD, Adam, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ppl_vae
from ppl_vae import estimators as e
from ppl_vae import fit, fit_replicas
from ppl_vae.compiled import TraceError, lowering
from ppl_vae.compiled.changes import changed, out_of_place
from ppl_vae.compiled.noise import lift_noise
from ppl_vae.compiled.replicated import ReplicatedStep
from ppl_vae.compiled.tracing import trace_function
from ppl_vae.data import Splits
from ppl_vae.guides import GaussianMixtureGuide, IAFGuide, MeanFieldGuide, TopDownGuide
from ppl_vae.models import VAE, GaussianMixtureVAE, HierarchicalVAE
from ppl_vae.randomness import seed_all, untouched
from ppl_vae.schedules import Constant, Linear, PerSite
from ppl_vae.together import Together

X = (torch.rand(96, 12, generator=torch.Generator().manual_seed(1)) < 0.3).double()
SCHEDULES = [Linear(40), Linear(20), Constant(0.5)]
OPTIMIZERS = [partial(Adam, lr=rate) for rate in (1e-3, 3e-3, 1e-2)]


def two_level():
    model = HierarchicalVAE((12,), latent_dims=(3, 2), hidden=(16,), latent_hidden=(8,))
    return model, TopDownGuide(model, hidden=(16,))


def plain():
    model = VAE((12,), latent_dim=2, hidden=(4,))
    return model, MeanFieldGuide(model, hidden=(4,))


def flow():
    model = VAE((12,), latent_dim=2, hidden=(4,))
    return model, IAFGuide(model, hidden=(4,))


def normalized():
    """Batch statistics: buffers that each run moves by itself."""
    model, guide = plain()
    guide.encoder = torch.nn.Sequential(guide.encoder, torch.nn.BatchNorm1d(4))
    return model, guide


OPTIONS = {"num_steps": 60, "batch_size": 32, "log_every": 20, "eval_every": 30, "valid": X[:32],
           "progress": False, "compile": False}  # fmt: skip


def alone(make, seed, data=X, **options):
    with untouched():
        seed_all(seed)
        pair = make()
    # An estimator that remembers is not to remember another run.
    return fit(*pair, data, seed=seed, **{**OPTIONS, **copy.deepcopy(options)})


def without_time(lines):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def flat(line):
    found = {}
    for name, value in line.items():
        if isinstance(value, dict):
            found |= {f"{name}.{k}": v for k, v in value.items()}
        elif isinstance(value, list):
            found |= {f"{name}.{i}": v for i, v in enumerate(value)}
        elif not isinstance(value, str):
            found[name] = value
    return found


def check_same(result, single, rel=1e-9):
    assert result.num_steps == single.num_steps
    assert len(result.metrics) == len(single.metrics) > 0
    for one, other in zip(*map(without_time, (result.metrics, single.metrics)), strict=True):
        assert one["split"] == other["split"]
        assert flat(one) == pytest.approx(flat(other), rel=rel)
    for program in ("model", "guide"):
        ours, theirs = (getattr(r, program).state_dict() for r in (result, single))
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=100 * rel, atol=100 * rel)


# ------------------------------------------------------------------------------ each as if alone


class Fading(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index] * (torch.rand(12) < 0.9)


HOW = {
    "rates, weights, clipping": (
        two_level,
        {"schedule": SCHEDULES, "optimizer": OPTIMIZERS, "clip_grad_norm": 50.0,
         "estimator": e.TraceDReG_ELBO(2)},
    ),
    "learning-rate schedules, momentum": (
        plain,
        {"optimizer": [partial(SGD, lr=r, momentum=0.9) for r in (1e-4, 3e-4, 1e-3)],
         "lr_schedule": partial(CosineAnnealingLR, T_max=60)},
    ),
    "weights by site": (
        two_level,
        {"schedule": [PerSite({"z1": Linear(n), "z2": Constant(0.5)}) for n in (9, 30, 60)]},
    ),
    "a flow": (flow, {"estimator": e.TraceIWAESTL_ELBO(3)}),
    # Not Adam: a bias before the normalization has a gradient of rounding, and Adam scales it up.
    "batch statistics": (normalized, {"optimizer": partial(SGD, lr=1e-4)}),
    "an estimator that remembers": (plain, {"estimator": e.TraceScoreFunction_ELBO()}),
    "an estimator that is told the step": (plain, {"estimator": e.TraceCapacity_ELBO()}),
    "a frozen model": (plain, {"freeze": ["model"]}),
    "binarization": (plain, {"data": Splits(X * 0.7, X[:0], X[:0], binarize="dynamic")}),
    "a dataset": (plain, {"data": TensorDataset(X)}),
    "a dataset that draws": (plain, {"data": Fading()}),
}  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_each_replica_is_its_own_run(how):
    make, options = HOW[how]
    options = {"data": X, **options}
    data = options.pop("data")
    results = fit_replicas(make, data, seeds=[3, 1, 7], **{**OPTIONS, **options})
    for index, (seed, result) in enumerate(zip([3, 1, 7], results, strict=True)):
        mine = {k: v[index] if isinstance(v, list) and k != "freeze" else v
                for k, v in options.items()}  # fmt: skip
        check_same(result, alone(make, seed, data, **mine))
        assert not result.compiled and result.failure is None


@pytest.mark.skipif(
    lowering.missing_compiler(torch.device("cpu")) is not None, reason="there is no C++ compiler"
)
def test_each_compiled_replica_is_its_own_run():
    """Here Inductor stumbles over the changes in place, and the graph gives them back instead."""
    options = {"schedule": SCHEDULES[:2], "estimator": e.TraceDReG_ELBO(2), "clip_grad_norm": 50.0}
    results = fit_replicas(two_level, X, seeds=[0, 1], **{**OPTIONS, **options, "compile": True})
    for seed, result in enumerate(results):
        assert result.compiled
        single = alone(two_level, seed, **{**options, "schedule": SCHEDULES[seed]})
        check_same(result, single)


def test_replicas_are_as_many_independent_tensors_afterwards():
    one, other = fit_replicas(plain, X, seeds=[0, 1], **OPTIONS)
    for program in ("model", "guide"):
        for p in getattr(one, program).parameters():
            assert p.untyped_storage().nbytes() == p.nbytes and p.is_leaf and p.requires_grad
    before = [p.detach().clone() for p in other.guide.parameters()]
    with torch.no_grad():
        for p in one.guide.parameters():
            p.zero_()
    assert all(torch.equal(p, q) for p, q in zip(other.guide.parameters(), before, strict=True))


def test_programs_that_are_plain_functions():
    """With parameters in Pyro's store, of which each replica has one of its own."""

    def model(x):
        scale = pyro.param("scale", lambda: torch.rand(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * scale, 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: torch.randn(12))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ loc, 0.3))

    found = fit_replicas([(model, guide)] * 2, X, seeds=[0, 1], **OPTIONS)
    values = []
    for seed, result in enumerate(found):
        single = fit(model, guide, X, seed=seed, **OPTIONS)
        with result.scope():
            values.append(pyro.param("loc").detach().clone())
        with single.scope():
            torch.testing.assert_close(values[-1], pyro.param("loc").detach())
    assert not torch.allclose(*values)


def test_discrete_latents_draw_other_noise_of_the_same_distribution():
    """Their draws hang on what the graph computes: not the single run, but as good a one."""

    def make():
        model = GaussianMixtureVAE((12,), num_components=2, latent_dim=2, hidden=(4,))
        return model, GaussianMixtureGuide(model, hidden=(4,), enumerate=False)

    options = {**OPTIONS, "num_steps": 150, "eval_every": 150, "estimator": e.TraceVIMCO_ELBO(4),
               "optimizer": partial(Adam, lr=1e-2)}  # fmt: skip
    seeds = range(8)
    found = [r.metrics[-1]["elbo"] for r in fit_replicas(make, X, seeds=seeds, **options)]
    single = [alone(make, seed, **options).metrics[-1]["elbo"] for seed in seeds]
    assert len({round(value, 6) for value in found}) == len(seeds)
    difference = torch.tensor(found) - torch.tensor(single)  # Paired: the same initial parameters.
    assert difference.mean().abs() < 5 * difference.std() / math.sqrt(len(seeds))
    assert (difference != 0).all()


# ---------------------------------------------------------------------- directories and resuming


def test_run_directories_are_those_of_fit(tmp_path):
    options = {**OPTIONS, "checkpoint_every": 20}
    half = fit_replicas(plain, X, seeds=[4, 5], out=tmp_path / "r", **{**options, "num_steps": 20})
    assert [r.path.name for r in half] == ["00", "01"]
    whole = [alone(plain, seed, **options) for seed in (4, 5)]
    # One goes on alone, and further than the other: that one catches up, then both go together.
    with untouched():
        seed_all(4)
        pair = plain()
    fit(*pair, X, seed=4, out=tmp_path / "r" / "00", resume=True, **{**options, "num_steps": 40})
    both = fit_replicas(plain, X, seeds=[4, 5], out=tmp_path / "r", resume=True, **options)
    for result, single in zip(both, whole, strict=True):
        ours, theirs = (
            [line for line in r.metrics if (line["split"], line["step"]) != ("valid", 20)]
            for r in (result, single)
        )
        steps = [(line["split"], line["step"]) for line in theirs]
        assert [(line["split"], line["step"]) for line in ours if
                (line["split"], line["step"]) in steps] == steps  # fmt: skip
        for p, q in zip(result.guide.parameters(), single.guide.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)
    run = ppl_vae.load_run(tmp_path / "r" / "01")
    assert run.config["seed"] == 5 and run.step == 60


def test_ctrl_c_keeps_all(tmp_path):
    armed = [25]

    def schedule(step):
        if armed and step == armed[0]:
            os.kill(os.getpid(), signal.SIGINT)
            armed.clear()
        return min(1.0, step / 9)

    options = {**OPTIONS, "schedule": schedule}
    with pytest.raises(KeyboardInterrupt, match=r"stopped at step 26 of 60; .*00 .*; stopped .*01"):
        fit_replicas(plain, X, seeds=[0, 1], out=tmp_path, **options)
    results = fit_replicas(plain, X, seeds=[0, 1], out=tmp_path, resume=True, **options)
    for seed, result in enumerate(results):
        check_same(result, alone(plain, seed, **options))


# ----------------------------------------------------------------------- ends of different times


def test_one_that_fails_does_not_end_the_others():
    optimizers = [partial(SGD, lr=1e-4), partial(SGD, lr=1e12), partial(SGD, lr=1e-4)]
    options = {**OPTIONS, "log_every": 7}
    results = fit_replicas(plain, X, seeds=[0, 1, 2], optimizer=optimizers, **options)
    failed = results[1]
    assert failed.failure is not None and "is not finite" in str(failed.failure)
    with pytest.raises(ppl_vae.NonFiniteError) as error:
        alone(plain, 1, optimizer=optimizers[1], **options)
    assert str(error.value) == str(failed.failure)
    assert all(p.isfinite().all() for p in failed.guide.parameters())
    for index in (0, 2):
        assert results[index].failure is None
        check_same(results[index], alone(plain, index, optimizer=optimizers[index], **options))


def test_patience_ends_each_at_its_own_step():
    options = {**OPTIONS, "num_steps": 200, "eval_every": 10, "patience": 2}
    optimizers = [partial(Adam, lr=1e-4), partial(Adam, lr=0.3), partial(Adam, lr=0.1)]
    results = fit_replicas(plain, X, seeds=[0, 1, 2], optimizer=optimizers, **options)
    assert len({r.num_steps for r in results}) > 1
    for index, result in enumerate(results):
        single = alone(plain, index, optimizer=optimizers[index], **options)
        assert result.stopped_early == single.stopped_early
        assert result.best_step == single.best_step
        check_same(result, single, rel=1e-6)


# -------------------------------------------------------------------------- what cannot be one


def test_pairs_of_several_kinds_are_trained_each_by_itself():
    with untouched():
        seed_all(0)
        pairs = [plain(), flow()]
    with pytest.warns(UserWarning, match="each replica is trained by itself: the pairs hold"):
        results = fit_replicas(pairs, X, seeds=[0, 0], **OPTIONS)
    check_same(results[0], alone(plain, 0))
    with untouched():
        seed_all(0)
        plain()
        pair = flow()
    check_same(results[1], fit(*pair, X, seed=0, **OPTIONS))
    with pytest.raises(TraceError, match="compile=True, and the step cannot be compiled"):
        fit_replicas([plain(), flow()], X, seeds=[0, 0], **{**OPTIONS, "compile": True})


class Scaled(PyroModule):
    """A number of the program is part of the graph."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.loc = torch.nn.Parameter(torch.zeros(12))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None] + self.loc, self.scale).to_event(1), obs=x)


class Told(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 0.5))


def test_pairs_that_differ_in_a_number_are_found_out():
    pairs = [(Scaled(scale), Told()) for scale in (1.0, 1.3)]
    with pytest.warns(UserWarning, match=r"not of one kind: the loss of pair 1 is .*, and that of"):
        results = fit_replicas(pairs, X, seeds=[0, 0], **OPTIONS)
    singles = [fit(Scaled(scale), Told(), X, seed=0, **OPTIONS) for scale in (1.0, 1.3)]
    for result, single in zip(results, singles, strict=True):
        check_same(result, single)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seeds": []}, "seeds is empty"),
        ({"schedule": [Linear(3)]}, "there are 1 of schedule and 2 seeds"),
        ({"optimizer": [SGD] * 3}, "there are 3 of optimizer and 2 seeds"),
        ({"pairs": [(1, 2)]}, "there are 1 pairs and 2 seeds"),
        ({"data": DataLoader(TensorDataset(X))}, "the data are a DataLoader"),
        ({"resume": True}, "resume is true, but out is not given"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"compile": 3}, "compile is 3"),
    ],
)
def test_what_is_not_accepted(options, message):
    pairs, data = options.pop("pairs", plain), options.pop("data", X)
    with pytest.raises(ValueError, match=message):
        fit_replicas(pairs, data, **{"seeds": [0, 1], **OPTIONS, **options})


def test_shared_parameters_are_refused_and_a_shared_frozen_model_is_not():
    pair = plain()
    with pytest.raises(ValueError, match=r"the pairs 0 and 1 share the parameter 'model\.decoder"):
        fit_replicas([pair, pair], X, seeds=[0, 1], **OPTIONS)
    model = pair[0]
    guides = [MeanFieldGuide(model, hidden=(4,)) for _ in range(2)]
    before = [p.clone() for p in model.parameters()]
    pairs = [(model, guide) for guide in guides]
    results = fit_replicas(pairs, X, seeds=[0, 1], freeze=["model"], **OPTIONS)
    assert results[0].metrics[-1]["elbo"] != results[1].metrics[-1]["elbo"]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_rare_optimizers_are_trained_each_by_itself():
    with pytest.warns(UserWarning, match="each replica is trained by itself: the optimizers are"):
        results = fit_replicas(plain, X, seeds=[0, 1], optimizer=RMSprop, **OPTIONS)
    for seed, result in enumerate(results):
        check_same(result, alone(plain, seed, optimizer=RMSprop))


def test_nothing_outside_is_touched(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_replicas(plain, X, seeds=[0, 1], out=tmp_path, **OPTIONS)
    assert torch.equal(torch.rand(3), expected)
    assert not dict(pyro.get_param_store().items())
    lines = (tmp_path / "01" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 20, 30, 40, 60]


# ------------------------------------------------------------------- what goes wrong in the middle


def mixture():
    model = GaussianMixtureVAE((12,), num_components=2, latent_dim=2, hidden=(4,))
    return model, GaussianMixtureGuide(model, hidden=(4,), enumerate=False)


DISCRETE = {**OPTIONS, "estimator": e.TraceVIMCO_ELBO(2)}


def test_one_that_cannot_draw_by_nan_does_not_end_the_others():
    optimizers = [partial(SGD, lr=1e-5), partial(SGD, lr=1e12)]
    with pytest.warns(UserWarning, match=r"fail \(.*made eagerly, the same steps are fine"):
        results = fit_replicas(mixture, X, seeds=[0, 1], optimizer=optimizers, **DISCRETE)
    assert "the loss is not finite" in str(results[1].failure)
    assert results[0].failure is None and results[0].num_steps == 60


class Doomed(GaussianMixtureVAE):
    """Its likelihood is NaN, and so all that it moves, once it has counted to a limit."""

    def __init__(self):
        super().__init__((12,), num_components=2, latent_dim=2, hidden=(4,))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("limit", torch.tensor(1e9))

    def observe(self, z, x):
        self.count.add_(1.0)
        return super().observe(z * torch.where(self.count > self.limit, torch.nan, 1.0), x)


def doomed():
    model = Doomed()
    return model, GaussianMixtureGuide(model, hidden=(4,), enumerate=False)


def test_by_the_row_of_one_that_has_failed_the_others_can_still_be_drawn():
    with untouched():
        seed_all(0)
        pairs = [doomed(), doomed()]
    # To find its latent sites the guide has run the model once.
    pairs[0][0].limit.fill_(4.0)
    options = {**DISCRETE, "num_steps": 8, "log_every": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = fit_replicas(pairs, X, seeds=[0, 1], **options)
    assert "step 3: the loss is not finite" in str(results[0].failure)
    assert results[1].failure is None and results[1].num_steps == 8


def test_what_the_graph_draws_is_of_no_replicas_stream(monkeypatch):
    """Nor the same in each step."""
    seen, call = [], ReplicatedStep.__call__

    def watched(self, batch, weights, generators, owners):
        function, streams = self._function, [g.get_state() for g in generators]

        def drawing(*inputs):
            seen.append(torch.get_rng_state())
            assert all(not torch.equal(seen[-1], state) for state in streams)
            return function(*inputs)

        self._function = drawing
        losses = call(self, batch, weights, generators, owners)
        self._function = function
        return losses

    monkeypatch.setattr(ReplicatedStep, "__call__", watched)
    fit_replicas(mixture, X, seeds=[0, 1], **{**DISCRETE, "num_steps": 3})
    assert len({tuple(state.tolist()) for state in seen}) == 3


def test_optimizers_of_several_forms_are_no_one_graph():
    optimizers = [partial(SGD, lr=1e-4), partial(SGD, lr=1e-4, momentum=0.9)]
    options = {**OPTIONS, "num_steps": 4}
    with pytest.warns(UserWarning, match="by itself: the optimizers are of different kinds"):
        results = fit_replicas(plain, X, seeds=[0, 1], optimizer=optimizers, **options)
    for index, result in enumerate(results):
        check_same(result, alone(plain, index, optimizer=optimizers[index], **options))


def test_a_row_of_one_that_has_left_can_still_be_drawn_by():
    """Adam of numbers that are all zero divides zero by zero."""
    optimizers = [partial(Adam, lr=1e-3), partial(Adam, lr=0.0), partial(Adam, lr=1e-3)]
    options = {**DISCRETE, "eval_every": 5, "patience": 1, "num_steps": 20}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = fit_replicas(mixture, X, seeds=[0, 0, 1], optimizer=optimizers, **options)
    assert results[1].num_steps < max(result.num_steps for result in results)
    for result in results:
        assert all(p.isfinite().all() for p in result.guide.parameters())


def test_what_leaves_in_a_step_that_is_due_is_looked_at_there(monkeypatch):
    """The graph's loss of one is NaN where its programs' is not, at the last step."""
    calls, call = [], ReplicatedStep.__call__

    def spoiled(*args):
        losses = call(*args)
        calls.append(None)
        if len(calls) == 20:
            losses[1] = torch.nan
        return losses

    monkeypatch.setattr(ReplicatedStep, "__call__", spoiled)
    # Interpreted, and said to be compiled.
    monkeypatch.setattr("ppl_vae.compiled.replicated.lower", lambda graph, examples: graph)
    monkeypatch.setattr("ppl_vae.compiling.missing_compiler", lambda device: None)
    options = {**OPTIONS, "num_steps": 20, "log_every": 19, "compile": True}
    with pytest.warns(UserWarning, match="before step 20 are not finite.* stays eager"):
        results = fit_replicas(plain, X, seeds=[0, 1], **options)
    assert [result.compiled for result in results] == [True, False]
    for seed, result in enumerate(results):
        single = alone(plain, seed, **{**options, "compile": False})
        assert result.metrics[-1]["split"] == "valid" and result.num_steps == 20
        assert flat(result.metrics[-1])["elbo"] == pytest.approx(single.metrics[-1]["elbo"])


def test_ctrl_c_keeps_nothing_that_is_not_finite(tmp_path):
    armed = [9]

    def schedule(step):
        if armed and step == armed[0]:
            os.kill(os.getpid(), signal.SIGINT)
            armed.clear()
        return 1.0

    options = {**OPTIONS, "optimizer": [partial(SGD, lr=r) for r in (1e-4, 1e12)]}
    with pytest.raises(KeyboardInterrupt, match=r"^stopped at step 10 of 60; .*00 holds"):
        fit_replicas(plain, X, seeds=[0, 1], out=tmp_path, schedule=schedule, **options)
    steps = [ppl_vae.load_run(tmp_path / name).step for name in ("00", "01")]
    assert steps == [10, 0]


def test_weights_of_other_sites_part_the_replicas():
    def schedule(step):
        return {"z1": 0.5} if step < 4 else {"z2": 0.1, "z1": 0.5}

    options = {**OPTIONS, "num_steps": 8, "schedule": schedule}
    with pytest.warns(UserWarning, match="from step 4 on each replica .* weighs other sites"):
        results = fit_replicas(two_level, X, seeds=[0, 1], **options)
    for seed, result in enumerate(results):
        check_same(result, alone(two_level, seed, **options))


def test_one_that_has_ended_does_not_keep_those_behind_from_going_together(tmp_path, monkeypatch):
    options = {**OPTIONS, "checkpoint_every": 5, "tensorboard": False}
    fit_replicas(plain, X, seeds=[0, 1, 2], out=tmp_path, **{**options, "num_steps": 5})
    with untouched():
        seed_all(0)
        pair = plain()
    fit(*pair, X, seed=0, out=tmp_path / "00", resume=True, **{**options, "num_steps": 10})
    sizes, make = [], Together.__init__

    def watched(self, replicas, lowers):
        sizes.append([replica.course.loop.step for replica in replicas])
        make(self, replicas, lowers)

    monkeypatch.setattr(Together, "__init__", watched)
    fit_replicas(
        plain, X, seeds=[0, 1, 2], out=tmp_path, resume=True, **{**options, "num_steps": 10}
    )
    assert sizes == [[5, 5]]


def test_ctrl_c_reaches_one_that_catches_up(tmp_path):
    armed = []

    def schedule(step):
        if armed and step == armed[0]:
            armed.clear()
            os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    options = {**OPTIONS, "schedule": schedule, "checkpoint_every": 5, "tensorboard": False}
    fit_replicas(plain, X, seeds=[0, 1], out=tmp_path, **{**options, "num_steps": 5})
    with untouched():
        seed_all(0)
        pair = plain()
    fit(*pair, X, seed=0, out=tmp_path / "00", resume=True, **{**options, "num_steps": 10})
    armed.append(7)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 10 .* stopped at step 8 of 60"):
        fit_replicas(plain, X, seeds=[0, 1], out=tmp_path, resume=True, **options)


@pytest.mark.parametrize("at", ["weight 0", "zero parameters"])
def test_numbers_that_count_only_later_are_found_out(at):
    """Of a prior under a weight of 0, of what stands behind a parameter that begins as 0."""

    class Scaled(PyroModule):
        def __init__(self, scale, gain):
            super().__init__()
            self.scale, self.gain = scale, gain
            self.gate = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, self.scale))
                loc = (1.0 + self.gain * self.gate) * z[:, None].expand(-1, 12)
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    options = {**OPTIONS, "num_steps": 3}
    numbers = [(1.0, 1.0), (2.0, 1.0)] if at == "weight 0" else [(1.0, 1.0), (1.0, 2.0)]
    if at == "weight 0":
        options["schedule"] = Linear(40)
    pairs = [(Scaled(*n), Told()) for n in numbers]

    with pytest.warns(UserWarning, match="not of one kind: the loss of pair 1 is"):
        results = fit_replicas(pairs, X, seeds=[0, 0], **options)
    for result, n in zip(results, numbers, strict=True):
        check_same(result, fit(Scaled(*n), Told(), X, seed=0, **options))
        for p in result.model.parameters():
            assert p.untyped_storage().nbytes() == p.nbytes  # Its own again.


# ------------------------------------------------------------------------------------ the pieces


def test_lifted_noise_is_what_the_graph_would_draw():
    def draws(x):
        normal = torch.empty(20).normal_()
        return normal + torch.rand(20) * x, torch.randn(3, 4), torch.empty(5).exponential_(2.0)

    x = torch.ones(20)
    graph = trace_function(draws, [x]).graph
    lifted, found, complete = lift_noise(graph)
    generator = torch.Generator().manual_seed(7)
    noise = [draw([generator])[0] for draw in found]
    torch.manual_seed(7)
    for one, other in zip(lifted(x, *noise), draws(x), strict=True):
        assert torch.equal(one, other)
    assert complete and len(found) == 4
    assert torch.equal(generator.get_state(), torch.get_rng_state())


def test_draws_that_hang_on_an_argument_stay():
    graph = trace_function(lambda p: torch.bernoulli(p) + torch.rand(3), [torch.rand(3)]).graph
    lifted, found, complete = lift_noise(graph)
    assert not complete and len(found) == 1
    torch.manual_seed(0)
    assert set(lifted(torch.ones(3), torch.zeros(3)).tolist()) == {1.0}


def test_changes_in_place_given_back():
    def change(a, b, c, d, e):
        a.add_(1.0)
        b.view(2, 2)[0].mul_(c)
        d.split(1)[1].neg_()
        torch._foreach_add_([e[:2]], 1.0)
        return a.sum() + b.sum() + d.sum() + e.sum()

    given = [torch.rand(3), torch.rand(4), torch.tensor(2.0), torch.rand(2), torch.rand(3)]
    graph = trace_function(change, given).graph
    assert changed(graph) == [0, 1, 3, 4]
    before, own = [v.clone() for v in given], [v.clone() for v in given]
    result, *new = out_of_place(graph)(*given)
    assert all(torch.equal(v, w) for v, w in zip(given, before, strict=True))
    assert torch.equal(change(*own), result)
    assert all(torch.equal(v, w) for v, w in zip(new, own[:2] + own[3:], strict=True))
