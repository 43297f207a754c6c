"""A run that was killed, and resumed in new objects, against the run that was not."""

import contextlib
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from conftest import no_address
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from resume_runs import BATCHES, Copy, Kill, Killed, put_back, run, setting
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.callbacks import ExactResume
from dlblocks.data import DigitsDataModule
from dlblocks.models import MLPClassifier

pytestmark = [
    # Shuffling loaders of the user's own, on purpose.
    pytest.mark.filterwarnings("ignore:You called .self.log.'.*'., batch_size"),
    pytest.mark.filterwarnings("ignore:.*ckpt_path=.last.. is set, but there is no last"),
]


# Batches before which runs of 3 · 9 are killed: in mid-epoch, and before an epoch's first.
MIDDLE, FIRST = BATCHES + 5, BATCHES
# In the first epoch; in mid-epoch; the first, the last batch of an epoch; in the last epoch.
ALL = (1, 4, BATCHES - 1, FIRST, MIDDLE, 3 * BATCHES - 1)


CASES = [
    ("ours", {}, ALL),
    ("ours", {"workers": 2}, (FIRST, MIDDLE)),
    # Steps of two batches, and of the last one of an epoch alone.
    (
        "ours",
        {"accumulate_grad_batches": 2, "val_check_interval": 0.5},
        (BATCHES - 1, FIRST, MIDDLE),
    ),
    ("own", {}, ALL),
    ("own", {"workers": 2}, (FIRST, MIDDLE)),
    ("own", {"workers": 2, "persistent": True}, (FIRST, MIDDLE)),
    ("own", {"accumulate_grad_batches": 2}, (BATCHES - 1, FIRST, MIDDLE)),
    ("own", {"val_check_interval": 3}, (4, FIRST, MIDDLE)),
    # The first batch after an epoch without, with validation; in mid-epoch.
    ("own", {"limit_train_batches": 5, "check_val_every_n_epoch": 2}, (5, 8, 10)),
    ("own", {"val_check_interval": 4, "check_val_every_n_epoch": None}, (FIRST, MIDDLE)),
    ("own", {"max_steps": 22}, (MIDDLE, 21)),
    ("own", {"reload_dataloaders_every_n_epochs": 1}, (FIRST, MIDDLE)),
    ("own", {"precision": "64-true"}, (FIRST, MIDDLE)),
    ("own", {"precision": "bf16-true"}, (FIRST, MIDDLE)),
    # Another epoch, other weights that are trained.
    ("frozen", {}, (4, FIRST, MIDDLE)),
    ("finetuned", {}, (4, FIRST, MIDDLE)),
    ("generator", {}, (FIRST, MIDDLE)),
    ("combined", {}, (FIRST, MIDDLE)),
    ("combined", {"workers": 1}, (FIRST, MIDDLE)),
    ("stream", {}, (FIRST, MIDDLE)),
]


@pytest.mark.parametrize(
    "kind, settings, kills", CASES, ids=[f"{kind}-{settings}" for kind, settings, _ in CASES]
)
def test_resumed_run_is_the_run_that_was_not_killed(kind, settings, kills, tmp_path):
    model, rows = run(kind, tmp_path / "whole", copy=kills, **settings)
    for kill in kills:
        folder = tmp_path / f"killed-{kill}"
        if kill == 4:
            run(kind, folder, kill=BATCHES + 3, resume=True, **settings)  # once more
        resumed, later = run(kind, folder, resume=True, **settings)
        for (name, a), b in zip(
            model.state_dict().items(), resumed.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), (kill, name)
        assert 0 < len(later) <= len(rows)
        assert str(later) == str(rows[-len(later) :]), kill


def test_the_check_can_fail(tmp_path):
    """Without ExactResume, by Lightning's own checkpoint at the same step, weights differ."""

    def fit(folder, kill, ckpt_path):
        model, data, _ = setting("own", 0, False)
        checkpoint = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=2)
        trainer = pl.Trainer(
            max_epochs=2,
            callbacks=[checkpoint, Kill(kill)],
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with contextlib.suppress(Killed):
            trainer.fit(model, **data, ckpt_path=ckpt_path)
        return model

    whole = fit(tmp_path / "a", -1, None)
    fit(tmp_path / "b", 5, None)
    with pytest.warns(UserWarning, match="ended before the epoch ended"):
        resumed = fit(tmp_path / "b", -1, "last")
    assert not torch.equal(whole.net[1].weight, resumed.net[1].weight)


def test_kept_states_are_plain_values(tmp_path):
    run("own", tmp_path, kill=6)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    (state,) = checkpoint["callbacks"]["ExactResume"]["ranks"]
    assert state["random"]["batches"] == 6 and checkpoint["global_step"] == 6
    assert list(tmp_path.iterdir()) == [tmp_path / "last.ckpt"]


def test_the_file_can_be_resumed_without_the_callback(tmp_path, make_trainer):
    """At an epoch's start Lightning's own counters would make it skip that epoch."""
    run("own", tmp_path, kill=BATCHES)  # written before the first batch of the second epoch
    model, data, _ = setting("own", 0, False)
    trainer = make_trainer(max_epochs=2)
    with pytest.warns(UserWarning, match=r"Please add the following callbacks: \['ExactResume'\]"):
        trainer.fit(model, **data, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.global_step == 2 * BATCHES


def test_a_checkpoint_without_states_is_said(tmp_path, make_trainer, plain_module):
    data = DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8) % 3), 4)
    trainer = make_trainer()
    trainer.fit(plain_module(), data)
    trainer.save_checkpoint(tmp_path / "plain.ckpt", weights_only=False)
    trainer = make_trainer(
        max_epochs=2, enable_checkpointing=True, callbacks=[ExactResume(tmp_path / "new")]
    )
    with pytest.warns(UserWarning, match="ExactResume did not write this checkpoint"):
        trainer.fit(plain_module(), data, ckpt_path=tmp_path / "plain.ckpt")


def test_default_folder_is_found_again_by_a_new_trainer(tmp_path, make_trainer, plain_module):
    data = DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8) % 3), 4)
    for epochs in (1, 3):
        module = plain_module()
        trainer = make_trainer(
            max_epochs=epochs,
            enable_checkpointing=True,
            logger=True,
            log_every_n_steps=1,
            default_root_dir=tmp_path,
            callbacks=[ExactResume()],
        )
        trainer.fit(module, data, ckpt_path="last")
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert trainer.global_step == 6
    assert len(module.seen) == 4  # two epochs: the first had been done


def test_default_folder_is_that_of_each_trainer(tmp_path, make_trainer, plain_module):
    data = DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8) % 3), 4)
    resume = ExactResume()
    for name in "ab":
        trainer = make_trainer(
            enable_checkpointing=True, default_root_dir=tmp_path / name, callbacks=[resume]
        )
        trainer.fit(plain_module(), data)
        assert (tmp_path / name / "checkpoints" / "last.ckpt").exists()


def test_best_checkpoint_stays_the_users(tmp_path, make_trainer):
    model, data, _ = setting("own", 0, False)
    best = ModelCheckpoint(tmp_path / "best", monitor="val")
    trainer = make_trainer(
        max_epochs=2,
        enable_checkpointing=True,
        callbacks=[ExactResume(tmp_path / "last"), best],
    )
    trainer.fit(model, **data)
    assert trainer.checkpoint_callback is best and Path(best.best_model_path).exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"filename": "best", "monitor": "val", "every_n_train_steps": None},
        {"filename": "{epoch}", "monitor": "val", "every_n_train_steps": None},
        {"filename": "some", "monitor": "loss_step", "every_n_train_steps": 2, "save_top_k": 3},
        {"filename": "{step}-{val/x}", "monitor": None, "every_n_train_steps": 3, "save_top_k": -1},
    ],
    ids=no_address,
)
def test_files_of_the_best_are_those_of_the_run_that_was_not_killed(settings, tmp_path):
    """Those of steps that are repeated are overwritten, those of an earlier run are not."""

    def fit(folder, kill=-1, copy=()):
        best = folder / "best"
        if not best.exists():
            best.mkdir(parents=True)
            (best / "best.ckpt").write_text("somebody else's")
            (best / "some.ckpt").write_text("somebody else's")
        model, data, callbacks = setting("own", 0, False)
        checkpoint = ModelCheckpoint(best, **settings)
        resume = ExactResume(folder, every_n_train_steps=8)
        trainer = pl.Trainer(
            max_epochs=3,
            callbacks=[*callbacks, checkpoint, resume, Copy(folder, copy), Kill(kill)],
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            val_check_interval=3,
        )
        with contextlib.suppress(Killed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            trainer.fit(model, **data, ckpt_path="last")
        scores = {Path(k).name: float(v) for k, v in checkpoint.best_k_models.items()}
        files = {}
        for path in sorted(best.rglob("*.ckpt")):
            foreign = path.read_bytes().startswith(b"somebody")
            files[str(path.relative_to(best))] = foreign or torch.load(path)["global_step"]
        assert "file_exists" not in vars(checkpoint) or kill >= 0
        return scores, Path(checkpoint.best_model_path).name, files

    folder, kills = tmp_path / "run", (4, 7, 14, 23)
    whole = fit(folder, copy=kills)
    for kill in kills:
        put_back(folder, kill)
        if kill == 7:
            fit(folder, kill + 3)
        assert fit(folder) == whole, kill


@pytest.mark.parametrize("every", [0, 1.5])
def test_wrong_interval_is_refused(every):
    with pytest.raises(ValueError, match=f"every_n_train_steps={every}"):
        ExactResume(every_n_train_steps=every)


def test_two_writers_of_the_last_file_are_refused(tmp_path, make_trainer, plain_module):
    data = DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8) % 3), 4)
    other = ModelCheckpoint(tmp_path / "other", save_last=True)
    trainer = make_trainer(enable_checkpointing=True, callbacks=[ExactResume(tmp_path), other])
    with pytest.raises(ValueError, match="save_last=True; leave save_last out"):
        trainer.fit(plain_module(), data)


def test_callbacks_beside_it_go_on_as_well(tmp_path, make_trainer):
    """Best checkpoint, patience of early stopping, averaged weights."""
    folder, kills = tmp_path / "run", (5, BATCHES, 2 * BATCHES + 3, "end")

    def fit(copy=()):
        pl.seed_everything(1, verbose=False)
        model = MLPClassifier(64, 10, hidden=[16], dropout=0.3, lr=0.03)
        stopping = EarlyStopping("val/accuracy", mode="max", patience=2, min_delta=0.02)
        best = ModelCheckpoint(folder / "best", filename="{epoch}", monitor="val/loss")
        resume = ExactResume(folder, every_n_train_steps=2)
        averaging = EMAWeightAveraging(decay=0.9)
        trainer = make_trainer(
            max_epochs=30,
            enable_checkpointing=True,
            callbacks=[Copy(folder, copy), resume, averaging, stopping, best],
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            trainer.fit(model, datamodule=DigitsDataModule(batch_size=160), ckpt_path="last")
        return trainer, model, stopping, best

    trainer, model, stopping, best = fit(kills)
    assert 3 < trainer.current_epoch < 30  # it was stopped early
    weights = torch.load(best.best_model_path)["state_dict"]
    for kill in kills:
        put_back(folder, kill)
        again, resumed, stopping_2, best_2 = fit()
        assert again.current_epoch == trainer.current_epoch, kill
        assert stopping_2.state_dict() == stopping.state_dict(), kill
        assert best_2.best_model_score == best.best_model_score, kill
        # At the end the module holds the averaged weights.
        for a, b in (
            (weights, torch.load(best_2.best_model_path)["state_dict"]),
            (model.state_dict(), resumed.state_dict()),
        ):
            assert all(torch.equal(a[name], b[name]) for name in a), kill


def test_another_number_of_processes_is_said(tmp_path, make_trainer):
    run("own", tmp_path, kill=5)
    checkpoint = torch.load(tmp_path / "last.ckpt")
    ranks = checkpoint["callbacks"]["ExactResume"]["ranks"]
    ranks.append(ranks[0])
    torch.save(checkpoint, tmp_path / "last.ckpt")
    model, data, _ = setting("own", 0, False)
    trainer = make_trainer(
        max_epochs=1, enable_checkpointing=True, callbacks=[ExactResume(tmp_path)]
    )
    with pytest.warns(UserWarning) as said:
        trainer.fit(model, **data, ckpt_path="last")
    assert any("written by 2 process(es) and resumes in 1" in str(w.message) for w in said)


def test_private_parts_of_lightning_that_it_stands_on():
    """Named here, so that a new Lightning that renames them fails in one clear place."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert trainer.fit_loop._data_fetcher is None
    assert hasattr(trainer.fit_loop.epoch_loop, "_results")
    assert hasattr(trainer.fit_loop, "on_iteration_done")
    assert hasattr(trainer._logger_connector, "_first_loop_iter")
    assert callable(ModelCheckpoint._find_last_checkpoints)
    assert callable(ExperimentWriter._check_log_dir_exists)
    assert callable(ExperimentWriter._rewrite_with_new_header)
    assert hasattr(torchmetrics.MeanMetric(), "_update_count")
