"""What an encoder is shown of a call: x, and what else of the model's arguments it asks for."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Shown", "parameters_of", "shown_to"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Shown:
    """An encoder, and its arguments.

    Attributes:
        encoder: The encoder.
        args: By place, x first.
        kwargs: By keyword.
    """

    encoder: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, change: Callable[[Any], Any]) -> Tensor:
        """The features, each argument changed first."""
        named = {name: change(value) for name, value in self.kwargs.items()}
        return self.encoder(*(change(value) for value in self.args), **named)


def shown_to(encoder: nn.Module, model: Callable, args: tuple, kwargs: dict[str, Any]) -> Shown:
    """Of what the model is called with, what the encoder asks for.

    A parameter of the encoder that bears the name of one of the model's gets that one, given by
    place or by keyword. One of another name gets what has its place, unless it has a default: then
    it is the encoder's own.

    Args:
        encoder: The encoder.
        model: The model.
        args: The model's by place, x first.
        kwargs: The model's by keyword.
    """
    x, *others = args
    names = [p.name for p in parameters_of(model) if p.kind in _POSITIONAL][1:]
    given = {**dict(zip(names, others, strict=False)), **kwargs}
    signature = inspect.signature(_forward(encoder))
    bound = signature.bind_partial(x)
    for place, parameter in enumerate(parameters_of(encoder)[1:]):
        if parameter.kind not in (*_POSITIONAL, parameter.KEYWORD_ONLY):
            continue
        if parameter.name in given:
            bound.arguments[parameter.name] = given[parameter.name]
        elif parameter.default is not parameter.empty or parameter.kind not in _POSITIONAL:
            continue
        elif place < len(others):
            bound.arguments[parameter.name] = others[place]
        elif place < len(names) and names[place] in given:
            bound.arguments[parameter.name] = given[names[place]]
    return Shown(encoder, bound.args, bound.kwargs)


def _forward(program: Callable) -> Callable:
    return program.forward if isinstance(program, nn.Module) else program


def parameters_of(program: Callable) -> list[inspect.Parameter]:
    """A program's own, `forward`'s where it is a network."""
    return list(inspect.signature(_forward(program)).parameters.values())
