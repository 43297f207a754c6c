"""The regularizers together: from YAML, killed and resumed, and in two processes."""

import contextlib
import json

import forked
import lightning.pytorch as pl
import pytest
import torch
import yaml
from conftest import no_address
from resume_runs import Kill, Killed, Rows
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from dlblocks.callbacks import (
    SAM,
    ExactResume,
    GeneralizationGap,
    InputNoise,
    LabelSmoothing,
    MixUp,
    WeightNoise,
    WeightPenalty,
)
from dlblocks.cli import main
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier

CONFIG = """
model:
  class_path: dlblocks.models.MLPClassifier
  init_args: {in_features: 64, num_classes: 10, hidden: [16], norm: batch, dropout: 0.2}
data:
  class_path: dlblocks.data.DigitsDataModule
  init_args: {batch_size: 256}
trainer:
  max_epochs: 2
  accelerator: cpu
  accumulate_grad_batches: 2
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - {class_path: dlblocks.callbacks.MixUp, init_args: {alpha: 0.2}}
    - {class_path: dlblocks.callbacks.LabelSmoothing, init_args: {smoothing: 0.1}}
    - {class_path: dlblocks.callbacks.InputNoise, init_args: {std: 0.1}}
    - class_path: dlblocks.callbacks.WeightNoise
      init_args: {std: 0.05, relative: true, include: ["net.*.weight"]}
    - class_path: dlblocks.callbacks.WeightPenalty
      init_args: {l1: 1.0e-5, l2: 1.0e-4, max_norm: 3.0, exclude: [net.0.weight]}
    - {class_path: dlblocks.callbacks.SAM, init_args: {rho: 0.05, adaptive: true}}
    - {class_path: dlblocks.callbacks.GeneralizationGap, init_args: {limit_batches: 0.25}}
    - class_path: lightning.pytorch.callbacks.EMAWeightAveraging
      init_args: {decay: 0.9}
    - class_path: lightning.pytorch.callbacks.EarlyStopping
      init_args: {monitor: gap/loss, patience: 20, check_on_train_epoch_end: true}
"""


def test_from_yaml(tmp_path):
    names = [p for p, _ in MLPClassifier(64, 10, hidden=[16], norm="batch").named_parameters()]
    config = yaml.safe_load(CONFIG)
    config["trainer"]["callbacks"][4]["init_args"]["exclude"] = [names[0]]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config=all.yaml"])
    header = (tmp_path / "runs" / "all" / "metrics.csv").read_text().splitlines()[0]
    for name in ("train/penalty", "gap/loss", "gap/accuracy", "train_eval/loss", "val/loss"):
        assert name in header.split(",")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trainer.callbacks=SAM", "--trainer.callbacks.rho=0"], "rho"),
        (["--trainer.callbacks=WeightPenalty"], "nothing to do"),
        (["--trainer.callbacks=LabelSmoothing", "--trainer.callbacks.smoothing=1"], "smoothing"),
    ],
)
def test_bad_arguments_from_the_command_line(flags, message, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(CONFIG.split("  callbacks:")[0])
    flags = [flag.replace("=SAM", "=dlblocks.callbacks.SAM") for flag in flags]
    with pytest.raises((SystemExit, ValueError)) as error:
        main(["fit", "--config=c.yaml", *flags])
    assert message in str(error.value) + capsys.readouterr().err


def run(folder, *, kill=None, resume=False, others=(), **settings):
    pl.seed_everything(1, verbose=False)
    model = MLPClassifier(64, 10, hidden=[16], norm="batch", dropout=0.3, lr=0.01)
    callbacks = [
        LabelSmoothing(0.1),
        MixUp(0.2),
        InputNoise(0.2),
        WeightNoise(0.1, relative=True),
        WeightPenalty(l1=1e-4, l2=1e-3, max_norm=2.0),
        SAM(0.1),
        GeneralizationGap(limit_batches=2),
        *others,
        ExactResume(folder, every_n_train_steps=1),
    ]
    log = Rows()
    trainer = pl.Trainer(
        max_epochs=3,
        callbacks=[*callbacks, *([] if kill is None else [Kill(kill)])],
        logger=log,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    if resume:
        torch.manual_seed(777)
    with contextlib.suppress(Killed):
        trainer.fit(model, datamodule=DigitsDataModule(batch_size=128), ckpt_path="last")
    return model, log.rows


@pytest.mark.filterwarnings("ignore:.*ckpt_path=.last.. is set, but there is no last")
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}], ids=no_address)
def test_a_resumed_run_is_the_run_that_was_not_killed(settings, tmp_path):
    model, rows = run(tmp_path / "whole", **settings)
    for kill in (5, 12, 17):
        folder = tmp_path / str(kill)
        run(folder, kill=kill, **settings)
        resumed, later = run(folder, resume=True, **settings)
        for (name, a), b in zip(
            model.state_dict().items(), resumed.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), (kill, name)
        assert 0 < len(later) <= len(rows)
        assert str(later) == str(rows[-len(later) :]), kill


X = torch.randn(48, 5, generator=torch.Generator().manual_seed(1)).double()
Y = torch.arange(48) % 3


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        self.seen = []

    def train_dataloader(self):  # in order: the ranks' batches are together those of one process
        data, devices = TensorDataset(X, Y), self.trainer.world_size
        order = DistributedSampler(data, devices, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, 8 // devices, sampler=order)

    def val_dataloader(self):
        return DataLoader(TensorDataset(X[:7], Y[:7]), 3)

    def training_step(self, batch, batch_idx):
        self.seen.append((float(batch[0].sum()), float(self.net[0].weight.detach().sum())))
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


def fit(devices, *callbacks, **arguments):
    if devices > 1:
        arguments["strategy"] = "ddp"
    module = Net()
    trainer = pl.Trainer(
        callbacks=list(callbacks), accelerator="cpu", devices=devices, enable_progress_bar=False,
        logger=False, enable_model_summary=False, enable_checkpointing=False, max_epochs=2,
        precision="64-true", use_distributed_sampler=False, **arguments,
    )  # fmt: skip
    trainer.fit(module)
    return module, trainer, {k: float(v) for k, v in trainer.callback_metrics.items()}


def measure(devices):
    found = {}
    module, trainer, logged = fit(
        devices, SAM(0.5), WeightPenalty(l2=0.1, max_norm=1.0), GeneralizationGap(["val_loss"]),
        accumulate_grad_batches=2, gradient_clip_val=0.5,
    )  # fmt: skip
    found["weights"] = [p.flatten().tolist() for p in module.parameters()]
    found["train"] = logged["train_eval/loss"]
    found["penalty"] = logged["train/penalty"]
    module, trainer, logged = fit(devices, GeneralizationGap(limit_batches=0.77))  # 37 samples
    found["limited"] = logged["train_eval/loss"]
    for name, callback in (("input", InputNoise(0.5)), ("weight", WeightNoise(0.5))):
        module, *_ = fit(devices, callback)
        found[name] = module.seen
        found[f"{name} end"] = float(sum(p.sum() for p in module.parameters()))
    with open(f"found-{devices}-{trainer.global_rank}.json", "w") as file:
        json.dump(found, file)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for devices in (1, 2):
            forked.run(measure, devices, environments=forked.ranks(devices))
    return [
        json.loads((folder / f"found-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    ]


@pytest.mark.slow
def test_two_processes_step_as_one(ranks):
    one, *two = ranks
    for rank in two:
        for a, b in zip(one["weights"], rank["weights"], strict=True):
            assert a == pytest.approx(b, rel=1e-9, abs=1e-10)
        for name in ("train", "penalty", "limited"):
            assert one[name] == pytest.approx(rank[name], rel=1e-6), name


@pytest.mark.slow
def test_two_processes_draw_differently(ranks):
    _, first, second = ranks
    # Noise on inputs of std 0.5 and on weights; both ranks have the same clean weights.
    clean = {name: dict.fromkeys([first[f"{name} end"], second[f"{name} end"]]) for name in
             ("input", "weight")}  # fmt: skip
    assert all(len(ends) == 1 for ends in clean.values())
    weights = [(a[1], b[1]) for a, b in zip(first["weight"], second["weight"], strict=True)]
    assert all(a != b for a, b in weights)
    assert all(a[1] == b[1] for a, b in zip(first["input"], second["input"], strict=True))
    assert len({*[s[0] for s in first["input"]], *[s[0] for s in second["input"]]}) == 24
