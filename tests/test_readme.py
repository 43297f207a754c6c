"""Every block of Python in the README runs in order, for fewer epochs, folds and models."""

import re
import runpy
from pathlib import Path

import forked
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def churn():
    """A table as companies have them: identifiers, dates, households, gaps, 1 : 9 classes."""
    rng, rows = np.random.default_rng(0), []
    for i in range(600):
        day = np.datetime64("2020-01-01") + int(rng.integers(0, 1500))
        charge = "" if rng.random() < 0.05 else f"{rng.normal(70, 20):.2f}"
        plan = rng.choice(["basic", "family", "premium", ""], p=[0.5, 0.3, 0.15, 0.05])
        churned = "yes" if rng.random() < 0.1 else "no"
        rows.append(f"C{i:05d},{day},{i // 2},city {rng.integers(0, 80)},{plan},{charge},{churned}")
    header = "customer_id,signed_up,household,city,plan,monthly_charge,churned"
    return "\n".join([header, *rows]) + "\n"


def run_script(path):
    runpy.run_path(path, run_name="__main__")


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    assert len(blocks) >= 6
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(5):
            pixels = np.random.default_rng(i).integers(0, 255, (70, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{i}.jpg")
    (tmp_path / "churn.csv").write_text(churn())
    new = [line.rpartition(",")[0] for line in churn().splitlines()[:50]]
    (tmp_path / "new_customers.csv").write_text("\n".join(new) + "\n")
    script, count = re.subn(r'(max_epochs(?:": |=))\d+', r"\g<1>2", "\n".join(blocks))
    assert count >= 6
    script, count = re.subn(r"(num_(?:folds|members|stages)=)\d+", r"\g<1>2", script)
    assert count >= 5
    (tmp_path / "readme.py").write_text(script)
    forked.run(run_script, "readme.py", timeout=300)
    said = (tmp_path / "said-0.txt").read_text()
    assert "val_acc" in said
    assert (tmp_path / "runs" / "own" / "report.html").is_file()
    assert (tmp_path / "batch.png").is_file()
    predicted = (tmp_path / "predictions.csv").read_text().splitlines()
    assert len(predicted) == 50 and predicted[0].endswith("in_set_no,in_set_yes")
    assert "test/accuracy" in said
