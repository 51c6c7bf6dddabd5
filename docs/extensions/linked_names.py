"""A public name in code type, `VAE` or `evaluate.log_marginal`, becomes a link to its entry."""

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

# What a single word may mean; methods and attributes have too many namesakes.
_KINDS = ("class", "function", "exception")
_NAME = re.compile(r"([A-Za-z_][\w.]*)(\(.*\))?")
_NOT_INSIDE = (nodes.reference, nodes.title, addnodes.pending_xref, addnodes.desc_signature)


class LinkedNames(SphinxPostTransform):
    """Puts a reference around each literal that names one public object and no other."""

    default_priority = 800

    def run(self, **kwargs: Any) -> None:
        """Changes the page in place."""
        for literal in list(self.document.findall(nodes.literal)):
            match = _NAME.fullmatch(literal.astext())
            found = self._find(match[1]) if match and not _inside(literal) else None
            if found is not None:
                builder, here = self.app.builder, self.env.current_document.docname
                page, anchor, name = found
                link = make_refnode(builder, here, page, anchor, [literal.copy()], name)
                link[0].extend(child.deepcopy() for child in literal.children)
                literal.replace_self(link)

    def _find(self, name: str) -> tuple[str, str, str] | None:
        objects = self.env.domains["py"].data["objects"]
        full = [o for o in (name, f"ppl_vae.{name}") if o in objects and "." in o]
        if not full:
            full = [
                o for o, entry in objects.items()
                if o.endswith(f".{name}") and entry.objtype in _KINDS and not entry.aliased
            ]  # fmt: skip
        if len(full) != 1:
            return None
        entry = objects[full[0]]
        return entry.docname, entry.node_id, full[0]


def _inside(literal: nodes.literal) -> bool:
    parent = literal.parent
    while parent is not None:
        if isinstance(parent, _NOT_INSIDE):
            return True
        parent = parent.parent
    return False


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the transform."""
    app.add_post_transform(LinkedNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
