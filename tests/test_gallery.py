"""Every page of the gallery has what a reader expects, and a record that fits it."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COURSE = runpy.run_path(str(ROOT / "docs" / "_ext" / "course.py"))["COURSE"]


@pytest.mark.parametrize("name", COURSE)
def test_a_page_has_its_parts(name):
    page = (ROOT / "recipes" / f"{name}.py").read_text()
    exercises = page[page.index("# Exercises\n") :]
    assert re.findall(r"^# (\d)\. ", exercises, re.M) == ["1", "2", "3"]
    assert exercises.count("# .. dropdown:: Answer\n") == 3
    assert ".. math::" in page and re.search(r"^Papers?: ", page, re.M)
    assert f"# .. recorded:: {name}\n" in page
    record = json.loads((ROOT / "docs" / "recorded" / f"{name}.json").read_text())
    assert record["cpu_seconds"] <= 300
    assert (ROOT / "docs" / "recorded" / f"{name}.png").is_file()
