"""Objects as plain data and back: what a run's `config.yaml` is made of.

An object is written as `{"class_path": "ppl_vae.models.VAE", "init_args": {...}}`, the form that
the command line reads too. Reading one back imports nothing but what is known to be harmless.
"""

import importlib
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from ppl_vae.configurable import Configurable

__all__ = ["ConfigError", "describe", "instantiate", "resolve"]

# Larger tensors do not belong into a text file.
_MAX_ELEMENTS = 10_000


class ConfigError(ValueError):
    """A config that names what may not be loaded, or an object that cannot be written as one."""


def describe(value: Any, *, omit: Sequence[str] = ()) -> Any:
    """An object as plain data.

    Args:
        value: An instance of a class of ours or a subclass, one of Pyro's ELBOs, a
            `functools.partial` of a class (an optimizer), a class, a tensor, or plain data.
        omit: Arguments to leave out at the top.

    Raises:
        ConfigError: `value` is none of these, a plain function for one.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, nn.Parameter):
        raise ConfigError(
            f"a parameter of shape {tuple(value.shape)} cannot be written into a config, from "
            "which it would come back as a constant"
        )
    if isinstance(value, Tensor):
        if value.numel() > _MAX_ELEMENTS:
            raise ConfigError(
                f"a tensor of shape {tuple(value.shape)} is too large for a config; accepted are "
                f"up to {_MAX_ELEMENTS} elements"
            )
        return value.tolist()
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, partial) and inspect.isclass(value.func) and not value.args:
        return _entry(value.func, value.keywords, omit)
    if inspect.isclass(value):
        return _entry(value, {}, omit)
    if isinstance(value, Configurable) and hasattr(value, "init_args"):
        return _entry(type(value), value.init_args, omit)
    if isinstance(value, ELBO):
        return _entry(type(value), _arguments(value), omit)
    raise ConfigError(
        f"{value!r} cannot be written into a config; accepted are instances of ppl_vae classes or "
        "subclasses, pyro.infer ELBOs, and functools.partial of a class"
    )


def instantiate(entry: Any, *args: Any, allow: Sequence[str] = (), as_partial: bool = False) -> Any:
    """Makes the object that `describe` wrote.

    Classes of `ppl_vae`, ELBOs of `pyro.infer`, and optimizers and schedulers of `torch.optim` are
    made; anything else only if its module, or one above it, is named in `allow`. What is not
    allowed is not even imported.

    Args:
        entry: Plain data, with `class_path` and `init_args` where an object is meant.
        *args: Positional arguments for the outermost class.
        allow: Names of modules whose classes may be made: `["my_package"]`.
        as_partial: Give a `functools.partial` of the outermost class in place of an instance.

    Raises:
        ConfigError: A class that is not allowed or not there, or arguments that it does not take.
    """
    if isinstance(entry, list):
        return [instantiate(item, allow=allow) for item in entry]
    if not isinstance(entry, dict):
        return entry
    if "class_path" not in entry:
        return {key: instantiate(item, allow=allow) for key, item in entry.items()}
    unknown = set(entry) - {"class_path", "init_args"}
    if unknown:
        raise ConfigError(
            f"a config entry has the keys {sorted(unknown)}; accepted are class_path and init_args"
        )
    cls = resolve(entry["class_path"], allow)
    arguments = entry.get("init_args") or {}
    if not isinstance(arguments, dict) or any(not isinstance(name, str) for name in arguments):
        raise ConfigError(
            f"{entry['class_path']}: init_args is {str(arguments)[:60]}; accepted is a mapping of "
            "arguments to values"
        )
    keywords = {
        name: instantiate(item, allow=allow, as_partial=_is_factory(cls, name, item))
        for name, item in arguments.items()
    }
    if issubclass(cls, ELBO) and "max_plate_nesting" in keywords:
        keywords["max_plate_nesting"] = _nesting(keywords["max_plate_nesting"])
    if as_partial:
        return partial(cls, *args, **keywords)
    try:
        return cls(*args, **keywords)
    except TypeError as error:
        raise ConfigError(f"{entry['class_path']} does not take {arguments}: {error}") from None


def resolve(class_path: Any, allow: Sequence[str] = ()) -> type:
    """The class of this import path, if it may be made; see `instantiate`."""
    if not isinstance(class_path, str) or "." not in class_path:
        raise ConfigError(f"class_path is {class_path!r}; accepted is a path as my_module.MyClass")
    module_name, _, name = class_path.rpartition(".")
    by_user = _is_under(module_name, allow)
    if not by_user and not _is_under(module_name, ("ppl_vae", "pyro.infer", "torch.optim")):
        raise ConfigError(_refusal(class_path, module_name))
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"there is no {class_path}: {error}") from None
    if not inspect.isclass(found):
        raise ConfigError(f"{class_path} is no class")
    if inspect.isabstract(found):
        raise ConfigError(f"{class_path} is abstract; accepted is a subclass of it")
    # A module may hold a name from elsewhere: `ppl_vae.some.module.os`, `allowed.Popen`.
    if not (_is_under(found.__module__, allow) or _is_harmless(found)):
        raise ConfigError(_refusal(class_path, found.__module__))
    return found


def _nesting(value: Any) -> Any:
    """Pyro's default is infinity, so parsers take 1 for 1.0; but Pyro multiplies tuples by it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, float) and value != float("inf"):
        raise ConfigError(f"max_plate_nesting is {value}; accepted is an integer >= 0, or inf")
    return value


def _is_harmless(cls: type) -> bool:
    if _is_under(cls.__module__, ("ppl_vae",)):
        return issubclass(cls, Configurable)
    if _is_under(cls.__module__, ("pyro.infer",)):
        return issubclass(cls, ELBO)
    schedulers = torch.optim.lr_scheduler.LRScheduler
    return _is_under(cls.__module__, ("torch.optim",)) and issubclass(
        cls, torch.optim.Optimizer | schedulers
    )


def _is_under(module: str, roots: Sequence[str]) -> bool:
    return any(module == root or module.startswith(root + ".") for root in roots)


def _refusal(class_path: str, module: str) -> str:
    return (
        f"the config names {class_path}, which is not loaded unasked; made are classes of ppl_vae, "
        "ELBOs of pyro.infer, and optimizers and schedulers of torch.optim. If you trust the code, "
        f"allow its module by name: load_run(path, allow=[{module!r}]), --allow {module}"
    )


def _is_factory(cls: type, name: str, item: Any) -> bool:
    """Whether an argument wants a class with arguments rather than an instance (`encoder`)."""
    if not isinstance(item, dict) or "class_path" not in item:
        return False
    parameter = inspect.signature(cls.__init__).parameters.get(name)
    return parameter is not None and "Callable" in str(parameter.annotation)


def _entry(cls: type, arguments: dict[str, Any], omit: Sequence[str]) -> dict[str, Any]:
    described = {
        # A network given as an instance is made anew from the data's shape, as a class would be; a
        # guide inside of a guide, from the model.
        name: describe(item, omit=("data_shape", "model") if isinstance(item, nn.Module) else ())
        for name, item in arguments.items()
        if name not in omit
    }
    entry: dict[str, Any] = {"class_path": public_path(cls)}
    return {**entry, "init_args": described} if described else entry


def public_path(cls: type) -> str:
    """The shortest import path of a class: `ppl_vae.models.VAE`, not `ppl_vae.models.vae.VAE`."""
    if "<" in cls.__qualname__ or "." in cls.__qualname__:
        raise ConfigError(
            f"{cls.__qualname__} is defined inside a function or class and has no import path; "
            "move it to the top of a module"
        )
    parts = cls.__module__.split(".")
    for length in range(1, len(parts)):
        module = importlib.import_module(".".join(parts[:length]))
        if getattr(module, cls.__name__, None) is cls:
            return ".".join([*parts[:length], cls.__name__])
    return f"{cls.__module__}.{cls.__name__}"


def _arguments(elbo: ELBO) -> dict[str, Any]:
    """What one of Pyro's ELBOs was built with, read off its attributes."""
    # `max_plate_nesting` is changed by the first run; it is found again.
    skip = {"self", "max_plate_nesting", "max_iarange_nesting", "retain_graph"}
    arguments = {}
    for name, parameter in _parameters(type(elbo)).items():
        if name in skip or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        value = getattr(elbo, name, parameter.default)
        plain = value is None or isinstance(value, bool | int | float | str)
        if plain and value != parameter.default:
            arguments[name] = value
    return arguments


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Constructor parameters, those of the parents included where `**kwargs` passes them on."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base) and base is not object:
            own = inspect.signature(base.__init__).parameters
            parameters = {**own, **parameters}
            if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
                break
    return parameters
