"""Sphinx's configuration of the documentation site. `.ci/docs` builds it.

The pages of this folder are read as they are on a code host, so links out of the folder are relative. Here they become
links to pages of the site where there is one, and to the code host elsewhere. What is made, and not written by hand, is
made in `_made/` by `making.py` before anything is read: the API reference, the support matrix, the gallery's pictures
and copies of the notebooks.

The notebooks show the outputs that are saved in them, and nothing executes them here: the tests do, and compare every
output that does not vary with what is saved.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import making  # noqa: E402

import gpuconv  # noqa: E402

project = "gpuconv"
author = "the gpuconv authors"
copyright = "the gpuconv authors"  # noqa: A001
version = release = gpuconv.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "gallery/*.py", "**.ipynb_checkpoints", "README.md"]
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"

autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_mock_imports = [name for name in ("dask", "torch") if not making.is_there(name)]
numpydoc_show_class_members = False
default_role = "any_or_code"
templates_path = ["_templates"]

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_title = f"gpuconv {version}"
html_show_sourcelink = False
html_theme_options = {
    "github_url": making.REPOSITORY,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}


LINK = re.compile(r"\]\((\.\./[^)#]+)(#[^)]*)?\)")


def lead_links(_app, docname, source):
    """Lead relative links out of the folder to a page of the site, or to the code host."""

    def led(found):
        path, fragment = found[1].removeprefix("../").rstrip("/"), found[2] or ""
        page = making.PAGES.get(path) or (f"/_made/{path}" if path.startswith("notebooks/") else None)
        if page is None:
            return f"]({making.REPOSITORY}/blob/main/{path}{fragment})"
        return f"]({page}{fragment})"

    if not docname.startswith("_made/api"):
        source[0] = LINK.sub(led, source[0])


def as_it_was_meant(_app, _what, _name, _obj, _options, lines):
    """Read docstrings as their authors meant them: stars are stars, and what is indented is shown as it stands.

    The stars are those of products, powers and shapes. Examples are left alone.
    """
    read, shown_from, in_example, before = [], None, False, ""
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip():
            in_example = in_example or line.lstrip().startswith(">>>")
            if shown_from is not None and indent < shown_from:
                shown_from = None
            outer = len(before) - len(before.lstrip())
            follows_a_gap = bool(read) and not read[-1].strip() and before.strip()
            if follows_a_gap and shown_from is None and not in_example and indent >= outer + 4:
                shown_from = indent
                if not before.rstrip().endswith("::"):
                    read += [" " * outer + "::", ""]
            before = line
        else:
            in_example = False
        plain = in_example or shown_from is not None
        read.append(line if plain else re.sub(r"(?<!\\)\*", r"\\*", line))
    lines[:] = read


def setup(app):
    """Make what is made, and read single backquotes of docstrings as code, with a link where the name has a page."""
    from docutils import nodes
    from docutils.parsers.rst import roles
    from sphinx.addnodes import pending_xref

    def any_or_code(_name, rawtext, text, _lineno, _inliner, options=None, content=None):  # noqa: ARG001
        code = nodes.literal(rawtext, text, classes=["xref", "py", "py-obj"])
        target = making.page_of(text)
        if target is None:
            return [nodes.literal(rawtext, text)], []
        reference = pending_xref(
            "", code, refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refwarn=False
        )
        return [reference], []

    roles.register_local_role("any_or_code", any_or_code)
    making.make(HERE)
    app.connect("source-read", lead_links)
    app.connect("autodoc-process-docstring", as_it_was_meant, priority=400)  # before numpydoc
