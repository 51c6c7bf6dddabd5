"""The compiled step against the programs: gradients, trainings, resumes, and what may go wrong."""

import math
import subprocess
import sys
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

import ppl_vae
from ppl_vae import NonFiniteError, compiling, fit
from ppl_vae import estimators as e
from ppl_vae.checkpoint import load_checkpoint
from ppl_vae.compiled import CompiledLoss, CompileError, TraceError, function, lowering
from ppl_vae.compiled.replay import Replay
from ppl_vae.data import Splits
from ppl_vae.evaluate import log_marginal
from ppl_vae.guides import GaussianMixtureGuide, MeanFieldGuide, TopDownGuide
from ppl_vae.models import VAE, GaussianMixtureVAE, HierarchicalVAE
from ppl_vae.randomness import fork, validation
from ppl_vae.schedules import Linear
from ppl_vae.testing.isolation import isolated
from tests import zoo

needs_compiler = pytest.mark.skipif(
    lowering.missing_compiler(torch.device("cpu")) is not None, reason="there is no C++ compiler"
)
pytestmark = needs_compiler

CHOSEN = [
    ("VAE", "Trace_ELBO", "MeanFieldGuide"),
    ("HierarchicalVAE", "TraceDReG_ELBO", "TopDownGuide"),
]
MORE = [
    ("VAE-conv", "TraceIWAE_ELBO", "MeanFieldGuide-conv"),
    ("VAE-Laplace", "TraceSTL_ELBO", "FullRankGuide"),
    ("VAE-Gaussian", "TraceAnalyticKL_ELBO", "LowRankGuide"),
    ("VampPrior", "TraceIWAESTL_ELBO", "IAFGuide"),
    ("HierarchicalVAE-3", "TracePIWAE_ELBO", "LadderGuide"),
    ("VAE-mixture", "TraceFreeBits_ELBO", "NeuralSplineGuide"),
    ("LinearGaussian", "TraceRWS_ELBO", "BottomUpGuide"),
    ("GaussianMixtureVAE", "TraceVIMCO_ELBO", "GaussianMixtureGuide"),
]


@pytest.fixture
def single():
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


def gradient_of(run, parameters):
    for parameter in parameters:
        parameter.grad = None
    torch.manual_seed(5)
    loss = run()
    state = torch.get_rng_state()
    return loss, [None if p.grad is None else p.grad.clone() for p in parameters], state


def check_compiled(model_name, estimator, guide_name):
    model, guide = zoo.pair(model_name, guide_name)
    x, elbo = zoo.batch(model, 20).float(), zoo.estimator(estimator, 3)
    parameters = [*model.parameters(), *guide.parameters()]

    def eagerly():
        loss = elbo.differentiable_loss(model, guide, x)
        loss.backward()
        return loss.detach()

    with isolated(0, model, guide), validation(False):
        compiled = CompiledLoss(model, guide, elbo, parameters)
        compiled.prepare((x,))
        loss, gradients, state = gradient_of(lambda: compiled((x,)), parameters)
        expected, others, same = gradient_of(eagerly, parameters)
    assert torch.equal(state, same)  # One random stream.
    assert abs(loss - expected) <= 1e-5 * abs(expected)
    norm = math.sqrt(sum(g.square().sum() for g in others if g is not None))
    for one, other in zip(gradients, others, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one - other).norm() <= 1e-5 * norm


@pytest.mark.parametrize("names", CHOSEN, ids="-".join)
def test_compiled_gradients(single, names):
    check_compiled(*names)


@pytest.mark.slow
@pytest.mark.parametrize("names", MORE, ids="-".join)
def test_more_compiled_gradients(single, names):
    check_compiled(*names)


# -------------------------------------------------------------------------------------- trainings

X = (torch.rand(96, 12, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def two_level():
    torch.manual_seed(0)
    model = HierarchicalVAE((12,), latent_dims=(3, 2), hidden=(16,), latent_hidden=(8,))
    return model, TopDownGuide(model, hidden=(16,))


def trained(compile, num_steps=60, make=two_level, data=X, **options):
    model, guide = make()
    defaults = {"estimator": e.TraceDReG_ELBO(2), "schedule": Linear(40), "batch_size": 32,
                "log_every": 20, "eval_every": 30, "valid": X[:32], "clip_grad_norm": 50.0,
                "lr_schedule": partial(CosineAnnealingLR, T_max=60), "progress": False}  # fmt: skip
    return fit(model, guide, data, num_steps=num_steps, compile=compile, **{**defaults, **options})


def numbers(result, *names):
    return [line[name] for line in result.metrics for name in names if name in line]


def test_a_compiled_training_is_the_eager_one_up_to_rounding(single):
    eager, compiled = trained(False), trained(True)
    assert compiled.compiled and not eager.compiled
    for name in ("loss", "bound", "elbo", "weight"):
        found = numbers(compiled, name)
        assert found == pytest.approx(numbers(eager, name), rel=1e-4) and len(found) >= 3
    for one, other in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert numbers(compiled, "learning_rate") == numbers(eager, "learning_rate")


def test_resume_goes_on_compiled_to_the_bit_and_across_up_to_rounding(single, tmp_path):
    whole = trained(True, out=tmp_path / "whole", checkpoint_every=30)
    for first, second, exact in ((True, True, True), (True, False, False), (False, True, False)):
        out = tmp_path / f"{first}-{second}"
        trained(first, 30, out=out)
        result = trained(second, out=out, resume=True)
        assert result.compiled == second
        for one, other in zip(result.guide.parameters(), whole.guide.parameters(), strict=True):
            if exact:
                assert torch.equal(one, other)
            else:
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    state = load_checkpoint(tmp_path / "whole" / "checkpoint")
    groups = state["optimizer"]["optimizers"][""]["param_groups"]
    assert [group["fused"] for group in groups] == [None]  # How, not what.


def test_batches_of_several_shapes(single):
    loader = DataLoader(TensorDataset(X[:80]), batch_size=32, shuffle=True)
    eager, compiled = (trained(c, 12, data=loader, batch_size=None) for c in (False, True))
    assert numbers(compiled, "elbo") == pytest.approx(numbers(eager, "elbo"), rel=1e-4)


def replayed(monkeypatch, how, **options):
    """On the CPU the steps of a replay are made one by one; the logic around them is the same."""
    monkeypatch.setattr(compiling, "_REPLAYED_ON", ("cpu",) if how else ())
    monkeypatch.setattr(compiling, "_AT_ONCE", how or ())
    pages = Splits(X, X[:0], X[:0], binarize="dynamic")
    return trained(True, 47, data=pages, **{"valid": X[:32], **options})


@pytest.mark.parametrize("how", [(7, 1), (4,)])
def test_steps_in_a_row_are_the_steps_one_by_one(single, monkeypatch, how):
    played = []
    call = Replay.__call__
    monkeypatch.setattr(Replay, "__call__", lambda *a: (played.append(a[0].num_steps), call(*a))[1])
    single_steps, rows = (replayed(monkeypatch, sizes) for sizes in ((), how))
    for one, other in zip(rows.guide.parameters(), single_steps.guide.parameters(), strict=True):
        assert torch.equal(one, other)
    for name in ("loss", "bound", "elbo", "weight", "learning_rate"):
        assert numbers(rows, name) == numbers(single_steps, name)
    # 47 steps, logged at 0, 20, 40, validated at 30, in pieces of 19, 9, 9 and 6 between.
    assert sum(played) == (44 if how == (7, 1) else 36)


def test_an_estimator_that_is_told_the_step_is_not_replayed(single, monkeypatch):
    monkeypatch.setattr(Replay, "__call__", lambda *a: pytest.fail("replayed"))
    replayed(monkeypatch, (4, 1), estimator=e.TraceCapacity_ELBO(), schedule=None)


@pytest.mark.slow
def test_a_thousand_steps_end_at_the_same_bound():
    """With other noise: two seeds differ by no less than compiled and eager."""
    values = {
        compile: [
            numbers(trained(compile, 1000, seed=s, eval_every=1000), "elbo")[-1] for s in seeds
        ]
        for compile, seeds in ((False, (1, 2, 3, 4)), (True, (5, 6, 7, 8)))
    }
    eager, compiled = torch.tensor(values[False]), torch.tensor(values[True])
    error = ((eager.var() + compiled.var()) / 4).sqrt()
    assert abs(eager.mean() - compiled.mean()) < 5 * error


# ------------------------------------------------------------------------------------ what is bad


def exploding(at):
    """A model whose likelihood is NaN once a parameter that counts steps has come so far."""
    counter = torch.nn.Parameter(torch.zeros(()))

    class Exploding(VAE):
        def forward(self, x):
            with pyro.plate("count", 1, dim=-1):
                gone = torch.where(self.counter < 0.5 - at, torch.nan, 0.0)
                # Its gradient is 1: a step of 1 lowers the counter by one.
                pyro.factor("tick", (gone - self.counter).expand(1))
            return super().forward(x)

    torch.manual_seed(0)
    model = Exploding((12,), latent_dim=2, hidden=(4,))
    model.counter = counter
    return model, MeanFieldGuide(model, hidden=(4,))


def test_nan_goes_back_and_names_the_site():
    model, guide = explosive = exploding(7)
    before = [p.detach().clone() for p in guide.parameters()]
    with pytest.raises(NonFiniteError, match=r"step 7: the loss is .*'tick' of the model"):
        fit(
            *explosive, X.double(), num_steps=40, compile=True, batch_size=32, progress=False,
            optimizer={"model": partial(SGD, lr=1.0), "guide": partial(SGD, lr=1e-6)},
            freeze=["model.decoder"], log_every=30, checkpoint_every=20,
        )  # fmt: skip
    assert model.counter.item() == -7  # As it was before the bad step.
    moved = [(p - b).abs().max().item() for p, b in zip(guide.parameters(), before, strict=True)]
    assert all(math.isfinite(value) for value in moved)


def discrete():
    torch.manual_seed(0)
    model = GaussianMixtureVAE((12,), num_components=2, latent_dim=2, hidden=(4,))
    return model, GaussianMixtureGuide(model, hidden=(4,), enumerate=True)


def plain():
    torch.manual_seed(0)
    model = VAE((12,), latent_dim=2, hidden=(4,))
    return model, MeanFieldGuide(model, hidden=(4,))


def test_true_raises_where_it_cannot(single):
    with pytest.raises(TraceError, match="compile=True, and .* pyro.infer.traceenum_elbo"):
        trained(True, make=discrete, estimator=pyro.infer.TraceEnum_ELBO(max_plate_nesting=1),
                schedule=None)  # fmt: skip
    with pytest.raises(ValueError, match="compile is 'yes'; accepted are True, False and 'auto'"):
        trained("yes")


def test_auto_compiles_what_pays_and_warns_of_what_it_cannot(single, monkeypatch):
    few = partial(trained, "auto", 20, make=plain, schedule=None, estimator=None)
    assert not few().compiled
    monkeypatch.setattr(sys.modules["ppl_vae.fit"], "_FEW_STEPS", 1)
    assert not few().compiled  # By the graph's size.
    monkeypatch.setattr(compiling, "_pays", lambda traced, num_steps: True)
    assert few().compiled
    with pytest.warns(UserWarning, match="training stays eager: pyro.infer.trace_elbo") as caught:
        assert not few(estimator=pyro.infer.Trace_ELBO()).compiled
    assert len(caught) == 1
    monkeypatch.setattr(
        compiling, "missing_compiler", lambda device: "there is no C++ compiler (g++)"
    )
    with pytest.warns(UserWarning, match=r"training stays eager: there is no C\+\+ compiler"):
        assert not few().compiled
    with pytest.raises(CompileError, match=r"cannot be compiled: there is no C\+\+ compiler"):
        trained(True, 20, make=plain, schedule=None, estimator=None)


def test_what_pays_is_a_matter_of_steps_and_size():
    model, guide = plain()
    x = X.double()
    parameters = [*model.parameters(), *guide.parameters()]
    with isolated(0, model, guide), validation(False):
        traced = CompiledLoss(model, guide, e.Trace_ELBO(), parameters).trace((x,))
    assert not compiling._pays(traced, 2000)
    assert compiling._pays(traced, 20_000)


def test_compiling_leaves_no_trace(single):
    pair = two_level()
    with fork(3):
        before = torch.rand(3)
    with fork(3):
        trained(True, 2, make=lambda: pair)
        assert torch.equal(torch.rand(3), before)
    assert not dict(pyro.get_param_store().items())


def test_who_does_not_compile_does_not_import_the_compiler():
    program = (
        "import sys, torch, ppl_vae; from ppl_vae import *\n"
        "m = ppl_vae.models.VAE((4,), latent_dim=1, hidden=(2,))\n"
        "ppl_vae.fit(m, ppl_vae.guides.MeanFieldGuide(m, hidden=(2,)), torch.rand(8, 4).round(),\n"
        "            num_steps=2, progress=False)\n"
        "assert 'ppl_vae.compiling' not in sys.modules\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_cache_outlives_the_process(single, tmp_path, monkeypatch):
    """What a second process compiles of the same graph is read from disk: no compiler is called."""
    program = (
        "import torch, ppl_vae\n"
        "torch.manual_seed(0)\n"
        "m = ppl_vae.models.VAE((4,), latent_dim=1, hidden=(2,))\n"
        "g = ppl_vae.guides.MeanFieldGuide(m, hidden=(2,))\n"
        "r = ppl_vae.fit(m, g, torch.rand(8, 4).round(), num_steps=3, progress=False,\n"
        "                compile=True)\n"
        "from torch._dynamo.utils import counters\n"
        "print(r.compiled, counters['inductor']['fxgraph_cache_hit'])\n"
    )
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    printed = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert [text.split()[-2:] for text in printed] == [["True", "0"], ["True", "1"]]


def test_the_command_line_compiles(single, tmp_path):
    from ppl_vae.cli import main

    out = tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        main(["train", "--num_steps", "3", "--compile", "true", "--out", str(out)])
    config = (out / "config.yaml").read_text()
    assert "compile: true" in config
    assert dist and ppl_vae.load_run(out).config["compile"] is True


# ------------------------------------------------------------------------------------- evaluation


def test_log_marginal_compiled_has_the_same_draws(single):
    model, guide = two_level()
    # Data in batches of 4, their particles in chunks of 50 and 10.
    how = {"num_particles": 60, "chunk_size": 200, "seed": 3}
    eager = log_marginal(model, guide, X[:24], compile=False, **how)
    compiled = log_marginal(model, guide, X[:24], compile=True, **how)
    assert (compiled.value - eager.value).abs().max() <= 1e-4
    assert not torch.equal(compiled.value, eager.value)  # Other kernels did it.
    torch.testing.assert_close(compiled.standard_error, eager.standard_error, rtol=1e-3, atol=0)


def test_log_marginal_stays_with_programs_that_cannot_be_compiled(single, monkeypatch):
    model, guide = plain()
    how = {"num_particles": 4, "seed": 3}
    expected = log_marginal(model, guide, X, compile=False, **how)
    monkeypatch.setattr("ppl_vae.evaluate.weights._MANY_DRAWS", 1)
    monkeypatch.setattr(function, "missing_compiler", lambda device: "there is no C++ compiler")
    with pytest.warns(UserWarning, match=r"evaluation stays eager: there is no C\+\+ compiler"):
        found = log_marginal(model, guide, X, **how)
    assert torch.equal(found.value, expected.value)
    with pytest.raises(CompileError):
        log_marginal(model, guide, X, compile=True, **how)
