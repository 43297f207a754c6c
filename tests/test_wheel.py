"""The wheel, installed and used from another folder."""

import zipfile
from pathlib import Path

import commands
import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_in_another_folder(tmp_path):
    """The dependencies, gigabytes of them, are those of the tests; `.ci/run` installs them anew."""
    commands.run("python", "-m", "pip", "wheel", "--no-deps", "-q", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("dlblocks-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "dlblocks/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert not [n for n in names if n.startswith(("tests", "recipes", "configs", "benchmarks"))]
    ours = {str(p.relative_to(ROOT)) for p in (ROOT / "dlblocks").rglob("*.py")}
    assert ours <= set(names)

    site = tmp_path / "site"
    commands.run("python", "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel)
    flags = ["--model=MLPClassifier", "--data=DigitsDataModule", "--num_folds=2", "--run_dir=run",
             "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]  # fmt: skip
    # The installed command, in a process that says which package it has found.
    code = f"""
import runpy, sys, dlblocks
print("found", dlblocks.__file__)
sys.argv = {["dlblocks", "cross-validate", *flags]!r}
runpy.run_path({str(site / "bin" / "dlblocks")!r}, run_name="__main__")
"""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = commands.run("python", "-c", code, cwd=elsewhere, env={"PYTHONPATH": site})
    assert f"found {site / 'dlblocks' / '__init__.py'}" in done.stdout
    assert "mean ± std" in done.stdout
    assert (elsewhere / "run" / "summary.json").is_file()
