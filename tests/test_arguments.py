"""Every argument of every public call: bad values are refused by name, unusual good ones work."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dlblocks import callbacks, data, ensembles, models, nets, optim
from dlblocks._errors import ArgumentError, checked, constructor_arguments
from dlblocks.crossval import cross_validate, nested_cross_validate
from dlblocks.runs import fit_and_test

X = np.random.default_rng(0).normal(size=(60, 4)).astype("f4")
Y = np.arange(60) % 3
IMAGES = np.zeros((60, 1, 8, 8), dtype=np.uint8)
TABLE = pd.DataFrame({"x": X[:, 0], "y": Y})


def source():
    return data.ArrayDataModule(X, Y)


def model(**kwargs):
    return models.MLPClassifier(4, 3, hidden=[4], **kwargs)


def params():
    return [nn.Parameter(torch.ones(3, 3))]


# What each call needs, beside which all of its arguments are tried.
CALLS = [
    (cross_validate, {"make_model": model, "datamodule": source}),
    (nested_cross_validate, {"make_model": model, "datamodule": source, "grid": {"lr": [0.1]}}),
    (fit_and_test, {"model": model, "datamodule": source}),
    (ensembles.Bagging, {"make_model": model, "datamodule": source}),
    (ensembles.DeepEnsemble, {"make_model": model, "datamodule": source}),
    (ensembles.AdaBoost, {"make_learner": model, "datamodule": source}),
    (ensembles.GradientBoosting, {"make_learner": model, "datamodule": source}),
    (models.MLPClassifier, {"in_features": 4, "num_classes": 3}),
    (models.MLPRegressor, {"in_features": 4, "out_features": 1}),
    (models.CNNClassifier, {"in_channels": 1, "num_classes": 3}),
    (models.Classifier, {"net": lambda: nn.Linear(4, 3), "num_classes": 3}),
    (models.Regressor, {"net": lambda: nn.Linear(4, 1)}),
    (nets.MLP, {"in_features": 4, "out_features": 3}),
    (nets.CNN, {"in_channels": 1, "out_features": 3}),
    (nets.EmbedCategories, {"in_features": 4, "categories": {0: 3}}),
    (data.ArrayDataModule, {"inputs": X, "targets": Y}),
    (data.DigitsDataModule, {}),
    (data.CurveDataModule, {}),
    (data.TabularDataModule, {"data": TABLE, "target": "y"}),
    (data.ImageFolderDataModule, {"root": "photos", "size": 8}),
    (data.MNISTDataModule, {}),
    (data.CIFAR10DataModule, {}),
    (data.FoldedDataModule, {"data": lambda: torch.utils.data.TensorDataset(torch.zeros(60, 4))}),
    (data.EpochSampler, {"dataset": range(10), "shuffle": True}),
    (data.kfold, {"num_samples": 60, "num_folds": 3}),
    (data.holdout, {"num_samples": 60, "fraction": 0.2}),
    (callbacks.Augment, {}),
    (callbacks.MixUp, {}),
    (callbacks.CutMix, {}),
    (callbacks.Cutout, {"size": 2}),
    (callbacks.InputNoise, {}),
    (callbacks.LabelSmoothing, {}),
    (callbacks.WeightNoise, {"std": 0.1}),
    (callbacks.WeightPenalty, {}),
    (callbacks.SAM, {}),
    (callbacks.Sharpness, {}),
    (callbacks.GeneralizationGap, {}),
    (callbacks.ExactResume, {"dirpath": "runs"}),
    (optim.AdamP, {"params": params}),
    (optim.SGDP, {"params": params, "lr": 0.1}),
    (optim.Lion, {"params": params}),
]
BAD = {
    "int": ["3", 1.5, float("nan"), True],
    "float": ["0.1", float("nan"), float("inf"), True],
    "bool": ["no", 2, None],
    "Literal": ["zzz"],
    "Sequence": [3.5],
    "list": [3.5],
}


def kinds(annotation):
    """The kinds of values that an annotation names, at its top."""
    text = str(annotation)
    while (shorter := re.sub(r"\[[^\[\]]*\]", "", text)) != text:
        text = shorter
    return {part.strip().rpartition(".")[2] for part in text.split("|")}


def arguments_of(function):
    """Those of a function or constructor, with what reaches the bases by ``**kwargs``."""
    if inspect.isclass(function):
        return constructor_arguments(function)
    return inspect.signature(function).parameters


def cases():
    for function, _ in CALLS:
        for name, parameter in arguments_of(function).items():
            found = kinds(parameter.annotation)
            known = found & BAD.keys()
            if not known or found & {"Any", "ArrayLike", "Tensor"}:
                continue
            for value in [value for kind in sorted(known) for value in BAD[kind]]:
                if isinstance(value, str) and "str" in found:
                    continue
                if value is True and "bool" in found:
                    continue
                if value is None and "None" in found:
                    continue
                if isinstance(value, float) and value == 1.5 and "float" in found:
                    continue
                if value == 3.5 and "float" in found:
                    continue
                if value == 2 and found & {"int", "float"}:
                    continue
                yield pytest.param(function, name, value, id=f"{function.__name__}-{name}-{value}")


def call(function, **kwargs):
    given = {
        name: value() if inspect.isfunction(value) and name != "make_model"
        and name != "make_learner" else value
        for name, value in {**dict(CALLS)[function], **kwargs}.items()
    }  # fmt: skip
    return function(**given)


@pytest.mark.parametrize(("function", "name", "value"), list(cases()))
def test_bad_values_are_refused_by_name(function, name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        call(function, **{name: value})
    assert not list(tmp_path.iterdir())  # nothing was begun


@pytest.mark.parametrize("value", [-1, 2**32, "0", 1.5, None])
@pytest.mark.parametrize("function", [cross_validate, nested_cross_validate, ensembles.Bagging])
def test_bad_seeds_are_refused(function, value):
    with pytest.raises(ArgumentError, match=r"seed="):
        call(function, seed=value)
    with pytest.raises(ArgumentError, match=r"split_seed="):
        data.ArrayDataModule(X, Y, split_seed=value)


UNUSUAL = [
    {"num_folds": np.int64(2), "repeats": np.int8(1), "seed": np.uint32(0)},
    {"num_folds": 2.0, "seed": torch.tensor(0)},
    {"trainer": {"max_epochs": 1.0, "accelerator": "cpu", "accumulate_grad_batches": 1.0}},
    {"trainer": {"max_epochs": torch.tensor(1), "accelerator": "cpu"}},
    {"num_folds": np.array(2), "progress_bar": np.bool_(False), "figures": np.bool_(False)},
]


@pytest.mark.parametrize("arguments", UNUSUAL)
def test_unusual_arguments_of_a_run(arguments, tmp_path):
    known = {
        "num_folds": 2, "repeats": 1, "seed": 0, "progress_bar": False, "figures": False,
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }  # fmt: skip
    scores = []
    for i, given in enumerate([known, {**known, **arguments}]):
        result = cross_validate(
            model, data.ArrayDataModule(X, Y), run_dir=Path(tmp_path) / str(i), **given
        )  # fmt: skip
        scores.append(result.values("val/loss"))
        json.loads((tmp_path / str(i) / "summary.json").read_text())
    assert list(scores[0]) == list(scores[1])


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": np.int64(8), "split_seed": np.int64(0), "num_workers": np.int32(0)},
        {"batch_size": 8.0, "test_fraction": np.float64(0.0), "normalize": np.bool_(True)},
        {"batch_size": torch.tensor(8), "shuffle_seed": np.uint8(0)},
    ],
)
def test_unusual_arguments_of_data(arguments, tmp_path):
    scores = []
    for i, given in enumerate([{"batch_size": 8}, arguments]):
        result = cross_validate(
            model, data.ArrayDataModule(X, Y, **given), num_folds=2, run_dir=tmp_path / str(i),
            trainer={"max_epochs": 1, "accelerator": "cpu"}, progress_bar=False, figures=False,
        )  # fmt: skip
        scores.append(result.values("val/loss"))
    assert list(scores[0]) == list(scores[1])


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (X.astype(np.float64), Y.astype(np.uint8)),
        (np.asfortranarray(X), Y.astype(np.int8)),
        (X[:, ::-1], Y[::-1]),
        (torch.from_numpy(X).t().contiguous().t(), torch.from_numpy(Y)),
        (X.tolist(), Y.tolist()),
        (X, Y.astype(bool)),
        (X > 0, Y),
    ],
)
def test_unusual_arrays(inputs, targets, tmp_path):
    classes = 2 if np.asarray(targets).dtype == bool else 3
    result = cross_validate(
        lambda: models.MLPClassifier(4, classes), data.ArrayDataModule(inputs, targets),
        num_folds=2, run_dir=tmp_path, trainer={"max_epochs": 1, "accelerator": "cpu"},
        progress_bar=False, figures=False,
    )  # fmt: skip
    assert len(result.oof) == 60


def test_channels_last_images(tmp_path):
    images = torch.rand(60, 3, 8, 8).to(memory_format=torch.channels_last)
    result = cross_validate(
        lambda: models.CNNClassifier(3, 3, channels=[4]), data.ArrayDataModule(images, Y),
        num_folds=2, run_dir=tmp_path, trainer={"max_epochs": 1, "accelerator": "cpu"},
        progress_bar=False, figures=False,
    )  # fmt: skip
    assert len(result.oof) == 60


@pytest.mark.parametrize(
    "hidden", [[4, 5], (4, 5), range(4, 6), np.array([4, 5]), torch.tensor([4, 5]), [4.0, 5.0]]
)
def test_widths_in_any_form(hidden):
    net = nets.MLP(3, 2, hidden=hidden)
    assert [layer.out_features for layer in net.layers if isinstance(layer, nn.Linear)] == [4, 5, 2]


@checked
def sample(
    count: int = 1,
    rate: float | torch.Tensor = 0.1,
    kind: "list[int] | None" = None,
    pair: tuple[float, float] = (0.0, 1.0),
    *more: str,
) -> tuple:
    return count, rate, kind, pair, more


@checked
def limited(batches: int | float | None = None) -> float | None:
    return batches


def test_conversions():
    rate = torch.tensor(0.5)
    assert sample(np.int64(2), rate)[1] is rate  # what may be a tensor stays one
    assert type(sample(np.int64(2))[0]) is int
    assert sample(kind=np.arange(2))[2] == [0, 1]
    assert sample(pair=[1, 2])[3] == (1, 2)
    assert sample(1, 0.1, None, (0, 1), "a", "b")[4] == ("a", "b")
    with pytest.raises(ArgumentError, match=r"kind=.* must be a list, each entry a whole number"):
        sample(kind=["a"])
    with pytest.raises(ArgumentError, match="pair=3 must be 2 values"):
        sample(pair=3)
    assert type(limited(np.float64(1.0))) is float  # all batches; 1 is one batch
    assert type(limited(np.int64(1))) is int
    with pytest.raises(TypeError, match="unexpected keyword argument 'cuont'"):
        sample(cuont=1)


OTHERS = [
    (models.Classifier, {"net": -1}),
    (models.MLPClassifier, {"num_classes": 0}),
    (models.MLPClassifier, {"in_features": 0}),
    (models.Regressor, {"out_features": -1}),
    (nets.MLP, {"embeddings": -1}),
    (nets.EmbedCategories, {"categories": []}),
    (ensembles.AdaBoost, {"trainer": "zzz"}),
    (ensembles.GradientBoosting, {"trainer": -1}),
    (ensembles.Bagging, {"run_dir": -1}),
    (callbacks.ExactResume, {"dirpath": b"x"}),
    (optim.AdamP, {"lr": ""}),
    (optim.AdamP, {"lr": "0.1"}),
    (optim.Lion, {"lr": []}),
    (data.kfold, {"num_samples": -1}),
]


@pytest.mark.parametrize(("function", "arguments"), OTHERS)
def test_other_bad_values_are_refused_by_name(function, arguments):
    (name,) = arguments
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        call(function, **arguments)


@pytest.mark.parametrize("value", [1.5, "3", float("nan"), -2])
@pytest.mark.parametrize("name", ["max_epochs", "accumulate_grad_batches", "log_every_n_steps"])
def test_counts_of_the_trainer(name, value):
    with pytest.raises((TypeError, ValueError), match=name):
        call(cross_validate, trainer={name: value})


def test_numbers_of_numpy_in_arguments_of_an_optimizer(tmp_path):
    net = model(optimizer_args={"betas": [np.float32(0.5), 0.9], "eps": np.float64(1e-6)})
    ([optimizer], _) = net.configure_optimizers()
    (group,) = optimizer.param_groups
    assert list(group["betas"]) == [0.5, 0.9]
    assert [type(value) for value in (*group["betas"], group["eps"])] == [float] * 3


def test_numbers_of_numpy_for_stages():
    learner = ensembles.AdaBoost(model, source(), trainer={"max_epochs": np.int64(2)})
    assert type(learner.trainer["max_epochs"]) is int


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ({"crop_padding": 0.1}, "crop_padding=0.1 must be a whole number"),
        ({"scale": 1.1}, r"scale=1.1 must be two factors \(low, high\)"),
        ({"crop_padding": True}, "crop_padding=True must be a whole number"),
    ],
)
def test_the_cure_of_the_constructor_itself_wins(arguments, cure):
    with pytest.raises((TypeError, ValueError), match=cure):
        callbacks.Augment(**arguments)


@pytest.mark.parametrize("function", [cross_validate, nested_cross_validate, ensembles.Bagging])
def test_a_run_folder_that_is_a_file(function, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ArgumentError, match=r"run_dir='.*thesis.txt' is a file; name a folder"):
        call(function, run_dir=tmp_path / "thesis.txt")


def test_repeated_class_names_are_refused():
    for make in (
        lambda: data.ArrayDataModule(X, Y, class_names=["a", "b", "a"]).setup(),
        lambda: data.FoldedDataModule(
            torch.utils.data.TensorDataset(torch.zeros(60, 4), torch.from_numpy(Y)),
            class_names=["a", "b", "a"],
        ),
    ):
        with pytest.raises(ValueError, match=r"class_names.* give each class its own"):
            make()
