"""Checkpoints under kills and damage, at random: no run is lost, and no damage is taken for whole.

How many is set by PPL_VAE_KILLS and PPL_VAE_DAMAGES.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch

from ppl_vae.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

NUM_KILLS = int(os.environ.get("PPL_VAE_KILLS", "200"))
NUM_DAMAGES = int(os.environ.get("PPL_VAE_DAMAGES", "210"))

SAVER = """
import os, sys
from pathlib import Path
import torch
from ppl_vae.checkpoint import load_checkpoint, save_checkpoint
folder = Path(sys.argv[1])
for line in sys.stdin:
    # A child of its own for each kill, without the second that torch takes to begin.
    pid = os.fork()
    if pid == 0:
        found = load_checkpoint(folder)
        step = 0 if found is None else found["step"]
        print(os.getpid(), step, flush=True)
        while True:
            step += 1
            tree = {name: {"w": torch.full((4000,), float(step))} for name in ("a", "b", "c")}
            save_checkpoint(folder, {**tree, "step": step})
            os.write(2, f"{step}\\n".encode())
    _, status = os.waitpid(pid, 0)
    print("ended", os.WTERMSIG(status), flush=True)
"""


def whole(tree):
    return all(torch.equal(tree[n]["w"], torch.full((4000,), float(tree["step"]))) for n in "abc")


@pytest.mark.slow
def test_random_kills_within_saving_lose_no_run(tmp_path):
    folder, log = tmp_path / "checkpoint", tmp_path / "log"
    generator, left = random.Random(0), Counter()
    with open(log, "w") as errors:
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(folder)], text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=errors)  # fmt: skip
        last = 0
        for number in range(NUM_KILLS):
            process.stdin.write("go\n")
            process.stdin.flush()
            pid, step = map(int, process.stdout.readline().split())
            # What the one before left is what this one goes on from.
            assert step >= last
            time.sleep(generator.uniform(0.0, 0.06))
            os.kill(pid, 9)
            assert process.stdout.readline().split() == ["ended", "9"]
            finished = [int(line) for line in log.read_text().split()]
            found = load_checkpoint(folder)
            left[tuple(sorted(path.name for path in tmp_path.iterdir() if path != log))] += 1
            if finished:
                assert found is not None, number
                # The last one that was told of, or the one that was being written.
                told = max(finished[-1], step)
                assert found["step"] in (told, told + 1), (number, found["step"])
            if found is not None:
                assert whole(found)
                last = found["step"]
        process.communicate()
    print(f"\n{NUM_KILLS} kills, {last} checkpoints, left behind: {dict(left)}")
    assert last > 10
    # Kills that fell between two saves show nothing.
    assert sum(num for names, num in left.items() if len(names) > 1) > NUM_KILLS / 10


TREE = {
    "model": {"w": torch.arange(50.0), "b": torch.ones(3)},
    "optimizer": {"state": {0: {"m": torch.zeros(50)}}, "groups": [{"lr": 0.1}]},
    "random": {"torch": torch.arange(16, dtype=torch.uint8)},
    "progress": {"step": 7, "lines": 3},
}


def flip(path, generator):
    content = bytearray(path.read_bytes())
    for _ in range(generator.choice([1, 1, 1, 5])):
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def cut(path, generator):
    content = path.read_bytes()
    path.write_bytes(content[: generator.randrange(len(content))])


def blank(path, generator):
    """A block of zeros, as a file system leaves it that lost its power."""
    content = bytearray(path.read_bytes())
    start = generator.randrange(len(content))
    content[start : start + 64] = bytes(len(content[start : start + 64]))
    path.write_bytes(content)


def gone(path, generator):
    path.unlink()


def swap(path, generator):
    """Two files of the folder in each other's place."""
    other = generator.choice([p for p in sorted(path.parent.iterdir()) if p != path])
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def older(path, generator):
    """A file of an older checkpoint."""
    tree = {**TREE, "model": {"w": torch.arange(50.0) + 1, "b": torch.zeros(3)},
            "optimizer": {"state": {0: {"m": torch.ones(50)}}, "groups": [{"lr": 0.2}]},
            "random": {"torch": torch.zeros(16, dtype=torch.uint8)},
            "progress": {"step": 6, "lines": 2}}  # fmt: skip
    save_checkpoint(path.parent.parent / "older", tree)
    shutil.copy(path.parent.parent / "older" / path.name, path)


def test_every_damage_is_detected(tmp_path):
    generator, done = random.Random(0), Counter()
    missed = []
    for number in range(NUM_DAMAGES):
        folder = tmp_path / str(number) / "c"
        folder.parent.mkdir()
        save_checkpoint(folder, TREE)
        damage = generator.choice([flip, flip, cut, blank, gone, swap, older])
        path = generator.choice(sorted(folder.iterdir()))
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        damage(path, generator)
        if {p.name: p.read_bytes() for p in folder.iterdir()} == before:
            continue  # Zeros where there were zeros.
        done[damage.__name__] += 1
        try:
            load_checkpoint(folder)
        except CheckpointError as error:
            if str(folder) not in str(error) or "\n" in str(error):
                missed.append((number, damage.__name__, str(error)))
        else:
            missed.append((number, damage.__name__, path.name))
        shutil.rmtree(folder.parent)
    print(f"\n{sum(done.values())} damages: {dict(done)}")
    assert missed == []
    assert sum(done.values()) > 0.9 * NUM_DAMAGES and len(done) == 6
