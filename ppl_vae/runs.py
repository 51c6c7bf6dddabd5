"""A run directory: written by `fit`, read by `load_run`.

config.yaml      the whole run
metrics.jsonl    one line a log line or validation, nats per datum
checkpoint/      where training stands: what `--resume` goes on from
best/            model and guide with the best validation elbo
results.json     what `evaluate` found
figures/*.png, report.html
"""

import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from ppl_vae.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ppl_vae.config import ConfigError, instantiate
from ppl_vae.data import Splits, load
from ppl_vae.models.base import Model

__all__ = ["Run", "RunDirectory", "load_run"]

Which = Literal["last", "best"]


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
        self.figures = self.path / "figures"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config_path.is_file()

    def create(self) -> None:
        """Makes the directory.

        Raises:
            ValueError: It cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError("it is read-only")
        except OSError as error:
            raise ValueError(
                f"out is {self.path}, which cannot be written to ({error.strerror or error}); "
                "accepted is a folder that can be made or written to"
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
            config = yaml.safe_load(self.config_path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{self.config_path} is no YAML: {reason}") from None
        if not isinstance(config, dict):
            raise ConfigError(f"{self.config_path} holds no mapping of options to values")
        return config

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes `config.yaml`."""
        _replace(self.config_path, yaml.safe_dump(dict(config), sort_keys=False))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; a last line that a kill cut short is left out."""
        if not self.metrics_path.is_file():
            return []
        lines = []
        for line in self.metrics_path.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        return lines

    def keep_metrics(self, count: int) -> list[dict[str, Any]]:
        """Drops all but the first `count` lines, those written after the last checkpoint."""
        lines = self.metrics()[:count]
        _replace(self.metrics_path, "".join(_line(line) for line in lines))
        return lines

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        with open(self.metrics_path, "a") as file:
            file.write(_line(line))

    def save(self, tree: dict[str, Any], which: Which = "last") -> None:
        """Writes a checkpoint; see `ppl_vae.checkpoint`."""
        save_checkpoint(self._folder(which), tree)

    def load(self, which: Which = "last") -> dict[str, Any] | None:
        """Reads a checkpoint; none if none was written."""
        return load_checkpoint(self._folder(which))

    def results(self) -> dict[str, Any]:
        """What `results.json` holds; empty if there is none."""
        return json.loads(self.results_path.read_text()) if self.results_path.is_file() else {}

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes `results.json`."""
        _replace(self.results_path, json.dumps(results, indent=2) + "\n")

    def _folder(self, which: Which) -> Path:
        return self.path / {"last": "checkpoint", "best": "best"}[which]


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run, loaded.

    Attributes:
        directory: Its files.
        config: What `config.yaml` holds.
        model: The model, with its trained parameters.
        guide: The guide, likewise.
        step: How many steps these parameters were trained for.
        example: Zeros of the data's shape and floating type, `[1, *data_shape]`.
    """

    directory: RunDirectory
    config: dict[str, Any]
    model: Any
    guide: Any
    step: int
    example: torch.Tensor

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """Data on the device and in the floating type of the run.

        Raises:
            ValueError: The data have another shape than the run was trained on.
        """
        if x.shape[1:] != self.example.shape[1:]:
            raise ValueError(
                f"the run in {self.directory.path} was trained on data of shape "
                f"{tuple(self.example.shape[1:])}, and was given {tuple(x.shape[1:])}"
            )
        return x.to(self.example)

    def data(self, root: str | None = None) -> Splits:
        """The data that the run was trained on.

        Args:
            root: Where named data lie; where the run found them, if not given.

        Raises:
            ValueError: They were given as Python objects and have no name to load them by.
        """
        name = self.config.get("data")
        if not isinstance(name, str):
            raise ValueError(
                f"the run in {self.directory.path} was trained on data given in Python, which its "
                "config cannot name; pass the data yourself"
            )
        root = root or self.config.get("root")
        return load(name, root=root, binarize=self.config.get("binarize"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return self.directory.metrics()


def load_run(
    path: str | Path,
    allow: Sequence[str] = (),
    *,
    model: Callable | None = None,
    guide: Callable | None = None,
    checkpoint: Which | None = None,
) -> Run:
    """Loads a run.

    Executes nothing that the run brings along: its tensors are safetensors, and the classes that
    its config names are made only if they are of `ppl_vae`, ELBOs of `pyro.infer`, or optimizers
    and schedulers of `torch.optim`, or if their module is allowed by name.

    Args:
        path: The run directory.
        allow: Names of modules whose classes may be made as well.
        model: In place of the model that the config names; needed where that is a plain function.
        guide: Likewise for the guide.
        checkpoint: `"last"` or `"best"`; best for a run with early stopping, else last.

    Returns:
        The run, on the CPU, modules in evaluation mode.

    Raises:
        ConfigError: No run, a broken config, or a class that is not allowed.
        CheckpointError: A checkpoint that is missing, incomplete or damaged.
    """
    directory = RunDirectory(path)
    config = directory.config()
    which: Which = checkpoint or ("best" if config.get("patience") else "last")
    # Before the checkpoint is read: the refusal of a class is the more important message.
    factories = [_factory(config, "model", model, allow), _factory(config, "guide", guide, allow)]
    tree = directory.load(which)
    if tree is None:
        raise CheckpointError(
            f"the run in {directory.path} has no checkpoint '{which}' yet; train it further"
            + (", or load the last one" if which == "best" else "")
        )
    example = torch.zeros(2, *tree["data"]["shape"], dtype=_dtype(tree["data"]["dtype"]))
    built = factories[0](tree["data"]["shape"]) if model is None else model
    if isinstance(built, torch.nn.Module):
        built = built.to(example.dtype)
    paired = factories[1](built) if guide is None else guide
    if hasattr(paired, "setup"):
        paired.setup(example)
    for name, program in (("model", built), ("guide", paired)):
        if isinstance(program, torch.nn.Module):
            restore(program, tree[name], name)
            program.eval()
    return Run(directory, config, built, paired, tree["progress"]["step"], example[:1])


def restore(module: torch.nn.Module, state: Mapping[str, torch.Tensor], name: str) -> None:
    """Loads a state into a module, in place.

    Raises:
        CheckpointError: The state is of a module with other parameters or shapes.
    """
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the checkpoint's {name} does not fit this {name} ({type(module).__name__}): {reason}"
        ) from None


def _factory(
    config: Mapping[str, Any], name: str, given: Callable | None, allow: Sequence[str]
) -> Callable:
    if given is not None:
        return given
    entry = config.get(name)
    if not isinstance(entry, dict) or "class_path" not in entry:
        raise ConfigError(
            f"the run's config has no class for its {name} (it was a plain function or an object "
            f"that cannot be written down); pass it: load_run(path, {name}=...)"
        )
    factory = instantiate(entry, allow=allow, as_partial=True)
    if name == "model" and not (issubclass(factory.func, Model) and _takes_shape(factory.func)):
        return lambda shape: factory()
    return factory


def _takes_shape(cls: type) -> bool:
    return "data_shape" in inspect.signature(cls.__init__).parameters


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"the checkpoint's floating type is {name!r}, which torch has not")
    return dtype


def _line(metrics: Mapping[str, Any]) -> str:
    return json.dumps(metrics) + "\n"


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
