"""Exported programs predict what the models predict, for any size of batch."""

import gc
import json
import sys

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dlblocks.data import ArrayDataModule, DigitsDataModule, TabularDataModule
from dlblocks.ensembles import AdaBoost, GradientBoosting, Voting
from dlblocks.loading import load
from dlblocks.models import (
    Classifier,
    CNNClassifier,
    MLPClassifier,
    MLPRegressor,
    UNetSegmenter,
    VotingModule,
)
from dlblocks.models import load as load_model
from dlblocks.nets import Preprocess

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _no_classes_left_behind():
    """torch.export leaves copies of classes, of which the command line would find two."""
    yield
    gc.collect()


N = 70
RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(
    {
        "age": np.where(np.arange(N) % 9 == 0, np.nan, RNG.normal(40, 12, N)),
        "city": RNG.choice(["Bonn", "Oslo", "Rome"], N),
        "zip": RNG.choice([f"{i:05d}" for i in range(20)], N),
        "job": RNG.choice([f"j{i}" for i in range(20)], N),
        "y": RNG.choice(["no", "yes"], N),
    }
)
FEATURES = RNG.normal(50, 9, (N, 4))


def table(**settings):
    return TabularDataModule(
        TABLE, "y", counts=["zip"], embed=["job"], missing="impute", batch_size=16
    )


def values(width=2):
    return ArrayDataModule(FEATURES, FEATURES[:, :width] * 100, batch_size=16)


def classes():
    return ArrayDataModule(FEATURES, TABLE["y"], batch_size=16)


def fitted(trainer, model, data):
    trainer.fit(model, datamodule=data)
    return model


def times():
    """Inputs in float64."""
    return ArrayDataModule(1.7e12 + RNG.integers(0, 10**6, (N, 2)).astype(float), TABLE["y"])


class Own(pl.LightningModule):
    """Somebody else's module, with logits for predictions."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


BOOSTED = {"progress_bar": False, "run_dir": "boost", "trainer": {"accelerator": "cpu"}}


def make(name, trainer):
    """The model, and its raw inputs."""
    if name == "table":
        data = table()
        model = MLPClassifier(data.in_features, 2, hidden=[8], embeddings=data.embeddings)
        return fitted(trainer, model, data), data.source.inputs
    if name == "batch norm":
        model = MLPClassifier(4, 2, hidden=[8], norm="batch", dropout=0.3)
        return fitted(trainer, model, classes()), torch.tensor(FEATURES).float()
    if name == "float64":
        data = times()
        return fitted(trainer, MLPClassifier(2, 2, hidden=[8]), data), data.source.inputs
    if name == "images":
        data = DigitsDataModule()
        model = CNNClassifier(1, 10, channels=[4, 8])
        return fitted(trainer, model, data), data.source.inputs[:N]
    if name.startswith("segment"):
        images = torch.from_numpy(RNG.integers(0, 256, (24, 1, 9, 12), dtype=np.uint8))
        data = ArrayDataModule(images, (images[:, 0] > 100).long(), batch_size=8)
        make_one = lambda: fitted(trainer, UNetSegmenter(1, 2, width=2, depth=1), data)  # noqa: E731
        if name == "segmenter":
            return make_one(), images
        members = [UNetSegmenter(1, 2, width=2, depth=1) for _ in range(2)]
        for member in members:
            member.preprocess = Preprocess([100.0], [70.0])
        return Voting(members), images
    if name == "values":
        model = MLPRegressor(4, 2, hidden=[8], standardize_targets=True)
        return fitted(trainer, model, values()), torch.tensor(FEATURES).float()
    if name == "labels":
        data = ArrayDataModule(FEATURES, (FEATURES[:, :3] > 50).astype(int))
        model = MLPClassifier(4, 3, hidden=[8], multilabel=True)
        return fitted(trainer, model, data), torch.tensor(FEATURES).float()
    inputs = torch.tensor(FEATURES).float()
    if name.startswith("voting"):
        members = []
        for hidden in (3, 5, 8):
            model = MLPClassifier(4, 2, hidden=[hidden])
            model.preprocess = Preprocess([40.0 + hidden] * 4, [9.0] * 4)
            members.append(model)
        return Voting(members, voting=name.split()[1]), inputs
    if name == "voting module":
        return VotingModule([Own(), Own()]), inputs
    if name == "gradient boosting of classes":
        learner = lambda: MLPRegressor(4, 2, hidden=[4])  # noqa: E731
        return GradientBoosting(learner, classes(), num_stages=3, **BOOSTED).fit().model, inputs
    if name == "gradient boosting of log-odds":
        learner = lambda: MLPRegressor(4, 1, hidden=[4])  # noqa: E731
        return GradientBoosting(learner, classes(), num_stages=3, **BOOSTED).fit().model, inputs
    if name == "gradient boosting of values":
        learner = lambda: MLPRegressor(4, hidden=[4])  # noqa: E731
        return GradientBoosting(learner, values(1), num_stages=3, **BOOSTED).fit().model, inputs
    assert name == "adaboost"
    learner = lambda: MLPClassifier(4, 2, hidden=[16], lr=0.05)  # noqa: E731
    settings = {**BOOSTED, "trainer": {"accelerator": "cpu", "max_epochs": 30}}
    return AdaBoost(learner, classes(), num_stages=3, **settings).fit().model, inputs


NAMES = [
    "table", "batch norm", "float64", "images", "values", "labels", "voting soft", "voting hard",
    "gradient boosting of classes", "gradient boosting of log-odds", "gradient boosting of values",
    "adaboost", "segmenter", pytest.param("segmenters voting", marks=pytest.mark.slow),
]  # fmt: skip


def check(predictor, inputs, expected, example=None):
    """Both programs agree with the model, for several sizes of batch."""
    predictor.export("model.onnx", example=example)
    predictor.export("model.pt2", example=example)
    session = onnxruntime.InferenceSession("model.onnx")
    files = {"metadata.json": ""}
    program = torch.export.load("model.pt2", extra_files=files).module()
    metadata = json.loads(files["metadata.json"])
    of_onnx = session.get_modelmeta().custom_metadata_map
    for key, value in metadata.items():
        assert (of_onnx[key] if isinstance(value, str) else json.loads(of_onnx[key])) == value
    names = [output.name for output in session.get_outputs()]
    assert names == metadata["outputs"]
    for rows in (slice(0, 1), slice(1, 8), slice(None)):
        with torch.no_grad():
            found = [session.run(None, {"inputs": inputs[rows].numpy()}), program(inputs[rows])]
        for outputs in found:
            for name, output in zip(names, outputs, strict=True):
                wanted = expected[name][rows]
                scale = max(1.0, float(np.abs(wanted).max()))
                np.testing.assert_allclose(np.asarray(output) / scale, wanted / scale, atol=1e-5)
    return metadata


@pytest.mark.parametrize("name", NAMES)
def test_programs_predict_as_the_model(name, make_trainer):
    model, inputs = make(name, make_trainer())
    predictor = load(model.eval())
    loader = torch.utils.data.DataLoader(inputs, batch_size=16)
    expected = predictor.predict(loader, device="cpu", progress_bar=False)
    voting = "voting" in name
    example = inputs if voting else None
    metadata = check(predictor, inputs, expected, example)
    assert metadata["input_shape"] == list(inputs.shape[1:])
    assert metadata["input_dtype"] == str(inputs.dtype).removeprefix("torch.")
    assert metadata["task"] == model.task.name
    if name == "table":
        assert metadata["class_names"] == ["no", "yes"]
        assert metadata["columns"] == ["age", "city=Bonn", "city=Oslo", "city=Rome", "zip", "job"]
    if voting:
        assert metadata["outputs"] == ["prediction", "std"]
    # torch.export makes stand-ins of classes, which must not be loaded in their place.
    model.save("again.pt")
    assert type(load_model("again.pt")) is type(model)


def test_modules_of_somebody_else(make_trainer):
    model, data = Own(), values()
    trainer = make_trainer()
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint("own.ckpt")
    predictor = load("own.ckpt", module=Own)
    inputs = torch.tensor(FEATURES).float()
    expected = predictor.predict(inputs, device="cpu", progress_bar=False)
    with torch.no_grad():
        own = model(data.transform(inputs))
    np.testing.assert_allclose(expected.prediction, own, atol=1e-6)
    check(predictor, inputs, expected)
    average = load(VotingModule([Own(), Own()]))
    expected = average.predict(inputs, device="cpu", progress_bar=False)
    check(average, inputs, expected, inputs)


def test_what_cannot_be_exported(monkeypatch):
    predictor = load(MLPClassifier(4, 3, hidden=[]))
    with pytest.raises(ValueError, match=r"must end with \.onnx or \.pt2"):
        predictor.export("model.pb")
    with pytest.raises(ValueError, match="does not know the shape of its inputs; give"):
        predictor.export("model.pt2")
    with pytest.raises(TypeError, match="example must be a tensor of raw inputs"):
        predictor.export("model.pt2", example=[1, 2])

    class Fixed(nn.Module):
        def forward(self, inputs):
            return inputs.new_zeros(len(inputs), 3)

    with pytest.raises(ValueError, match=r"Classifier cannot be exported.*not from len\(inputs\)"):
        load(Classifier(Fixed(), 3)).export("model.pt2", example=torch.zeros(1, 4))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dlblocks\[export\]'"):
        predictor.export("model.onnx", example=torch.zeros(1, 4))


@pytest.mark.parametrize("model", [MLPClassifier(4, 3), CNNClassifier(1, 3)])
def test_torchscript_is_refused_with_the_cure(model):
    with pytest.raises(NotImplementedError, match=r"dlblocks.load\(model\).export\('model.pt2'\)"):
        model.to_torchscript()


def test_the_model_is_left_as_it_is(make_trainer):
    data = table()
    model = MLPClassifier(data.in_features, 2, hidden=[8], embeddings=data.embeddings)
    trainer = make_trainer()
    trainer.fit(model, datamodule=data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    load(model).export("model.pt2")
    assert model.training and model.trainer is trainer
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    trainer.test(model, datamodule=data, verbose=False)  # and it can be used as before
