"""Write ``old_runs.tar.xz``: runs of version 0.1.0, and what that version predicted with them.

Run it with the code of that version (commit 33a41f4), whose metadata say 0.1.0, not with today's:

    git worktree add /tmp/old 33a41f4
    pip install --target /tmp/meta --no-deps /tmp/old
    PYTHONPATH=/tmp/old:/tmp/meta python tests/loading/old_runs.py

`test_old_runs.py` opens the runs with today's code. It takes data and models from here, too.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dlblocks.crossval import cross_validate, nested_cross_validate
from dlblocks.data import ArrayDataModule, FoldedDataModule, TabularDataModule
from dlblocks.ensembles import AdaBoost, Bagging, DeepEnsemble, GradientBoosting, Voting
from dlblocks.models import Classifier, CNNClassifier, MLPClassifier, MLPRegressor, Regressor

ARCHIVE = Path(__file__).with_suffix(".tar.xz")
SILENT: dict[str, Any] = {"logger": None, "progress_bar": False}
QUIET = {**SILENT, "figures": False}
TRAINER = {"max_epochs": 2, "accelerator": "cpu", "enable_model_summary": False}
STAGE = {"max_epochs": 2, "accelerator": "cpu"}
FIT: dict[str, Any] = {"num_folds": 2, "trainer": TRAINER, **QUIET}


# Data: the same numbers in every version


def values(count: int = 60) -> np.ndarray:
    """Return inputs far from mean 0 and deviation 1, shape (N, 4)."""
    rng = np.random.default_rng(0)
    scale, shift = np.array([[1, 10, 0.1, 100], [5, -20, 3, 400]])
    return (rng.normal(size=(count, 4)) * scale + shift).astype(np.float32)


def classes() -> np.ndarray:
    """Return classes 0, 1 and 2, shape (N,)."""
    return np.digitize(values()[:, 0], [4.6, 5.4])


def numbers() -> np.ndarray:
    """Return values to predict, shape (N,)."""
    return (values()[:, 0] * 50 + values()[:, 1]).astype(np.float32)


def images() -> np.ndarray:
    """Return uint8 images, shape (N, 1, 4, 4)."""
    return np.random.default_rng(1).integers(0, 200, (60, 1, 4, 4), dtype=np.uint8)


def class_data(**arguments: Any) -> ArrayDataModule:
    return ArrayDataModule(values(), classes(), batch_size=16, **arguments)


def value_data(**arguments: Any) -> ArrayDataModule:
    return ArrayDataModule(values(), numbers(), batch_size=16, **arguments)


def image_data() -> ArrayDataModule:
    return ArrayDataModule(images(), classes(), batch_size=16)


def write_table(path: Path) -> Path:
    """Write a table with a column of categories."""
    cities = np.array(["Rome", "Oslo", "Bern"])[np.random.default_rng(2).integers(0, 3, 60)]
    rows = [f"{x[0]:.4f},{c},{y}" for x, c, y in zip(values(), cities, classes(), strict=True)]
    path.write_text("\n".join(["size,city,kind", *rows, ""]))
    return path


def table_data(path: Path, **arguments: Any) -> TabularDataModule:
    return TabularDataModule(path, "kind", task="classification", batch_size=16, **arguments)


# Models


def mlp(lr: float = 0.01) -> MLPClassifier:
    return MLPClassifier(4, 3, hidden=[3], lr=lr)


def regressor() -> MLPRegressor:
    return MLPRegressor(4, 1, hidden=[3], lr=0.1, standardize_targets=True)


def plain_regressor() -> MLPRegressor:
    return MLPRegressor(4, 1, hidden=[3], lr=0.1)


def cnn() -> CNNClassifier:
    return CNNClassifier(1, 3, channels=[2], lr=0.01)


class Own(pl.LightningModule):
    """A module that is not of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, inputs: Any) -> Any:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]).softmax(1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def own_data() -> FoldedDataModule:
    inputs = (torch.tensor(values()) - 5) / 50
    pairs = torch.utils.data.TensorDataset(inputs, torch.tensor(classes()))
    return FoldedDataModule(torch.utils.data.DataLoader(pairs, batch_size=16, shuffle=True))


# Calls: name of the run folder → a function of that folder and a function that makes models

Call = Callable[..., Any]
SEARCH = {"grid": {"lr": [0.01, 0.1]}, "inner_folds": 2}


def _cross(make: Callable[[], Any], data: Callable[..., Any], **more: Any) -> Call:
    def call(run_dir: Path, make_model: Callable[[], Any] = make) -> Any:
        return cross_validate(make_model, data(), run_dir=run_dir, **{**FIT, **more})

    return call


def _table(run_dir: Path, make_model: Any = None) -> Any:
    data = table_data(run_dir.parent / "table.csv")
    make = make_model or (lambda: MLPClassifier(data.in_features, 3, hidden=[3], lr=0.01))
    return cross_validate(make, data, run_dir=run_dir, **FIT)


def _nested(run_dir: Path, make_model: Callable[..., Any] = mlp) -> Any:
    return nested_cross_validate(make_model, class_data(), run_dir=run_dir, **SEARCH, **FIT)


def _bagging(kind: Any, **more: Any) -> Call:
    def call(run_dir: Path, make_model: Callable[[], Any] = mlp) -> Any:
        settings = {"num_members": 2, "trainer": TRAINER, **QUIET, **more}
        return kind(make_model, class_data(), run_dir=run_dir, **settings).fit()

    return call


def _boosting(run_dir: Path, make_model: Callable[[], Any] = plain_regressor) -> Any:
    settings: dict[str, Any] = {"num_stages": 2, "trainer": STAGE, **SILENT}
    return GradientBoosting(make_model, value_data(), run_dir=run_dir, **settings).fit()


def _adaboost(run_dir: Path, make_model: Callable[[], Any] = mlp) -> Any:
    settings: dict[str, Any] = {"num_stages": 2, "trainer": STAGE, **SILENT}
    return AdaBoost(make_model, class_data(), run_dir=run_dir, **settings).fit()


CALLS: dict[str, Call] = {
    "cv": _cross(mlp, class_data),
    "cv-vectorized": _cross(mlp, class_data, engine="vectorized"),
    "cv-values": _cross(regressor, value_data, select="last"),
    "cv-images": _cross(cnn, image_data),
    "cv-table": _table,
    "cv-own": _cross(Own, own_data),
    "nested": _nested,
    "bagging": _bagging(Bagging),
    "deep-ensemble": _bagging(DeepEnsemble, engine="vectorized"),
    "boosting": _boosting,
    "adaboost": _adaboost,
}
# Runs that are killed, and the file after which they are.
KILLED = {
    "cv": "fold.json",
    "cv-table": "fold.json",
    "nested": "fold.json",
    "bagging": "member.json",
    "boosting": "*.ckpt",
}


def killed(call: Call, run_dir: Path, make: Callable[..., Any], file: str) -> None:
    """Run a call in a process that is gone when it makes a model after it has written `file`."""

    def make_model(*args: Any, **kwargs: Any) -> Any:
        if any(run_dir.rglob(file)):
            os._exit(9)
        return make(*args, **kwargs)

    if (child := os.fork()) == 0:
        call(run_dir, make_model)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, run_dir


def main() -> None:
    from dlblocks.fitting import fit_and_test  # type: ignore[import-not-found]

    import dlblocks

    assert dlblocks.__version__ == "0.1.0", "run this with the old code; see above"
    folder = Path(tempfile.mkdtemp())
    write_table(folder / "table.csv")
    inputs = {"values": values(6), "images": images()[:6]}
    found: dict[str, np.ndarray] = {}

    def predict(model: Any, raw: Any, name: str) -> None:
        with torch.no_grad():
            outputs = model.eval()(torch.as_tensor(raw))
        soft = isinstance(model, Classifier)
        found[name] = (outputs.softmax(1) if soft else outputs).numpy()

    for name, call in CALLS.items():
        print(name)
        result = call(folder / name)
        if name.startswith("cv"):
            model = result.ensemble(make_model=Own if name == "cv-own" else None)
            raw = inputs["images" if name == "cv-images" else "values"]
            if name == "cv-table":
                data = table_data(folder / "table.csv")
                raw = data.raw_inputs("train")[:6].numpy()
                found["features"] = raw
            if name == "cv-own":
                raw = (raw - 5) / 50
            predict(model, raw, name)
            found[f"{name}/oof"] = result.oof.prediction
        elif name == "nested":
            found[name] = np.array(result.values("val/loss"))
        else:
            model = result.model
            data = value_data() if name == "boosting" else class_data()
            data.setup()
            is_raw = getattr(model.net, "normalisations", False)
            raw = torch.tensor(inputs["values"])
            predict(model, raw if is_raw else data.transform(raw), name)
            found[f"{name}/scale"], found[f"{name}/shift"] = map(np.asarray, data.normalisation)

    makers = {
        "cv-table": lambda: MLPClassifier(4, 3, hidden=[3], lr=0.01),
        "boosting": plain_regressor,
    }
    for name, file in KILLED.items():
        run_dir = folder / f"killed-{name}"
        killed(CALLS[name], run_dir, makers.get(name, mlp), file)

    # Single runs and bare checkpoints: the inputs of their models are normalised ones.
    for name, make, data in [
        ("single", mlp, class_data(test_fraction=0.2)),
        ("single-values", regressor, value_data(test_fraction=0.2)),
    ]:
        pl.seed_everything(0)
        model = make()
        fit_and_test(
            model, data, run_dir=folder / name, trainer=TRAINER, logger=None, progress_bar=False
        )
        predict(model, data.transform(torch.tensor(inputs["values"])), name)
        found[f"{name}/scale"], found[f"{name}/shift"] = map(np.asarray, data.normalisation)

    models = folder / "models"
    models.mkdir()
    bare: dict[str, Any] = {
        "mlp": (mlp(), inputs["values"]),
        "embeddings": (MLPClassifier(4, 3, hidden=[3], embeddings={1: 5}), None),
        "weighted": (MLPClassifier(4, 3, hidden=[3], class_weights=[1.0, 2.0, 3.0]), None),
        "regressor": (regressor(), None),
        "cnn": (cnn(), inputs["images"].astype(np.float32) / 200),
        "classifier": (Classifier(nn.Linear(4, 3), 3), None),
        "regressor-net": (Regressor(nn.Linear(4, 1)), None),
        "voting": (Voting([mlp(), mlp()]), None),
        "voting-hard": (Voting([mlp(), mlp()], voting="hard"), None),
        "voting-values": (Voting([regressor(), regressor()]), None),
        "voting-raw": (
            Voting([mlp(), mlp()], normalisations=[(np.full(4, 0.1), np.full(4, -1.0))] * 2),
            None,
        ),
    }
    for name, (model, raw) in bare.items():
        model.save(models / f"{name}.ckpt")
        raw = np.abs(inputs["values"]) % 5 if raw is None else raw
        raw = np.floor(raw) if name == "embeddings" else raw
        found[f"models/{name}/inputs"] = raw
        predict(model, raw, f"models/{name}")

    np.savez_compressed(folder / "predicted.npz", **found)
    for path in [*folder.rglob(".lock"), *folder.rglob("*.png")]:
        path.unlink()
    with tarfile.open(ARCHIVE, "w:xz") as archive:
        archive.add(folder, ".")
    shutil.rmtree(folder)
    print(ARCHIVE, ARCHIVE.stat().st_size)


if __name__ == "__main__":
    sys.exit(main())
