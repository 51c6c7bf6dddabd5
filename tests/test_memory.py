"""Memory that runs out: the message says with what, and what may fit."""

import re

import pytest
import torch
from test_resume import data

from ppl_vae import fit, fit_replicas
from ppl_vae.estimators import Trace_ELBO, TraceIWAE_ELBO
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.memory import Load, OutOfMemoryError, explaining, fitting, is_out_of_memory
from ppl_vae.models import VAE

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
CPU = RuntimeError(
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "400000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    "error, expected",
    [
        (CUDA, True), (CPU, True), (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)  # fmt: skip
def test_what_is_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_what_fits_is_proportional():
    assert fitting(Load(128, 10), needed=1000, free=500) == (57, 4)
    assert fitting(Load(128, 10), needed=1000, free=1) == (0, 0)
    # What did not fit is never said to.
    assert fitting(Load(128, 8), needed=10, free=10**9) == (112, 7)


def pair(error=None, at=25, **options):
    """A pair whose model runs out of memory in one of its runs."""

    class Large(VAE):
        calls = 0

        def forward(self, x):
            Large.calls += 1
            if error is not None and Large.calls == at:
                raise error
            return super().forward(x)

    model = Large((6,), latent_dim=2, hidden=(8,))
    return model, MeanFieldGuide(model, hidden=(8,))


OPTIONS = {"num_steps": 60, "eval_every": 1000, "batch_size": 16, "tensorboard": False,
           "compile": False}  # fmt: skip


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()], ids=["cuda", "cpu", "python"])
def test_a_step_says_what_may_fit(tmp_path, error):
    with pytest.raises(OutOfMemoryError) as caught:
        fit(*pair(error), data(), estimator=TraceIWAE_ELBO(4), out=tmp_path / "run", **OPTIONS)
    message = str(caught.value)
    assert re.match(r"step \d+: the computer ran out of memory", message)
    assert "a batch of 16 and 4 particle(s)" in message
    assert "estimate" in message and "\n" not in message
    if error is CPU:
        # 400 TB are beyond any computer that runs this.
        assert "asked for 3.73e+05 GiB more" in message and "Not even one datum" in message
    else:
        batch = int(re.search(r"batch_size=(\d+)", message)[1])
        particles = int(re.search(r"num_particles=(\d+)", message)[1])
        assert 1 <= batch < 16 and 1 <= particles < 4
    # The checkpoint stands, and a training with less goes on elsewhere.
    assert fit(*pair(), data(), **{**OPTIONS, "batch_size": 8}).num_steps == 60
    resumed = fit(*pair(), data(), estimator=TraceIWAE_ELBO(4), out=tmp_path / "run", resume=True,
                  **OPTIONS)  # fmt: skip
    assert resumed.num_steps == 60


def test_before_the_first_step():
    with pytest.raises(OutOfMemoryError, match="before the first step: .* a batch of 16 and 1 par"):
        fit(*pair(CUDA, at=3), data(), estimator=Trace_ELBO(), **OPTIONS)


def test_in_a_validation_fewer_data_are_asked_for(monkeypatch):
    def fails(*args, **kwargs):
        raise CUDA

    monkeypatch.setattr("ppl_vae.loop.average_terms", fails)
    with pytest.raises(OutOfMemoryError, match="validation after step 1: .* 14 validation data"):
        fit(*pair(), data(), **{**OPTIONS, "eval_every": 1})


def test_replicas_say_how_many(monkeypatch):
    def fails(*args):
        raise CUDA

    monkeypatch.setattr("ppl_vae.together.Together.advance", fails)
    with pytest.raises(OutOfMemoryError, match="step 0: .* and 2 replicas.* fewer replicas at onc"):
        fit_replicas([pair(), pair()], data(), seeds=[0, 1], **OPTIONS)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(*pair(RuntimeError("mat1 and mat2")), data(), **OPTIONS)


def test_replicas_are_part_of_the_load():
    says = "8 particle.* and 3 replicas.*fewer replicas at once"
    context = explaining("step 3", Load(100, 8, 3), torch.device("cpu"))
    with pytest.raises(OutOfMemoryError, match=says), context:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 bytes.")


def test_the_command_line_says_so(tmp_path, capsys, monkeypatch):
    from ppl_vae.cli import main

    def fails(*args, **kwargs):
        raise CPU

    monkeypatch.setattr("ppl_vae.loop.elbo_terms", fails)
    torch.set_default_dtype(torch.float32)
    words = "train --data digits --num_steps 5 --compile false --tensorboard false --out "
    assert main([*words.split(), str(tmp_path / "run")]) == 1
    assert re.fullmatch(r"ppl-vae: step 0: the computer ran out of memory.*\n",
                        capsys.readouterr().err)  # fmt: skip
