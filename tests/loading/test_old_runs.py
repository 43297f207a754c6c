"""Runs and checkpoints of version 0.1.0 load with the same numbers, or are refused clearly.

`old_runs.py` has made them with the code of that version, and says how.
"""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import old_runs
import pytest
import torch
from torch import nn

import dlblocks
from dlblocks.cli import main
from dlblocks.crossval import load_result
from dlblocks.ensembles.results import BaggingResult
from dlblocks.models import load
from dlblocks.nets import Preprocess

CROSS = [name for name in old_runs.CALLS if name.startswith("cv")]
KILLED = [f"killed-{name}" for name in old_runs.KILLED]
MODELS = [
    "mlp", "embeddings", "weighted", "regressor", "cnn", "classifier", "regressor-net", "voting",
    "voting-hard", "voting-values",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(old_runs.ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def predicted(runs) -> dict[str, np.ndarray]:
    """What version 0.1.0 predicted."""
    with np.load(runs / "predicted.npz") as file:
        return dict(file)


def raw_inputs(name: str, predicted: dict[str, np.ndarray]) -> torch.Tensor:
    found = {
        "cv-table": predicted["features"],
        "cv-images": old_runs.images()[:6],
        "cv-own": (old_runs.values(6) - 5) / 50,
    }
    return torch.as_tensor(found.get(name, old_runs.values(6)))


def prediction(model, inputs: torch.Tensor) -> np.ndarray:
    return dlblocks.load(model).predict(inputs, progress_bar=False).prediction


def statistics(predicted: dict[str, np.ndarray], name: str) -> Preprocess:
    found = {key: torch.tensor(predicted[f"{name}/{key}"]) for key in ("scale", "shift")}
    return Preprocess().set(**found)


def same(found, expected) -> None:
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(np.reshape(found, expected.shape), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*CROSS, "bagging", "deep-ensemble"])
def test_a_folder_whose_models_know_their_inputs_predicts_the_same(runs, predicted, name):
    """Folds and members say how each normalised its inputs."""
    own = {"module": old_runs.Own} if name == "cv-own" else {}
    model, inputs = dlblocks.load(runs / name, **own), raw_inputs(name, predicted)
    found = model.model(inputs) if own else prediction(model.model, inputs)
    same(found, predicted[name])


@pytest.mark.parametrize("name", [*CROSS, "nested"])
def test_a_result_keeps_scores_and_predictions(runs, predicted, name, capsys):
    result = load_result(runs / name)
    if name == "nested":
        same(result.values("val/loss"), predicted[name])
        assert "param_lr" in result.to_pandas("search")
    else:
        same(result.oof.prediction, predicted[f"{name}/oof"])
    assert "val/loss" in result.report().read_text() and result.table()


def test_the_command_line_opens_old_folders(runs, predicted, tmp_path, capsys):
    main(["report", str(runs / "cv")])
    main(["compare", str(runs / "cv"), str(runs / "cv-vectorized"), "--output", "page.html"])
    assert Path("page.html").is_file()
    assert "cv-vectorized" in capsys.readouterr().out
    for name, said in [("single", "did not save how"), ("cv-table", "how inputs are made of it")]:
        with pytest.raises(SystemExit):
            main(["predict", str(runs / name), "--input", str(runs / "table.csv")])
        error = capsys.readouterr().err
        assert "written by an earlier version" in error and said in error


@pytest.mark.parametrize("name", ["single", "single-values", "boosting"])
def test_a_fit_is_refused_until_it_gets_its_normalisation(runs, predicted, name):
    """Its checkpoint does not say how the datamodule normalised the inputs."""
    path = next((runs / name / "checkpoints").glob("best.ckpt"))
    for opened in (runs / name, path):
        with pytest.raises(ValueError, match=r"best\.ckpt was written by an earlier version.*data"):
            dlblocks.load(opened)
    model = load(path, preprocess=statistics(predicted, name))
    same(prediction(model, raw_inputs(name, predicted)), predicted[name])


def test_the_datamodule_knows_the_normalisation(runs, predicted, make_trainer):
    """The parts of data are the same in both versions, so the cure in the error works."""
    data = old_runs.class_data(test_fraction=0.2)
    data.setup()
    same(data.preprocess.scale, predicted["single/scale"])
    path = runs / "single" / "checkpoints" / "best.ckpt"
    model = load(path, preprocess=data.preprocess)
    old = dlblocks._files.read_json(runs / "single" / "summary.json", "")["metrics"]
    [scores] = make_trainer().test(model, data, verbose=False)
    assert scores["test/loss"] == pytest.approx(old["test/loss"], rel=1e-5)
    model.save("again.ckpt")  # from now on it has its statistics
    again = dlblocks.load("again.ckpt").model
    same(prediction(again, raw_inputs("single", predicted)), predicted["single"])


def test_a_trainer_refuses_an_old_checkpoint_without_statistics(runs, make_trainer):
    data = old_runs.class_data(test_fraction=0.2)
    path = runs / "single" / "checkpoints" / "best.ckpt"
    with pytest.raises(ValueError, match="did not save how inputs were normalised"):
        make_trainer().test(old_runs.mlp(), data, ckpt_path=path, verbose=False)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_trainer_goes_on_from_an_old_checkpoint(runs, predicted, make_trainer):
    """A fit has statistics before it loads the weights."""
    trainer, model = make_trainer(max_epochs=3), old_runs.mlp()
    path = runs / "single" / "checkpoints" / "best.ckpt"
    trainer.fit(model, old_runs.class_data(test_fraction=0.2), ckpt_path=path)
    assert trainer.current_epoch == 3 and trainer.global_step == 9
    same(model.preprocess.scale, predicted["single/scale"])


@pytest.mark.parametrize("name", MODELS)
def test_a_bare_checkpoint_needs_its_normalisation(runs, predicted, name):
    path = runs / "models" / f"{name}.ckpt"
    nets = {"classifier": nn.Linear(4, 3), "regressor-net": nn.Linear(4, 1)}
    given = {"overrides": {"net": nets[name]}} if name in nets else {}
    with pytest.raises(ValueError, match=rf"{name}\.ckpt was written by an earlier version"):
        load(path, **given)
    model = load(path, **given, preprocess=Preprocess([0.0], [1.0]))
    inputs = torch.as_tensor(predicted[f"models/{name}/inputs"])
    same(model.predict_step([inputs], 0)["prediction"], predicted[f"models/{name}"])
    model.save("again.ckpt")
    again = load("again.ckpt", **given)
    same(again.predict_step([inputs], 0)["prediction"], predicted[f"models/{name}"])


def test_a_vote_over_raw_inputs_keeps_the_normalisation_of_each_member(runs, predicted):
    model = load(runs / "models" / "voting-raw.ckpt")
    inputs = torch.as_tensor(predicted["models/voting-raw/inputs"])
    same(model(inputs).softmax(1), predicted["models/voting-raw"])


@pytest.mark.parametrize("name", [*old_runs.CALLS, *KILLED])
def test_a_run_is_not_resumed_by_another_version(runs, name, tmp_path):
    """Neither a finished run nor a broken one is taken for one of today, or changed."""
    shutil.copytree(runs / name, tmp_path / name)
    shutil.copy(runs / "table.csv", tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
    call = old_runs.CALLS[name.removeprefix("killed-")]
    with pytest.raises(FileExistsError, match=r"dlblocks 0\.1\.0, which .* Resume it with that"):
        call(tmp_path / name)
    assert before == {p: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}


def test_other_kinds_of_runs_are_no_cross_validation(runs):
    for name in ("single", "bagging", "boosting"):
        with pytest.raises(FileNotFoundError, match=r"not a cross-validation; dlblocks\.load"):
            load_result(runs / name)


def test_an_old_bagging_loads_with_its_out_of_bag_scores(runs):
    result = BaggingResult.load(runs / "bagging")
    assert len(result.members) == 2 and 0 < result.oob_score["oob/accuracy"] < 1
