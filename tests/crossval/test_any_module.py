"""What users bring of their own: modules, batches and hyperparameters of any kind."""

import dataclasses
import enum
import functools
import warnings
from collections import namedtuple
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas
import pytest
import pytorch_lightning as other_pl
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAUROC

from dlblocks._files import read_rows
from dlblocks._scores import pooled_metrics
from dlblocks.crossval import CrossValidationResult, cross_validate, nested_cross_validate
from dlblocks.data import ArrayDataModule, FoldedDataModule, TabularDataModule
from dlblocks.models import (
    Classifier,
    MLPClassifier,
    MLPRegressor,
    VotingModule,
    load,
)
from dlblocks.optim.schedules import SCHEDULES
from dlblocks.runs._fits import _TryPrediction

N = 60
Y = np.arange(N) % 3
X = (np.random.default_rng(0).normal(size=(N, 4)) + 2 * Y[:, None]).astype(np.float32)
Pair = namedtuple("Pair", ["label", "image"])  # the target comes first


class Norm(str, enum.Enum):
    BATCH = "batch"


@dataclasses.dataclass
class Settings:
    lr: float = 0.1


class Samples(Dataset):
    """Samples as a dictionary or a namedtuple; no attribute holds the targets."""

    def __init__(self, kind=dict):
        self.kind = kind

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.kind(image=torch.from_numpy(X[i]), label=int(Y[i]))


def tensors():
    return TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))


def entry(batch, name):
    return batch[name] if isinstance(batch, dict) else getattr(batch, name)


class Net(pl.LightningModule):
    """As in a tutorial: it knows the names in its batches; dropout draws random numbers."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)
        )

    def forward(self, x):
        return self.net(x)

    def loss(self, batch):
        return F.cross_entropy(self(entry(batch, "image")), entry(batch, "label"))

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Predicts(Net):
    def predict_step(self, batch, batch_idx):
        return self(entry(batch, "image")).softmax(1)


class TakesDict(Net):
    def forward(self, batch):
        return self.net(entry(batch, "image"))

    def loss(self, batch):
        return F.cross_entropy(self(batch), batch["label"])


class FailsLater(Predicts):
    def predict_step(self, batch, batch_idx):
        if batch_idx:
            raise RuntimeError("no second batch")
        return super().predict_step(batch, batch_idx)


def run(make_model, data=None, **arguments):
    settings = {
        "trainer": {"accelerator": "cpu", "max_epochs": 2}, "num_folds": 3, "logger": None,
        "progress_bar": False, "figures": False, "run_dir": "run",
    }  # fmt: skip
    if data is None:
        data = FoldedDataModule(Samples(), targets=Y)
    return cross_validate(make_model, data, **{**settings, **arguments})


def without_warnings(make_model, data=None, **arguments):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "result.oof will be None")
        return run(make_model, data, **arguments)


# Predictions


def test_a_prediction_that_fails_is_said_once_and_the_folds_run():
    began = []

    class Started(Net):
        def training_step(self, batch, batch_idx):
            began.append(batch_idx)
            return super().training_step(batch, batch_idx)

    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", ".*LeafSpec|.*workers|.*logging interval")
        # Before anything is trained.
        warnings.showwarning = lambda *args, **kwargs: caught.append((args[0], len(began)))
        result = run(Started)
    ((message, steps),) = caught
    assert steps == 0
    said = str(message)
    assert "forward fails with a dictionary with 'image', 'label': TypeError" in said
    assert "def predict_step(self, batch, batch_idx): return self(batch['image'])" in said
    assert torch.equal(before, torch.get_rng_state())
    assert result.oof is None
    assert len(result.values("val/loss")) == 3
    (note,) = result.notes
    assert note.startswith("no out-of-fold predictions: Started has no predict_step")
    for again in (run(Started), CrossValidationResult.load("run")):
        assert again.notes == [note]  # read back, and nothing is warned of again
        assert again.values("val/loss") == result.values("val/loss")
    with pytest.raises(ValueError, match=r"batch\['image'\]"):
        result.pooled()


@pytest.mark.parametrize("make", [Net, Predicts])
def test_the_trial_leaves_the_fold_as_it_would_have_been(make, monkeypatch):
    tried = without_warnings(make)
    monkeypatch.setattr(_TryPrediction, "on_train_start", lambda *args: None)
    untried = without_warnings(make, run_dir="untried")
    assert tried.histories == untried.histories
    assert tried.values("val/loss") == untried.values("val/loss")


def test_a_later_failure_ends_no_run():
    data = FoldedDataModule(torch.utils.data.DataLoader(Samples(), batch_size=8), targets=Y)
    with pytest.warns(UserWarning, match="RuntimeError: no second batch") as caught:
        result = run(FailsLater, data)
    assert len([w for w in caught if "result.oof" in str(w.message)]) == 1
    assert result.oof is None
    assert "no second batch" in result.notes[0]
    assert len(result.folds) == 3


@pytest.mark.parametrize(("kind", "make"), [(dict, Predicts), (dict, TakesDict), (Pair, Predicts)])
def test_targets_are_found_by_their_names(kind, make):
    result = run(make, FoldedDataModule(Samples(kind)))
    np.testing.assert_array_equal(result.oof.target, Y)
    assert result.oof.prediction.shape == (N, 3)
    assert "give targets=, one per sample" in result.notes[0]  # folds are not stratified


def test_a_dictionary_of_outputs_is_refused_by_name():
    class Dictionary(Net):
        def predict_step(self, batch, batch_idx):
            return {"logits": self(batch["image"])}

    result = run(Dictionary)
    assert result.oof is None
    assert "Dictionary.predict_step returns a dictionary with 'logits'" in result.notes[0]
    assert "as 'prediction'" in result.notes[0]


def test_labels_in_a_column_stratify():
    labels = np.r_[np.zeros(40), np.ones(14), np.full(6, 2)].astype(np.int64)
    counts = []
    for targets in (labels, labels[:, None], np.array(["a", "b", "c"])[labels][:, None]):
        data = FoldedDataModule(TensorDataset(torch.from_numpy(X)), targets=targets)
        assert data.is_classification
        counts.append([np.bincount(labels[fold["val"]]).tolist() for fold in data.splits(2)])
        assert data.notes() == []
    assert counts == [[[20, 7, 3], [20, 7, 3]]] * 3


# Hyperparameters

PLAIN = {  # as given, and as a checkpoint has it
    "lr": (np.float64(0.1), 0.1),
    "width": (np.int32(3), 3),
    "flag": (np.bool_(True), True),
    "folder": (Path("a") / "b", "a/b"),
    "norm": (Norm.BATCH, "batch"),
    "widths": (range(2, 4), [2, 3]),
    "pair": ((1, np.float32(0.5)), (1, 0.5)),
    "array": (np.array([[1, 2]]), [[1, 2]]),
    "nested": ({"a": [Path("c"), None]}, {"a": ["c", None]}),
    "dtype": (torch.float64, torch.float64),
}


def other_kinds():
    return {
        "partial": functools.partial(torch.optim.Adam, lr=0.1),
        "function": F.relu,
        "kind": nn.ReLU,
        "settings": Settings(),
        "list": [F.relu],
        "generator": np.random.default_rng(0),
    }


class Configured(Predicts):
    """Saves whatever it is given."""

    def __init__(self, module=None, weights=None, **things):
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attribute 'module' is an instance")
            self.save_hyperparameters()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), np.float64(0.1))

        class Half:
            relu = F.relu

            def __init__(self):
                self.function = F.relu

            def __call__(self, epoch):
                return np.float64(0.5)

        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, Half())]


class Killed(Exception):
    pass


class Dies(pl.Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            raise Killed


class TheirData(pl.LightningDataModule):
    def __init__(self, transform, folder):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return torch.utils.data.DataLoader(Samples(), 16)


def test_hyperparameters_of_any_kind(monkeypatch):
    monkeypatch.setattr("dlblocks.runs.fit.RESUME_SECONDS", 0.0)
    weights = torch.ones(3)

    def make():
        given = {name: value for name, (value, _) in PLAIN.items()}
        return Configured(nn.ReLU(), weights, **given, **other_kinds())

    def data():
        return FoldedDataModule(TheirData(F.relu, Path("data")), targets=Y)

    arguments = {"trainer": {"accelerator": "cpu", "max_epochs": 3}, "num_folds": 2}
    whole = run(make, data(), **arguments)
    with pytest.raises(Exception, match="fold 0"):
        run(make, data(), **arguments, run_dir="broken", make_callbacks=lambda: [Dies()])
    last = torch.load("broken/fold-0/checkpoints/last.ckpt", weights_only=True)
    assert last["epoch"] == 2
    monkeypatch.setattr(Dies, "on_train_epoch_start", lambda *args: None)
    mended = run(make, data(), **arguments, run_dir="broken", make_callbacks=lambda: [Dies()])
    assert whole.histories == mended.histories
    np.testing.assert_array_equal(whole.oof.prediction, mended.oof.prediction)
    best = torch.load("run/fold-0/checkpoints/best.ckpt", weights_only=True)
    found = best["hyper_parameters"]
    assert torch.equal(found.pop("weights"), weights)
    assert found == {name: value for name, (_, value) in PLAIN.items()}
    for name, value in found.items():
        assert type(value) is type(PLAIN[name][1])
    # An ordinary validation by Lightning, which reads weights and plain values only.
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    fold = data().for_fold(0, 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Be aware that when using|.*restore.*callback")
        trainer.validate(make(), datamodule=fold, ckpt_path="run/fold-0/checkpoints/best.ckpt")


def test_what_a_hook_adds_must_be_plain():
    class Adds(Net):
        steps = 0

        def on_save_checkpoint(self, checkpoint):
            checkpoint["tools"] = {"act": [1, F.relu]}

        def training_step(self, batch, batch_idx):
            raise AssertionError("it is refused before training")

    with pytest.raises(ValueError, match=r"entry tools\['act'\]\[1\] is a function"):
        without_warnings(Adds)

    class Holds(pl.Callback):
        def state_dict(self):
            return {"act": F.relu}

    with pytest.warns(UserWarning, match=r"state of .*Holds\['act'\] is a function") as caught:
        result = run(Predicts, make_callbacks=lambda: [Holds()], run_dir="callback")
    assert len(result.folds) == 3
    assert all("left out of the checkpoint" in str(w.message) for w in caught)


class Activated(MLPClassifier):
    def __init__(self, act=F.relu):
        super().__init__(4, 3, hidden=[4])
        self.act = act
        self.save_hyperparameters()

    def forward(self, inputs):
        return self.act(self.net(inputs))


def test_ours_do_not_load_with_another_value_than_they_had(make_trainer):
    data = ArrayDataModule(X, Y)
    trainer = make_trainer()
    trainer.fit(Activated(torch.tanh), datamodule=data)
    trainer.save_checkpoint("model.ckpt")
    with pytest.raises(ValueError, match=r"act could not be saved .* overrides=\{'act': …\}"):
        load("model.ckpt", classes=[Activated])
    model = load("model.ckpt", classes=[Activated], overrides={"act": torch.tanh})
    assert model.act is torch.tanh


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("hidden", np.array([4, 5]), [4, 5]),
        ("hidden", range(4, 6), [4, 5]),
        ("class_weights", torch.tensor([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]),
    ],
)
def test_ours_take_arrays_and_paths(name, value, read, make_trainer, tmp_path):
    table = tmp_path / "table.csv"
    rows = [f"{a},{b},{c},{d},{y}" for (a, b, c, d), y in zip(X, Y, strict=True)]
    table.write_text("\n".join(["a,b,c,d,y", *rows]))
    data = TabularDataModule(table, target="y")
    trainer = make_trainer()
    trainer.fit(MLPClassifier(4, 3, **{name: value}), datamodule=data)
    trainer.save_checkpoint("model.ckpt")
    model = load("model.ckpt")
    assert model.hparams[name] == read
    trainer.validate(model, datamodule=data, ckpt_path="model.ckpt", verbose=False)
    checkpoint = torch.load("model.ckpt", weights_only=True)
    assert checkpoint["datamodule_hyper_parameters"]["data"] == str(table)


# Ensembles


class Logits(pl.LightningModule):
    """Takes batches of ours, whose inputs are normalised, and has no predict_step."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def weights_of(result, fold):
    path = result.run_dir / result.folds[fold]["checkpoint"]
    return torch.load(path, weights_only=True)["state_dict"]


def single(make, result, fold):
    model = make().eval()
    model.load_state_dict(weights_of(result, fold))
    return model


def test_the_ensemble_of_their_modules_averages_what_they_predict(make_trainer):
    result = run(Predicts)
    batch = {"image": torch.from_numpy(X), "label": torch.from_numpy(Y)}
    models = [single(Predicts, result, fold) for fold in range(3)]
    with torch.no_grad():
        each = torch.stack([model.predict_step(batch, 0) for model in models])
    result.ensemble().save("model.ckpt")  # without a Trainer
    members = [Predicts() for _ in range(3)]
    loaded = CrossValidationResult.load("run")
    with pytest.raises(ValueError, match="give make_model="):
        loaded.ensemble()
    for model in (
        result.ensemble(),
        loaded.ensemble(make_model=Predicts),
        load("model.ckpt", overrides={"members": members}),
    ):
        with torch.no_grad():
            found = model.predict_step(batch, 0)
        torch.testing.assert_close(found["prediction"], each.mean(0))
        torch.testing.assert_close(found["std"], each.std(0, correction=0))
        data = FoldedDataModule(Samples(), targets=Y, num_folds=3)
        batches = make_trainer().predict(model, datamodule=data)
        rows = torch.cat([b["prediction"] for b in batches])
        torch.testing.assert_close(rows, each.mean(0)[data.indices("val")])
    with pytest.raises(
        ValueError, match=r"Predicts.* cannot be created.*make_model\(\) for _ in range\(3\)"
    ):
        load("model.ckpt")
    rows = data.indices("val")
    expected = pooled_metrics(Y[rows], each.mean(0)[rows].numpy())
    (metrics,) = make_trainer().validate(model, datamodule=data, verbose=False)
    assert metrics == pytest.approx({f"val/{name}": v for name, v in expected.items()})


def test_each_of_their_modules_gets_its_own_normalisation(make_trainer):
    data = ArrayDataModule(100 * X + 3, Y, batch_size=16)
    result = run(Logits, data, num_folds=2)
    each = []
    for fold in range(2):
        own = data.for_fold(fold, 2).with_selection(0.15)
        own.setup()
        with torch.no_grad():
            each.append(single(Logits, result, fold)(own.transform(torch.from_numpy(100 * X + 3))))
    expected = (each[0] + each[1]) / 2
    model = result.ensemble()
    with torch.no_grad():
        torch.testing.assert_close(model(torch.from_numpy(100 * X + 3)), expected)
    whole = ArrayDataModule(100 * X + 3, Y, num_folds=3)
    batches = make_trainer().predict(model, datamodule=whole)
    rows = torch.cat([b["prediction"] for b in batches])
    torch.testing.assert_close(rows, expected[whole.indices("val")], atol=1e-4, rtol=1e-4)


def test_what_has_no_average_is_refused_by_name(make_trainer):
    class Classes(Predicts):
        def predict_step(self, batch, batch_idx):
            return torch.zeros(len(batch["label"]), dtype=torch.int64)

    ensemble = run(Classes).ensemble()
    with pytest.raises(ValueError, match=r"Classes predicts torch.int64.*return probabilities"):
        ensemble.predict_step({"label": [1]}, 0)

    class Names(Predicts):
        def predict_step(self, batch, batch_idx):
            return ["a"] * len(batch["label"])

    ensemble = run(Names, run_dir="names").ensemble()
    with pytest.raises(ValueError, match=r"Names predicts a list.*'prediction'"):
        ensemble.predict_step({"label": [1]}, 0)

    class Late(Logits):
        def setup(self, stage):
            self.late = nn.Linear(1, 1)

    result = run(Late, ArrayDataModule(X, Y), run_dir="late")
    said = r"do not fit a new Late; .* in __init__ or configure_model: .*late\.weight"
    with pytest.raises(ValueError, match=said):
        result.ensemble()

    model = VotingModule([Predicts(), Predicts()])
    loader = torch.utils.data.DataLoader([{"image": torch.from_numpy(x)} for x in X], 16)
    with pytest.raises(ValueError, match=r"targets of Predicts are not known.*'target'"):
        make_trainer().test(model, loader, verbose=False)


class MadeByConfigureModel(Logits):
    def __init__(self):
        super().__init__()
        self.net = None

    def configure_model(self):
        if self.net is None:
            self.net = nn.Linear(4, 3)


def test_layers_that_configure_model_makes_are_in_the_ensemble():
    result = run(MadeByConfigureModel, FoldedDataModule(tensors()))
    each = []
    for fold in range(3):
        weights = weights_of(result, fold)
        each.append(X @ weights["net.weight"].numpy().T + weights["net.bias"].numpy())
    with torch.no_grad():
        found = result.ensemble()(torch.from_numpy(X))
    np.testing.assert_allclose(found, sum(each) / 3, atol=1e-5)


# Habits of Lightning


class Unfrozen(Classifier):
    """A net with a backbone that Lightning's callback unfreezes."""

    def __init__(self, schedule, **arguments):
        net = nn.Sequential()
        net.backbone, net.head = nn.Linear(4, 8), nn.Linear(8, 3)
        super().__init__(net, 3, lr=0.01, lr_schedule=schedule, **arguments)

    @property
    def backbone(self):
        return self.net.backbone


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_unfreezing_a_backbone_under_every_schedule(schedule, monkeypatch):
    monkeypatch.setattr("dlblocks.runs.fit.RESUME_SECONDS", 0.0)
    args = {"milestones": [1, 3]} if schedule == "multi_step" else {}
    rates = []

    class Rates(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lr_schedule=.*the rate")
        result = run(
            lambda: Unfrozen(schedule, lr_schedule_args=args), ArrayDataModule(X, Y), num_folds=2,
            trainer={"accelerator": "cpu", "max_epochs": 4}, progress_bar=False,
            make_callbacks=lambda: [BackboneFinetuning(2, verbose=False), Rates()],
        )  # fmt: skip
    assert [len(one) for one in rates] == [1, 1, 2, 2] * 2
    assert all(rate >= 0 for one in rates for rate in one)
    assert len(result.folds) == 2


class Compiled(Logits):
    """Predicts by its forward; compiled, all its steps are."""


def test_compiled_modules():
    data = ArrayDataModule(X, Y)
    plain = run(Compiled, data, num_folds=2)
    result = run(
        lambda: torch.compile(Compiled(), backend="eager"), data, num_folds=2, run_dir="compiled"
    )
    assert result.values("val/loss") == pytest.approx(plain.values("val/loss"), rel=1e-5)
    np.testing.assert_allclose(result.oof.prediction, plain.oof.prediction, atol=1e-5)
    x = torch.from_numpy(X)
    with torch.no_grad():
        torch.testing.assert_close(result.ensemble()(x), plain.ensemble()(x))
    assert isinstance(result.refit(), Compiled)


def test_weights_of_a_compiled_net_load_into_a_plain_one(make_trainer):
    compiled = Classifier(torch.compile(nn.Linear(4, 3), backend="eager"), 3)
    trainer = make_trainer()
    trainer.fit(compiled, datamodule=ArrayDataModule(X, Y))
    trainer.save_checkpoint("compiled.ckpt")
    net = nn.Linear(4, 3)
    plain = load("compiled.ckpt", overrides={"net": net})
    plain.save("plain.ckpt")
    again = torch.compile(nn.Linear(4, 3), backend="eager")
    load("plain.ckpt", overrides={"net": again})
    for other in (net, again):
        assert torch.equal(other.weight, compiled.net.weight)


def test_classes_of_the_other_lightning_are_refused_by_name():
    class Module(other_pl.LightningModule):
        pass

    class Data(other_pl.LightningDataModule):
        pass

    said = r"is from the package pytorch_lightning, .* import lightning\.pytorch as pl"
    with pytest.raises(TypeError, match=f"got Module.*Module {said}"):
        run(Module)
    for make in (lambda: run(Predicts, Data()), lambda: FoldedDataModule(Data())):
        with pytest.raises(TypeError, match=f"got Data.*Data {said}"):
            make()
    stopping = other_pl.callbacks.EarlyStopping("val/loss")
    with pytest.raises(TypeError, match=f"EarlyStopping {said}"):
        run(Predicts, make_callbacks=lambda: [stopping])


def test_a_data_set_needs_a_length_and_numbered_samples_only():
    class Rows:  # as those of Hugging Face; it says its columns by other names
        def __len__(self):
            return N

        def __getitem__(self, i):
            return {"image": torch.from_numpy(X[i]), "label": int(Y[i])}

    found = run(Predicts, FoldedDataModule(Rows(), targets=Y))
    expected = run(Predicts, FoldedDataModule(Samples(), targets=Y), run_dir="expected")
    np.testing.assert_array_equal(found.oof.prediction, expected.oof.prediction)
    table = pandas.DataFrame({"x": [1.0, 2.0], "y": [0, 1]})
    parameter = nn.Parameter(torch.zeros(3, 2))
    for wrong in (
        np.zeros((4, 2)), [1, 2], {"a": 1}, "text", torch.zeros(3, 2), parameter, object(), table,
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"which has a length and data\[i\], got"):
            FoldedDataModule(wrong)


def test_a_data_set_without_attributes():
    class Slots:
        __slots__ = ()

        def __len__(self):
            return N

        def __getitem__(self, i):
            return torch.from_numpy(X[i]), int(Y[i])

    found = run(Logits, FoldedDataModule(Slots(), targets=Y))
    expected = run(Logits, FoldedDataModule(tensors()), run_dir="expected")
    np.testing.assert_array_equal(found.oof.prediction, expected.oof.prediction)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_example_inputs_reach_forward_as_they_are(rows, make_trainer):
    shapes = []

    class Example(Logits):
        def __init__(self):
            super().__init__()
            self.example_input_array = torch.full((rows, 4), 7.0)

        def forward(self, x):
            shapes.append((tuple(x.shape), float(x.flatten()[0])))
            return super().forward(x)

    trainer = make_trainer(enable_model_summary=True, max_epochs=1)
    trainer.fit(Example(), datamodule=ArrayDataModule(X, Y))
    assert shapes[0] == ((rows, 4), 7.0)


@pytest.mark.parametrize("folded", [False, True])
def test_a_batch_size_finder_searches_before_the_fit_only(folded):
    samples = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    data = FoldedDataModule(samples) if folded else ArrayDataModule(X, Y)
    result = run(
        Logits, data, num_folds=2, trainer={"accelerator": "cpu", "max_epochs": 3},
        make_callbacks=lambda: [BatchSizeFinder(max_trials=2, steps_per_trial=1, init_val=4)],
    )  # fmt: skip
    assert [row["epochs"] for row in result.folds] == [3, 3]
    assert [len(history) for history in result.histories] == [3, 3]
    for fold in range(2):  # each prediction is that of its own sample
        own = data.for_fold(fold, 2).with_selection(0.15)
        own.setup("fit")
        rows = own.indices("val")
        inputs = torch.from_numpy(X)[rows]
        with torch.no_grad():
            expected = single(Logits, result, fold)(inputs if folded else own.transform(inputs))
        found = result.oof.prediction[result.oof.fold == fold]
        np.testing.assert_allclose(found, expected[rows.argsort()], atol=1e-6)


def test_metrics_of_probabilities_in_every_stage():
    class WithAuroc(MLPClassifier):
        def make_metrics(self, stage):
            return MetricCollection({"auroc": MulticlassAUROC(self.num_classes)})

    result = run(lambda: WithAuroc(4, 3, hidden=[4]), ArrayDataModule(X, Y), num_folds=2)
    assert 0 <= result.histories[0][-1]["train/auroc"] <= 1
    for fold, row in enumerate(result.folds):
        here = result.oof.fold == fold
        expected = roc_auc_score(
            result.oof.target[here], result.oof.prediction[here], multi_class="ovr"
        )
        assert row["val/auroc"] == pytest.approx(expected, abs=1e-5)


def test_nets_with_several_outputs_are_refused_by_name():
    class Aux(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, x):
            return {"logits": self.net(x), "aux": x}

    class Named(Classifier):
        def forward(self, inputs):
            return self.net(inputs)["logits"]

    data = ArrayDataModule(X, Y)
    with pytest.raises(TypeError, match=r"Aux returns a dict with 'logits', 'aux'.*\['logits'\]"):
        run(lambda: Classifier(Aux(), 3), data)
    assert run(lambda: Named(Aux(), 3), data, run_dir="named").oof.prediction.shape == (N, 3)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_float64_as_default_dtype(engine):
    torch.set_default_dtype(torch.float64)
    try:
        result = run(
            lambda: MLPClassifier(4, 3, hidden=[4], class_weights="balanced"),
            ArrayDataModule(X, Y), engine=engine,
        )  # fmt: skip
        assert weights_of(result, 0)["net.layers.0.weight"].dtype == torch.float64
        values = run(
            lambda: MLPRegressor(4, hidden=[4]), ArrayDataModule(X, X.sum(1)), engine=engine,
            run_dir="values",
        )  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)
    single_precision = run(
        lambda: MLPClassifier(4, 3, hidden=[4], class_weights="balanced"),
        ArrayDataModule(X, Y), engine=engine, run_dir="single",
    )  # fmt: skip
    assert result.oof.prediction.shape == single_precision.oof.prediction.shape
    assert np.isfinite(values.values("val/loss")).all()


class ConfiguresCallbacks(Logits):
    """As in Lightning's documentation of `configure_callbacks`."""

    def configure_callbacks(self):
        return [EarlyStopping("val/loss", patience=1), ModelCheckpoint(monitor="val/loss")]


def test_callbacks_that_the_module_configures():
    data, trainer = FoldedDataModule(tensors()), {"accelerator": "cpu", "max_epochs": 4}
    found = run(ConfiguresCallbacks, data, trainer=trainer)
    stopping = {"make_callbacks": lambda: [EarlyStopping("val/loss", patience=1)]}
    expected = run(Logits, data, trainer=trainer, run_dir="expected", **stopping)
    assert found.values("val/loss") == expected.values("val/loss")
    assert [row["epochs"] for row in found.folds] == [row["epochs"] for row in expected.folds]
    names = [path.name for path in Path("run").rglob("*.ckpt")]
    assert names == ["best.ckpt"] * 3
    theirs, ours = found.refit().state_dict(), expected.refit().state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_a_batch_size_finder_of_the_module_searches_before_the_fit_only():
    class Finds(Logits):
        def configure_callbacks(self):
            made.append(self)
            return BatchSizeFinder(max_trials=2, steps_per_trial=1, init_val=4)

    made = []
    run(Finds, FoldedDataModule(tensors()))
    assert len(made) == 3  # once a fold, and not again to validate and to predict


def test_a_module_without_validation_step_is_refused_before_training():
    class Trains(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def training_step(self, batch, batch_idx):
            raise AssertionError("it trains")

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    data = FoldedDataModule(tensors())
    with pytest.raises(ValueError, match=r"Trains has no validation_step.*monitor='val/loss'"):
        run(Trains, data)
    with pytest.raises(ValueError, match=r"Trains has no validation_step.*logs a metric"):
        run(Trains, data, monitor="train/loss", run_dir="train")


@pytest.mark.parametrize("monitor", ["val/loss", "loss_of_others"])
def test_refit_refuses_their_plateau_schedule_by_name(monitor):
    class Plateau(Logits):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("loss_of_others", 1.0)

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "monitor": monitor},
            }

    result = run(Plateau, FoldedDataModule(tensors()))
    said = rf"refit has no validation .*'{monitor}'.*give refit a make_model with another schedule"
    with pytest.raises(ValueError, match=said):
        result.refit()
    assert isinstance(result.refit(Logits), Logits)


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda x: x.to(torch.float8_e5m2)])
def test_predictions_that_are_no_arrays_end_no_run(change):
    class Odd(Logits):
        def predict_step(self, batch, batch_idx):
            return change(self(batch[0]))

    result = run(Odd, FoldedDataModule(tensors()))
    assert result.oof is None
    assert any("the prediction of Odd is no array" in note for note in result.notes)


class HasTestLoaders(pl.LightningDataModule):
    def __init__(self, loaders):
        super().__init__()
        self.loaders = loaders

    def train_dataloader(self):
        samples = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
        return torch.utils.data.DataLoader(samples, 16)

    def test_dataloader(self):
        samples = TensorDataset(torch.from_numpy(X + 100), torch.from_numpy(Y))
        return [torch.utils.data.DataLoader(samples, 16) for _ in range(self.loaders)]


class LogsTest(Logits):
    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("test/loss", F.cross_entropy(self(batch[0]), batch[1]))


class Draws(LogsTest):
    """Sends pictures to its own logger in every stage, as TensorBoard's has them."""

    def __init__(self, rate=0.1):
        super().__init__()
        self.save_hyperparameters()

    def draw(self, stage):
        assert len(self.loggers) == 1
        self.logger.experiment.add_image(stage, torch.rand(1, 4, 4), self.global_step)
        drawn.append((stage, type(self.logger).__name__))

    def on_train_epoch_end(self):
        self.log("drawn", 1.0)
        self.draw("train")

    def on_validation_epoch_end(self):
        self.draw("val")

    def on_test_epoch_end(self):
        self.draw("test")


drawn = []


def test_modules_that_draw_into_their_logger_in_every_stage():
    drawn.clear()
    data = FoldedDataModule(HasTestLoaders(1))
    result = run(Draws, data, logger="tensorboard", select="fold")
    assert set(drawn) == {("train", "TensorBoardLogger"), ("val", "TensorBoardLogger")}
    assert len(drawn) == 3 * (2 + 4)  # epochs; a sanity check, epochs and the score
    drawn.clear()
    assert list(result.test(result.refit())) == ["test/loss"]
    assert {stage for stage, _ in drawn} == {"train", "test"}
    drawn.clear()
    trainer = {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0}
    nested = nested_cross_validate(
        Draws, data, {"rate": [0.1, 0.2]}, num_folds=2, inner_folds=2, logger="tensorboard",
        trainer=trainer, progress_bar=False, figures=False, run_dir="nested",
    )  # fmt: skip
    assert drawn.count(("train", "TensorBoardLogger")) == 2  # of what was chosen
    for fold in range(2):
        rows = read_rows(Path(f"nested/fold-{fold}/history.csv"))
        assert [row["drawn"] for row in rows] == [1.0]
    assert np.isfinite(nested.values("val/loss")).all()


def test_the_folder_of_logs_without_a_logger():
    folders = []

    class Writes(Logits):
        def on_fit_start(self):
            folders.append(self.trainer.log_dir)

    run(Writes, FoldedDataModule(tensors()))
    assert folders == [f"run/fold-{i}" for i in range(3)]  # as of a Trainer without a logger


def test_an_unknown_logger_is_refused_before_the_run_folder_is_made():
    for logger in (CSVLogger("logs"), True, "tensorbord"):
        with pytest.raises(ValueError, match=r"^logger=.*(Choose from: csv|must be 'csv' or)"):
            run(Logits, FoldedDataModule(tensors()), logger=logger)
    assert not Path("run").exists()


def test_lightning_is_quiet_where_the_other_package_was_imported(caplog):
    """It then logs under the name of that package."""
    run(Logits, FoldedDataModule(tensors()))
    assert not [record for record in caplog.records if "lightning" in record.name]


@pytest.mark.parametrize("loaders", [0, 1, 2])
def test_any_number_of_test_loaders(loaders):
    result = run(LogsTest, FoldedDataModule(HasTestLoaders(loaders)))
    assert result.oof.prediction.shape == (N, 3)
    if not loaders:
        with pytest.raises(ValueError, match="HasTestLoaders has no test set"):
            result.test(result.refit())
        return
    names = {1: ["test/loss"], 2: ["test/loss/dataloader_idx_0", "test/loss/dataloader_idx_1"]}
    assert list(result.test(result.refit())) == names[loaders]
    Path("run/test.json").unlink()
    ensemble = result.ensemble()
    with torch.no_grad():
        expected = pooled_metrics(Y, ensemble(torch.from_numpy(X + 100)).numpy())
    ends = {1: [""], 2: ["/dataloader_idx_0", "/dataloader_idx_1"]}[loaders]
    scores = result.test(ensemble)
    assert scores == {
        f"test/{k}{end}": pytest.approx(v) for end in ends for k, v in expected.items()
    }
