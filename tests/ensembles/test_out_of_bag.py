"""Samples, and what is out of them."""

import numpy as np
import pytest
from bagging_runs import digits, mlp, settings

from dlblocks.data import (
    ArrayDataModule,
    DigitsDataModule,
)
from dlblocks.ensembles import Bagging
from dlblocks.ensembles._bootstrap import combine, draw
from dlblocks.models import MLPClassifier
from dlblocks.tasks import PredictionTable


def test_the_out_of_bag_score_is_that_of_a_held_out_set(tmp_path, make_trainer):
    data = DigitsDataModule(test_fraction=0.4)
    result = Bagging(
        lambda: MLPClassifier(64, 10, hidden=[32], lr=0.01),
        data,
        engine="vectorized",
        **settings(num_members=20, run_dir=tmp_path / "a",
                   trainer={"max_epochs": 8, "accelerator": "cpu"}),
    ).fit()  # fmt: skip
    (found,) = make_trainer().test(result.model, datamodule=data, verbose=False)
    held_out, oob = found["test/accuracy"], result.oob_score["oob/accuracy"]
    sizes = len(data.indices("test")), int((result.oob.votes > 0).sum())
    error = np.sqrt(sum(p * (1 - p) / n for p, n in zip((held_out, oob), sizes, strict=True)))
    # About a third of the members vote out of the bag: a little worse is as it should be.
    assert -3 * error - 0.015 < oob - held_out < 3 * error
    # And far from what the members say of samples that they were trained on.
    assert oob < 0.995


def test_samples_that_no_member_left_out_count_in_no_score(tmp_path):
    result = Bagging(mlp, digits(), **settings(num_members=1, run_dir=tmp_path / "a")).fit()
    oob = result.oob
    seen = np.isin(oob.index, result.samples[0])
    assert seen.any() and not seen.all()
    np.testing.assert_array_equal(oob.votes, ~seen)
    assert np.isnan(oob.prediction[seen]).all() and np.isnan(oob.std[seen]).all()
    assert not np.isnan(oob.prediction[~seen]).any()
    right = oob.prediction[~seen].argmax(1) == oob.target[~seen]
    assert result.oob_score["oob/accuracy"] == pytest.approx(right.mean())
    assert result.summary()["oob"]["num_never_out"] == seen.sum()


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_combined_as_a_slow_loop_combines(voting):
    random = np.random.default_rng(0)
    index = np.array([2, 3, 5, 8, 9])
    parts = []
    for size in (2, 3, 4):
        rows = np.sort(random.choice(index[:4], size, replace=False))
        columns = {"index": rows, "prediction": random.dirichlet(np.ones(3), size)}
        parts.append(PredictionTable(columns))
    found = combine(index, np.zeros(5), parts, voting=voting)
    for i, row in enumerate(index):
        values = [
            part["prediction"][np.flatnonzero(part["index"] == row)[0]]
            for part in parts
            if row in part["index"]
        ]
        assert found.votes[i] == len(values)
        if not values:
            assert np.isnan(found.prediction[i]).all()
            continue
        np.testing.assert_allclose(found.std[i], np.std(values, axis=0), atol=1e-12)
        votes = [np.eye(3)[np.argmax(v)] for v in values] if voting == "hard" else values
        np.testing.assert_allclose(found.prediction[i], np.mean(votes, axis=0))


def test_draws():
    rows = np.arange(100, 1100)
    sample = draw(rows, seed=3, member=2)
    np.testing.assert_array_equal(sample, draw(rows, seed=3, member=2))
    assert len(sample) == 1000 and set(sample) <= set(rows)
    share = np.mean([len(set(draw(rows, seed=0, member=k))) / 1000 for k in range(20)])
    assert share == pytest.approx(1 - (1 - 1 / 1000) ** 1000, abs=0.01)
    assert {tuple(draw(rows, seed=s, member=k)) for s in (0, 1) for k in (0, 1)}.__len__() == 4
    pasted = draw(rows, seed=0, member=0, share=0.25, replace=False)
    assert len(pasted) == len(set(pasted)) == 250
    classes = np.repeat([0, 1, 2], [900, 97, 3])
    for k in range(5):
        drawn = draw(rows, seed=0, member=k, classes=classes)
        np.testing.assert_array_equal(np.bincount(classes[drawn - 100]), [900, 97, 3])
        assert len(set(drawn)) == pytest.approx(632, abs=60)
    groups = np.arange(1000) % 7
    drawn = draw(rows, seed=0, member=0, groups=groups)
    counts = np.bincount(drawn - 100, minlength=1000)
    for group in range(7):
        assert len(set(counts[groups == group])) == 1
    assert 0 in counts


def test_groups_stay_whole(tmp_path):
    random = np.random.default_rng(0)
    groups = random.integers(0, 12, 120)
    data = ArrayDataModule(
        random.normal(size=(120, 4)), random.integers(0, 2, 120), groups=groups, num_folds=4
    )
    result = Bagging(
        lambda: MLPClassifier(4, 2, hidden=[4]), data, **settings(run_dir=tmp_path / "a")
    ).fit()
    for k, rows in enumerate(result.samples):
        out = np.load(tmp_path / "a" / f"member-{k}" / "oob.npz")["index"]
        assert not set(groups[rows]) & set(groups[out])
        assert not set(groups[rows]) & set(groups[data.indices("val")])


def test_a_sample_that_misses_a_class_is_said(tmp_path):
    random = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], [40, 40, 4])
    data = ArrayDataModule(random.normal(size=(84, 4)), targets, val_fraction=0.5)
    train = data.indices("train").numpy()
    without = np.resize(train[targets[train] != 2], len(train))

    def make():
        return MLPClassifier(4, 3, hidden=[4])

    given = {"samples": [train, without, train]}
    with pytest.warns(UserWarning, match="1 of 3 members miss a class, first that of member 1 cl"):
        result = Bagging(make, data, **settings(run_dir=tmp_path / "a"), **given).fit()
    assert result.info["missing_classes"] == {1: [2]}
    assert result.model.task.num_classes == 3
    balanced = Bagging(
        lambda: MLPClassifier(4, 3, class_weights="balanced"),
        data,
        **settings(run_dir=tmp_path / "b"),
        **given,
    )
    with pytest.raises(ValueError, match="sample of member 1 has none of class 2; use stratify"):
        balanced.fit()
    assert not (tmp_path / "b").exists()
    stratified = Bagging(
        make, data, stratify=True, **settings(num_members=5, run_dir=tmp_path / "c")
    ).fit()
    for rows in stratified.samples:
        np.testing.assert_array_equal(np.bincount(targets[rows]), np.bincount(targets[train]))
