"""A page for each experiment, of its own README: figures are never copied by hand."""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s]+)(?=\))")
# From one experiment's folder to another's.
_NEXT_DOOR = re.compile(r"\.\./(\w+)/?")
_INDEX = """# Results

Every table and figure here is read from `experiments/` when the pages are built: the question, the
command, the commit, the seeds, the machine, means with standard errors, what was expected and what
was found. `make experiments` makes them anew.

| experiment | question | run |
|---|---|---|
{rows}

```{{toctree}}
:hidden:

{names}
```
"""


def write_pages(app: Sphinx) -> None:
    """Writes `results/`, one page an experiment, and their index."""
    folder = Path(app.srcdir) / "results"
    folder.mkdir(exist_ok=True)
    rows, names = [], []
    for readme in sorted(Path(app.srcdir).parent.glob("experiments/*/README.md")):
        text, name = readme.read_text(), readme.parent.name
        is_run = (readme.parent / "results.json").exists()
        title = text.partition("\n")[0].removeprefix("# ")
        rows.append(f"| [{name}]({name}.md) | {title} | {'yes' if is_run else 'not yet'} |")
        names.append(name)
        _write(folder / f"{name}.md", _linked(text, name))
    _write(folder / "index.md", _INDEX.format(rows="\n".join(rows), names="\n".join(names)))


def _linked(text: str, name: str) -> str:
    """Links of a README as they lead from its page: to files of its folder, and to other pages."""

    def placed(found: re.Match[str]) -> str:
        page = _NEXT_DOOR.fullmatch(found[0])
        return f"{page[1]}.md" if page else f"../../experiments/{name}/{found[0]}"

    return _LINK.sub(placed, text)


def _write(path: Path, text: str) -> None:
    # A page that is as it was keeps its time, and is not read again.
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Writes the pages before Sphinx looks for them."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
