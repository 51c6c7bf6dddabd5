"""One training at a time in a folder; a kill leaves nothing to clean up."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_resume import data, train

import ppl_vae
from ppl_vae import fit, fit_replicas, load_run, locking
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.locking import Lock, LockedError
from ppl_vae.models import VAE

HOLDER = """
import sys, time
sys.path.insert(0, {here!r})
from test_resume import train, stop_at, VAE
import torch
original = VAE.forward
calls = [0]
def slow(self, x):
    calls[0] += 1
    if calls[0] == 30:
        print("training", flush=True)
        time.sleep(600)
    return original(self, x)
VAE.forward = slow
train({out!r}, num_steps=400, resume=True)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process in the middle of a training."""
    code = HOLDER.format(here=str(Path(__file__).parent), out=str(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"training\n"
    yield process
    process.kill()
    process.communicate()


def test_another_process_is_refused_until_it_is_killed(tmp_path, holder):
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(LockedError, match=rf"run is being written by process {holder.pid};.*name "):
        train(tmp_path / "run", num_steps=400, resume=True)
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert load_run(tmp_path / "run").step >= 0  # reading asks for no lock
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()
    assert train(tmp_path / "run", num_steps=400, resume=True).num_steps == 400
    assert not (tmp_path / "run" / ".lock").exists()


def test_the_command_line_names_the_folder_and_the_process(tmp_path, capsys):
    from ppl_vae.cli import main

    lock = Lock(tmp_path)
    assert main(["train", "--data", "digits", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert f"{tmp_path} is being written by" in message and f"({os.getpid()})" in message
    assert message.count("\n") == 1
    lock.close()


def test_one_after_the_other_in_one_process(tmp_path):
    train(tmp_path / "run", num_steps=9)
    with pytest.raises(ValueError, match="holds a run already"):
        train(tmp_path / "run", num_steps=30)
    assert train(tmp_path / "run", num_steps=30, resume=True).num_steps == 30
    assert train(tmp_path / "run", num_steps=32, resume=True).num_steps == 32


def test_one_inside_of_the_other_is_refused(tmp_path):
    def pair():
        model = VAE((6,), latent_dim=2, hidden=(8,))
        return model, MeanFieldGuide(model, hidden=(8,))

    def nested(step):
        if step == 5:
            options = {"num_steps": 3, "schedule": nested, "resume": True}
            fit(*pair(), data(), out=tmp_path / "run", **options)
        return 1.0

    with pytest.raises(LockedError, match=rf"run is being .* itself \({os.getpid()}\), in a train"):
        fit(*pair(), data(), num_steps=30, out=tmp_path / "run", schedule=nested)
    # What failed has given it back, and elsewhere there is nothing to refuse.
    assert not (tmp_path / "run" / ".lock").exists()
    other = fit(*pair(), data(), num_steps=30, out=tmp_path / "other", schedule=nested)
    assert other.num_steps == 30


def test_replicas_hold_each_its_own(tmp_path):
    def make():
        model = VAE((6,), latent_dim=2, hidden=(8,))
        return model, MeanFieldGuide(model, hidden=(8,))

    (tmp_path / "01").mkdir()
    options = {"seeds": [0, 1, 2], "num_steps": 5, "out": tmp_path, "compile": False}
    lock = Lock(tmp_path / "01")
    with pytest.raises(LockedError, match="01 is being written"):
        fit_replicas(make, data(), **options)
    lock.close()
    assert not list(tmp_path.rglob(".lock"))
    assert len(fit_replicas(make, data(), **options, resume=True)) == 3


def test_a_grid_is_held_as_a_whole(tmp_path):
    options = {"data": "digits", "num_steps": 2, "compile": False}
    lock = Lock(tmp_path)
    with pytest.raises(LockedError, match="is being written by"):
        ppl_vae.compare({"seed": [0, 1]}, options, out=tmp_path, progress=False)
    assert not list(tmp_path.glob("cells/*"))
    lock.close()


def test_a_forked_process_does_not_hold_it(tmp_path):
    lock = Lock(tmp_path)
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    try:
        lock.close()
        Lock(tmp_path).close()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_what_a_forked_process_forgets_is_still_held(tmp_path):
    lock = Lock(tmp_path)
    pid = os.fork()
    if pid == 0:
        lock.close()
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(LockedError):
        Lock(tmp_path)
    lock.close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_warns_and_trains(tmp_path, monkeypatch, code):
    def refuse(handle, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="file system without locks"):
        assert train(tmp_path / "run").num_steps == 30


def test_a_system_without_locks_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "fcntl", None)
    assert train(tmp_path / "run").num_steps == 30


@pytest.mark.parametrize("content", ["", "nonsense", "12", "99999999 elsewhere\n", "\udcff"])
def test_a_file_left_by_a_kill_means_nothing(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content.encode(errors="surrogateescape"))
    lock = Lock(tmp_path)
    assert (tmp_path / ".lock").read_text().split()[0] == str(os.getpid())
    (tmp_path / ".lock").write_bytes(content.encode(errors="surrogateescape"))
    says = "process 99999999 on elsewhere" if "elsewhere" in content else "another process"
    with pytest.raises(LockedError, match=says):
        Lock(tmp_path)
    lock.close()


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="it is a link"):
        Lock(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "mine"


RACE = """
import sys, time
from pathlib import Path
from ppl_vae.locking import Lock, LockedError
folder, end = Path(sys.argv[1]), time.monotonic() + 3
held = 0
while time.monotonic() < end:
    try:
        lock = Lock(folder)
    except LockedError:
        continue
    handle = open(folder / "inside", "x")  # fails if another one is there
    (folder / "inside").unlink()
    lock.close()
    held += 1
print(held)
"""


@pytest.mark.slow
def test_never_two_at_once(tmp_path):
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    held = [int(racer.communicate()[0]) for racer in racers]
    assert all(racer.returncode == 0 for racer in racers)
    assert sum(held) > 50 and not (tmp_path / "inside").exists()
