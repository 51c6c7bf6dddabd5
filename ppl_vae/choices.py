"""What may stand where on the command line: classes by option, arguments by class."""

import difflib
import inspect
import sys
from collections.abc import Iterable

import torch

from ppl_vae import models
from ppl_vae.catalogue import catalogue

__all__ = ["arguments_of", "can_be_built", "names_for", "suggestion"]

_KIND_OF = {"model": "models", "guide": "guides", "estimator": "estimators",
            "schedule": "schedules", "likelihood": "likelihoods", "encoder": "encoders",
            "decoder": "decoders", "capacity": "schedules", "sites": "schedules",
            "baseline": "baselines", "family": "families", "prior": "families"}  # fmt: skip
# Arguments that the command line, or the object around it, fills in.
_FILLED = ("self", "data_shape", "model", "params", "optimizer", "in_features", "out_shape")


def names_for(key: str) -> list[str]:
    """Names of classes that may stand where an option, or its last part, is called `key`."""
    if key == "optimizer":
        return _classes_of(torch.optim, torch.optim.Optimizer)
    if key == "lr_schedule":
        return _classes_of(torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler)
    if key == "make":  # Of a guide around a guide, and of a model around a model.
        return [*catalogue("guides"), *names_for("model")]
    names = list(catalogue(_KIND_OF[key])) if key in _KIND_OF else []
    if key == "model":
        return [name for name in names if can_be_built(getattr(models, name))]
    return names


def arguments_of(class_path: str) -> list[str]:
    """Names of the arguments that the command line can give to a class."""
    module, _, name = class_path.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    if not inspect.isclass(cls):
        return []
    names: list[str] = []
    for base in (c for c in cls.__mro__ if "__init__" in vars(c) and c is not object):
        parameters = inspect.signature(base.__init__).parameters.values()
        named = (p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
        names += [name for name in named if name not in (*_FILLED, *names)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def can_be_built(model: type) -> bool:
    """Whether a model can be made from the shape of the data, which is all that is known of it."""
    return bool({"data_shape", "make"} & inspect.signature(model.__init__).parameters.keys())


def suggestion(word: str, names: Iterable[str]) -> str:
    """`; did you mean latent_dim?`, or a full stop where no name is close."""
    names = {name.lower(): name for name in names}
    word = word.lower()
    head, dot, tail = word.partition(".")
    close = [name for name in names if name.endswith(f".{word.lstrip('-')}")]  # The class left out.
    close = close or difflib.get_close_matches(word, names, n=1)
    close = close or [name for name in names if len(word) > 3 and name.startswith(word)]
    if close:
        return f"; did you mean {names[close[0]]}?"
    close = difflib.get_close_matches(head, names, n=1) if dot else []
    return f"; did you mean {names[close[0]]}.{tail}?" if close else "."


def _classes_of(module: object, base: type) -> list[str]:
    members = {name: getattr(module, name) for name in module.__all__}  # type: ignore[attr-defined]
    return [n for n, m in members.items() if inspect.isclass(m) and issubclass(m, base)
            and m is not base]  # fmt: skip
