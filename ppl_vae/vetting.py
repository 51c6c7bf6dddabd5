"""What the command line of `train` may name, looked at before anything is imported.

jsonargparse imports every class that a config names, wherever and in whatever form it stands there.
A config may come from a stranger; what the user types does not. So every string in a config that
could be imported must be of a class that is harmless, or whose module the user allows.
"""

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ppl_vae import models
from ppl_vae.choices import can_be_built, suggestion
from ppl_vae.config import ConfigError, resolve
from ppl_vae.options import CLASSES
from ppl_vae.plain import read_yaml

__all__ = ["vet"]


def vet(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Checks the configs and classes of a command line of `train`.

    Args:
        arguments: The command line, `train` first.

    Returns:
        The command line, with the config of the run to resume in front if there is no other; and
        the modules whose classes may be made: those of `--allow`, and of classes named outright.

    Raises:
        ConfigError: A config that cannot be read, or names what may not be loaded; a class whose
            module breaks when it is imported; a model that cannot be built from the data's shape.
    """
    words = list(_options(arguments))
    given = dict(words)
    stored = Path(given.get("out", "")) / "config.yaml"
    resumed = "out" in given and _parsed(given.get("resume", "")) is True
    if resumed and "config" not in given and stored.is_file():
        arguments = ["train", "--config", str(stored), *arguments[1:]]
        words = [("config", str(stored)), *words]
    allow = [name for key, value in words if key == "allow" for name in _list(value)]
    for key, value in words:
        if key.partition(".")[0] in CLASSES:
            for path in _import_paths(_parsed(value)):
                allow.append(path.rpartition(".")[0])
                allow += _import(path, f"option --{key}")
            if key == "model":
                _check_model(_parsed(value))
    for key, value in words:
        if key == "config":
            _check_config(value, allow)
    return list(arguments), allow


def _check_config(path: str, allow: Sequence[str]) -> None:
    for key, value in _read(path).items():
        head = str(key).partition(".")[0]
        _check_key(path, head, value)
        if head in CLASSES:
            for name in _import_paths(value):
                try:
                    resolve(name, allow)
                except ConfigError as error:
                    raise ConfigError(f"{path}: {error}") from None
                except Exception as error:
                    raise _broken(name, path, error) from error
        if key == "model":
            _check_model(value)


def _check_key(path: str, key: str, value: Any) -> None:
    from ppl_vae.training import train

    names = [name for name in inspect.signature(train).parameters if name != "allow"]
    if key == "allow" and value:
        raise ConfigError(
            f"{path}: allow is {value!r}; a config cannot allow what it names itself. Accepted is "
            "--allow on the command line"
        )
    if key not in (*names, "allow"):
        raise ConfigError(
            f"{path}: there is no option {key!r}{suggestion(key, names)} Accepted are "
            f"{', '.join(names)}"
        )


def _check_model(entry: Any) -> None:
    """Refuses a model that cannot be made from the shape of the data."""
    name = entry.get("class_path") if isinstance(entry, dict) else entry
    module, _, attribute = str(name).rpartition(".")
    cls = getattr(sys.modules.get(module, models), attribute, None)
    if not (inspect.isclass(cls) and issubclass(cls, models.Model)):
        return  # Something else is wrong with it, or it is a function; others say so.
    if not can_be_built(cls):
        raise ConfigError(
            f"option --model: {name} has no argument data_shape, by which the command line builds "
            "a model for the data. Train it from Python, with ppl_vae.fit; accepted here are "
            "models that have it, as VAE and HierarchicalVAE"
        )


def _read(path: str) -> dict[Any, Any]:
    try:
        content = read_yaml(Path(path).read_text())
    except OSError as error:
        reason = f"{path} cannot be read ({error.strerror})"
        raise ConfigError(f"option --config: {reason}; accepted is a YAML file") from None
    except ValueError as error:
        raise ConfigError(f"option --config: {path} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"option --config: {path} holds {str(content)[:40]!r}; accepted is a mapping of "
            "options to values, as in `num_steps: 100`"
        )
    return content


def _import_paths(entry: Any) -> Iterator[str]:
    """Every string in an entry that could be imported, however deep."""
    if isinstance(entry, dict):
        entry = list(entry.values())
    if isinstance(entry, list | tuple | set):
        for item in entry:
            yield from _import_paths(item)
    if not isinstance(entry, str):
        return
    root, dot, _ = entry.partition(".")
    if dot and all(part.isidentifier() for part in entry.split(".")):
        # `weights.pth` is no danger where there is no module `weights`.
        if root in sys.modules or find_spec(root) is not None:
            yield entry
    elif (content := _parsed(entry)) != entry:
        # jsonargparse reads YAML inside of strings.
        yield from _import_paths(content)


def _import(path: str, where: str) -> list[str]:
    """The module that a class the user typed is from; it may stand elsewhere than in its own."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return []  # jsonargparse says so, and of which option.
    except Exception as error:
        raise _broken(path, where, error) from error
    return [found.__module__] if inspect.isclass(found) else []


def _broken(path: str, where: str, error: Exception) -> ConfigError:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename[0] != "<"]
    at = "" if isinstance(error, SyntaxError) else f" ({frames[-1].filename}:{frames[-1].lineno})"
    return ConfigError(f"{where}: {path} cannot be imported: {type(error).__name__}: {error}{at}")


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options and their values, as far as they can be told without a parser."""
    for index, word in enumerate(arguments):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = arguments[index + 1] if index + 1 < len(arguments) else ""
            yield name.rstrip("+"), value if equals else following


def _list(value: str) -> list[str]:
    content = _parsed(value)
    return [str(item) for item in content] if isinstance(content, list) else [value]


def _parsed(value: str) -> Any:
    try:
        return read_yaml(value)
    except ValueError:
        return value
