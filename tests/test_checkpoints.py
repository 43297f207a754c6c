"""Every leaf, saved through both doors, loaded through every door, with plain values only."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from dlblocks.cli import main
from dlblocks.data import CurveDataModule, DigitsDataModule
from dlblocks.models import (
    Classifier,
    CNNClassifier,
    MLPClassifier,
    MLPRegressor,
    Model,
    Regressor,
    load,
)

LEAVES = {
    MLPClassifier: ({"in_features": 64, "num_classes": 10, "hidden": (16, 8), "norm": "batch",
                     "dropout": 0.1, "class_weights": "balanced",
                     "optimizer_args": {"betas": (0.9, 0.99)}}, DigitsDataModule),
    CNNClassifier: ({"in_channels": 1, "num_classes": 10, "channels": [4, 8], "head": "flatten",
                     "image_size": (8, 8), "class_weights": [1.0] * 10}, DigitsDataModule),
    MLPRegressor: ({"in_features": 1, "hidden": [8], "standardize_targets": True},
                   CurveDataModule),
}  # fmt: skip


def save_from_python(cls, make_trainer, path):
    arguments, data = LEAVES[cls]
    model = cls(**arguments)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model, datamodule=data(batch_size=500))
    trainer.save_checkpoint(path)
    return model.eval()


def save_from_cli(cls, path):
    arguments, data = LEAVES[cls]
    flags = [f"--model={cls.__name__}", f"--data={data.__name__}", "--data.batch_size=500"]
    for name, value in arguments.items():
        text = str(list(value) if isinstance(value, tuple) else value)
        flags.append(f"--model.{name}={text.replace('(', '[').replace(')', ']')}")
    trainer = ["max_epochs=1", "accelerator=cpu", "enable_progress_bar=false",
               "enable_model_summary=false"]  # fmt: skip
    main(["fit", *flags, *[f"--trainer.{flag}" for flag in trainer], f"--run_dir={path}"])
    return path / "checkpoints" / "last.ckpt"


def example(model):
    return torch.randn(3, 1, 8, 8) if not isinstance(model, Regressor) else torch.randn(3, 1)


@pytest.mark.parametrize("cls", LEAVES)
@pytest.mark.parametrize("door", ["python", "cli"])
def test_round_trip(cls, door, make_trainer, tmp_path):
    path = tmp_path / "model.ckpt"
    if door == "python":
        save_from_python(cls, make_trainer, path)
    else:
        path = save_from_cli(cls, tmp_path / "run")
    checkpoint = torch.load(path, weights_only=True)
    hparams = checkpoint["hyper_parameters"]
    assert set(hparams) == {*cls.hyperparameter_names(), "_class_path"}
    models = [
        cls.load_from_checkpoint(path),
        cls.load_from_checkpoint(path, weights_only=True),
        Model.load_from_checkpoint(path),
        load(path),
        load(path, classes=[cls]),
    ]
    x = example(models[0])
    for model in models:
        assert type(model) is cls
        assert not model.training
        for name, value in model.state_dict().items():
            assert torch.equal(value, checkpoint["state_dict"][name])
        assert torch.equal(model(x), models[0](x))
    arguments, _ = LEAVES[cls]
    for name, value in arguments.items():
        expected = list(value) if isinstance(value, tuple) else value
        if isinstance(value, dict):
            expected = {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()}
        assert hparams[name] == expected


@pytest.mark.parametrize("cls", LEAVES)
def test_hyperparameters_are_the_signature(cls):
    arguments, _ = LEAVES[cls]
    assert set(cls(**arguments).hparams) == set(cls.hyperparameter_names())


def test_loaded_weights_are_those_saved(make_trainer, tmp_path):
    path = tmp_path / "model.ckpt"
    model = save_from_python(MLPClassifier, make_trainer, path)
    x = torch.randn(3, 64)
    assert torch.equal(load(path)(x), model(x))
    assert MLPClassifier.load_from_checkpoint(path, dropout=0.7).hparams["dropout"] == 0.7


def test_generic_models_take_their_net_back(make_trainer, tmp_path):
    path = tmp_path / "model.ckpt"
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 10, lr=0.1)
    trainer = make_trainer()
    trainer.fit(model, datamodule=DigitsDataModule(batch_size=500))
    trainer.save_checkpoint(path)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for loaded in (
        Classifier.load_from_checkpoint(path, net=net),
        load(path, overrides={"net": net}),
    ):
        assert torch.equal(loaded.net[1].weight, model.net[1].weight)
        assert loaded.lr == 0.1
    with pytest.raises(ValueError, match="pass it as net="):
        load(path)


def test_trainer_resumes_and_tests_from_the_file(make_trainer, tmp_path):
    path = tmp_path / "model.ckpt"
    save_from_python(MLPClassifier, make_trainer, path)
    arguments, _ = LEAVES[MLPClassifier]
    data = DigitsDataModule(batch_size=500)
    for trainer in (make_trainer(max_epochs=2), make_trainer()):
        if trainer.max_epochs == 2:
            trainer.fit(MLPClassifier(**arguments), datamodule=data, ckpt_path=path)
            assert trainer.current_epoch == 2
        trainer.test(MLPClassifier(**arguments), datamodule=data, ckpt_path=path, verbose=False)


class MyMLP(MLPClassifier):
    """A user's own leaf."""

    def __init__(self, width: int = 5) -> None:
        super().__init__(64, 10, hidden=[width])
        self.save_hyperparameters()


def test_a_users_own_class_must_be_given(make_trainer, tmp_path):
    path = tmp_path / "model.ckpt"
    trainer = make_trainer()
    trainer.fit(MyMLP(7), datamodule=DigitsDataModule(batch_size=500))
    trainer.save_checkpoint(path)
    assert MyMLP.load_from_checkpoint(path).hparams["width"] == 7
    assert load(path, classes=[MyMLP]).hparams["width"] == 7
    with pytest.raises(ValueError, match=r"MyMLP.*classes=\[YourModel\]"):
        load(path)


def test_another_class_is_refused(make_trainer, tmp_path):
    path = tmp_path / "model.ckpt"
    save_from_python(MLPClassifier, make_trainer, path)
    with pytest.raises(ValueError, match=r"holds a .*MLPClassifier, not a CNNClassifier"):
        CNNClassifier.load_from_checkpoint(path)
    with pytest.raises(ValueError, match=r"holds a .*MLPClassifier, not a .*CNNClassifier"):
        make_trainer().test(CNNClassifier(1, 10), datamodule=DigitsDataModule(), ckpt_path=path)
    with pytest.raises(ValueError, match=r"hidden=\[16, 8\] \(here \(3,\)\)"):
        make_trainer().test(
            MLPClassifier(64, 10, hidden=(3,), norm="batch", class_weights="balanced"),
            datamodule=DigitsDataModule(),
            ckpt_path=path,
        )


def test_truncated_and_foreign_files_are_refused(make_trainer, tmp_path):
    path = tmp_path / "model.ckpt"
    save_from_python(MLPClassifier, make_trainer, path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.ckpt").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.ckpt is truncated or not a checkpoint"):
            load(tmp_path / "cut.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match="not a checkpoint"):
        load(tmp_path / "text.ckpt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no state_dict"):
        load(tmp_path / "other.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "nameless.ckpt")
    with pytest.raises(ValueError, match="names no class of dlblocks"):
        load(tmp_path / "nameless.ckpt")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.ckpt")


class Runs:
    """Unpickled, it would make a file."""

    def __reduce__(self):
        return os.mkdir, ("broken-into",)


def test_files_that_name_code_are_refused(tmp_path, monkeypatch):
    state = {"state_dict": {}, "hyper_parameters": {"x": Runs()}}
    torch.save(state, tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match="is refused, because reading it could run code"):
        load(tmp_path / "code.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(state))
    with pytest.raises(ValueError, match=r"plain\.ckpt"):
        load(tmp_path / "plain.ckpt")
    assert not (tmp_path / "broken-into").exists()

    # A class path is looked up, never imported.
    (tmp_path / "evil.py").write_text("open('imported', 'w')\nclass Model: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("evil.Model", "os.system", "dlblocks.models.model.os", "dlblocks.cli.main"):
        torch.save(
            {"state_dict": {}, "hyper_parameters": {"_class_path": name}}, tmp_path / "evil.ckpt"
        )
        with pytest.raises(ValueError, match="classes that a checkpoint names are never imported"):
            load(tmp_path / "evil.ckpt")
        with pytest.raises(ValueError, match="classes that a checkpoint names are never imported"):
            MLPClassifier.load_from_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "imported").exists()


def test_numpy_numbers_become_plain(make_trainer, tmp_path):
    model = MLPClassifier(np.int64(64), 10, lr=np.float64(0.01), hidden=[np.int64(8)])
    trainer = make_trainer()
    trainer.fit(model, datamodule=DigitsDataModule(batch_size=500))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert load(tmp_path / "model.ckpt").hparams["lr"] == 0.01
