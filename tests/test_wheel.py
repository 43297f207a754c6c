"""The wheel, installed into a new environment and used from another folder."""

import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import commands
import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_in_a_new_environment(tmp_path):
    commands.run("python", "-m", "pip", "wheel", "--no-deps", "-q", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("dlblocks-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "dlblocks/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert not [n for n in names if n.startswith(("tests", "recipes", "configs", "benchmarks"))]
    ours = {str(p.relative_to(ROOT)) for p in (ROOT / "dlblocks").rglob("*.py")}
    assert ours <= set(names)

    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    commands.run(python, "-m", "pip", "install", "-q", "--no-deps", wheel, cwd=tmp_path)
    # The dependencies, gigabytes of them, are borrowed; `.ci/run` installs them anew once.
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = commands.run(python, "-c", where).stdout.strip()
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    code = """
import dlblocks, pathlib
from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier
assert "venv" in dlblocks.__file__, dlblocks.__file__
result = cross_validate(lambda: MLPClassifier(64, 10), DigitsDataModule(), num_folds=2,
                        trainer={"max_epochs": 1, "accelerator": "cpu"}, run_dir="run")
print(result.table())
"""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = commands.run(python, "-c", code, cwd=elsewhere)
    assert "mean ± std" in done.stdout
    assert (elsewhere / "run" / "summary.json").is_file()
    script = python.parent / "dlblocks"
    assert "cross-validate" in commands.run(script, "--help").stdout
