"""How the pages are built: `make docs`. Every block of code in them is run, and must be silent."""

import logging
import os
import sys
from hashlib import blake2b
from importlib.metadata import distribution
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "ppl_vae"
author = "The ppl_vae developers"
project_copyright = "The ppl_vae developers"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "linked_names",
    "results_pages",
    "shown_classes",
]
exclude_patterns = ["extend"]
nitpicky = True

html_theme = "furo"
html_title = "ppl_vae"
# Formulas are drawn by a file of ours, one that needs no fonts: nothing is fetched from elsewhere.
_mathjax = distribution("sphinx-mathjax-offline").locate_file(
    "sphinx-mathjax-offline/static/mathjax/tex-svg.js"
)
html_static_path = ["static", str(_mathjax)]
mathjax_path = "tex-svg.js"
html_favicon = "static/favicon.svg"
html_css_files = ["ppl_vae.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072b2", "color-brand-content": "#0072b2"},
    "dark_css_variables": {"color-brand-primary": "#56b4e9", "color-brand-content": "#56b4e9"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Docstrings.
default_role = "literal"
add_module_names = False
autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# Types of other packages, of whose pages nothing is fetched; and one that only `fit` makes.
nitpick_ignore_regex = [(r"py:.*", r"(?!ppl_vae\.).*|ppl_vae\.course\.Course")]

# Pages.
myst_enable_extensions = ["amsmath", "attrs_inline", "deflist", "dollarmath"]
myst_heading_anchors = 3
# What a block printed is kept under the text of all that it ran on, so that no page is stale.
_sources = [*sorted((HERE.parent / "ppl_vae").rglob("*.py")), *sorted(HERE.glob("extend/*.py")),
            HERE / "conf.py", HERE / "matplotlibrc"]  # fmt: skip
_digest = blake2b(b"".join(path.read_bytes() for path in _sources), digest_size=8).hexdigest()
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "blocks" / _digest)
nb_execution_timeout = 1800
nb_execution_raise_on_error = True
nb_output_stderr = "error"
nb_merge_streams = True
# The blocks' own world: one thread, the look of the library's figures, nothing said of the machine.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MATPLOTLIBRC": str(HERE / "matplotlibrc"),
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE / "extend")]),
    "COLUMNS": "84",
    # A bar for notebooks, which Pyro asks for and no page shows.
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "IPYTHONDIR": str(HERE.parent / "build" / "ipython"),
}
logging.getLogger("traitlets").setLevel(logging.WARNING)


def write_kernel_settings(app):
    """The kernel keeps no history, and says nothing but what a block prints."""
    folder = Path(os.environ["IPYTHONDIR"]) / "profile_default"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ipython_kernel_config.py").write_text(
        "c = get_config()\nc.IPKernelApp.log_level = 40\nc.HistoryManager.enabled = False\n"
        "c.IPKernelApp.matplotlib = 'inline'\n"
        "c.InlineBackend.print_figure_kwargs = {'bbox_inches': None}\n"
    )


def setup(app):
    """Sphinx calls it."""
    app.connect("builder-inited", write_kernel_settings)
