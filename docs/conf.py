"""Sphinx configuration. Reads the package's source for the reference; imports nothing of it."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "airflow_ml_provider"

project = "airflow-ml-provider"
author = "The airflow-ml-provider authors"
project_copyright = author
release = version = re.search(r'^__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text(), re.MULTILINE)[1]

extensions = ["myst_parser", "sphinx.ext.napoleon", "autoapi.extension"]
exclude_patterns = ["_build", "requirements.txt"]
root_doc = "index"
nitpicky = False
# Docstrings and comments write code in single backticks.
default_role = "code"

html_theme = "furo"
html_title = f"airflow-ml-provider {release}"
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist", "substitution", "attrs_inline"]
myst_heading_anchors = 3

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

autoapi_dirs = [str(PACKAGE)]
autoapi_root = "reference"
autoapi_add_toctree_entry = False
autoapi_options = ["members", "show-inheritance", "show-module-summary"]
autoapi_python_class_content = "class"
autoapi_member_order = "bysource"
autoapi_keep_files = False
# The reference is what users and authors of stages call; how a stage does its work is in its source.
autoapi_ignore = [
    "*/plugins/*", "*/cli/*", "*/templates/_[!_]*", "*/operators/_[!_]*", "*/sensors/_[!_]*", "*/registry/_[!_]*",
    "*/__main__.py",
]  # fmt: skip
# What is left out of the reference cannot be resolved by it.
suppress_warnings = ["autoapi.python_import_resolution"]
_CODE = re.compile(r"(`+[^`]+`+)")
_STAGE_MODULES = {"spec", "checks", "series"}


def skip_member(app, what, name, obj, skip, options):
    """Leave out the inside of stages, and what is private."""
    parts = name.split(".")
    if parts[-1].startswith("_"):
        return True
    inside = parts[:2] == ["airflow_ml_provider", "stages"] and len(parts) > 2
    if what == "module" and inside and parts[-1] not in _STAGE_MODULES:
        return True
    return skip


def as_rst(app, what, name, obj, options, lines):
    """Rewrite docstrings, plain text with `code` in backticks, so that nothing in them is markup by chance."""
    for index, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...", "|")):
            continue
        parts = _CODE.split(line)
        for at, part in enumerate(parts):
            if at % 2:
                parts[at] = f"``{part.strip('`')}``"
                if parts[at + 1][:1].isalnum():
                    parts[at] += "\\ "
            else:
                parts[at] = re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part)
        lines[index] = "".join(parts)


def setup(app):
    """Register the filter of the reference, and its reader of docstrings before napoleon's."""
    app.connect("autoapi-skip-member", skip_member)
    app.connect("autodoc-process-docstring", as_rst, priority=100)
