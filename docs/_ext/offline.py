"""Sphinx extension: formulas as MathML, and a check of all links and names after the build.

Nothing that a reader's browser would load from another place: formulas need no MathJax.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError

import dlblocks


def inline_math(self: Any, node: nodes.Element) -> None:
    """Write a formula within the text."""
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def block_math(self: Any, node: nodes.Element) -> None:
    """Write a formula on lines of its own."""
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def public_modules() -> list[str]:
    """Return the modules that list public names in `__all__`."""
    found = [dlblocks.__name__]
    for module in pkgutil.walk_packages(dlblocks.__path__, "dlblocks."):
        if not re.search(r"\._", module.name) and hasattr(
            importlib.import_module(module.name), "__all__"
        ):
            found.append(module.name)
    return found


def missing_names(env: Any) -> list[str]:
    """Return public names that no page of the API has."""
    known = env.domains["py"].objects
    return [
        f"{module}.{name}"
        for module in public_modules()
        for name in importlib.import_module(module).__all__
        if name != "__version__" and f"{module}.{name}" not in known
    ]


def broken_links(folder: Path) -> list[str]:
    """Return links of the site to files or places in them that do not exist."""
    pages = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}
    places = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    broken = []
    for path, text in pages.items():
        if "_modules" in path.parts:
            continue  # sphinx.ext.viewcode links each method, documented or not
        for link in set(re.findall(r'\b(?:href|src)="([^"]+)"', text)):
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                if f'src="{link}"' in text:
                    broken.append(f"{path.relative_to(folder)} loads {link}")
                continue
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            is_place = not parts.fragment or target not in places
            if not target.exists() or not (is_place or unquote(parts.fragment) in places[target]):
                broken.append(f"{path.relative_to(folder)} has {link}")
    return broken


def check(app: Any, error: Exception | None) -> None:
    """Fail where a public name has no place, or a link leads nowhere."""
    if error is not None or app.builder.name != "html":
        return
    wrong = [f"not in the API: {name}" for name in missing_names(app.env)]
    wrong += [f"broken link: {link}" for link in broken_links(Path(app.outdir))]
    if wrong:
        raise ExtensionError("\n".join(["the site is not complete:", *sorted(wrong)]))


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer and the check."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("build-finished", check, priority=900)  # the theme writes a file then, too
    return {"parallel_read_safe": True, "parallel_write_safe": True}
