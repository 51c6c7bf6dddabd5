"""What jsonargparse found wrong, in one sentence: the option, the value, what is accepted.

jsonargparse says where ("Parser key") and what ("Expected a ...") on nested lines, once for every
member of a union of types, in the names of Python's types. What is not recognized here is passed on
in its own words, with the option in front.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from ppl_vae.choices import arguments_of, names_for, suggestion

__all__ = ["about", "explain"]

# What jsonargparse takes an argument to be meant for where no class is named.
_BASES = ("Decoder", "Encoder", "LRScheduler", "Likelihood", "Module")
_POSITIONAL = ("run", "what")
_LIST = ("a list, as [8, 8]",)
_TYPES = {
    "int": ("an integer",),
    "float": ("a number",),
    "str": ("a string",),
    "bool": ("true", "false"),
    "NoneType": ("null",),
    "list": _LIST,
    "collections.abc.Sequence": _LIST,
    "dict": ("a mapping, as {name: value}",),
}
# What a class can be refused for, and how to say it.
_REFUSALS = (
    (r"No module named '([\w.]+)'", "cannot be imported: there is no module {}"),
    (r"module '([\w.]+)' has no attribute", "is not there: the module {} has no such name"),
    # Of what the user's module holds, a number for one.
    (r"denied by the '(builtins)' entry", "is no class"),
    (r"denied by the '([\w.]+)' entry", "is not imported, as nothing of {} is"),
    (
        r"function that returns <class '(?:[\w.]*\.)?(\w+)'>",
        "is a function that does not say `-> {}`",
    ),
    (r"subclass of <class '(?:[\w.]*\.)?(\w+)'>", "is no {}"),
    (r"correspond to a subclass of (\w+)", "is no {}"),
    (r"but\s+(\S+ )?is abstract", "is abstract"),
    (r"Unexpected import (object|path)", "is no class"),
    (r"Expected an? (dot import path|import path|instantiatable)", "is not known"),
    (r"Not a valid subclass of (\w+)", "is no {}"),
)


def explain(error: str, options: Iterable[str], words: Sequence[str] = ()) -> str:
    """One sentence for a parser's error.

    Args:
        error: The error's text.
        options: The options that there are, to find the one that was meant.
        words: The command line, where the error does not say all that was given.
    """
    keys = list(dict.fromkeys(re.findall(r'[Pp]arser key "([\w.]+)"', error)))
    if not keys:
        return _about_words(error, list(options), words)
    option = keys[0] if keys[0] in _POSITIONAL else "option --" + ".".join(keys)
    if found := re.search(r"Option '([\w.]+)' is not accepted", error):
        owner = _owner(error, found.start())
        if _short(owner) in _BASES:
            return f"{option}.{found[1]}: {_class_first(keys)}"
        names = arguments_of(owner)
        hint = f"{suggestion(found[1], names)} {_accepted(names)}"
        return f"{option}.{found[1]}: {_short(owner)} has no argument {found[1]!r}{hint}"
    if found := re.search(r"arguments are required: (\w[\w, ]*)", error):
        names = found[1].split(", ")
        return f"{option}.{names[0]} is not given; {_short(_owner(error, found.start()))} needs it"
    inner = _block(error, keys[-1])
    value, nested = _value(inner or error)
    if nested:
        return f"{option}.{nested}: {_class_first(keys)}"
    if types := _expected(inner or error):
        return f"{option}: {value!r} is not accepted; accepted is {_joined(types)}"
    for pattern, refusal in _REFUSALS:
        if found := re.search(pattern, error):
            hint = suggestion(value, names_for(keys[-1]))
            accepted = _accepted_for(keys[-1])
            return f"{option}: {value!r} {refusal.format(found[1])}{hint} {accepted}"
    plain = re.sub(r"Parser key \S+|Type .* expects a function or a callable class:", "", error)
    return f"{option}: {' '.join(plain.split())}"


def about(option: str, entry: Any, error: Exception) -> str:
    """A sentence for what a class said of its arguments, the arguments added if it left them out.

    Args:
        option: The option that named the class.
        entry: Its `class_path` and `init_args`.
        error: What it raised.
    """
    name = _short(entry["class_path"]) if isinstance(entry, dict) else str(entry)
    if name in str(error) or re.match(r"[A-Z]\w+: ", str(error)):
        return f"option --{option}: {error}"
    given = ", ".join(f"{key}={value!r}" for key, value in (entry.get("init_args") or {}).items())
    return f"option --{option}: {name}({given}): {error}"


def _about_words(error: str, options: Sequence[str], words: Sequence[str]) -> str:
    """For what is wrong with the words of the command line rather than with a value."""
    text = " ".join(error.split())
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        word = found[1].partition("=")[0]
        if not word.strip("-") or not word.startswith("-"):
            return f"unexpected argument {found[1]!r}; options are given as --name value"
        hint = suggestion(word, [f"--{option}" for option in options])
        return f"there is no option {word}{hint} `--help` lists what there is"
    if found := re.search(r"--(\w+)\.help: .*?(\S+)$", text):
        return f"option --{found[1]}.help: {found[2]!r} is not known. {_accepted_for(found[1])}"
    if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", text):
        names = re.findall(r"'(.*?)'", found[2])
        return f"there is no command {found[1]!r}{suggestion(found[1], names)} {_accepted(names)}"
    if found := re.search(r"argument (--\S+?)[:/,].* expected", text):
        # The parser names the class's option where one of its arguments is meant.
        inner = (w for w in words if w.startswith(f"{found[1]}.") and "=" not in w)
        return f"option {next(inner, found[1])}: no value is given"
    if "arguments are required:" in text:
        return "the run is not given; accepted is the folder of a run, as in runs/a"
    return text


def _block(error: str, key: str) -> str:
    """What is said of a key: the lines below its name that are further to the right."""
    lines = error.splitlines()
    start = next(i for i, line in enumerate(lines) if f'arser key "{key}"' in line)
    left = _indent(lines[start])
    return "\n".join(takewhile(lambda line: _indent(line) > left, lines[start + 1 :]))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _expected(error: str) -> list[str]:
    """The plain types that would have done, in words."""
    found = []
    for name in re.findall(r"Expected a (typing\.Literal\[.*?\]|<class '[\w.]+'>)", error):
        if name.startswith("typing"):
            found += re.findall(r"'(.*?)'", name)
        else:
            found += _TYPES.get(name[8:-2], (name[8:-2],))
    # `null` alone is the other half of "a class or nothing".
    return list(dict.fromkeys(found)) if set(found) - {"null"} else []


def _value(error: str) -> tuple[str, str]:
    """The value given, and the nested argument that it was given to without a class."""
    found = re.search(r"import path string: *(.*?)(?=\. Got value:|\n|$)", error)
    found = found or re.search(r"(?:Got|Given) value: *(.*?)(?=\. Got value:|\n|$)", error)
    found = found or re.search(r"but (\S+) is abstract", error)
    found = found or re.search(r"given class_path '([\w.]+)'", error)
    found = found or re.search(r"Importing '([\w.]+)'", error)
    value = found[1] if found else ""
    if inner := re.match(r"NestedArg\(key='([\w.]+)'", value):
        return value, inner[1]
    inner = re.match(r"Namespace\(class_path='([\w.]+)'", value)
    return (inner[1] if inner else value), ""


def _owner(error: str, position: int) -> str:
    """The class that an argument was meant for: the last one named before, else the next."""
    before = re.findall(r"class_path '([\w.]+)'", error[:position])
    after = re.findall(r"class_path='([\w.]+)'", error[position:])
    return (before[-1:] or after[:1] or [""])[0]


def _accepted_for(key: str) -> str:
    own = "your own by its import path (my_module.MyClass)"
    stock = ["Pyro's own (pyro.infer.TraceMeanField_ELBO)"] if key == "estimator" else []
    return _accepted([*names_for(key), *stock, own])


def _class_first(keys: Sequence[str]) -> str:
    return f"name a class first, with --{'.'.join(keys)}. {_accepted_for(keys[-1])}"


def _accepted(names: Sequence[str]) -> str:
    return f"Accepted are {_joined(names)}" if names else "It takes none"


def _joined(names: Sequence[str]) -> str:
    return " or ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), *names[-1:]])


def _short(class_path: str) -> str:
    return class_path.rpartition(".")[2] or "the class"
