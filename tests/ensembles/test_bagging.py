"""What bagging leaves, and everything that peers get wrong."""

import json
import os

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from bagging_runs import diabetes, digits, mlp, regressor, settings
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.demos.boring_classes import BoringModel
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.utils.data import TensorDataset
from wandb_offline import read_run

from dlblocks.callbacks import MixUp
from dlblocks.data import (
    DigitsDataModule,
    FoldedDataModule,
)
from dlblocks.data.dataset import EpochSampler
from dlblocks.engine import NotVectorizable
from dlblocks.engine.choose import in_halves
from dlblocks.ensembles import Bagging, BaggingResult, DeepEnsemble, Voting
from dlblocks.models import Classifier, CNNClassifier, MLPClassifier, load
from dlblocks.runs.folder import locked


@pytest.fixture
def double():
    """Digits in float64, in which what is the same stays the same over many steps."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def bagged(tmp_path_factory):
    """One run that several tests look at."""
    path = tmp_path_factory.mktemp("runs") / "bagging"
    data = digits()
    result = Bagging(
        mlp, data, **settings(num_members=6, engine="vectorized", run_dir=path, logger="csv")
    ).fit()
    return data, result


def test_engines_agree_and_leave_the_same_files(tmp_path, double):
    found = {}
    for engine in ("sequential", "vectorized"):
        found[engine] = Bagging(
            mlp,
            digits(),
            engine=engine,
            make_callbacks=lambda: [MixUp(), EarlyStopping("val/loss", patience=1)],
            **settings(run_dir=tmp_path / engine, logger="csv"),
        ).fit()
    one, other = found.values()
    files = [
        {
            str(path.relative_to(tmp_path / engine))
            for path in (tmp_path / engine).rglob("*")
            if path.is_file()
        }
        for engine in found
    ]
    assert files[0] == files[1]
    assert "member-2/checkpoints/best.ckpt" in files[0]
    for mine, theirs in zip(one.members, other.members, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"seconds", "checkpoint"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name
        assert mine["checkpoint"] == theirs["checkpoint"]
    assert all((a == b).all() for a, b in zip(one.samples, other.samples, strict=True))
    np.testing.assert_allclose(one.oob.prediction, other.oob.prediction, atol=1e-5)
    np.testing.assert_array_equal(one.oob.votes, other.oob.votes)


def test_samples_are_kept_and_nothing_leaks(bagged):
    data, result = bagged
    train = data.indices("train")
    with np.load(result.run_dir / "samples.npz") as kept:
        assert sorted(kept) == [str(k) for k in range(6)]
        for k, rows in enumerate(result.samples):
            np.testing.assert_array_equal(kept[str(k)], rows)
            assert len(rows) == len(train) > len(set(rows))
            assert set(rows) <= set(train.tolist())
            out = np.load(result.run_dir / f"member-{k}" / "oob.npz")["index"]
            assert set(out) == set(train.tolist()) - set(rows)
            images = data.source.inputs[torch.from_numpy(rows)].double()
            statistics = result.model.net.members[k].preprocess
            scale, shift = statistics.scale, statistics.shift
            assert float(scale) == pytest.approx(1 / images.std(correction=0).item(), rel=1e-5)
            mean = images.mean() / images.std(correction=0)
            assert float(shift) == pytest.approx(-mean.item(), rel=1e-5)
    assert len({tuple(rows) for rows in result.samples}) == 6
    votes = sum(~np.isin(result.oob.index, rows) for rows in result.samples)
    np.testing.assert_array_equal(result.oob.votes, votes)
    np.testing.assert_array_equal(result.oob.target, data.source.targets[result.oob.index])


def test_best_weights_are_not_the_live_model(tmp_path, make_trainer):
    """A rate so high that the best epoch is not the last; its weights are those of the ensemble."""
    data = digits()
    result = DeepEnsemble(
        lambda: MLPClassifier(64, 10, hidden=[16], norm="batch", lr=0.3, optimizer="sgd",
                              optimizer_args={"momentum": 0.98}),
        data,
        **settings(num_members=2, run_dir=tmp_path / "a",
                   trainer={"max_epochs": 6, "accelerator": "cpu"}),
    ).fit()  # fmt: skip
    assert any(row["best_epoch"] < row["epochs"] for row in result.members)
    for k, row in enumerate(result.members):
        losses = [epoch["val/loss"] for epoch in result.histories[k] if "val/loss" in epoch]
        assert losses.index(min(losses)) + 1 == row["best_epoch"]
        member = Voting([result.model.net.members[k]])
        (found,) = make_trainer().validate(member, datamodule=data, verbose=False)
        assert found["val/loss"] == pytest.approx(min(losses), rel=1e-4)
        assert row["val/loss"] == pytest.approx(min(losses), rel=1e-4)


def first_weight(model):
    return next(iter(model.net.state_dict().values())).numpy().tobytes()


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_members_start_apart_and_see_another_order(tmp_path, engine, monkeypatch):
    starts, orders = [], []

    def make():
        model = mlp()
        starts.append(first_weight(model))
        return model

    positions = EpochSampler.positions

    def kept(self):
        order = positions(self)
        if self.shuffle:
            orders.append(tuple(order))
        return order

    monkeypatch.setattr(EpochSampler, "positions", kept)
    data = DigitsDataModule(batch_size=32, test_fraction=0.5)
    result = DeepEnsemble(make, data, engine=engine, **settings(run_dir=tmp_path / "a")).fit()
    assert result.oob is None and result.oob_score == {}
    assert all(row["num_oob"] == 0 for row in result.members)
    assert len(set(starts)) >= 3
    assert len(set(orders)) >= 3
    for k in range(3):
        pl.seed_everything(k, verbose=False)
        assert first_weight(mlp()) in starts


def test_loss_is_the_cross_entropy_of_the_averaged_probabilities(bagged, make_trainer):
    data, result = bagged
    batches = make_trainer().predict(result.model, datamodule=data)
    predicted = torch.cat([batch["prediction"] for batch in batches]).double().numpy()
    targets = torch.cat([batch["target"] for batch in batches]).numpy()
    (found,) = make_trainer().test(result.model, datamodule=data, verbose=False)
    predicted /= predicted.sum(1, keepdims=True)
    assert found["test/loss"] == pytest.approx(log_loss(targets, predicted), rel=1e-4)
    oob = result.oob[result.oob.votes > 0]
    assert result.oob_score["oob/loss"] == pytest.approx(
        log_loss(oob["target"], oob["prediction"] / oob["prediction"].sum(1, keepdims=True)),
        rel=1e-4,
    )
    assert result.oob_score["oob/accuracy"] == pytest.approx(
        accuracy_score(oob["target"], oob["prediction"].argmax(1))
    )


def test_files_load_and_predict_the_same(bagged, make_trainer):
    data, result = bagged
    again = BaggingResult.load(result.run_dir)
    assert again.seconds == result.seconds > 0
    assert again.members == result.members and again.oob_score == result.oob_score
    for name, values in result.oob.columns.items():
        np.testing.assert_array_equal(values, getattr(again.oob, name))
    assert all((a == b).all() for a, b in zip(again.samples, result.samples, strict=True))
    assert again.histories == result.histories
    both = [
        make_trainer().predict(model, datamodule=data)
        for model in (result.model, load(result.checkpoint), again.model)
    ]
    for first, *others in zip(*both, strict=True):
        assert all(torch.equal(first["prediction"], o["prediction"]) for o in others)
    summary = json.loads((result.run_dir / "summary.json").read_text())
    assert summary["oob"]["oob/accuracy"] == result.oob_score["oob/accuracy"]
    never = int((result.oob.votes == 0).sum())
    assert summary["oob"]["num_never_out"] == never
    assert summary["oob"]["num_scored"] == len(result.oob) - never
    assert (result.run_dir / "member-5" / "metrics.csv").is_file()


class StopAt(Callback):
    """Breaks off the second epoch of a member that is to be stopped."""

    def __init__(self, members):
        self._broken = members

    def on_train_epoch_end(self, trainer, pl_module):
        member = int(trainer.default_root_dir.rpartition("-")[2])
        if trainer.current_epoch == 1 and member in self._broken:
            raise KeyboardInterrupt


def test_a_broken_run_goes_on(tmp_path):
    stop = [1]

    def run(name, seed=0):
        return Bagging(
            mlp,
            digits(),
            make_callbacks=lambda: [StopAt(stop)],
            **settings(run_dir=tmp_path / name, seed=seed),
        ).fit()

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run("a")
    first = (tmp_path / "a" / "member-0" / "member.json").stat().st_mtime_ns
    assert not (tmp_path / "a" / "member-1" / "member.json").exists()
    stop.clear()
    resumed = run("a")
    assert (tmp_path / "a" / "member-0" / "member.json").stat().st_mtime_ns == first
    whole = run("b")
    np.testing.assert_array_equal(resumed.oob.prediction, whole.oob.prediction)
    for mine, theirs in zip(resumed.members, whole.members, strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}
    written = (tmp_path / "a" / "summary.json").stat().st_mtime_ns
    assert run("a").oob_score == whole.oob_score
    assert (tmp_path / "a" / "summary.json").stat().st_mtime_ns == written
    with pytest.raises(FileExistsError, match="seed was 0 and is 5"):
        run("a", seed=5)


def test_one_process_at_a_time(tmp_path):
    with locked(tmp_path / "a"), pytest.raises(BlockingIOError, match="in use by process"):
        Bagging(mlp, digits(), **settings(run_dir=tmp_path / "a")).fit()


def test_vectorized_members_that_are_left(tmp_path, double):
    def run():
        return Bagging(mlp, digits(), engine="vectorized", **settings(run_dir=tmp_path / "a")).fit()

    whole = run()
    os.unlink(tmp_path / "a" / "member-1" / "member.json")
    os.unlink(tmp_path / "a" / "summary.json")
    again = run()
    np.testing.assert_allclose(again.oob.prediction, whole.oob.prediction, atol=1e-4)


def test_too_many_for_memory_are_run_in_halves(capsys):
    ran = []

    def run(keys):
        if len(keys) > 2:
            raise torch.OutOfMemoryError("no memory")
        ran.append(list(keys))
        return [(key, key * 10) for key in keys]

    assert dict(in_halves(run, [0, 1, 2, 3, 4], "members")) == {k: k * 10 for k in range(5)}
    assert ran == [[0, 1], [2], [3, 4]]
    assert "5 members at once need more memory than there is; going on with 3" in (
        capsys.readouterr().err
    )


def test_wandb_runs_are_one_group(tmp_path):
    Bagging(
        mlp,
        digits(),
        engine="vectorized",
        **{**settings(num_members=2, run_dir=tmp_path / "bags"), "logger": "wandb"},
    ).fit()
    runs = [read_run(path) for path in (tmp_path / "bags").rglob("*.wandb")]
    assert {run["group"] for run in runs} == {"bags"}
    assert sorted(run["job_type"] for run in runs) == ["member", "member", "summary"]
    (summary,) = (run["summary"] for run in runs if run["job_type"] == "summary")
    assert summary["oob/accuracy"] == pytest.approx(
        json.loads((tmp_path / "bags" / "summary.json").read_text())["oob"]["oob/accuracy"]
    )
    assert any(key.startswith("members") for run in runs for row in run["history"] for key in row)


def test_anybodys_data_and_nets(tmp_path, make_trainer):
    random = np.random.default_rng(0)
    inputs = torch.from_numpy(random.normal(size=(90, 4))).float()
    targets = (inputs[:, 0] > 0).long()
    data = FoldedDataModule(TensorDataset(inputs, targets))

    def make():
        return Classifier(nn.Linear(4, 2), 2, lr=0.1)

    result = Bagging(make, data, engine="auto", **settings(run_dir=tmp_path / "a")).fit()
    assert result.info["engine"] == "sequential"
    assert "FoldedDataModule" in result.info["engine_reason"]
    assert len(result.oob) == 72
    again = BaggingResult.load(tmp_path / "a", make_model=make)
    with torch.no_grad():
        assert torch.equal(again.model(inputs), result.model(inputs))
    with pytest.raises(NotVectorizable, match="no datamodule over arrays"):
        Bagging(make, data, engine="vectorized", **settings(run_dir=tmp_path / "b")).fit()
    assert not (tmp_path / "b").exists()


def test_figures(tmp_path):
    Bagging(mlp, digits(), **{**settings(run_dir=tmp_path / "a"), "figures": True}).fit()
    names = {path.stem for path in (tmp_path / "a" / "figures").iterdir()}
    assert {"learning_curves", "confusion_matrix", "reliability"} <= names


def test_voting_over_models_and_checkpoints(bagged, make_trainer):
    data, result = bagged
    paths = [result.run_dir / row["checkpoint"] for row in result.members]
    mixed = Voting([*paths[:3], *result.model.net.members[3:]])
    raw = data.arrays("test")[0]
    with torch.no_grad():
        torch.testing.assert_close(mixed(raw), result.model(raw))
    different = Voting([mlp(), CNNClassifier(1, 10)], voting="hard")
    assert different.voting == "hard" and not different.training


def test_a_vote_over_ensembles_is_that_of_their_members(bagged, make_trainer):
    data, result = bagged
    both = Voting([result.model, result.checkpoint])
    raw = data.arrays("test")[0]
    with torch.no_grad():
        torch.testing.assert_close(both(raw), result.model(raw))
    trainer = make_trainer()
    (alone,) = trainer.test(result.model, datamodule=data, verbose=False)
    (within,) = trainer.test(both, datamodule=data, verbose=False)
    assert within == pytest.approx(alone, rel=1e-5)
    # Beside a single model.
    single = mlp()
    with pytest.raises(ValueError, match=r"member 0 has no statistics.*set model\.preprocess"):
        Voting([single, result.model])
    single.preprocess.set(**data.preprocess.statistics())
    mixed = Voting([single, result.model])
    with torch.no_grad():
        p = [single(raw).softmax(1), result.model(raw).softmax(1)]
        torch.testing.assert_close(mixed(raw).softmax(1), (p[0] + p[1]) / 2)


def test_a_share_of_the_samples(tmp_path):
    """Half of the training rows, once each; with replacement, n (1 - e^-0.5) of n are distinct."""
    train = digits().indices("train")
    for bootstrap, distinct in ((False, 0.5), (True, 1 - np.exp(-0.5))):
        result = Bagging(
            mlp, digits(), max_samples=0.5, bootstrap=bootstrap,
            **settings(run_dir=tmp_path / str(bootstrap)),
        ).fit()  # fmt: skip
        for rows, member in zip(result.samples, result.members, strict=True):
            assert len(rows) == round(len(train) / 2)
            assert np.isin(rows, train).all()
            assert len(np.unique(rows)) == pytest.approx(distinct * len(train), rel=0.05)
            assert member["num_train"] == len(rows)


def test_bad_arguments(tmp_path):
    def bad(match, error=ValueError, make=mlp, data=None, kind=Bagging, **more):
        with pytest.raises(error, match=match):
            kind(make, data or digits(), **{**settings(run_dir=tmp_path / "a"), **more}).fit()
        assert not (tmp_path / "a").exists()

    widths = []
    one = mlp()
    bad(r"num_members=0 is outside \[1", num_members=0)
    bad("num_members=2.5 .*whole number", num_members=2.5)
    bad(r"max_samples=0 is outside \(0, 1\]", max_samples=0)
    bad("voting='median'", voting="median")
    bad("engine='parallel'", engine="parallel")
    for engine in ("sequential", "vectorized"):
        widths.extend([9, 8])
        bad(
            r"different architectures, first in net\.\S+: \[8, 64\] and \[9, 64\]",
            make=lambda: MLPClassifier(64, 10, hidden=[widths.pop()]),
            engine=engine,
        )
    bad("the same model for two members", make=lambda: one)
    shared = EarlyStopping("val/loss")
    bad("same EarlyStopping for two members", make_callbacks=lambda: [shared])
    bad("returned a BoringModel", make=BoringModel)
    bad("num_classes=3, but DigitsDataModule has 10", make=lambda: MLPClassifier(64, 3))
    bad("no validation part", data=digits(val_fraction=0))
    bad("keeps no weights", trainer={"fast_dev_run": True})
    bad("'max_epochs': 0} trains nothing", trainer={"max_epochs": 0})
    bad("make_model is a MLPClassifier, and no function", TypeError, make=one)
    bad(
        "a function that returns one, got int",
        TypeError,
        data=3,
    )
    bad("votes for classes", make=regressor, data=diabetes(), voting="hard")
    bad("stratify=True needs classes", make=regressor, data=diabetes(), stratify=True)
    bad("knows? what came after", make=mlp, data=digits(split="time_series"), error=ValueError)
    bad("samples has 1 entries and num_members=3", samples=[[0]])
    val = int(digits().indices("val")[0])
    bad(f"row {val} is not in the training part", samples=[[val]] * 3)
    bad("every member of a DeepEnsemble", kind=DeepEnsemble, max_samples=0.5)
    bad("must be a dlblocks DataModule", TypeError, data=pl.LightningDataModule())
    with pytest.raises(FileNotFoundError, match="no bagging has ended there"):
        BaggingResult.load(tmp_path)
    with pytest.raises(ValueError, match="members is empty"):
        Voting([])
    with pytest.raises(ValueError, match="votes for classes"):
        Voting([regressor()], voting="hard")
    with pytest.raises(ValueError, match="no common vote"):
        Voting([regressor(), mlp()])
