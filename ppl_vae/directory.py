"""A run directory: its files, and how they are written.

config.yaml      the whole run
metrics.jsonl    one line a log line or validation, nats per datum
checkpoint/      where training stands: what `--resume` goes on from
best/            model and guide with the best validation elbo
results.json     what `evaluate` found
figures/*.png, report.html
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from ppl_vae.checkpoint import load_checkpoint, save_checkpoint
from ppl_vae.config import ConfigError
from ppl_vae.plain import read_yaml
from ppl_vae.writing import (
    append_text,
    confined,
    file_name,
    write_text,
)

__all__ = ["RunDirectory", "Which"]

Which = Literal["last", "best"]

# What every line of metrics has.
_HEAD = {"split", "step", "seconds"}


class RunDirectory:
    """The files of one run.

    Args:
        path: The directory; made by `create`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.metrics_path = self.path / "metrics.jsonl"
        self.results_path = self.path / "results.json"
        self.report_path = self.path / "report.html"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        # Of os, whose answer to what can be no path is no error.
        return os.path.isfile(self.config_path)  # noqa: PTH113

    def create(self) -> None:
        """Makes the directory.

        Raises:
            ValueError: It cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError("it is read-only")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"out is {self.path}, which cannot be written to ({reason}); accepted is a "
                "folder that can be made or written to"
            ) from None

    def config(self) -> dict[str, Any]:
        """What `config.yaml` holds.

        Raises:
            ConfigError: There is none, or it is no YAML mapping.
        """
        if not self.exists:
            raise ConfigError(
                f"{self.path} is no run: it has no config.yaml. Accepted is a folder that "
                "`ppl-vae train --out` or `fit(out=...)` wrote"
            )
        try:
            config = read_yaml(self.config_path.read_text())
        except ValueError as error:
            raise ConfigError(f"{self.config_path} is no YAML: {error}") from None
        if not isinstance(config, dict):
            raise ConfigError(f"{self.config_path} holds no mapping of options to values")
        return config

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes `config.yaml`."""
        write_text(self.config_path, yaml.safe_dump(dict(config), sort_keys=False))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, up to one that a kill or a full disk cut short."""
        if not self.metrics_path.is_file():
            return []
        lines = []
        for text in self.metrics_path.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                break
            if not isinstance(line, dict) or not line.keys() >= _HEAD:
                break
            lines.append(line)
        return lines

    def keep_metrics(self, count: int) -> list[dict[str, Any]]:
        """Drops all but the first `count` lines, those written after the last checkpoint."""
        lines = self.metrics()[:count]
        write_text(self.metrics_path, "".join(_line(line) for line in lines))
        return lines

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        append_text(self.metrics_path, _line(line))

    def save(self, tree: dict[str, Any], which: Which = "last") -> None:
        """Writes a checkpoint; see `ppl_vae.checkpoint`."""
        folder = self._folder(which)
        confined(folder / "any", self.path)
        save_checkpoint(folder, tree)

    def load(self, which: Which = "last") -> dict[str, Any] | None:
        """Reads a checkpoint; none if none was written."""
        return load_checkpoint(self._folder(which))

    def results(self) -> dict[str, Any]:
        """What `results.json` holds; empty if there is none."""
        if not self.results_path.is_file():
            return {}
        try:
            results = json.loads(self.results_path.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.results_path} is no JSON ({error}); evaluate the run again to replace it"
            ) from None
        if not isinstance(results, dict):
            raise ValueError(
                f"{self.results_path} holds {str(results)[:40]!r} and no results by name; evaluate "
                "the run again to replace it"
            )
        return results

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes `results.json`."""
        write_text(self.results_path, json.dumps(results, indent=2) + "\n")

    def figure_path(self, name: str) -> Path:
        """Where the figure of this name is to be written; a name of sites may hold anything."""
        return confined(self.path / "figures" / f"{file_name(name)}.png", self.path)

    def _folder(self, which: Which) -> Path:
        return self.path / {"last": "checkpoint", "best": "best"}[which]


def _line(metrics: Mapping[str, Any]) -> str:
    return json.dumps(metrics) + "\n"
