"""Sphinx directive ``.. recorded:: NAME``: what a page printed when it ran in full, and a figure.

The records are made by ``python docs/record.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from PIL import Image, ImageOps

FOLDER = Path(__file__).parent.parent / "recorded"
THUMBNAIL = (400, 280)  # pixels


class Recorded(Directive):
    """Show the record of a page."""

    required_arguments = 1
    option_spec: ClassVar = {"figure": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        file = FOLDER / f"{name}.json"
        if not file.exists():
            raise self.error(f"{file} does not exist; run `python docs/record.py {name}`.")
        self.state.document.settings.record_dependencies.add(str(file))
        found = json.loads(file.read_text(encoding="utf-8"))
        versions = ", ".join(f"{key} {value}" for key, value in found["versions"].items())
        said = (
            f"The page in full: {found['cpu_seconds']} s of processor time on one thread of "
            f"{found['hardware']} ({versions}; {found['date']})."
        )
        if found["seconds"] > 1.5 * found["cpu_seconds"]:
            said += (
                f" The machine had other work, so the clock showed {found['seconds']} s; seconds "
                "in tables are by the clock, too."
            )
        shown: Any = nodes.literal_block(found["output"], found["output"], language="none")
        image = nodes.image(
            uri=f"/recorded/{name}.png", alt=f"Figure of {name}: {self.options['figure']}"
        )
        # Under title, so that the search finds no numbers of other machines without their place.
        return [nodes.paragraph("", said), shown, nodes.figure("", image)]


def write_thumbnails(app: Any) -> None:
    """Give each page of the gallery its recorded figure as thumbnail."""
    for file in (Path(app.srcdir) / "gallery" / "images" / "thumb").glob("sphx_glr_*_thumb.png"):
        figure = FOLDER / f"{file.name[len('sphx_glr_') : -len('_thumb.png')]}.png"
        if figure.exists():
            with Image.open(figure) as image:
                ImageOps.pad(image.convert("RGB"), THUMBNAIL, color="white").save(file)


def setup(app: Any) -> dict[str, bool]:
    """Register the directive and the thumbnails."""
    app.add_directive("recorded", Recorded)
    app.connect("builder-inited", write_thumbnails, priority=900)  # sphinx-gallery writes its own
    return {"parallel_read_safe": True}
