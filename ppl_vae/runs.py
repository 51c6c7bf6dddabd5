"""A run, loaded: executes nothing that it brings along."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppl_vae.checkpoint import CheckpointError
from ppl_vae.config import ConfigError, instantiate
from ppl_vae.data import Splits, load
from ppl_vae.directory import RunDirectory, Which
from ppl_vae.models.base import Model
from ppl_vae.preparation import resolve_device

__all__ = ["Run", "load_run"]


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
    device: str | torch.device = "cpu",
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
        device: Where modules go: `"auto"`, `"cpu"`, `"cuda"`, ...

    Returns:
        The run, modules in evaluation mode.

    Raises:
        ConfigError: No run, a broken config, or a class that is not allowed.
        CheckpointError: A checkpoint that is missing, incomplete or damaged.
    """
    directory = RunDirectory(path)
    config = directory.config()
    which: Which = checkpoint or ("best" if config.get("patience") else "last")
    # Before the checkpoint is read: the refusal of a class is the more important message.
    try:
        factories = [
            _factory(config, "model", model, allow),
            _factory(config, "guide", guide, allow),
        ]
    except ConfigError as error:
        raise ConfigError(f"{directory.config_path}: {error}") from None
    tree = directory.load(which)
    if tree is None:
        raise CheckpointError(
            f"the run in {directory.path} has no checkpoint '{which}' yet; train it further"
            + (", or load the last one" if which == "best" else "")
        )
    example, rest, step = _examples(directory, tree, resolve_device(device))
    with _making(directory, "model"):
        built = factories[0](tree["data"]["shape"]) if model is None else model
        if isinstance(built, torch.nn.Module):
            built = built.to(example)
    with _making(directory, "guide"):
        paired = factories[1](built) if guide is None else guide
        if hasattr(paired, "setup"):
            paired.setup(example, *rest)
        if hasattr(built, "bind"):
            built.bind(paired)
    for name, program in (("model", built), ("guide", paired)):
        if isinstance(program, torch.nn.Module):
            if name not in tree:
                raise CheckpointError(f"the checkpoint in {directory.path} holds no {name}")
            restore(program, tree[name], name)
            program.to(example.device).eval()
    return Run(directory, config, built, paired, step, example[:1])


def _examples(
    directory: RunDirectory, tree: dict[str, Any], place: torch.device
) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Zeros `[2, ...]` like the data and what comes with them, and the step of a checkpoint."""
    try:
        about = tree["data"]
        shape, dtype = about["shape"], _dtype(about["dtype"])
        example = torch.zeros(2, *shape, dtype=dtype, device=place)
        rest = [
            torch.zeros(2, *v["shape"], dtype=_dtype(v["dtype"])).to(place) for v in about["rest"]
        ]
        return example, rest, tree["progress"]["step"]
    except (KeyError, TypeError, RuntimeError, OverflowError) as error:
        # Its checksums are right: somebody wrote it so.
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the checkpoint in {directory.path} is none of a run ({type(error).__name__}: "
            f"{reason}); restore it from a copy"
        ) from None


@contextmanager
def _making(directory: RunDirectory, name: str) -> Iterator[None]:
    """A context in which a config's words are made an object, and may turn out to be wrong."""
    try:
        yield
    except (TypeError, AttributeError, KeyError, IndexError, RuntimeError, ArithmeticError,
            MemoryError) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{directory.config_path}: the {name} cannot be made ({type(error).__name__}: {reason})"
        ) from error


def restore(module: torch.nn.Module, state: Mapping[str, torch.Tensor], name: str) -> None:
    """Loads a state into a module, in place.

    Raises:
        CheckpointError: The state is of a module with other parameters or shapes.
    """
    try:
        module.load_state_dict(dict(state))
    except (RuntimeError, TypeError, ValueError) as error:
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
    return bool({"data_shape", "make"} & inspect.signature(cls.__init__).parameters.keys())


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"the checkpoint's floating type is {name!r}, which torch has not")
    return dtype
