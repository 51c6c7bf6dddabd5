"""A grid by Ray: the same table as by this machine's processes, whatever is lost on the way."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from ppl_vae.cli import main
from ppl_vae.guides import IAFGuide, MeanFieldGuide
from ppl_vae.laboratory import compare
from ppl_vae.laboratory.on_ray import Ray
from ppl_vae.models import VAE
from ppl_vae.runs import load_run

ray = pytest.importorskip("ray", reason="Ray is not installed")

BASE = {
    "data": "digits", "model": partial(VAE, latent_dim=2, hidden=(8,)),
    "guide": partial(MeanFieldGuide, hidden=(8,)), "num_steps": 20, "batch_size": 64,
    "compile": False, "tensorboard": False,
}  # fmt: skip
GUIDES = {
    "8": partial(MeanFieldGuide, hidden=(8,)),
    "16": partial(MeanFieldGuide, hidden=(16,)),
    "flow": partial(IAFGuide, hidden=(8,)),
}
SMALL = {"num_particles": 5, "num_data": 20, "progress": False}


def figures(found):
    """All that a grid found, but for what time it took."""
    cells = {
        tuple(record.labels.values()): (record.status, record.num_steps, record.results)
        for record in found.records
    }
    rows = [
        (row.labels, row.num, {name: repr(value) for name, value in row.metrics.items()
                               if name not in ("seconds", "elbo_at_time")})
        for row in found.rows()
    ]  # fmt: skip
    return cells, rows


@pytest.fixture
def cluster(monkeypatch):
    """A node of this machine, of one core, to which others can be added."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    # Ray would go from the loopback to the address by which others could reach it.
    monkeypatch.setattr("ray._private.services.resolve_ip_for_localhost", lambda host: host)
    head = {"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR",
             _node_ip_address="127.0.0.1")  # fmt: skip
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class Losing:
    """Ray, of which something is lost once so many cells have ended."""

    def __init__(self, count, lose):
        self.count, self.lose = count, lose

    def run(self, cells, folder, evaluation):
        for count, ended in enumerate(Ray().run(cells, folder, evaluation), 1):
            if count == self.count:
                self.lose()
            yield ended


def soon(is_so, seconds=120):
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.5)
    return is_so()


def kills_itself(run, splits):
    if run.config["seed"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


@pytest.mark.slow
def test_a_grid_of_which_a_node_is_killed_is_that_of_this_machine(cluster, tmp_path):
    node = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    cluster.wait_for_nodes()
    assert sum(n["Alive"] for n in ray.nodes()) == 2
    axes = {"guide": GUIDES, "batch_size": [32, 64], "seed": [0, 1, 2, 3]}
    engine = Losing(6, lambda: cluster.remove_node(node, allow_graceful=False))
    theirs = compare(axes, BASE, out=tmp_path / "ray", engine=engine, **SMALL)
    # Ray says so of a node that it has not heard of for a while.
    assert soon(lambda: sum(n["Alive"] for n in ray.nodes()) == 1)
    assert [r.error for r in theirs.records] == [""] * 24
    ours = compare(axes, BASE, out=tmp_path / "local", num_workers=2, **SMALL)
    assert all(record.is_done for record in ours.records)
    assert figures(theirs) == figures(ours)
    # Nothing is run again.
    again = compare(axes, BASE, out=tmp_path / "ray", **SMALL)
    assert [r.seconds for r in again.records] == [r.seconds for r in theirs.records]


@pytest.mark.slow
def test_a_cell_that_is_lost_too_often_is_shown_as_failed_and_the_others_are_run(cluster, tmp_path):
    found = compare({"seed": [0, 1, 2]}, BASE, out=tmp_path, engine=Ray(num_retries=1),
                    measures=[kills_itself], **SMALL)  # fmt: skip
    assert [record.status for record in found.records] == ["done", "failed", "done"]
    assert found.records[1].error.startswith("WorkerCrashedError: ")
    # Its training had ended; by the next call it is evaluated, from where it stands.
    again = compare({"seed": [0, 1, 2]}, BASE, out=tmp_path, **SMALL)
    assert [record.status for record in again.records] == ["done"] * 3
    with pytest.raises(ValueError, match="needs 5 CPU and 0 GPU, and no node .* 1 CPU, 0 GPU"):
        compare({"seed": [3]}, BASE, out=tmp_path / "more", engine=Ray(num_cpus=5), **SMALL)


@pytest.mark.slow
def test_the_command_runs_on_ray_and_leaves_checkpoints_where_it_is_interrupted(tmp_path):
    command = [
        sys.executable, "-m", "ppl_vae", "compare", "--data", "digits", "--seed", "0", "1",
        "--num_particles", "5", "--num_data", "20", "--compile", "false", "--tensorboard", "false",
        "--engine", "ray", "--num_cpus", "0.5", "--out", "sweep",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    how = {"cwd": tmp_path, "text": True, "env": environment}
    long = subprocess.Popen(
        [*command, "--num_steps", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how
    )
    cells = tmp_path / "sweep" / "cells"

    def is_under_way():
        lines = [path.read_text().count("\n") for path in cells.glob("*/metrics.jsonl")]
        return len(lines) == 2 and min(lines) >= 2

    assert soon(is_under_way, 300), long.kill()
    long.send_signal(signal.SIGINT)
    _, said = long.communicate(timeout=400)
    assert long.returncode == 1, said
    assert "interrupted: 0 of 2 cells are done; the same command goes on in sweep" in said
    assert "Traceback" not in said
    steps = [load_run(cell).step for cell in cells.iterdir()]
    assert len(steps) == 2 and min(steps) > 0
    done = subprocess.run(
        [*command[:-1], "short", "--num_steps", "20"], capture_output=True, check=False, **how
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "page  short/index.html" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_cpus": -1}, "num_cpus is -1; accepted is >= 0"),
        ({"num_gpus": float("nan")}, "num_gpus is nan; accepted is >= 0"),
        ({"num_cpus": 1.5}, "num_cpus is 1.5; accepted is a whole number, or less than 1"),
        ({"num_retries": -1}, "num_retries is -1; accepted is >= 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Ray(**options)


def test_what_is_of_one_engine_is_refused_of_the_other(tmp_path, capsys):
    grid = ["compare", "--seed", "0", "1", "--out", str(tmp_path)]
    assert main([*grid, "--num_gpus", "1"]) == 2
    assert "--num_gpus is of --engine ray; the engine is local" in capsys.readouterr().err
    assert main([*grid, "--engine", "ray", "--num_workers", "2"]) == 2
    assert "num_workers is 2, which is of this machine's processes" in capsys.readouterr().err
    assert main([*grid, "--engine", "dask"]) == 2
    assert "accepted is local or ray" in capsys.readouterr().err


def test_without_ray_its_engine_says_what_to_install(monkeypatch):
    monkeypatch.setattr("ppl_vae.laboratory.on_ray.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "ppl_vae\[ray\]"'):
        Ray()


def test_an_address_without_a_cluster_is_said(tmp_path):
    with pytest.raises(ConnectionError, match="there is no Ray cluster at 127.0.0.1:1"):
        compare({"seed": [0]}, BASE, out=tmp_path, engine=Ray(address="127.0.0.1:1"), **SMALL)
