"""Objects that remember the arguments they were built with, so that a run can be written down."""

import inspect
from abc import ABCMeta
from typing import Any, Self

from pyro.nn import PyroModule

__all__ = ["Configurable", "Program"]


class Configurable:
    """Base of what a run directory names by class and arguments.

    Keeps the constructor's arguments by name in `init_args`, as given; the arguments that were left
    out are not there. Subclasses do nothing for it.
    """

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Builds the object and keeps the arguments."""
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs).arguments
        except TypeError:
            # Wrong arguments: `__init__` says so, in the usual words. Or `copy.deepcopy`, which
            # builds without any and then copies `init_args` with the rest.
            return self
        parameters = list(inspect.signature(cls.__init__).parameters.values())
        keywords = [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
        named = {name: value for name, value in list(bound.items())[1:] if name not in keywords}
        for name in keywords:
            named.update(bound.get(name, {}))
        self.__dict__["init_args"] = named
        return self


class _AbstractPyroModule(type(PyroModule), ABCMeta):
    """Pyro's metaclass, and abstract methods."""


class Program(PyroModule, metaclass=_AbstractPyroModule):
    """A `PyroModule` that may have abstract methods: the root of `Model` and `Guide`."""
