"""The command line, and every configuration in `configs/`."""

import csv
import gzip
import json
import pickle
import re
import runpy
import signal
import struct
import sys
from pathlib import Path

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from joblib.externals.loky import get_reusable_executor

from dlblocks.cli import main
from dlblocks.cli._cli import CLI
from dlblocks.data import TabularDataModule
from dlblocks.models import load

ROOT = Path(__file__).parent.parent.parent
# Tests of their own: in test_wandb_runs.py, and below.
OTHERS = {"sweep", "own_data"}
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.yaml") if p.stem not in OTHERS)
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
         "--trainer.enable_model_summary=false"]  # fmt: skip


def write_mnist(folder):
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("train", "t10k"):
        images = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8)
        labels = (np.arange(60) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(">HBB", 0, 8, array.ndim)
            head += struct.pack(f">{array.ndim}I", *array.shape)
            (raw / f"{name}-{kind}-ubyte").write_bytes(head + array.tobytes())
            packed = gzip.compress(head + array.tobytes())
            (raw / f"{name}-{kind}-ubyte.gz").write_bytes(packed)


def write_cifar10(folder, monkeypatch):
    from torchvision.datasets import CIFAR10

    base = folder / CIFAR10.base_folder
    base.mkdir()
    rng = np.random.default_rng(0)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for name in names:
        data = rng.integers(0, 256, (40, 3072), dtype=np.uint8)
        batch = {"data": data, "labels": [i % 10 for i in range(40)]}
        (base / name).write_bytes(pickle.dumps(batch))
    label_names = {"label_names": [str(i) for i in range(10)]}
    (base / CIFAR10.meta["filename"]).write_bytes(pickle.dumps(label_names))
    # The true files are known by their checksums; these are small ones.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_fits_tests_and_predicts(config, tmp_path, monkeypatch):
    # What comes after a file replaces what it says.
    extra = [f"--config={config}", *QUIET, "--trainer.max_epochs=1"]
    if config.stem == "digits_cnn":
        extra.append("--data.test_fraction=0.2")
    if config.stem.startswith("mnist"):
        write_mnist(tmp_path)
    if config.stem.startswith("cifar10"):
        write_cifar10(tmp_path, monkeypatch)
        extra.append("--model.warmup_steps=1")
    if config.stem.startswith(("mnist", "cifar")):
        extra += [f"--data.root={tmp_path}", "--data.batch_size=8"]
    if config.stem.startswith(("mnist", "cifar", "text", "dates")):
        parts = ("train", "val", "test", "predict")
        extra += [f"--trainer.limit_{part}_batches=2" for part in parts]
    if config.stem == "scenes_detection":
        extra += ["--data.num_scenes=40", "--data.num_test_scenes=12"]
    main(["fit", *extra])
    run = tmp_path / "runs" / config.stem
    best = run / "checkpoints" / "best.ckpt"
    assert (run / "config.yaml").is_file()
    assert (run / "metrics.csv").is_file()
    model = load(best)
    given = yaml.safe_load(config.read_text())["model"]["init_args"]
    changed = {"warmup_steps"}
    assert {k: model.hparams[k] for k in given if k not in changed} == {
        k: v for k, v in given.items() if k not in changed
    }
    main(["test", *extra, f"--ckpt_path={best}"])
    written = json.loads((tmp_path / "runs" / f"{config.stem}-test" / "test.json").read_text())
    assert written["checkpoint"] == str(best)
    main(["predict", *extra, f"--ckpt_path={best}"])
    with np.load(tmp_path / "runs" / f"{config.stem}-predict" / "predictions.npz") as arrays:
        size = len(arrays["index"])
        lengths = {
            len(arrays[f"{name}.offsets"]) - 1 if f"{name}.offsets" in arrays else len(arrays[name])
            for name in ("prediction", "target")
        }
        assert lengths == {size}
        assert size > 0
        assert (np.diff(arrays["index"]) > 0).all()


def test_every_config_names_every_part_of_ours():
    for config in CONFIGS:
        content = yaml.safe_load(config.read_text())
        assert content["model"]["class_path"].startswith("dlblocks.models.")
        assert content["data"]["class_path"].startswith("dlblocks.data.")
    assert {c.stem for c in CONFIGS} >= {
        "digits_mlp", "digits_cnn", "mnist_cnn", "cifar10_cnn", "tabular_mlp", "curve_mlp"
    }  # fmt: skip


def test_the_command_line_does_what_python_does(tmp_path):
    from dlblocks.callbacks import Augment
    from dlblocks.crossval import cross_validate
    from dlblocks.data import DigitsDataModule
    from dlblocks.models import MLPClassifier

    main([
        "cross-validate", "--model=MLPClassifier", "--data=DigitsDataModule",
        "--data.batch_size=200",
        "--trainer.callbacks+=dlblocks.callbacks.Augment", "--trainer.callbacks.rotation=10",
        "--num_folds=2", "--trainer.max_epochs=1", "--run_dir=cli", *QUIET,
    ])  # fmt: skip
    result = cross_validate(
        lambda: MLPClassifier(64, 10), DigitsDataModule(batch_size=200), num_folds=2,
        make_callbacks=lambda: [Augment(rotation=10)], progress_bar=False, figures=False,
        trainer={"max_epochs": 1, "accelerator": "cpu"}, run_dir="python",
    )  # fmt: skip
    summary = json.loads((tmp_path / "cli" / "summary.json").read_text())
    assert summary["metrics"]["val/loss"]["folds"] == result.values("val/loss")


TABLE = ["--data=TabularDataModule", "--data.data=t.csv", "--trainer.max_epochs=1", *QUIET]


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{rng.normal():.3f},{'uvw'[i % 3]},{'pq'[i % 2]}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["x,kind,y", *rows]))


@pytest.mark.parametrize(
    ("flags", "filled_in", "embeddings"),
    [
        (["--model=MLPClassifier", "--data.target=y", "--data.embed=[kind]"],
         {"in_features": 2, "num_classes": 2}, {1: 3}),
        (["--model=MLPRegressor", "--data.target=x"], {"in_features": 5, "out_features": 1}, {}),
    ],
)  # fmt: skip
def test_sizes_are_filled_in_from_the_data(
    flags, filled_in, embeddings, table, tmp_path, monkeypatch
):
    read, load_table = [], TabularDataModule.load
    monkeypatch.setattr(
        TabularDataModule, "load", lambda self: (read.append(1), load_table(self))[1]
    )
    main(["fit", *TABLE, *flags, "--run_dir=filled"])
    assert len(read) == 1
    best = load(tmp_path / "filled" / "checkpoints" / "best.ckpt")
    saved = yaml.safe_load((tmp_path / "filled" / "config.yaml").read_text())["model"]["init_args"]
    for known in (best.hparams, saved):
        assert {name: known[name] for name in filled_in} == filled_in
    assert best.net.embeddings == embeddings
    # Reading the data first changes nothing: the weights are those of a fit that is given all.
    main(["fit", "--config=filled/config.yaml", "--run_dir=given"])
    given = load(tmp_path / "given" / "checkpoints" / "best.ckpt")
    for one, other in zip(best.parameters(), given.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_size_of_images_is_filled_in_where_it_is_needed(tmp_path):
    flags = ["fit", "--model=CNNClassifier", "--model.channels=[2]", "--data=DigitsDataModule",
             "--trainer.fast_dev_run=true", *QUIET]  # fmt: skip
    for head, size in (("gap", None), ("flatten", [8, 8])):
        found = CLI([*flags, f"--model.head={head}"]).config.fit.model.init_args
        assert (found.in_channels, found.num_classes, found.image_size) == (1, 10, size)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=MLPClassifier", "--data.target=y", "--model.in_features=9"],
         "in_features=9, but one input has shape (4,)"),
        (["--model=MLPClassifier", "--data.target=x"],
         "MLPClassifier needs num_classes, which TabularDataModule does not have"),
        (["--model=CNNClassifier", "--data.target=y"],
         "CNNClassifier needs in_channels, which TabularDataModule does not have"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_the_data_or_are_not_known(flags, message, table, capsys):
    with pytest.raises(SystemExit):
        main(["fit", *TABLE, *flags])
    assert message in capsys.readouterr().err


def test_help_says_what_is_filled_in(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.help=MLPClassifier"])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("Filled in from the data if it is not given.") == 3
    assert "required" not in said


# An accelerator that no machine has beside the other.
MISSING = "mps" if torch.cuda.is_available() else "gpu"
DIGITS = ["fit", f"--config={ROOT / 'configs' / 'digits_mlp.yaml'}", *QUIET]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.optimizer=adan"], "did you mean 'adam'"),
        (["--model.lr_schedule=cosin"], "did you mean 'cosine'"),
        (["--model.activation=rleu"], "did you mean 'relu'"),
        (["--model.optimzer=adam"], "'optimzer' is not known; did you mean 'optimizer'"),
        (["--data.batchsize=3"], "'batchsize' is not known; did you mean 'batch_size'"),
        (["--trainer.max_epocks=3"], "did you mean 'max_epochs'"),
        (["--data.num_folds=5", "--data.fold=7"], r"fold=7 is outside \[0, 4\]"),
        (["--data.num_folds=500"], "num_folds=500 needs 500 members of each class"),
        (["--model.in_features=60"], "set in_features=64"),
        (["--model.num_classes=9"], "set num_classes=10"),
        (["--trainer.precision=17"], "trainer.precision"),
        ([f"--trainer.accelerator={MISSING}"], "backend|not available|not found"),
        (["--logger=wandbb"], "logger"),
        (["--monitor=val/accuracy", "--mode=min"], "set mode=.max"),
        (["--mode=max"], "set mode=.min"),
        (["--monitor=val/it"], "set mode=.min. or mode=.max"),
        (["--monitor=val_loss"], "was not logged by MLPClassifier; did you mean .val/loss"),
    ],
)
def test_errors_are_one_line_without_a_traceback(flags, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([*DIGITS, *flags])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert not (tmp_path / "runs" / "digits_mlp" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--trainer.max_epoch=3"],  # the beginning of a name
            "--trainer.max_epoch: 'max_epoch' is not known; did you mean 'max_epochs'?",
        ),
        (["--trainer.max_epochs=many"], "trainer.max_epochs: expected int, got 'many'."),
        (["--model.lrr=3"], "model: 'lrr' is not known; did you mean 'lr'?"),
        (
            ["--data.split=kfol"],
            "data.split: 'kfol' is not known; did you mean 'kfold'? Choose from: kfold, "
            "time_series, leave_one_group_out, predefined, blocks.",
        ),
        (
            ["--model=MLPClasifier"],
            "model: 'MLPClasifier' is not known; did you mean 'MLPClassifier'? Give a class of "
            "dlblocks, or another as module.Class.",
        ),
        (
            ["--data=json.Decodr"],
            "data: module 'json' has no attribute 'Decodr'; did you mean 'decoder'?",
        ),
    ],
)
def test_errors_of_the_parser_are_one_sentence(flags, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*DIGITS, *flags])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "trainer: {max_epoch: 3}",
            "trainer.max_epoch: 'max_epoch' is not known; did you mean 'max_epochs'?",
        ),
        ("num_fold: 3", "'num_fold' is not known; did you mean 'num_folds'?"),
        (
            "traner: {max_epochs: 3}",
            "traner.max_epochs: 'traner' is not known; did you mean 'trainer'?",
        ),
    ],
)
def test_an_unknown_key_of_a_file_has_the_same_hint(line, sentence, capsys, tmp_path):
    (tmp_path / "typo.yaml").write_text(line)
    with pytest.raises(SystemExit):
        main(["cross-validate", *DIGITS[1:], f"--config={tmp_path / 'typo.yaml'}"])
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_an_unknown_command_and_a_missing_file(capsys):
    for arguments, part in ((["croos-validate"], "did you mean 'cross-validate'"),
                            (["fit", "--config=nowhere.yaml"], "nowhere.yaml")):  # fmt: skip
        with pytest.raises(SystemExit):
            main(arguments)
        said = capsys.readouterr().err
        assert part in said
        assert said.count("\n") == 1


def test_version(capsys):
    from importlib.metadata import version

    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"dlblocks {version('dlblocks')}\n"


def _run_script(script, *flags):
    """As Python runs a script."""
    elsewhere = [path for path in sys.path if Path(path).resolve() != Path.cwd()]
    sys.path[:] = [str(Path(script).resolve().parent), *elsewhere]
    sys.argv = [script, *flags]
    runpy.run_path(script, run_name="__main__")
    # An interpreter ends the workers; a forked process would wait for them.
    get_reusable_executor(reuse=True).shutdown()


def test_own_data_in_the_working_folder(tmp_path):
    """As installed: the folder of the script is on the path, the working folder is not."""
    config = ROOT / "configs" / "own_data.yaml"
    comment = [line[1:].removeprefix(" " * 5) for line in config.read_text().splitlines()
               if re.match("#( {5}|$)", line)]  # fmt: skip
    (tmp_path / "own.py").write_text("\n".join(comment))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dlblocks").write_text("from dlblocks.cli import main\nmain()\n")
    forked.run(
        _run_script, "bin/dlblocks", "cross-validate", f"--config={config}", *QUIET,
        "--num_folds=2", "--trainer.max_epochs=1", "--data.data.num_samples=60",
        "--run_dir=run", "--n_jobs=2",
    )  # fmt: skip
    with np.load(tmp_path / "run" / "oof.npz") as arrays:
        assert arrays["index"].tolist() == list(range(60))
        inputs = np.linspace(-3, 3, 60)
        np.testing.assert_array_equal(arrays["target"], np.sin(inputs) > 0)


def test_a_dataset_of_the_working_folder_takes_arguments(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("plain_set.py").write_text(
        "from torch.utils.data import Dataset\n\n\nclass Points(Dataset):\n"
        "    def __init__(self, count: int = 60):\n        self.count = count\n"
    )
    Path("c.yaml").write_text(
        "model: {class_path: MLPClassifier, init_args: {in_features: 4, num_classes: 2}}\n"
        "data:\n  class_path: FoldedDataModule\n  init_args:\n"
        "    data: {class_path: plain_set.Points, init_args: {count: 40}}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["cross-validate", "--config=c.yaml", "--print_config"])
    assert ended.value.code in (0, None)
    assert "count: 40" in capsys.readouterr().out


def test_unknown_key_in_a_file(tmp_path, capsys):
    text = (ROOT / "configs" / "digits_mlp.yaml").read_text()
    (tmp_path / "bad.yaml").write_text(text.replace("optimizer:", "optimzer:"))
    with pytest.raises(SystemExit):
        main(["fit", "--config=bad.yaml", *QUIET])
    assert "did you mean 'optimizer'" in capsys.readouterr().err


def test_a_run_folder_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        main([*DIGITS, "--run_dir=mine", "--trainer.max_epochs=1"])
    assert "already holds a run" in capsys.readouterr().err
    for _ in range(2):
        main([*DIGITS, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"])
    assert (tmp_path / "runs" / "digits_mlp-2" / "config.yaml").is_file()


def test_a_checkpoint_of_other_dimensions_is_said(capsys):
    main([*DIGITS, "--trainer.max_epochs=1", "--run_dir=a"])
    with pytest.raises(SystemExit):
        main(["test", *DIGITS[1:], "--model.hidden=[3]", "--ckpt_path=a/checkpoints/best.ckpt"])
    assert "hidden=[256, 256] (here [3])" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("validate", []),
        ("test", []),
        ("predict", []),
        ("test", ["--ckpt_path=last"]),
        ("predict", ["--ckpt_path=null"]),
    ],
)
def test_random_weights_are_not_judged(command, flags, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([command, *DIGITS[1:], *flags])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert f"dlblocks {command} needs the checkpoint of a fit" in said.err
    assert "--ckpt_path=runs/digits_mlp/checkpoints/best.ckpt" in said.err
    assert "test/loss" not in said.out
    assert not (tmp_path / "runs").exists()


def test_weights_that_the_model_brings(capsys):
    """They are those of the seed here, as Python has them."""
    from dlblocks.data import DigitsDataModule
    from dlblocks.models import MLPClassifier

    main(["test", *DIGITS[1:], "--ckpt_path=none", "--run_dir=a", "--logger=csv"])
    with (Path("a") / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    pl.seed_everything(0, workers=True, verbose=False)
    data = DigitsDataModule()
    model = MLPClassifier(64, 10, hidden=[256, 256], norm="batch", dropout=0.3).eval()
    images, targets, _ = data.arrays("test")
    with torch.no_grad():
        right = model(data.transform(images)).argmax(1) == targets
    assert float(row["test/accuracy"]) == pytest.approx(right.float().mean().item(), abs=1e-6)
    written = json.loads(Path("a/test.json").read_text())
    assert written["checkpoint"] is None
    assert written["metrics"]["test/accuracy"]["mean"] == pytest.approx(float(row["test/accuracy"]))


def test_a_checkpoint_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        main(["test", *DIGITS[1:], "--ckpt_path=nowhere.ckpt"])
    assert "--ckpt_path=nowhere.ckpt is not a file" in capsys.readouterr().err
    Path("text.ckpt").write_text("no weights")
    with pytest.raises(SystemExit):
        main(["test", *DIGITS[1:], "--ckpt_path=text.ckpt"])
    assert "--ckpt_path=text.ckpt is not a checkpoint" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*DIGITS, "--seed_everything=-1"])
    assert "--seed_everything=-1 is outside [0, 4294967295]" in capsys.readouterr().err


def test_private_method_of_lightning_is_still_there():
    """`CLI` stops it from letting checkpoints overrule flags; this notices a renaming."""
    from lightning.pytorch.cli import LightningCLI

    assert callable(LightningCLI._parse_ckpt_path)


@pytest.mark.parametrize("how", ["module", "script"])
def test_module_and_console_script_say_help(how, monkeypatch, capsys):
    script = Path(sys.executable).parent / "dlblocks"
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stop:
        if how == "module":
            runpy.run_module("dlblocks", run_name="__main__")
        else:
            runpy.run_path(str(script), run_name="__main__")
    assert not stop.value.code
    assert "cross-validate" in capsys.readouterr().out


RESUMED = [*DIGITS, "--trainer.max_epochs=3", "--model.dropout=0.2", "--data.batch_size=160",
           "--trainer.callbacks+=ExactResume",
           "--trainer.callbacks.every_n_train_steps=2"]  # fmt: skip


def test_a_killed_run_goes_on_in_its_folder(tmp_path):
    """The same command with --ckpt_path=last; against the run that was not killed."""
    (tmp_path / "killer.py").write_text(
        "import os, signal\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "class Killer(Callback):\n"
        "    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):\n"
        "        if trainer.fit_loop.total_batch_idx == 14:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [*RESUMED, "--run_dir=killed", "--trainer.callbacks+=killer.Killer"]
    forked.run(main, command, code=-signal.SIGKILL)
    config = (tmp_path / "killed" / "config.yaml").read_text()
    main([*RESUMED, "--run_dir=killed", "--ckpt_path=last"])
    main([*RESUMED, "--run_dir=whole"])
    for name in ("last", "best"):
        a, b = (
            torch.load(tmp_path / run / "checkpoints" / f"{name}.ckpt")["state_dict"]
            for run in ("killed", "whole")
        )
        assert all(torch.equal(a[key], b[key]) for key in a)
    for run in ("killed", "whole"):
        checkpoints = sorted(path.name for path in (tmp_path / run / "checkpoints").iterdir())
        assert checkpoints == ["best.ckpt", "last.ckpt"]
    rows = [(tmp_path / run / "metrics.csv").read_text() for run in ("killed", "whole")]
    assert rows[0] == rows[1]
    assert len(rows[0].splitlines()) > 3
    assert (tmp_path / "killed" / "config.yaml").read_text() == config


def test_going_on_needs_the_folder_of_the_run(capsys):
    with pytest.raises(SystemExit):
        main([*RESUMED, "--ckpt_path=last"])
    assert "say which with --run_dir" in capsys.readouterr().err


def test_a_longer_run_keeps_what_was_logged(tmp_path):
    """Without ExactResume, too: Lightning would delete metrics.csv."""
    command = [*DIGITS, "--data.batch_size=160", "--model.lr_schedule=constant", "--run_dir=a"]
    main([*command, "--trainer.max_epochs=1"])
    before = (tmp_path / "a" / "metrics.csv").read_text()
    main([*command, "--trainer.max_epochs=2", "--ckpt_path=last"])
    after = (tmp_path / "a" / "metrics.csv").read_text()
    assert after.startswith(before) and len(after) > len(before)


@pytest.mark.filterwarnings("ignore:.*Unable to serialize instance")
def test_a_transform_of_single_samples_from_yaml(tmp_path):
    config = yaml.safe_load((ROOT / "configs" / "digits_mlp.yaml").read_text())
    crop = {"class_path": "torchvision.transforms.v2.RandomCrop",
            "init_args": {"size": 8, "padding": 1}}  # fmt: skip
    config["data"].setdefault("init_args", {})["train_transform"] = {
        "class_path": "torchvision.transforms.v2.Compose",
        "init_args": {"transforms": [crop]},
    }
    path = tmp_path / "augmented.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["fit", f"--config={path}", *QUIET, "--trainer.max_epochs=1"])
    saved = (tmp_path / "runs" / "augmented" / "config.yaml").read_text()
    assert "RandomCrop" in saved
