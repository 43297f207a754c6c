"""The blocks of Python in the README run, for fewer epochs and folds; its links lead somewhere."""

import re
import runpy
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def run_script(path):
    runpy.run_path(path, run_name="__main__")


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)
    script, count = re.subn(r'(max_epochs(?:": |=))\d+', r"\g<1>2", "\n".join(blocks))
    assert blocks and count >= 1
    script = re.sub(r"(num_folds=)\d+", r"\g<1>2", script)
    (tmp_path / "readme.py").write_text(script)
    forked.run(run_script, "readme.py", timeout=550)
    assert "val_acc" in (tmp_path / "said-0.txt").read_text()
    assert (tmp_path / "runs" / "own" / "report.html").is_file()


def test_links_lead_to_files():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_commands_are_marked_for_ci():
    for mark in ("main job", "tests"):
        block = README.split(f"<!-- {mark} -->\n```bash\n")[1].split("```")[0]
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install -q ")
