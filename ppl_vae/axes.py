"""The words of `ppl-vae compare`: those of `train`, where an option may have several values.

An option with several values is an axis of the grid. Each cell's words are a command line of
`train`, and are read as one: so an axis may be any option, and what is wrong with a value is said
as there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

from ppl_vae.calls import spelled

__all__ = ["Grid", "split_axes"]

# Whose several values are one list.
_LISTS = ("allow", "at", "freeze")
# What each cell is given.
_GIVEN = ("resume", "report", "progress")


@dataclass
class Grid:
    """A command line, taken apart.

    Attributes:
        own: The words of the options of `compare` itself.
        axes: For each axis its values, as the user wrote them.
        base: The options that all cells have in common, in order.
    """

    own: list[str] = field(default_factory=list)
    axes: dict[str, list[str]] = field(default_factory=dict)
    base: list[tuple[str, str]] = field(default_factory=list)

    def cells(self) -> Iterator[tuple[dict[str, str], list[str]]]:
        """For each cell what it is on each axis, and its words as those of `train`."""
        for values in product(*self.axes.values()):
            labels = dict(zip(self.axes, values, strict=True))
            given = [*self.base, *labels.items()]
            pairs = [pair for name, value in given for pair in spelled(name, value)]
            # The config first, and classes before their arguments.
            pairs.sort(key=lambda pair: (pair[0] != "config", pair[0].count(".")))
            yield labels, ["train", *(f"--{name}={value}" for name, value in pairs)]


def split_axes(arguments: Sequence[str], own: Sequence[str]) -> Grid:
    """Takes the words behind `compare` apart.

    Args:
        arguments: The words.
        own: Names of the options of `compare` itself.

    Raises:
        ValueError: A word that belongs to no option, an option without a value or given twice, or a
            value that an axis has twice.
    """
    grid, seen = Grid(), set[str]()
    for name, values in _options(arguments):
        if name in seen:
            raise ValueError(f"option --{name} is given twice; give all its values behind one")
        seen.add(name)
        if not values:
            raise ValueError(
                f"option --{name} has no value; accepted is one, or several for an axis"
            )
        if name in own:
            if len(values) > 1 and name not in _LISTS:
                raise ValueError(f"option --{name} has {len(values)} values; accepted is one")
            grid.own.append(f"--{name}={_listed(name, values)}")
        elif name in _GIVEN:
            raise ValueError(f"option --{name} is not for compare, which sets it for each cell")
        elif name in _LISTS:
            grid.base.append((name, _listed(name, values)))
        elif len(values) == 1:
            grid.base.append((name, values[0]))
        elif twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"option --{name} has {twice[0]} twice; accepted is each value once")
        else:
            grid.axes[name] = values
    return grid


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Options with all their values; a word with a dash in front may be a number."""
    name, values = "", list[str]()
    for word in arguments:
        if word.startswith("--"):
            if name:
                yield name, values
            name, equals, value = word[2:].partition("=")
            values = [value] if equals else []
        elif not name:
            raise ValueError(f"'{word}' belongs to no option; accepted are options of train, --out")
        else:
            values.append(word)
    if name:
        yield name, values


def _listed(name: str, values: Sequence[str]) -> str:
    if name not in _LISTS or values[0].startswith("["):
        return values[0]
    return "[" + ", ".join(values) + "]"
