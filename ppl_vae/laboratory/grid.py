"""A grid of trainings: one base, and what is to be varied.

A cell is plain data, so that it can be named, sent to another process, and found again.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any

from ppl_vae.config import describe

__all__ = ["Cell", "expand", "label_of"]

_MAX_CELLS = 10_000


@dataclass(frozen=True)
class Cell:
    """One training of a grid.

    Attributes:
        labels: What each axis is here, in words.
        options: All that `train` is asked for, as plain data.
    """

    labels: dict[str, str]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Its folder: words for people, and a digest that only these options have."""
        text = json.dumps(self.options, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        words = "-".join(re.sub(r"\W+", "-", word).strip("-") for word in self.labels.values())
        return f"{words[:80]}-{digest}" if words else digest


def expand(
    axes: Mapping[str, Any], base: Mapping[str, Any], sets: Collection[str] = ()
) -> list[Cell]:
    """Every cell of a grid, the last axis fastest.

    Args:
        axes: For each name of an option its values, or a mapping of labels to values. A name with
            dots is an argument of an object in the base: `guide.hidden`.
        base: The other options. Objects are written down (`ppl_vae.config.describe`).
        sets: The axes that are no options, whose values are several options each.

    Raises:
        ValueError: An axis is empty or has a value twice; there is nothing to set where a name with
            dots points to; or there are more than 10,000 cells.
        ConfigError: An object that cannot be written down.
    """
    if not axes:
        raise ValueError("axes is empty; accepted is at least one, as {'seed': [0, 1]}")
    values = {name: _labelled(name, axis) for name, axis in axes.items()}
    count = 1
    for axis in values.values():
        count *= len(axis)
    if count > _MAX_CELLS:
        raise ValueError(f"the grid has {count} cells; accepted are up to {_MAX_CELLS}")
    plain = {name: describe(value) for name, value in base.items()}
    cells = []
    for chosen in product(*(axis.items() for axis in values.values())):
        given = dict(zip(values, chosen, strict=True))
        options = json.loads(json.dumps(plain))
        parts = [
            part
            for name, (_, value) in given.items()
            for part in (value.items() if name in sets else [(name, value)])
        ]
        # Whole objects before their arguments, which are set inside of them.
        for name, value in sorted(parts, key=lambda part: part[0].count(".")):
            # A copy, for an argument may be set inside, which is not to reach other cells.
            _set(options, name, deepcopy(value))
        cells.append(Cell({name: label for name, (label, _) in given.items()}, options))
    return cells


def label_of(value: Any) -> str:
    """A described value in words: `TraceIWAE_ELBO(num_particles=5)`."""
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = value.get("init_args") or {}
        inside = ", ".join(f"{name}={label_of(item)}" for name, item in arguments.items())
        return value["class_path"].rpartition(".")[2] + (f"({inside})" if inside else "")
    if isinstance(value, list):
        return "[" + ", ".join(map(label_of, value)) + "]"
    return str(value)


def _labelled(name: str, axis: Any) -> dict[str, Any]:
    if isinstance(axis, str) or not isinstance(axis, Mapping | Sequence | range):
        raise ValueError(f"the axis {name} is {axis!r}; accepted is a list of its values")
    if isinstance(axis, Mapping):
        found = [(str(label), describe(value)) for label, value in axis.items()]
    else:
        described = [describe(value) for value in axis]
        found = [(label_of(value), value) for value in described]
    if not found:
        raise ValueError(f"the axis {name} has no values; accepted is at least one")
    for index, (label, value) in enumerate(found):
        for other, same in found[:index]:
            if label == other or value == same:
                raise ValueError(f"the axis {name} has {label} twice; accepted is each value once")
    return dict(found)


def _set(options: dict[str, Any], name: str, value: Any) -> None:
    first, *rest = name.split(".")
    target = options
    for part in rest:
        entry = target.get(first)
        if not isinstance(entry, dict) or "class_path" not in entry:
            raise ValueError(
                f"the axis {name} sets an argument of {first}, which the base does not give; give "
                f"{first} as well"
            )
        target, first = entry.setdefault("init_args", {}), part
    target[first] = value
