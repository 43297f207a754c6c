"""Processes that are killed by SIGKILL, at a step or in the middle of writing the checkpoint."""

import json
import os
import shutil
import signal

import forked
import lightning.pytorch as pl
import pytest
import torch

from dlblocks.callbacks import Augment, ExactResume, MixUp
from dlblocks.data import DigitScenesDataModule, DigitsDataModule
from dlblocks.models import MLPClassifier, UNetSegmenter

pytestmark = pytest.mark.slow


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class Kill(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.step:
            kill()


class Rows(pl.Callback):
    def __init__(self):
        self.rows = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.rows.append({k: v.item() for k, v in trainer.callback_metrics.items()})


def tear_move(number):
    """Kill in Lightning's last step in writing a file where the target is on another disk: a copy.

    Args:
        number: Of the file that is torn, counted from 1.
    """
    move, moves = shutil.move, []

    def torn_move(source, target):
        moves.append(target)
        if len(moves) < number:
            return move(source, target)
        with open(source, "rb") as whole, open(target, "wb") as half:
            half.write(whole.read()[:20_000])
        kill()

    shutil.move = torn_move


def classes(workers):
    model = MLPClassifier(64, 10, hidden=[16], dropout=0.3, lr=0.01, lr_schedule="one_cycle")
    return model, DigitsDataModule(batch_size=64, num_workers=workers), MixUp(0.2)


def masks(workers):
    model = UNetSegmenter(
        1, 11, width=2, depth=1, loss="cross_entropy+dice", lr=0.01, lr_schedule="one_cycle"
    )
    data = DigitScenesDataModule(
        num_scenes=100, num_test_scenes=2, size=20, digits_per_scene=1, num_groups=5, batch_size=8,
        num_workers=workers,
    )  # fmt: skip
    return model, data, MixUp(0.2, ignore_index=255)


def fit(folder, how, when, devices, workers, problem):
    if how == "write":
        tear_move(when)
    if how != "resume":
        pl.seed_everything(1, workers=True, verbose=False)
    model, data, mixing = problem(workers)
    target_kind = "mask" if problem is masks else None
    rows = Rows()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
        logger=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=2,
        callbacks=[Augment(rotation=10, target_kind=target_kind), mixing,
                   ExactResume(folder, every_n_train_steps=1),
                   Kill(when if how == "step" else None), rows],
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path="last")
    if trainer.is_global_zero:
        torch.save(model.state_dict(), f"{folder}/weights.pt")
        with open(f"{folder}/rows.json", "w") as file:
            json.dump(rows.rows, file)


def start(folder, how, when=0, *, devices=1, workers=0, problem=classes):
    """Start processes that fit in `folder` and are killed `how`, `when`."""
    ranks = forked.ranks(devices) if devices > 1 else [{}]
    code = -signal.SIGKILL if how in ("step", "write") else 0
    forked.run(fit, folder, how, when, devices, workers, problem, code=code, environments=ranks)


def assert_same(tmp_path):
    a, b = (torch.load(tmp_path / name / "weights.pt") for name in ("whole", "killed"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    rows = [json.loads((tmp_path / name / "rows.json").read_text()) for name in ("whole", "killed")]
    assert rows[1] and rows[1] == rows[0][-len(rows[1]) :]


@pytest.mark.parametrize(
    "devices, workers, problem", [(1, 2, classes), (2, 0, classes), (1, 0, masks)]
)
def test_killed_at_a_step(devices, workers, problem, tmp_path):
    settings = {"devices": devices, "workers": workers, "problem": problem}
    start("whole", "not", **settings)
    start("killed", "step", 27 if workers else 13, **settings)
    # Not seeded this time: everything must come from the file.
    start("killed", "resume", **settings)
    assert_same(tmp_path)


def test_killed_in_the_middle_of_writing(tmp_path):
    start("whole", "not")
    start("killed", "write", 8)
    last, part = (tmp_path / "killed" / name for name in ("last.ckpt", "last.ckpt.part"))
    assert part.stat().st_size == 20_000 < last.stat().st_size
    assert torch.load(last)["global_step"] == 6  # the seventh file, counted from step 0
    start("killed", "resume")
    assert_same(tmp_path)
    assert not part.exists()
