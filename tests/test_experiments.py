"""Every experiment has its page, and its smoke tier runs."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "experiments"
EXPERIMENTS = sorted(path.parent for path in FOLDER.glob("*/run.py"))


def test_every_folder_is_an_experiment_with_a_page():
    folders = sorted(path for path in FOLDER.iterdir() if path.is_dir())
    assert folders == EXPERIMENTS
    assert all((folder / "README.md").is_file() for folder in folders)


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_the_smoke_tier_runs(folder, tmp_path):
    command = [
        sys.executable,
        str(folder / "run.py"),
        "--smoke",
        "--out",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "|---|" in done.stdout  # a table
    assert (tmp_path / "out.json").is_file()
