"""What is shown of a class: how it is called, and which of its bases have a page."""

import inspect
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import signature as get_signature
from sphinx.util.inspect import stringify_signature

from ppl_vae.configurable import Configurable


def call(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returned: str
) -> tuple[str, str | None]:
    """A class that keeps its arguments is called as its `__init__`, not as its `__new__`."""
    if what != "class" or not issubclass(obj, Configurable) or obj.__init__ is object.__init__:
        return signature, returned
    found = get_signature(obj.__init__, bound_method=True)
    found = found.replace(return_annotation=inspect.Signature.empty)
    return stringify_signature(found, unqualified_typehints=True), None


def bases(app: Sphinx, name: str, obj: Any, options: Any, found: list[type]) -> None:
    """In place of a private base, its own bases."""
    shown = []
    for base in found:
        private = base.__module__.startswith("ppl_vae") and base.__name__.startswith("_")
        shown += base.__bases__ if private else [base]
    found[:] = [base for base in shown if base is not object]


def setup(app: Sphinx) -> dict[str, Any]:
    """Has autodoc ask."""
    app.connect("autodoc-process-signature", call)
    app.connect("autodoc-process-bases", bases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
