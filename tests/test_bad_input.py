"""Wrong input by the thousand: exit code 2 and one sentence that names what was given, every time.

How many is set by PPL_VAE_BAD_INPUTS (in process) and PPL_VAE_BAD_COMMANDS (through `python -m`),
and which of the latter by PPL_VAE_BAD_SEED.
"""

import collections
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from bad_input import KINDS, TRAIN, Bad, bad_inputs
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from ppl_vae.cli import main

NUM_INPUTS = int(os.environ.get("PPL_VAE_BAD_INPUTS", "150"))
NUM_COMMANDS = int(os.environ.get("PPL_VAE_BAD_COMMANDS", "200"))
SEED = int(os.environ.get("PPL_VAE_BAD_SEED", "2"))
LIMIT = 60  # seconds, of one
RAW = ("Traceback", "usage:", "<class", "Parser key", "Namespace(", "[Errno", " object at 0x")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run and its data, made once."""
    folder = tmp_path_factory.mktemp("made")
    np.savez(folder / "data.npz", x=(np.random.default_rng(0).random((60, 6)) > 0.5).astype("f4"))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        line = ["run" if word == "new" else word for word in TRAIN]
        assert main([*line, "--model.hidden", "[4]", "--guide.hidden", "[4]"]) == 0
    torch.set_default_dtype(default)
    return folder


def complaint(bad, code, out, err):
    """What is wrong with an answer; nothing, if it is as it is to be."""
    message = err.removeprefix("ppl-vae: ")
    if code != 2:
        return f"exit code {code}"
    if not err.startswith("ppl-vae: ") or err.count("ppl-vae: ") != 1 or out:
        return "not one message"
    if raw := [word for word in RAW if word in message]:
        return f"raw: {raw}"
    if not any(word in message for word in bad.given):
        return f"names none of {bad.given}"
    if len(message.strip()) < 10 or message.strip("\n").count("\n") > 1:
        return "not one sentence"
    return ""


def begin(made, folder, bad):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder)
    bad.prepare(folder)


def answer(bad, capsys):
    def late(*args):
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        code = main(list(bad.words))
    except Exception as error:
        code = f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def campaign(made, tmp_path, capsys, monkeypatch, num, number=1):
    """Answers to so many; the failures by what they are."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.set_default_dtype(torch.float32)
    seen, failures = collections.Counter(), {}
    folder = tmp_path / "place"

    @seed(number)
    @settings(max_examples=num, deadline=None, database=None, derandomize=False,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(bad_inputs())
    def one(bad):
        begin(made, folder, bad)
        monkeypatch.chdir(folder)
        code, out, err = answer(bad, capsys)
        seen[bad.kind] += 1
        if what := complaint(bad, code, out, err):
            failures.setdefault((bad.kind, what[:60]), (bad.words, code, err[-600:]))

    one()
    return seen, failures


def test_bad_input_is_answered_in_a_sentence(made, tmp_path, capsys, monkeypatch):
    seen, failures = campaign(made, tmp_path, capsys, monkeypatch, NUM_INPUTS)
    with capsys.disabled():
        print(f"\n{sum(seen.values())} bad inputs: {dict(seen)}")
    assert not failures, "\n".join(f"{key}: {value}" for key, value in failures.items())
    assert sum(seen.values()) >= NUM_INPUTS * 0.9


def test_the_campaign_can_fail(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin(made, tmp_path / "place", Bad("", (), ()))
    monkeypatch.chdir(tmp_path / "place")
    good = Bad("none", ("list", "models"), ("VAE",))
    assert complaint(good, *answer(good, capsys)) == "exit code 0"
    unnamed = Bad("unnamed", ("train", "--num_stps", "3"), ("something else",))
    assert "names none" in complaint(unnamed, *answer(unnamed, capsys))
    monkeypatch.setitem(sys.modules["ppl_vae.cli"]._COMMANDS, "list", lambda chosen: {}["missing"])
    assert "KeyError" in complaint(good, *answer(good, capsys))


@pytest.mark.parametrize(
    "words",
    ["evaluate run --num_particles 10000000000000000000000000",
     "train --data data.npz --out new --estimator.num_particles 10000000000000000000000000"],
)  # fmt: skip
def test_sizes_that_nothing_counts_to(made, tmp_path, capsys, monkeypatch, words):
    torch.set_default_dtype(torch.float32)
    begin(made, tmp_path / "place", Bad("", (), ()))
    monkeypatch.chdir(tmp_path / "place")
    bad = Bad("too large", tuple(words.split()), ("10000000000000000000000000",))
    code, out, err = answer(bad, capsys)
    # What torch says of a missing CUDA runtime, when it is asked to compile, is in front.
    assert complaint(bad, code, out, err[err.index("ppl-vae: ") :]) == ""


@pytest.mark.slow
def test_bad_input_through_the_real_command(made, tmp_path):
    drawn = []

    @seed(SEED)
    @settings(max_examples=NUM_COMMANDS + 10, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.one_of([kind() for kind in KINDS]))
    def collect(bad):
        drawn.append(bad)

    collect()
    # What no shell can pass on.
    drawn = [bad for bad in drawn if not any("\0" in word for word in bad.words)][:NUM_COMMANDS]
    # Some at a time: to start Python and its libraries takes the most of it.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        folders = [tmp_path / str(number) for number in range(len(drawn))]
        answers = pool.map(partial(_command, made), folders, drawn)
        failures = [answer for answer in answers if answer is not None]
    print(f"{len(drawn)} bad command lines, {len(failures)} failures")
    assert failures == [], "\n".join(map(str, failures))


def _command(made, folder, bad):
    """What is wrong with the answer of a process of its own."""
    begin(made, folder, bad)
    words = [os.fsencode(word) for word in bad.words if _can_be_passed(word)]
    if len(words) < len(bad.words):
        return None
    done = subprocess.run([sys.executable, "-m", "ppl_vae", *words], cwd=folder,
                          capture_output=True, timeout=300)  # fmt: skip
    out, err = done.stdout.decode(), done.stderr.decode()
    shutil.rmtree(folder)
    what = complaint(bad, done.returncode, out, err)
    return (bad.kind, what, bad.words, err[-600:]) if what else None


def _can_be_passed(word):
    try:
        os.fsencode(word)
    except UnicodeEncodeError:
        return False
    return True
