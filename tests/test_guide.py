"""Every block of Python of the guide runs as printed, in order, for fewer epochs and folds."""

import os
import re
import time
from pathlib import Path

import example_files
import forked
import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [DOCS / "get_started.md", *sorted((DOCS / "guide").glob("*.md"))]
FEWER = {
    r"(max_epochs(?:\": |=))\d+": r"\g<1>1",
    r"((?:num_members|num_stages|inner_folds)=)\d+": r"\g<1>2",
    r"(likelihood_steps=)\d+": r"\g<1>1",
    r"(num_folds=)\d+": r"\g<1>2, figures=False",
}


def script_of(page):
    text = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M))
    for pattern, fewer in FEWER.items():
        text = re.sub(pattern, fewer, text)
    return text


def run_pages(folder):
    """Run the pages one after another in this process, each in a folder and names of its own."""
    os.environ["WANDB_MODE"] = "offline"
    for page in PAGES:
        script = script_of(page)
        if not script:
            continue
        place = Path(folder) / page.stem
        place.mkdir()
        example_files.write(place)
        os.chdir(place)
        start = time.process_time()
        print(f"== {page.name}", flush=True)
        exec(compile(script, str(page), "exec"), {"__name__": "__main__"})
        print(f"== {time.process_time() - start:.1f} s of CPU time", flush=True)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # 40 s of CPU time, on a machine that may be busy
def test_the_blocks_of_all_pages_run(tmp_path):
    with_code = [page.stem for page in PAGES if script_of(page)]
    assert len(with_code) >= 15
    (tmp_path / "pages").mkdir()
    forked.run(run_pages, str(tmp_path / "pages"), timeout=1400)
    done = tmp_path / "pages"
    assert {path.name for path in done.iterdir()} == set(with_code)
    assert (done / "get_started" / "runs" / "digits" / "report.html").is_file()
    assert (done / "wandb" / "runs" / "digits-mlp").is_dir()
    assert (done / "tables_and_photographs" / "predictions.csv").is_file()


def test_links_of_the_pages_have_no_address_of_this_machine():
    for page in DOCS.rglob("*.md"):
        assert "/work/" not in page.read_text() and "/tmp/" not in page.read_text(), page
