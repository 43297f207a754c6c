"""A result of one configuration is never read back as that of another."""

import datetime
import enum
import functools
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LambdaCallback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import TensorDataset

from dlblocks.callbacks import MixUp, OneOf
from dlblocks.crossval import cross_validate, nested_cross_validate
from dlblocks.data import ArrayDataModule, FoldedDataModule
from dlblocks.ensembles import AdaBoost, Bagging, DeepEnsemble, GradientBoosting
from dlblocks.models import Classifier, MLPClassifier, MLPRegressor
from dlblocks.runs._plan import described, differences

X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
Y = (X[:, 0] > 0).astype(int)
CPU = {"max_epochs": 1, "accelerator": "cpu"}
QUIET = {"progress_bar": False, "logger": None}


class Mine(pl.LightningModule):
    """A module as many are: it keeps its arguments, with or without `save_hyperparameters`."""

    def __init__(self, rate=0.1, dropout=0.0, loss=None, **other):
        super().__init__()
        self.rate = float(rate)
        self.loss = loss
        self.net = nn.Sequential(nn.Dropout(dropout), nn.Linear(4, 2))
        if other:
            self.save_hyperparameters(ignore="loss")

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val/loss", self.training_step(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Keeps(Mine):
    """A module that keeps its arguments in attributes and buffers of any kind."""

    def __init__(self, weights=None, table=None, kind=None, ratios=None):
        super().__init__()
        self.weights, self._table, self.kind = weights, table, kind
        self.register_buffer("ratios", ratios)


class Scale:
    def __init__(self, factor):
        self._by = factor

    def __call__(self, loss):
        return self._by * loss


class Slots:
    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor


class Kind(enum.Enum):
    ONE = 1
    TWO = 2


def reading(constant):
    """A function that reads a global of its module, as in a notebook whose cell was changed."""
    names = {"FACTOR": constant, "__name__": "notebook"}
    exec("def helper(loss): return loss * FACTOR\ndef loss(x): return helper(x)", names)
    return names["loss"]


def keeps(**arguments):
    return {"make_model": lambda: Keeps(**arguments)}


def scaled(factor):
    return lambda loss: factor * loss


def halved(loss, by=2):
    return loss / by


def thirded(loss, by=3):
    return loss / by


def ours(**arguments):
    return {"make_model": lambda: MLPClassifier(4, 2, hidden=[3], **arguments)}


def mine(**arguments):
    return {"make_model": lambda: Mine(**arguments)}


def callback(make):
    return {"make_callbacks": lambda: [make()]}


def run(folder, make_model=Mine, data=None, trainer=None, **arguments):
    return cross_validate(
        make_model, data or ArrayDataModule(X, Y), num_folds=2, run_dir=folder, figures=False,
        trainer={**CPU, **(trainer or {})}, **{**QUIET, **arguments},
    )  # fmt: skip


BIG = np.zeros(20_000)
OTHER = [
    (ours(lr=np.float32(0.1)), ours(lr=np.float32(0.1000001)), "model.lr was 0.1"),
    (ours(lr=0.1), ours(lr=np.float64(0.1000001)), "model.lr was 0.1 and is 0.1000001"),
    ({"seed": np.int64(0)}, {"seed": np.int64(7)}, "seed was 0 and is 7"),
    (ours(class_weights=torch.tensor([1.0, 2.0])), ours(class_weights=torch.tensor([1.0, 3.0])),
     "model.class_weights was"),
    (mine(a=torch.ones(3)), mine(a=torch.zeros(3)), "model.a was"),
    (mine(a=np.array([1, 2])), mine(a=np.array([1, 3])), "model.a was"),
    (mine(a=BIG), mine(a=np.append(BIG[1:], 1)), "model.a.sha256"),
    (mine(a=range(3)), mine(a=range(4)), "model.a was"),
    (mine(a={"x", "y"}), mine(a={"x", "z"}), "model.a was"),
    (mine(a=b"1"), mine(a=b"2"), "model.a.bytes"),
    (mine(a=slice(1, 2)), mine(a=slice(1, 3)), "model.a.repr was"),
    (mine(a=torch.float32), mine(a=torch.float16), "model.a"),
    (mine(loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
     mine(loss=nn.CrossEntropyLoss(label_smoothing=0.2)), "layers.loss differs"),
    (mine(loss=scaled(1)), mine(loss=scaled(2)), "layers.self differs"),
    (mine(loss=lambda x: x + 1), mine(loss=lambda x: x + 2), "layers.self differs"),
    (mine(a=halved), mine(a=thirded), "model.a.function was"),
    (mine(a=functools.partial(halved, by=2)), mine(a=functools.partial(halved, by=4)),
     "model.a.partial"),
    (mine(loss=reading(1)), mine(loss=reading(2)), "layers.self differs"),
    (mine(a=Scale(1)), mine(a=Scale(2)), "model.a.state differs"),
    (mine(a=Slots(1)), mine(a=Slots(2)), "model.a.state differs"),
    (mine(a=pd.Series(BIG)), mine(a=pd.Series(np.append(BIG[1:], 1))), "model.a.state differs"),
    (mine(a=np.random.default_rng(0)), mine(a=np.random.default_rng(1)), "model.a.state differs"),
    (keeps(weights=torch.ones(2)), keeps(weights=torch.zeros(2)), "layers.self was 'Keeps"),
    (keeps(weights={"a": torch.ones(2)}), keeps(weights={"a": torch.zeros(2)}),
     "layers.self was .Keeps"),
    (keeps(table=np.ones(2)), keeps(table=np.zeros(2)), "layers.self was 'Keeps"),
    (keeps(kind=Kind.ONE), keeps(kind=Kind.TWO), "layers.self was .Keeps"),
    (keeps(ratios=torch.ones(2)), keeps(ratios=torch.zeros(2)), "layers.self was 'Keeps"),
    (mine(rate=0.1), mine(rate=0.2), "layers.self was 'Mine"),
    (mine(dropout=0.1), mine(dropout=0.2), "layers.net.0 was 'Dropout"),
    ({"make_model": lambda: Classifier(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), 2)},
     {"make_model": lambda: Classifier(nn.Sequential(nn.Linear(4, 2), nn.Tanh()), 2)},
     "layers.net.1"),
    (callback(lambda: MixUp(0.2)), callback(lambda: MixUp(0.3)), r"callbacks\[0\].alpha"),
    (callback(lambda: OneOf([MixUp(np.float32(0.2))])),
     callback(lambda: OneOf([MixUp(np.float32(0.3))])), r"callbacks\[0\].transforms\[0\].alpha"),
    (callback(lambda: EMAWeightAveraging(decay=0.9)),
     callback(lambda: EMAWeightAveraging(decay=0.8)), r"callbacks\[0\]._kwargs"),
    (callback(lambda: LambdaCallback(on_train_start=lambda t, m: None)),
     callback(lambda: LambdaCallback(on_train_start=lambda t, m: m.train())),
     r"callbacks\[0\].on_train_start.code"),
    ({"trainer": {"max_time": datetime.timedelta(days=1)}},
     {"trainer": {"max_time": datetime.timedelta(days=2)}}, "trainer.max_time.repr was"),
    ({"trainer": {"limit_train_batches": 1}}, {"trainer": {"limit_train_batches": 1.0}},
     "trainer.limit_train_batches was 1 and is 1.0"),
    ({"trainer": {"gradient_clip_val": np.float32(1)}},
     {"trainer": {"gradient_clip_val": np.float32(2)}}, "trainer.gradient_clip_val was 1.0"),
    ({"data": FoldedDataModule(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)))},
     {"data": FoldedDataModule(TensorDataset(torch.from_numpy(X + 1), torch.from_numpy(Y)))},
     "fingerprint"),
    ({"data": ArrayDataModule(X, Y, batch_size=8)}, {"data": ArrayDataModule(X, Y, batch_size=9)},
     "data.batch_size was 8 and is 9"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "message"), OTHER, ids=[pair[2] for pair in OTHER])
def test_another_configuration_is_refused(tmp_path, first, second, message):
    run(tmp_path / "a", **first)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    with pytest.raises(FileExistsError, match=message):
        run(tmp_path / "a", **second)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == before


EQUAL = [
    ({"seed": np.int64(3)}, {"seed": 3}),
    (ours(lr=np.float64(0.1)), ours(lr=0.1)),
    (mine(a=np.int64(3), b=np.True_), mine(a=3, b=True)),
    (mine(a="x/y"), mine(a=Path("x/y"))),
    (mine(a=(1, 2)), mine(a=np.array([1, 2]))),
    (mine(a=[0, 1]), mine(a=range(2))),
    (mine(a=torch.ones(2)), mine(a=[1.0, 1.0])),
    (mine(a=BIG), mine(a=BIG.copy())),
    (mine(loss=scaled(2)), mine(loss=scaled(2))),
    (mine(a=halved), mine(a=halved)),
    (mine(a={"a", "b", "c"}), mine(a={"c", "b", "a"})),
    (mine(a=Scale(2), b=[Slots(1)]), mine(a=Scale(2), b=[Slots(1)])),
    (mine(loss=reading(2)), mine(loss=reading(2))),
    (keeps(weights=torch.ones(2), kind=Kind.ONE), keeps(weights=torch.ones(2), kind=Kind.ONE)),
    (mine(a=float("nan")), mine(a=float("nan"))),
    (callback(lambda: EMAWeightAveraging(decay=0.9)),
     callback(lambda: EMAWeightAveraging(decay=0.9))),
    ({"trainer": {"max_epochs": np.int64(1)}}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), EQUAL, ids=range(len(EQUAL)))
def test_the_same_configuration_resumes(tmp_path, first, second):
    before = run(tmp_path / "a", **first)
    assert run(tmp_path / "a", **second).folds == before.folds


def bagging(folder, lr, kind=Bagging, **arguments):
    return kind(
        lambda: MLPClassifier(4, 2, hidden=[3], lr=lr), ArrayDataModule(X, Y), num_members=2,
        trainer=CPU, run_dir=folder, figures=False, **arguments, **QUIET,
    )  # fmt: skip


def boosting(folder, lr, kind=GradientBoosting, model=MLPRegressor):
    return kind(
        lambda: model(4, 2, hidden=[3], lr=lr), ArrayDataModule(X, Y), num_stages=2,
        trainer=CPU, run_dir=folder, **QUIET,
    )  # fmt: skip


def nested(folder, lr):
    return nested_cross_validate(
        lambda hidden: MLPClassifier(4, 2, hidden=hidden, lr=lr), ArrayDataModule(X, Y),
        {"hidden": [[2], [3]]}, num_folds=2, inner_folds=2, trainer=CPU, run_dir=folder,
        figures=False, **QUIET,
    )  # fmt: skip


@pytest.mark.parametrize(
    "fit",
    [
        lambda folder, lr: bagging(folder, lr).fit(),
        lambda folder, lr: bagging(folder, lr, DeepEnsemble).fit(),
        lambda folder, lr: boosting(folder, lr).fit(),
        lambda folder, lr: boosting(folder, lr, AdaBoost, MLPClassifier).fit(),
        nested,
    ],
    ids=["bagging", "deep ensemble", "gradient boosting", "adaboost", "nested"],
)
def test_other_runs_see_it_too(tmp_path, fit):
    fit(tmp_path / "a", np.float32(0.1))
    with pytest.raises(FileExistsError, match=r"lr was 0.1.* and is 0.1"):
        fit(tmp_path / "a", np.float32(0.1000001))
    fit(tmp_path / "a", float(np.float32(0.1)))


def test_objects_are_described_by_what_they_were_given():
    one, other = (described(DDPStrategy(find_unused_parameters=u)) for u in (True, False))
    assert "find_unused_parameters" in differences(one, other)[0]
    circle = [1]
    circle.append(circle)
    assert described(circle) == [1, "<list>"]
    assert described(nn.LazyLinear(2).weight) == "<UninitializedParameter>"
    nodes = [Scale(None) for _ in range(60)]  # each holds all: the paths are not counted one by one
    for node in nodes:
        node._by = nodes
    assert described(nodes) == described(nodes)
    assert described(torch.eye(2).to_sparse()) == [[1.0, 0.0], [0.0, 1.0]]
