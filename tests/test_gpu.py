"""What a GPU must do as the CPU does. Without a GPU all of it runs on the CPU."""

import contextlib

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from dlblocks.callbacks import Augment, CutMix, Cutout, ExactResume, MixUp
from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import CNNClassifier, MLPClassifier
from dlblocks.optim import SGDP, AdamP
from dlblocks.tasks import MulticlassTask

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ACCELERATOR = "gpu" if DEVICE == "cuda" else "cpu"
pytestmark = pytest.mark.gpu


@contextlib.contextmanager
def no_waiting():
    """Make a call that waits for the GPU an error."""
    mode = torch.cuda.set_sync_debug_mode if DEVICE == "cuda" else lambda mode: None
    mode("error")
    try:
        yield
    finally:
        mode("default")


def test_mixing_augmentation_loss_and_metrics_do_not_wait():
    images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8, device=DEVICE)
    labels, task = torch.arange(8, device=DEVICE) % 3, MulticlassTask(3)
    metrics = task.make_metrics("train").to(DEVICE)
    changes = [
        Augment(horizontal_flip=0.5, crop_padding=2, rotation=10, brightness=0.2),
        Cutout(),
        MixUp(num_classes=3),
        CutMix(num_classes=3),
    ]
    outputs = torch.randn(8, 3, device=DEVICE)

    def everything(step):
        for change in changes:
            inputs = images if isinstance(change, Augment) else images.float()
            batch = change.apply([inputs, labels], epoch=0, step=step, rank=0)
            task.loss(outputs, batch[1])
        metrics.update(outputs, labels)

    everything(1)  # labels on a GPU are looked at once a run
    with no_waiting():
        everything(2)
    assert int(sum(m.update_count for m in metrics.values())) == 2 * len(metrics)


def test_a_deterministic_run_resumes_to_the_last_bit():
    def fit(folder, epochs, ckpt_path=None):
        pl.seed_everything(0, verbose=False)
        model = CNNClassifier(1, 10, channels=[4])
        trainer = pl.Trainer(
            accelerator=ACCELERATOR, devices=1, max_epochs=epochs, deterministic=True, logger=False,
            enable_progress_bar=False, enable_model_summary=False, limit_train_batches=4,
            limit_val_batches=1,
            callbacks=[ExactResume(folder), MixUp(), Augment(rotation=10)],
        )  # fmt: skip
        trainer.fit(model, DigitsDataModule(), ckpt_path=ckpt_path)
        return [p.detach().cpu() for p in model.parameters()]

    try:
        whole = fit("whole", 3)
        fit("half", 2)
        resumed = fit("half", 3, "half/last.ckpt")
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, whole, resumed))


@pytest.mark.parametrize("optimizer", [AdamP, SGDP])
def test_projected_steps_are_those_of_the_cpu(optimizer):
    def steps(device):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 2))
        inputs = torch.randn(16, 6)
        net, inputs = net.to(device), inputs.to(device)
        stepper = optimizer(net.parameters(), lr=0.05, weight_decay=0.01)
        for _ in range(5):
            stepper.zero_grad()
            net(inputs).square().mean().backward()
            stepper.step()
        return [p.detach().cpu() for p in net.parameters()]

    torch.testing.assert_close(steps(DEVICE), steps("cpu"), rtol=1e-4, atol=1e-5)


def test_folds_as_one_fit_score_as_one_after_another():
    def scores(engine):
        result = cross_validate(
            lambda: MLPClassifier(64, 10, hidden=[16]),
            DigitsDataModule(test_fraction=0.0),
            num_folds=2,
            trainer={"max_epochs": 2, "accelerator": ACCELERATOR, "devices": 1},
            engine=engine,
            progress_bar=False,
            figures=False,
            run_dir=engine,
        )
        return result.values("val/loss")

    assert scores("vectorized") == pytest.approx(scores("sequential"), rel=1e-3)


def test_bf16_learns():
    trainer = pl.Trainer(
        accelerator=ACCELERATOR, devices=1, max_epochs=3, precision="bf16-mixed", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(MLPClassifier(64, 10, hidden=[64], lr=1e-2), DigitsDataModule())
    assert float(trainer.callback_metrics["val/accuracy"]) > 0.8
