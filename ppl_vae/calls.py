"""Classes with their arguments on the command line, `TraceIWAE_ELBO(num_particles=5)`."""

import ast
import re
from collections.abc import Iterator, Sequence

from ppl_vae.options import CLASSES

__all__ = ["spelled", "without_calls"]

_CALL = re.compile(r"[A-Za-z_][\w.]*\(.*\)", re.DOTALL)


def without_calls(arguments: Sequence[str]) -> list[str]:
    """The same words, each class with arguments as the options that say so.

    Raises:
        ValueError: As `spelled`.
    """
    words = list[str]()
    for word in arguments:
        name, equals, value = word.partition("=")
        if word.startswith("--") and equals:
            pair = name[2:], value
        elif words and words[-1].startswith("--") and "=" not in words[-1]:
            pair = words[-1][2:], word
        else:
            words.append(word)
            continue
        if _is_call(*pair):
            if not (word.startswith("--") and equals):
                words.pop()
            words += [f"--{option}={text}" for option, text in spelled(*pair)]
        else:
            words.append(word)
    return words


def spelled(name: str, value: str) -> Iterator[tuple[str, str]]:
    """`TraceIWAE_ELBO(num_particles=5)` as the options that say so, the class first.

    Args:
        name: The option.
        value: As the user wrote it; what is no class with arguments is given back as it is.

    Raises:
        ValueError: It cannot be read.
    """
    if not _is_call(name, value):
        yield name, value
        return
    try:
        call = ast.parse(value.strip(), mode="eval").body
    except SyntaxError:
        call = None
    if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise ValueError(
            f"option --{name}: '{value}' cannot be read; accepted is a class, or a class with its "
            "arguments by name, as TraceIWAE_ELBO(num_particles=5)"
        )
    yield name, ast.unparse(call.func)
    for keyword in call.keywords:
        yield from spelled(f"{name}.{keyword.arg}", _text(keyword.value))


def _is_call(name: str, value: str) -> bool:
    return name.partition(".")[0] in CLASSES and bool(_CALL.fullmatch(value.strip()))


def _text(node: ast.expr) -> str:
    """An argument in YAML, as the command line has it."""
    if isinstance(node, ast.Constant):
        plain = {True: "true", False: "false", None: "null"}
        if node.value is None or isinstance(node.value, bool):
            return plain[node.value]
        return str(node.value)
    return ast.unparse(node)
