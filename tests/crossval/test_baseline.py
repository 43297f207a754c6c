"""Estimators of scikit-learn on the folds, against a loop."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import RepeatedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dlblocks.crossval import baseline_scores
from dlblocks.data import ArrayDataModule, DigitScenesDataModule, TabularDataModule


def test_scores_are_those_of_a_loop_over_the_same_folds():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(60, 1, 3, 4)).astype(np.float32) * 10
    labels = (images.sum((1, 2, 3)) + rng.normal(size=60) * 20 > 0).astype(int)
    data = ArrayDataModule(images, labels, test_fraction=0.2, split_seed=3)
    found = baseline_scores(
        make_pipeline(StandardScaler(), KNeighborsClassifier(3)), data, 4, repeats=2
    )
    rows, expected = images.reshape(60, -1), []
    for repeat in range(2):
        for fold in data.splits(4, repeat=repeat):
            scaler = StandardScaler().fit(rows[fold["train"]])
            net = KNeighborsClassifier(3).fit(
                scaler.transform(rows[fold["train"]]), labels[fold["train"]]
            )
            said = net.predict(scaler.transform(rows[fold["val"]]))
            expected.append((said == labels[fold["val"]]).mean())
            assert not set(fold["test"]) & {*fold["train"], *fold["val"]}
    assert found == pytest.approx(expected) and len(found) == 8
    assert not np.allclose(found[:4], found[4:])


def test_values_and_another_score():
    x = torch.linspace(-1, 1, 30)[:, None]
    data = ArrayDataModule(x, 2 * x[:, 0] + 1, test_fraction=0.0)
    assert baseline_scores(Ridge(1e-6), data, 3) == pytest.approx([1, 1, 1])
    losses = baseline_scores(Ridge(1e-6), data, 3, scoring="neg_mean_absolute_error")
    assert losses == pytest.approx([0, 0, 0], abs=1e-5)


def test_what_scikit_learn_cannot_be_given_is_refused():
    scenes = DigitScenesDataModule(num_scenes=10, target="boxes")
    with pytest.raises(ValueError, match="such as boxes"):
        baseline_scores(Ridge(), scenes, 2)
    x = torch.linspace(-1, 1, 30)[:, None]
    weighted = ArrayDataModule(x, x[:, 0], weights=np.ones(30), test_fraction=0.0)
    with pytest.raises(ValueError, match="weights"):
        baseline_scores(Ridge(), weighted, 2)
    with pytest.raises(ValueError, match="num_folds=1"):
        baseline_scores(Ridge(), weighted, 1)


def test_the_folds_are_those_of_the_data_if_no_number_is_given():
    x = torch.linspace(-1, 1, 36)[:, None]
    settings = {"test_fraction": 0.0}
    assert len(baseline_scores(Ridge(), ArrayDataModule(x, x[:, 0], num_folds=6, **settings))) == 6
    repeated = ArrayDataModule(
        x, x[:, 0], split=RepeatedKFold(n_splits=3, n_repeats=2, random_state=0), **settings
    )
    assert len(baseline_scores(Ridge(), repeated)) == 6
    assert len(baseline_scores(Ridge(), ArrayDataModule(x, x[:, 0], **settings))) == 5
    in_time = ArrayDataModule(x, x[:, 0], split="time_series", **settings)
    with pytest.raises(ValueError, match="repeats=2"):
        baseline_scores(Ridge(), in_time, 3, repeats=2)


def test_columns_that_a_fold_completes_are_refused():
    towns = pd.DataFrame({"town": [*"abcdef"] * 6, "y": np.arange(36.0)})
    with pytest.raises(ValueError, match=r"embed= or missing='impute'"):
        baseline_scores(Ridge(), TabularDataModule(towns, "y", embed=["town"], test_fraction=0.0))
