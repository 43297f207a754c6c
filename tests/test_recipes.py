"""Every recipe runs, and says what it takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
COMMON = ("run_dir", "logger", "fast_dev_run", "accelerator", "devices", "precision", "seed")


def run(recipe, *flags):
    return subprocess.run(
        [sys.executable, recipe, *flags], capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs(recipe, tmp_path):
    done = run(recipe, "--fast_dev_run", "--run_dir=out", "--accelerator=cpu")
    assert done.returncode == 0, done.stderr
    assert "Everything is in out" in done.stdout
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    assert list((tmp_path / "out" / "figures").glob("*.png"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_explains_itself(recipe):
    done = run(recipe, "--help")
    assert done.returncode == 0
    for name in COMMON:
        assert f"--{name}" in done.stdout
    assert "{csv,wandb,tensorboard,none}" in done.stdout
    opening = recipe.read_text().split('"""')[1]
    assert "Result:" in opening  # figure, hardware, versions


def test_kfold_mixes_and_measures_its_baseline(tmp_path):
    recipe = ROOT / "recipes" / "kfold.py"
    for mix in ("mixup", "cutmix"):
        done = run(
            recipe, f"--mix={mix}", "--max_epochs=1", "--num_folds=2", f"--run_dir={mix}",
            "--baseline", "--accelerator=cpu",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "scikit-learn's RBF SVM on the same folds: accuracy 0.9" in done.stdout
        assert "fold 2/2" in done.stderr
        assert "left" in done.stderr
        assert (tmp_path / mix / "figures" / "hardest.png").is_file()


def test_recipes_say_what_is_wrong():
    done = run(ROOT / "recipes" / "kfold.py", "--sead=3")
    assert done.returncode == 2
    assert "did you mean 'seed'" in done.stderr
    done = run(ROOT / "recipes" / "kfold.py", "--num_folds=1")
    assert done.returncode == 2
    assert "num_folds=1" in done.stderr
    assert "Traceback" not in done.stderr
