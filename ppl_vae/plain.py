"""YAML from strangers, read as plain data of a size that can be walked through."""

from typing import Any

import yaml

__all__ = ["read_yaml"]

# A config of ours has a few hundred; a tensor in it up to 10,000.
_MAX_ENTRIES, _MAX_DEPTH = 200_000, 50


def read_yaml(text: str) -> Any:
    """What a text of YAML holds: no objects, and no more than anybody writes.

    Aliases are counted as often as they stand for something, so that a few lines of aliases of
    aliases, which are gigabytes written out, are refused as such.

    Raises:
        ValueError: It is no YAML, holds more than 200,000 entries, or is nested more than 50 deep.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError(f"it is nested too deep; accepted are {_MAX_DEPTH} levels") from None
    _check(content)
    return content


def _check(content: Any) -> None:
    num = 0
    left = [(content, 0)]
    while left:
        entry, depth = left.pop()
        num += 1
        if num > _MAX_ENTRIES:
            raise ValueError(f"it holds too much; accepted are {_MAX_ENTRIES} entries")
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested too deep; accepted are {_MAX_DEPTH} levels")
        if isinstance(entry, dict):
            left += [(part, depth + 1) for pair in entry.items() for part in pair]
        elif isinstance(entry, list | tuple | set):
            left += [(part, depth + 1) for part in entry]
