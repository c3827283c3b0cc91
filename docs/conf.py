"""Sphinx configuration of the documentation site: `make docs`."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

from command_reference import command_reference

project = "delta-transfer"
author = "The delta-transfer developers"
release = version = version_of("delta-transfer")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
highlight_language = "none"  # of indented blocks: commands and formulas
myst_heading_anchors = 4  # links to headings as GitHub has them

# A broken reference is a warning, and in `make docs` an error. References to other libraries would
# need their inventories, which would be downloaded.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!delta_transfer\.).*"),
    ("py:class", r"delta_transfer\.data\.task\.Split"),  # of `Evaluation.split`, which is private
    ("py:class", r"delta_transfer\.backbones\.base\.GraphInputs"),  # of `GraphSpec.example`
    ("py:class", r"delta_transfer\.utils\.type_hints\.Bounds"),  # of the annotations of options
]

default_role = "code"  # of single backticks in docstrings
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"delta-transfer {release}"
html_copy_source = False
html_show_copyright = False

# Subpages of a page, in this order; `*` is all remaining ones. They are here and not in the pages
# because those are also read on GitHub.
_PAGES = {
    "index": ("tutorial", "guides/README", "methods/README", "commands", "api/README", "*"),
    "guides/README": ("*",),
    "methods/README": ("*",),
    "api/README": ("*",),
}


def _complete(app: Sphinx, page: str, source: list[str]) -> None:
    """Add the table of contents and the options, which the files leave out."""
    if page == "commands":
        source[0] += command_reference()
    if page in _PAGES:
        below = "\n".join(_PAGES[page])
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{below}\n```\n"


def _escape(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Escape asterisks of file patterns such as `CLASS/*`, which are not emphasis."""
    lines[:] = [line.replace("/*", r"/\*") for line in lines]


def setup(app: Sphinx) -> None:
    """Connect the handlers; Sphinx calls this at its start."""
    app.connect("source-read", _complete)
    app.connect("autodoc-process-docstring", _escape, priority=400)  # before napoleon
