"""Build the site: `sphinx-build -W --keep-going -j auto docs docs/_build` (see CONTRIBUTING.md)."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_args

from docutils import nodes
from sphinx.util.nodes import make_refnode

import dlblocks

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from course import PAGES  # noqa: E402 - beside the extensions

project = "dlblocks"
author = "The dlblocks authors"
release = version = dlblocks.__version__
html_title = f"dlblocks {version}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "offline",
    "recorded",
]
exclude_patterns = ["_build", "_ext"]
sphinx_gallery_conf = {
    "examples_dirs": "../recipes",
    "gallery_dirs": "gallery",
    "filename_pattern": rf"/({'|'.join(PAGES)})\.py$",
    "ignore_pattern": rf"^(?!({'|'.join(PAGES)})\.py)\w+\.py$",
    "within_subsection_order": "course.by_course",
    "reset_argv": "course.short_run",
    "image_scrapers": (),  # figures are recorded
    "capture_repr": (),
    "default_thumb_file": str(HERE / "recorded" / "mlp.png"),
    "abort_on_example_error": True,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 1e9,  # the time of the short run says nothing
    "reset_modules": (),
}
html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"top_of_page_buttons": []}
html_copy_source = False
html_show_search_summary = False  # it would fetch pages, which a browser forbids for files
html_show_sphinx = False
html_show_copyright = False
toc_object_entries_show_parents = "hide"
pygments_style = "friendly"
pygments_dark_style = "native"

# `name` in a docstring is code, and a link where it names something of ours.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # Lightning's would be shown with each of our hooks
python_maximum_signature_line_length = 80
napoleon_use_rtype = False
napoleon_use_ivar = True
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

MODULES = [
    "dlblocks",
    "dlblocks.callbacks",
    "dlblocks.cli",
    "dlblocks.crossval",
    "dlblocks.crossval.statistics",
    "dlblocks.data",
    "dlblocks.engine",
    "dlblocks.ensembles",
    "dlblocks.fields",
    "dlblocks.loading",
    "dlblocks.losses",
    "dlblocks.metrics",
    "dlblocks.models",
    "dlblocks.models.sample_quality",
    "dlblocks.nets",
    "dlblocks.optim",
    "dlblocks.plots",
    "dlblocks.runs",
    "dlblocks.tasks",
    "dlblocks.tracking",
]


def public_names(name: str) -> list[str]:
    """Return `__all__` of a module, or else the functions and classes that it defines."""
    module = importlib.import_module(name)
    if hasattr(module, "__all__"):
        return [n for n in module.__all__ if n != "__version__"]
    return [
        n
        for n, value in vars(module).items()
        if not n.startswith("_") and getattr(value, "__module__", None) == name
    ]


def is_private(cls: type) -> bool:
    """Tell whether a class of this package is not in the API."""
    path = f"{cls.__module__}.{cls.__name__}"
    return path.startswith("dlblocks.") and "._" in path


def public_bases(app: Any, name: str, obj: Any, options: Any, bases: list[Any]) -> None:
    """Show the bases of private bases in their place."""
    while private := [base for base in bases if isinstance(base, type) and is_private(base)]:
        at = bases.index(private[0])
        bases[at : at + 1] = [base for base in private[0].__bases__ if base not in (*bases, object)]


def api_page(name: str) -> str:
    """Return the page of a module: its docstring, a table of names, and each of them."""
    module = importlib.import_module(name)
    lines = [name, "=" * len(name), "", f".. automodule:: {name}", "   :no-members:", ""]
    names = public_names(name)
    documented = [n for n in names if callable(getattr(module, n))]
    lines += [".. autosummary::", "   :nosignatures:", "", *(f"   {n}" for n in documented), ""]
    for n in names:
        value = getattr(module, n)
        if inspect.isclass(value):
            lines += [f".. autoclass:: {n}", "   :members:"]
            known = [base.__name__ for base in value.__mro__[1:] if not is_private(base)]
            if len(known) < len(value.__mro__) - 1:  # what private bases define is shown here
                lines += [f"   :inherited-members: {', '.join(known)}"]
            lines += ["   :show-inheritance:", ""] if value.__bases__ != (object,) else [""]
        elif inspect.isroutine(value):
            lines += [f".. autofunction:: {n}", ""]
        else:
            lines += [f".. data:: {n}", "", f"   {constant(value)}", ""]
    return "\n".join(lines)


def constant(value: Any) -> str:
    """Return what the page says of a constant: its value, or the keys of a dictionary."""
    values = value if isinstance(value, dict | tuple) else get_args(value) or [value]
    return ", ".join(f"``{item!r}``" for item in values)


def api_index() -> str:
    """Return the page that lists the modules."""
    hidden = [".. toctree::", "   :hidden:", "", *(f"   {name}" for name in MODULES), ""]
    table = [".. autosummary::", "", *(f"   {name}" for name in MODULES), ""]
    text = (
        "Every public name has its place here. Names that begin with an underscore are not public."
    )
    return "\n".join(["API", "===", "", text, "", *table, *hidden])


def write_api(app: Any) -> None:
    """Write the pages of the modules, those that changed."""
    (HERE / "api").mkdir(exist_ok=True)
    for name in ("index", *MODULES):
        path = HERE / "api" / f"{name}.rst"
        text = api_index() if name == "index" else api_page(name)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def plain_signature(
    app: Any,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Write the default of a field as Sphinx can read it, which then shortens the types."""
    return signature and signature.replace("<factory>", "..."), returns


def adapt(text: str) -> str:
    """Turn links of a file of the repository into links of the site, or into plain code."""

    def link(found: re.Match[str]) -> str:
        label, path = found[1], found[2]
        if path.startswith("dlblocks/"):
            return f'<a href="../_modules/{path.removesuffix(".py")}.html"><code>{label}</code></a>'
        return found[0] if path.startswith("docs/") else f"`{label}`"

    text = re.sub(r"\[([^]]+)\]\(((?:dlblocks|tests|recipes|docs)/[^)]*)\)", link, text)
    return text.replace("](docs/", "](../").replace("](CONTRIBUTING.md)", "](contributing.md)")


def adapt_included(app: Any, path: Path, parent: str, content: list[str]) -> None:
    """Adapt what a page includes from the root of the repository."""
    content[0] = adapt(content[0])


def adapt_page(app: Any, name: str, content: list[str]) -> None:
    """Adapt the one link of the pages that leaves this folder."""
    content[0] = content[0].replace("](../CONTRIBUTING.md)", "](project/contributing.md)")


def short_names(app: Any) -> dict[str, tuple[str, str]]:
    """Return full name and page of each class and function of the API, by its short name."""
    found: dict[str, tuple[str, str]] = {}
    for full, entry in app.env.domains["py"].objects.items():
        short = full.rpartition(".")[2]
        is_telling = short == "load" or re.search("[A-Z_]", short)
        if entry.objtype in ("class", "function", "exception") and is_telling:
            found[short] = min(found.get(short, (full, "")), (full, entry.docname), key=len_of_name)
    return {short: (full, page or "") for short, (full, page) in found.items()}


def len_of_name(entry: tuple[str, str]) -> int:
    """Rank names: `dlblocks.load` before `dlblocks.models.load`."""
    return len(entry[0]) + (0 if entry[1] else 1)


def resolve(app: Any, env: Any, node: Any, text: Any) -> Any:
    """Link a name in a docstring that Sphinx knows under its full name only."""
    found = short_names(app).get(node["reftarget"]) if node["reftype"] == "obj" else None
    if found is None:
        return None
    return make_refnode(app.builder, node["refdoc"], found[1], found[0], text)


def link_names(app: Any, doctree: Any, page: str) -> None:
    """Link names of the API in the running text of the pages."""
    if page.startswith("api/"):
        return
    names = short_names(app)
    for node in list(doctree.findall(nodes.literal)):
        match = re.fullmatch(r"(?:dlblocks\.)?(\w+)(\(.*\))?", node.astext())
        inside = (nodes.title, nodes.reference)
        if match and match[1] in names and not isinstance(node.parent, inside):
            full, home = names[match[1]]
            node.replace_self(make_refnode(app.builder, page, home, full, node.deepcopy()))


def setup(app: Any) -> None:
    """Connect the steps above to Sphinx."""
    app.connect("builder-inited", write_api)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-process-bases", public_bases)
    app.connect("source-read", adapt_page)
    app.connect("include-read", adapt_included)
    app.connect("missing-reference", resolve)
    app.connect("doctree-resolved", link_names)
