"""What is made of a cross-validation: an ensemble, a model on all data, the test score."""

import json

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from few_digits import FewDigits
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, random_split

from dlblocks.callbacks import Augment, ExactResume
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.data import (
    ArrayDataModule,
    CurveDataModule,
    FoldedDataModule,
    TabularDataModule,
)
from dlblocks.models import Classifier, MLPClassifier, MLPRegressor, load

ONE_EPOCH = {"max_epochs": 1, "accelerator": "cpu"}


def run(folder, make_model, data, **arguments):
    return cross_validate(
        make_model,
        data,
        run_dir=folder,
        **{
            "num_folds": 3,
            "trainer": {"max_epochs": 4, "accelerator": "cpu"},
            "progress_bar": False,
            "figures": False,
            **arguments,
        },
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cv") / "digits"
    return run(folder, lambda: MLPClassifier(64, 10, hidden=[16], lr=0.01), FewDigits())


def test_the_ensemble_averages_models_that_each_see_their_own_normalisation(digits):
    images = FewDigits().arrays("test")[0]
    shares = []
    for row in digits.folds:
        model = load(digits.run_dir / row["checkpoint"])
        data = FewDigits().for_fold(row["fold"], 3).with_selection(0.15)
        data.setup()
        with torch.no_grad():
            shares.append(model(images).softmax(1))
    with torch.no_grad():
        found = digits.ensemble()(images).softmax(1)
    torch.testing.assert_close(found, sum(shares) / 3)


def test_the_ensemble_under_a_trainer_and_from_its_file(digits, make_trainer, tmp_path):
    data, together = FewDigits(), digits.ensemble()
    trainer = make_trainer()
    (metrics,) = trainer.test(together, datamodule=data, verbose=False)
    images, targets, _ = data.arrays("test")
    trainer.save_checkpoint(tmp_path / "ensemble.ckpt")
    again = load(tmp_path / "ensemble.ckpt")
    with torch.no_grad():
        right = (again(images).argmax(1) == targets).float().mean()
    assert metrics["test/accuracy"] == pytest.approx(float(right), abs=1e-6)
    loaded = CrossValidationResult.load(digits.run_dir).ensemble()
    with torch.no_grad():
        assert torch.equal(loaded(images), again(images))


def test_raw_inputs_stay_raw_after_a_trainer(digits, make_trainer):
    images, together = FewDigits().arrays("test")[0], digits.ensemble()
    with torch.no_grad():
        before = together(images)
        make_trainer().test(together, datamodule=FewDigits(), verbose=False)
        assert torch.equal(together(images), before)


def test_regression_and_filled_in_tables(tmp_path, make_trainer):
    result = run(
        tmp_path / "curve",
        lambda: MLPRegressor(1, hidden=[16], lr=0.02, standardize_targets=True),
        CurveDataModule(num_samples=300),
    )
    batches = make_trainer().predict(result.ensemble(), datamodule=CurveDataModule(num_samples=300))
    found = torch.cat([batch["prediction"] for batch in batches])
    data = CurveDataModule(num_samples=300)
    expected = []
    for row in result.folds:
        fold = data.for_fold(row["fold"], 3).with_selection(0.15)
        fold.setup()
        with torch.no_grad():
            expected.append(load(result.run_dir / row["checkpoint"])(fold.arrays("test")[0]))
    torch.testing.assert_close(found.flatten(), (sum(expected) / 3).flatten(), atol=1e-5, rtol=1e-4)


class Epochs(pl.Callback):
    def __init__(self, seen):
        self.seen = seen

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((trainer.current_epoch, trainer.optimizers[0].param_groups[0]["lr"]))


def test_refit_trains_on_all_development_data_for_the_median_epoch(tmp_path):
    seen = []
    result = run(
        tmp_path / "a",
        lambda: MLPClassifier(64, 10, hidden=[16], lr=0.01, lr_schedule="one_cycle"),
        FewDigits(batch_size=100),
        make_callbacks=lambda: [EarlyStopping("val/loss"), Augment(rotation=5), Epochs(seen)],
    )
    for row, best in zip(result.folds, (1, 3, 2), strict=True):
        row["best_epoch"] = best
    seen.clear()
    model = result.refit()
    data = FewDigits(batch_size=100).without_validation()
    assert len(data.indices("train")) == 450 - len(data.indices("test"))
    assert not len(data.indices("val"))
    assert [epoch for epoch, _ in seen] == [0] * 4 + [1] * 4
    # The schedule is that of four epochs: after two of them the rate is still high.
    assert seen[-1][1] > 0.005
    again = load(tmp_path / "a" / "refit" / "model.ckpt")
    for name, value in model.state_dict().items():
        assert torch.equal(value.cpu(), again.state_dict()[name])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    repeated = result.refit().state_dict()
    assert all(torch.equal(weights[name], repeated[name]) for name in weights)


def test_refit_takes_the_callbacks_of_the_folds(tmp_path):
    result = run(
        tmp_path / "a",
        lambda: MLPClassifier(64, 10, hidden=[16]),
        FewDigits(batch_size=300),
        make_callbacks=lambda: [ExactResume(), LearningRateMonitor()],
        trainer={"max_epochs": 4, "min_epochs": 4, "accelerator": "cpu"},
    )
    for row in result.folds:
        row["best_epoch"] = 2
    assert result.refit().trainer.current_epoch == 2
    with pytest.raises(ValueError, match="refit has no validation"):
        result.refit(lambda: MLPClassifier(64, 10, lr_schedule="plateau"))


def test_the_test_set_is_looked_at_once(digits, make_trainer):
    metrics = digits.test(digits.ensemble())
    (expected,) = make_trainer().test(digits.ensemble(), datamodule=FewDigits(), verbose=False)
    assert metrics["test/accuracy"] == pytest.approx(expected["test/accuracy"])
    written = json.loads((digits.run_dir / "test.json").read_text())
    assert written == {
        "metrics": metrics,
        "model": "VotingEnsemble",
        "shared_with_training": 0,
        "intervals": {name: list(metrics.interval(name)) for name in metrics},
    }
    with pytest.raises(FileExistsError, match="looked at already"):
        digits.test(digits.refit())


def test_a_loaded_result_says_what_it_needs(digits):
    loaded = CrossValidationResult.load(digits.run_dir)
    with pytest.raises(ValueError, match="give make_model="):
        loaded.refit()
    with pytest.raises(ValueError, match="give datamodule="):
        loaded.test(loaded.ensemble())


def test_no_test_set_and_foreign_models(tmp_path):
    x, y = np.random.default_rng(0).random((60, 4)), np.arange(60) % 3

    class Theirs(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 3)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    result = run(tmp_path / "a", Theirs, ArrayDataModule(x, y))
    with pytest.raises(ValueError, match="Theirs has neither a predict_step nor a forward"):
        result.ensemble()
    with pytest.raises(ValueError, match="names no class of dlblocks"):
        CrossValidationResult.load(tmp_path / "a").ensemble()
    wine = run(
        tmp_path / "b", lambda: MLPClassifier(13, 3), TabularDataModule("wine", test_fraction=0)
    )
    with pytest.raises(ValueError, match="no test set"):
        wine.test(wine.ensemble())


class Redrawn(pl.LightningDataModule):
    """As in many tutorials: every `setup` draws the split anew."""

    def __init__(self, seed=None, copies=0):
        super().__init__()
        x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        self.whole = TensorDataset(x, torch.arange(100) % 3)
        self.seed, self.copies = seed, copies

    def setup(self, stage):
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        self.a, self.b = random_split(self.whole, [70, 30], generator=generator)

    def train_dataloader(self):
        return DataLoader(self.a, 16)

    def test_dataloader(self):
        copies = TensorDataset(*(torch.stack(column) for column in zip(*self.a, strict=True)))
        extra = Subset(copies, range(self.copies))
        return DataLoader(ConcatDataset([self.b, extra]) if self.copies else self.b, 16)


def small():
    return MLPClassifier(4, 3, hidden=[4])


def test_test_samples_that_were_trained_on_are_refused(tmp_path, capsys):
    theirs = Redrawn()
    result = run(tmp_path / "a", small, FoldedDataModule(theirs), trainer=ONE_EPOCH)
    trained = set(theirs.a.indices)
    torch.manual_seed(3)  # the fit began with seed 0, as this test did
    with pytest.raises(ValueError, match=r"of 30 test samples are in the .* draw the split"):
        result.test(result.ensemble())
    assert trained & set(theirs.b.indices)
    assert not (tmp_path / "a" / "test.json").exists()
    # The models of a loaded result have seen samples of another split.
    loaded = CrossValidationResult.load(tmp_path / "a")
    torch.manual_seed(5)
    with pytest.raises(ValueError, match="other samples, or holds out others, than the run"):
        loaded.test(loaded.ensemble(), FoldedDataModule(Redrawn()))
    with pytest.raises(ValueError, match="other samples"):
        loaded.test(loaded.ensemble(), FoldedDataModule(Redrawn(), test_fraction=0.2))
    assert capsys.readouterr().err.count("allow_shared") == 0


def test_what_test_json_says_of_shared_samples(tmp_path, capsys):
    def tested(name, theirs, **arguments):
        result = run(tmp_path / name, small, FoldedDataModule(theirs), trainer=ONE_EPOCH)
        metrics = result.test(result.ensemble(), **arguments)
        written = json.loads((tmp_path / name / "test.json").read_text())
        assert written["metrics"] == metrics
        notes = written.get("notes", [])
        err = capsys.readouterr().err
        assert all(note in err for note in notes)
        return metrics, written["shared_with_training"], notes

    assert tested("clean", Redrawn(seed=0))[1:] == (0, [])
    with pytest.raises(ValueError, match="5 of 35 test samples"):
        tested("copies", Redrawn(seed=0, copies=5))
    _, shared, (note,) = tested("allowed", Redrawn(seed=0, copies=5), allow_shared=True)
    assert shared == 5
    assert "allow_shared=True" in note

    class Random(Redrawn):
        def test_dataloader(self):
            return DataLoader(Noisy(), 16)

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, i):
            return torch.randn(4), i % 3

    _, shared, (note,) = tested("unknown", Random(seed=0))
    assert shared is None
    assert "is not known" in note


def test_several_test_loaders(tmp_path):
    class Several(Redrawn):
        def test_dataloader(self):
            return {"whole": DataLoader(self.b, 30), "part": DataLoader(Subset(self.b, [0]), 16)}

    class Theirs(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 3)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.training_step(batch, batch_idx))

        def test_step(self, batch, batch_idx, dataloader_idx):
            self.log("size", float(len(batch[0])))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    theirs = Several(seed=0)
    result = run(tmp_path / "a", Theirs, FoldedDataModule(theirs), trainer=ONE_EPOCH)
    metrics = result.test(result.refit())
    assert metrics == {"size/dataloader_idx_0": 30.0, "size/dataloader_idx_1": 1.0}


def test_copies_in_an_official_test_set_are_counted(tmp_path, capsys):
    x, y = np.random.default_rng(0).random((60, 4)), np.arange(60) % 3
    data = ArrayDataModule(x[:40], y[:40], test_inputs=x[33:], test_targets=y[33:])
    result = run(tmp_path / "a", small, data, trainer=ONE_EPOCH)
    result.test(result.ensemble())
    written = json.loads((tmp_path / "a" / "test.json").read_text())
    assert written["shared_with_training"] == 7
    assert "7 of 27 test samples" in written["notes"][0]
    # Other rows are held out: some have been trained on.
    digits = run(tmp_path / "b", lambda: MLPClassifier(64, 10), FewDigits(),
                 trainer=ONE_EPOCH)  # fmt: skip
    with pytest.raises(ValueError, match="holds out others"):
        digits.test(digits.ensemble(), FewDigits(split_seed=1))


class Scaled(MLPClassifier):
    """A user's own class: its hyperparameters are its arguments."""

    def __init__(self, scale: float = 2.0, in_features: int = 13):
        super().__init__(in_features, 3, hidden=[8], lr=0.01)
        self.scale = scale
        self.save_hyperparameters()

    def forward(self, inputs):
        return super().forward(inputs) * self.scale


def over_own_net():
    return Classifier(torch.nn.Sequential(torch.nn.Linear(13, 8), torch.nn.Tanh(),
                                          torch.nn.Linear(8, 3)), 3, lr=0.01)  # fmt: skip


@pytest.mark.parametrize("kind", ["own class", "own net"])
def test_ensembles_of_models_of_the_users_own(tmp_path, make_trainer, kind):
    own_net = kind == "own net"
    make_model = over_own_net if own_net else lambda: Scaled(3.0)
    result = run(tmp_path / "cv", make_model, TabularDataModule("wine"))
    random_state = torch.get_rng_state()
    together = result.ensemble()
    assert torch.equal(torch.get_rng_state(), random_state)

    # By hand: each member's probabilities on its own fold's normalisation.
    data = TabularDataModule("wine")
    inputs, shares = data.arrays("test")[0], []
    for row in result.folds:
        fold = data.for_fold(row["fold"], 3).with_selection(0.15)
        fold.setup()
        member = make_model()
        path = result.run_dir / row["checkpoint"]
        member.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        with torch.no_grad():
            shares.append(member.eval()(inputs).softmax(1))
    with torch.no_grad():
        torch.testing.assert_close(together(inputs).softmax(1), sum(shares) / 3)

    trainer = make_trainer()
    (metrics,) = trainer.test(together, datamodule=data, verbose=False)
    trainer.save_checkpoint(tmp_path / "ensemble.ckpt")
    needs = {"overrides": {"members": [make_model() for _ in range(3)]}}
    again = load(tmp_path / "ensemble.ckpt", **(needs if own_net else {"classes": [Scaled]}))
    with torch.no_grad():
        assert torch.equal(again(inputs), together(inputs))
    (found,) = make_trainer().test(again, datamodule=data, verbose=False)
    assert found == metrics
    with pytest.raises(ValueError, match="overrides=.*members" if own_net else r"classes=\["):
        load(tmp_path / "ensemble.ckpt")
    if not own_net:
        with pytest.raises(ValueError, match=r"holds a .*VotingEnsemble, not a Scaled"):
            Scaled.load_from_checkpoint(tmp_path / "ensemble.ckpt")

    loaded = CrossValidationResult.load(tmp_path / "cv")
    with pytest.raises(ValueError, match=r"give make_model= .*, or classes="):
        loaded.ensemble()
    for model in (
        loaded.ensemble(make_model=make_model),
        *([] if own_net else [loaded.ensemble(classes=[Scaled])]),
    ):
        with torch.no_grad():
            assert torch.equal(model(inputs), together(inputs))
    with pytest.raises(ValueError, match=r"holds a .*, not a .*MLPClassifier"):
        loaded.ensemble(make_model=lambda: MLPClassifier(13, 3))
