"""SIGTERM is Ctrl-C with another exit code; a killed worker is one failed cell; clocks may jump."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from test_laboratory import BASE, QUICK
from test_resume import data, same, train

import ppl_vae
from ppl_vae import fit, fit_replicas, training
from ppl_vae import laboratory as lab
from ppl_vae.cli import main
from ppl_vae.directory import RunDirectory
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.interruption import Interruption, Terminated, termination
from ppl_vae.models import VAE


def pair(signals, at=15):
    """A pair whose model is sent signals within one of its runs."""

    class Signalled(VAE):
        calls = 0

        def forward(self, x):
            Signalled.calls += 1
            if Signalled.calls == at:
                for number in signals:
                    signal.raise_signal(number)
            return super().forward(x)

    torch.manual_seed(11)
    model = Signalled((6,), latent_dim=2, hidden=(8,))
    return model, MeanFieldGuide(model, hidden=(8,))


OPTIONS = {"num_steps": 30, "checkpoint_every": 1000, "tensorboard": False}
HANDLED = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize(
    "signals, kind",
    [
        ([signal.SIGTERM], Terminated),
        ([signal.SIGINT], KeyboardInterrupt),
        # A group gets one from the system and one from its leader.
        ([signal.SIGTERM, signal.SIGTERM], Terminated),
        ([signal.SIGINT, signal.SIGTERM], KeyboardInterrupt),
    ],
)
def test_a_signal_leaves_a_run_that_resumes_bit_for_bit(tmp_path, signals, kind):
    whole = fit(*pair([]), data(), **OPTIONS)
    before = [signal.getsignal(number) for number in HANDLED]
    with pytest.raises(KeyboardInterrupt, match="stopped at step .*run holds") as stop:
        fit(*pair(signals), data(), **OPTIONS, out=tmp_path / "run")
    assert stop.type is kind
    assert [signal.getsignal(number) for number in HANDLED] == before
    assert 0 < RunDirectory(tmp_path / "run").load()["progress"]["step"] < 30
    assert same(whole, fit(*pair([]), data(), **OPTIONS, out=tmp_path / "run", resume=True))


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt) as stop:
        fit(*pair([signal.SIGTERM, signal.SIGINT]), data(), **OPTIONS, out=tmp_path / "run")
    assert str(stop.value) == ""
    assert RunDirectory(tmp_path / "run").load()["progress"]["step"] == 0


def test_replicas_keep_all(tmp_path):
    def schedule(step):
        if step == 10:
            signal.raise_signal(signal.SIGTERM)
        return 1.0

    with pytest.raises(Terminated, match="00 holds.*01 holds"):
        fit_replicas([pair([]), pair([])], data(), seeds=[0, 1], compile=False, out=tmp_path,
                     schedule=schedule, **OPTIONS)  # fmt: skip
    steps = [RunDirectory(tmp_path / n).load()["progress"]["step"] for n in ("00", "01")]
    assert all(0 < step < 30 for step in steps)


def test_a_handler_of_the_users_comes_back_and_what_is_ignored_stays_so():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *args: seen.append(args))
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGTERM)
            assert interruption.requested is Terminated and seen == []
        with termination():
            signal.raise_signal(signal.SIGTERM)
        assert len(seen) == 1
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with termination(), Interruption() as interruption:
            signal.raise_signal(signal.SIGTERM)
            assert interruption.requested is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_only_the_first_sigterm_is_raised():
    raised = []
    with termination():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Terminated:
            signal.raise_signal(signal.SIGTERM)
            raised.append(1)
    assert raised == [1] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_other_threads_change_nothing():
    before, found = signal.getsignal(signal.SIGTERM), []

    def run():
        with termination(), Interruption():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


# -------------------------------------------------------------------------------- the command line

PROGRAM = "import sys; from ppl_vae.cli import main; sys.exit(main({words!r}))"
TINY = ["--data", "digits", "--model", "VAE(latent_dim=2, hidden=[8])", "--compile", "false",
        "--guide", "MeanFieldGuide(hidden=[8])", "--tensorboard", "false"]  # fmt: skip
LONG = [*TINY, "--num_steps", "100000", "--log_every", "10", "--checkpoint_every", "100000"]


def started(words, until):
    """A process of the command line, some way on."""
    code = PROGRAM.format(words=words)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not until():
        time.sleep(0.05)
        assert process.poll() is None and time.monotonic() < deadline
    return process


def logged(folder, pattern, num):
    """Whether so many runs have written metrics."""
    return lambda: sum(path.stat().st_size > 0 for path in folder.glob(pattern)) >= num


@pytest.mark.parametrize("number, code, word", [(15, 143, "terminated"), (2, 1, "interrupted")])
def test_train_leaves_a_checkpoint_and_says_so(tmp_path, number, code, word):
    words = ["train", *LONG, "--out", str(tmp_path / "run")]
    process = started(words, logged(tmp_path, "run/metrics.jsonl", 1))
    process.send_signal(number)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert re.search(rf"^ppl-vae: {word}: stopped at step \d+ .*Go on with --resume$", message,
                     re.MULTILINE)  # fmt: skip
    assert "Traceback" not in message
    step = RunDirectory(tmp_path / "run").load()["progress"]["step"]
    assert step > 0
    assert main([*words, "--resume", "--num_steps", str(step + 1), "--report", "false"]) == 0


def test_sigterm_outside_of_the_steps(capsys, monkeypatch):
    def evaluated(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("ppl_vae.cli._list", evaluated)
    monkeypatch.setitem(ppl_vae.cli._COMMANDS, "list", evaluated)
    assert main(["list"]) == 143
    assert capsys.readouterr().err == "ppl-vae: terminated\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    "number, code, group, workers",
    [
        pytest.param(15, 143, False, 1, marks=pytest.mark.slow),
        (15, 143, False, 2),
        pytest.param(15, 143, True, 2, marks=pytest.mark.slow),
        pytest.param(2, 1, True, 2, marks=pytest.mark.slow),
    ],
)
def test_a_grid_leaves_checkpoints_and_says_how_to_go_on(tmp_path, number, code, group, workers):
    words = ["compare", *LONG, "--seed", "0", "1", "2", "--num_workers", str(workers),
             "--num_particles", "5", "--num_data", "20", "--out", str(tmp_path)]  # fmt: skip
    code_ = "import os; os.setpgid(0, 0); " + PROGRAM.format(words=words)
    process = subprocess.Popen([sys.executable, "-c", code_], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not logged(tmp_path, "cells/*/metrics.jsonl", workers)():
        time.sleep(0.05)
        assert process.poll() is None and time.monotonic() < deadline
    (os.killpg if group else os.kill)(process.pid, number)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == code, message
    assert f"0 of 3 cells are done; the same command goes on in {tmp_path}" in message
    assert "Traceback" not in message and "--resume" not in message
    steps = [RunDirectory(path).load()["progress"]["step"] for path in tmp_path.glob("cells/*")]
    assert len(steps) == workers and all(step > 0 for step in steps), steps
    assert not list(tmp_path.rglob(".lock"))


# -------------------------------------------------------------------------------- a killed worker


def kill_one(folder, number=signal.SIGKILL):
    """Kills the process of the first cell that has written metrics; as a thread."""

    def run():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for lock in folder.glob("cells/*/.lock"):
                if lock.with_name("metrics.jsonl").exists() and (text := lock.read_text()):
                    os.kill(int(text.split()[0]), number)
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "number, says",
    [
        (signal.SIGKILL, r"killed by signal 9 \(SIGKILL\)"),
        pytest.param(signal.SIGSEGV, r"signal 11 \(SIGSEGV", marks=pytest.mark.slow),
    ],
)
def test_a_killed_worker_is_one_failed_cell(tmp_path, number, says):
    torch.set_default_dtype(torch.float32)
    base = {**BASE, "num_steps": 400, "eval_every": 100}
    axes = {"seed": [0, 1, 2, 3]}
    thread = kill_one(tmp_path, number)
    found = lab.compare(axes, base, out=tmp_path, num_workers=2, **QUICK)
    thread.join()
    failed = [record for record in found.records if not record.is_done]
    assert len(found.records) == 4 and len(failed) == 1
    assert re.search(says, failed[0].error)
    table = (tmp_path / "table.md").read_text()
    assert "killed by signal" in table
    stored = [json.loads(path.read_text()) for path in tmp_path.glob("cells/*/cell.json")]
    assert sorted(entry["status"] for entry in stored) == ["done", "done", "done", "failed"]
    assert not multiprocessing.active_children()
    again = lab.compare(axes, base, out=tmp_path, **QUICK)
    assert all(record.is_done for record in again.records)


def dies(run, splits):
    os._exit(3)


@pytest.mark.slow
def test_workers_that_all_die_are_failed_cells(tmp_path):
    torch.set_default_dtype(torch.float32)
    found = lab.compare({"seed": [0, 1, 2]}, BASE, out=tmp_path, num_workers=2, measures=[dies],
                        **QUICK)  # fmt: skip
    assert [record.error for record in found.records] == ["its process ended with exit code 3"] * 3


@pytest.mark.slow
def test_a_worker_that_cannot_begin_ends_the_grid_with_a_reason(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import ppl_vae\n"
        "ppl_vae.compare({'seed': [0, 1]}, {'data': 'digits', 'num_steps': 2}, out='grid',"
        " num_workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert done.returncode == 1
    assert "could not begin: its process ended with exit code 1. In a script" in done.stderr


# ------------------------------------------------------------------------------------------ clocks


def test_a_clock_that_jumps_back_a_day_changes_nothing_but_names(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    begun, real = time.time(), time.time
    calls = [0]

    def jumping():
        calls[0] += 1
        return real() - 86_400 * calls[0]

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.fromtimestamp(begun, tz) - timedelta(days=1)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr("tqdm.std.time", jumping)
    monkeypatch.setattr(training, "datetime", Yesterday)
    jumped = train(tmp_path / "jumped")
    assert same(whole, jumped)
    seconds = [line["seconds"] for line in jumped.metrics]
    assert seconds == sorted(seconds) and seconds[0] >= 0 and seconds[-1] < 600
    torch.set_default_dtype(torch.float32)
    found = lab.compare({"seed": [0, 1]}, BASE, out=tmp_path / "grid", **QUICK)
    assert all(r.is_done and 0 < r.seconds < 600 for r in found.records)
    # Two runs within a second, or a clock that comes by again, have two names.
    monkeypatch.chdir(tmp_path)
    options = {"num_steps": 2, "report": False, "compile": False, "tensorboard": False}
    first, second = (training.train(**options) for _ in range(2))
    assert first != second and second.name == f"{first.name}-2"
    assert Path(first).is_dir() and Path(second).is_dir()
