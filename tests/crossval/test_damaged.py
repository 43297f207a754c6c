"""Files that are truncated, changed or left over: errors with a cure, or the fold again."""

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from same_runs import assert_same

from dlblocks._files import is_whole, write_json
from dlblocks.callbacks import ExactResume
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.data import ArrayDataModule
from dlblocks.ensembles import Bagging, BaggingResult, GradientBoosting
from dlblocks.models import MLPClassifier, MLPRegressor, load
from dlblocks.runs.folder import locked

X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
Y = (X[:, 0] > 0).astype(int)
CPU = {"max_epochs": 3, "accelerator": "cpu"}


class Fail(pl.Callback):
    """Ends a fold in its last epoch, while the file ``fail`` is there."""

    def __init__(self, folder):
        self._file = Path(folder) / "fail"

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2 and trainer.datamodule.fold == 1 and self._file.exists():
            raise RuntimeError("failed")


def run(folder, **arguments):
    return cross_validate(
        lambda: MLPClassifier(4, 2, hidden=[3], dropout=0.1), ArrayDataModule(X, Y, batch_size=8),
        num_folds=2, trainer=CPU, run_dir=folder, progress_bar=False, figures=False,
        make_callbacks=lambda: [Fail(folder.parent), ExactResume()], **arguments,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "a"
    run(folder)
    return folder


def fail(folder):
    """A run of which the second fold has ended in its last epoch."""
    (folder.parent / "fail").touch()
    with pytest.raises(RuntimeError, match="failed"):
        run(folder)
    (folder.parent / "fail").unlink()


@pytest.fixture(scope="module")
def finished_bagging(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "a"
    bagging(folder)
    return folder


@pytest.fixture(scope="module")
def finished_boosting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "a"
    boosting(folder)
    return folder


@pytest.fixture
def first(finished, tmp_path):
    """The result of a finished run in ``a``."""
    shutil.copytree(finished, tmp_path / "a")
    return CrossValidationResult.load(tmp_path / "a")


def bagging(folder):
    return Bagging(
        lambda: MLPClassifier(4, 2, hidden=[3]), ArrayDataModule(X, Y), num_members=2,
        trainer=CPU, run_dir=folder, progress_bar=False, figures=False,
    ).fit()  # fmt: skip


def boosting(folder):
    return GradientBoosting(
        lambda: MLPRegressor(4, 2, hidden=[3]), ArrayDataModule(X, Y), num_stages=3,
        trainer=CPU, run_dir=folder, progress_bar=False,
    ).fit()  # fmt: skip


def damage(path, how):
    content = path.read_bytes()
    if how == "flipped":  # in the weights, where torch does not see it
        where = content.index(b"FB") if path.suffix == ".ckpt" else len(content) // 2
        content = content[: where + 40] + bytes([content[where + 40] ^ 1]) + content[where + 41 :]
    path.write_bytes({"empty": b"", "truncated": content[:-9], "flipped": content}[how])


@pytest.mark.parametrize("how", ["empty", "truncated"])
@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("plan.json", "choose another run_dir"),
        ("folds.json", "choose another run_dir"),
        ("fold-0/fold.json", "delete .*fold-0/fold.json"),
        ("fold-0/oof.npz", "delete .*fold-0/fold.json"),
    ],
)
def test_the_error_names_the_file_and_the_cure(tmp_path, first, name, cure, how):
    damage(tmp_path / "a" / name, how)
    with pytest.raises(ValueError, match=f"a/{name} is damaged .*; {cure}"):
        run(tmp_path / "a")
    if "fold-0" in cure:  # the cure works
        (tmp_path / "a" / "fold-0" / "fold.json").unlink()
        assert run(tmp_path / "a").values("val/loss") == first.values("val/loss")


@pytest.mark.parametrize("how", ["empty", "truncated"])
def test_a_damaged_summary_is_written_again(tmp_path, first, how):
    before = (tmp_path / "a" / "summary.json").read_bytes()
    damage(tmp_path / "a" / "summary.json", how)
    with pytest.raises(ValueError, match=r"summary.json is damaged .*; delete summary.json"):
        CrossValidationResult.load(tmp_path / "a")
    run(tmp_path / "a")
    assert len((tmp_path / "a" / "summary.json").read_bytes()) == pytest.approx(len(before), abs=30)
    assert len(CrossValidationResult.load(tmp_path / "a").folds) == 2


@pytest.mark.parametrize("how", ["empty", "truncated", "flipped"])
def test_weights_have_checksums(tmp_path, first, how):
    path = tmp_path / "a" / "fold-0" / "checkpoints" / "best.ckpt"
    damage(path, how)
    what = "truncated or not a checkpoint" if how == "flipped" else "damaged"
    with pytest.raises(ValueError, match=f"{path} is {what} .* [Dd]elete .*fold-0/fold.json"):
        first.ensemble()
    (tmp_path / "a" / "fold-0" / "fold.json").unlink()
    run(tmp_path / "a").ensemble()


def test_no_changed_byte_changes_weights(tmp_path):
    path = tmp_path / "a.ckpt"
    model = MLPClassifier(4, 2, hidden=[3])
    model.save(path)
    content = bytearray(path.read_bytes())
    seen = 0
    for where in range(0, len(content), 7):
        content[where] ^= 4
        path.write_bytes(content)
        content[where] ^= 4
        try:
            loaded = load(path)
        except ValueError:
            seen += 1
        else:
            state = model.state_dict()
            assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items()), where
    assert seen > 20


@pytest.mark.parametrize("how", ["empty", "truncated", "flipped"])
def test_a_damaged_last_checkpoint_restarts_its_fold(tmp_path, finished, how):
    fail(tmp_path / "a")
    damage(tmp_path / "a" / "fold-1" / "checkpoints" / "last.ckpt", how)
    with pytest.warns(UserWarning, match=r"last.ckpt is damaged, so the fit starts from its begin"):
        run(tmp_path / "a")
    assert_same(tmp_path / "a", finished, num_folds=2)  # metrics.csv, too


def test_the_last_checkpoint_of_another_fold_restarts_its_fold(tmp_path, finished):
    fail(tmp_path / "a")
    folder = tmp_path / "a" / "fold-0" / "checkpoints"
    (tmp_path / "a" / "fold-0" / "fold.json").unlink()
    (folder / "last.ckpt").write_bytes(
        (tmp_path / "a" / "fold-1" / "checkpoints" / "last.ckpt").read_bytes()
    )
    with pytest.warns(UserWarning, match=r"last.ckpt is of another fit, so the fit starts from"):
        run(tmp_path / "a")
    assert_same(tmp_path / "a", finished, num_folds=2)


@pytest.mark.parametrize(
    ("name", "later"),
    [
        ("fold-0/fold.json", False),
        ("fold-0/oof.npz", False),
        ("fold-0/history.csv", False),
        ("fold-0/checkpoints/best.ckpt", True),
    ],
)
def test_whole_files_of_another_fold_are_seen(tmp_path, first, name, later):
    result = run(tmp_path / "a")  # read back
    other = tmp_path / "a" / name.replace("fold-0", "fold-1")
    (tmp_path / "a" / name).write_bytes(other.read_bytes())
    message = f"a/{name} is damaged .*; delete .*fold-0/fold.json"
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a")
    if later:
        for found in (result, CrossValidationResult.load(tmp_path / "a")):
            with pytest.raises(ValueError, match=message):
                found.ensemble()
    (tmp_path / "a" / "fold-0" / "fold.json").unlink()
    assert run(tmp_path / "a").values("val/loss") == result.values("val/loss")


@pytest.mark.parametrize("name", ["folds.csv", "oof.npz", "summary.json", "fold-0/history.csv"])
@pytest.mark.parametrize("how", ["digit", "empty", "folder", "null"])
def test_a_loaded_result_is_the_one_that_was_written(tmp_path, first, name, how):
    path = tmp_path / "a" / name
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    else:
        where = content.rindex(b"0.") + 3 if b"0." in content else len(content) // 2
        digit = content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]
        path.write_bytes({"digit": digit, "empty": b"", "null": b"null"}[how])
    file_or_run = rf"a/{name} is damaged .*; delete|has no summary.json"
    with pytest.raises((ValueError, FileNotFoundError), match=file_or_run):
        CrossValidationResult.load(tmp_path / "a").ensemble()


def test_files_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    """As a power cut cannot be tested, the order of the calls of the operating system is."""
    calls, fsync, replace = [], os.fsync, os.replace

    def synced(handle):
        calls.append(("fsync", os.path.realpath(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def renamed(old, new):
        calls.append(("rename", os.path.realpath(old), os.path.realpath(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    run(tmp_path / "a")
    renames = [call for call in calls if call[0] == "rename"]
    names = {Path(new).name for _, _, new in renames}
    assert {"plan.json", "folds.json", "fold.json", "oof.npz", "last.ckpt", "best.ckpt",
            "history.csv", "folds.csv", "summary.json"} <= names  # fmt: skip
    for call in renames:
        where = calls.index(call)
        assert ("fsync", call[1]) in calls[:where]  # the content, then the folder with the name
        assert ("fsync", str(Path(call[2]).parent)) in calls[where:]


def test_a_fold_that_is_run_again_logs_once(tmp_path, first):
    before = (tmp_path / "a" / "fold-0" / "metrics.csv").read_text()
    (tmp_path / "a" / "fold-0" / "fold.json").unlink()
    run(tmp_path / "a")
    assert (tmp_path / "a" / "fold-0" / "metrics.csv").read_text() == before


def test_half_written_files_of_a_killed_run_are_removed(tmp_path):
    fail(tmp_path / "a")
    left = [
        "fold-0/.oof-abcd_123.part.npz", "fold-1/checkpoints/last.ckpt.part",
        "fold-1/.fold-abcd_123.part.json",
    ]  # fmt: skip
    for name in left:
        (tmp_path / "a" / name).touch()
    (tmp_path / "a" / "notes.part.txt").touch()  # somebody's
    run(tmp_path / "a")
    assert not [name for name in left if (tmp_path / "a" / name).exists()]
    assert (tmp_path / "a" / "notes.part.txt").exists()


@pytest.mark.parametrize("fit", [bagging, boosting])
def test_a_kill_at_the_very_first_file_of_an_ensemble_leaves_nothing_in_the_way(tmp_path, fit):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".plan-abcd_123.part.json").touch()
    fit(tmp_path / "a")
    assert not list((tmp_path / "a").glob(".*"))


def test_a_fold_of_another_run_is_not_taken_for_one_of_this(tmp_path, first):
    other = run(tmp_path / "b", logger=None)
    assert other.values("val/loss") == first.values("val/loss")
    (tmp_path / "b" / "fold-0" / "fold.json").write_bytes(
        (tmp_path / "a" / "fold-0" / "fold.json").read_bytes()
    )
    run(tmp_path / "b", logger=None)
    files = [tmp_path / name / "fold-0" / "fold.json" for name in "ab"]
    assert files[0].read_text() != files[1].read_text()  # it was run again


def test_a_fold_is_not_written_into_another_run(tmp_path):
    class Replace(pl.Callback):
        def on_train_end(self, trainer, module):
            write_json(tmp_path / "a" / "plan.json", {"run_id": "another", "config": {}})

    with pytest.raises(FileExistsError, match="holds another run by now"):
        cross_validate(
            lambda: MLPClassifier(4, 2, hidden=[3]), ArrayDataModule(X, Y), num_folds=2,
            trainer=CPU, run_dir=tmp_path / "a", progress_bar=False, figures=False,
            make_callbacks=lambda: [Replace()],
        )  # fmt: skip
    assert not (tmp_path / "a" / "fold-0" / "fold.json").exists()


@pytest.mark.parametrize(
    "name", ["member-0/member.json", "member-0/oob.npz", "member-0/checkpoints/best.ckpt"]
)
@pytest.mark.parametrize("how", ["empty", "truncated"])
def test_files_of_members(tmp_path, finished_bagging, name, how):
    shutil.copytree(finished_bagging, tmp_path / "a")
    first = BaggingResult.load(tmp_path / "a")
    damage(tmp_path / "a" / name, how)
    with pytest.raises(ValueError, match=f"a/{name} .*[Dd]elete .*member-0/member.json"):
        bagging(tmp_path / "a")
    (tmp_path / "a" / "member-0" / "member.json").unlink()
    assert bagging(tmp_path / "a").values("val/loss") == first.values("val/loss")


@pytest.mark.parametrize("name", ["summary.json", "ensemble.ckpt", "samples.npz", "oob.npz"])
def test_files_of_an_ensemble(tmp_path, finished_bagging, name):
    shutil.copytree(finished_bagging, tmp_path / "a")
    damage(tmp_path / "a" / name, "truncated")
    with pytest.raises(ValueError, match=f"a/{name} .*[Dd]elete .*summary.json"):
        BaggingResult.load(tmp_path / "a")
    (tmp_path / "a" / "summary.json").unlink()
    bagging(tmp_path / "a")
    assert len(BaggingResult.load(tmp_path / "a").members) == 2


@pytest.mark.parametrize("how", ["empty", "truncated", "flipped"])
@pytest.mark.parametrize("name", ["checkpoints/stage-2.ckpt", "checkpoints/best.ckpt"])
def test_files_of_stages_are_written_again(tmp_path, finished_boosting, name, how):
    shutil.copytree(finished_boosting, tmp_path / "a")
    first = boosting(tmp_path / "a")  # read back
    damage(tmp_path / "a" / name, how)
    again = boosting(tmp_path / "a")
    assert again.history == first.history
    assert is_whole(tmp_path / "a" / name)
    (tmp_path / "a" / "summary.json").write_text("{")
    assert boosting(tmp_path / "a").history == first.history
    assert (tmp_path / "a" / "summary.json").stat().st_size > 100


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").symlink_to(tmp_path / "thesis.txt")
    message = r"a/.lock is a symbolic link.*Delete the link"
    with pytest.raises(OSError, match=message), locked(tmp_path / "a"):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode == 0


@pytest.mark.parametrize("fit", [run, bagging, boosting])
def test_a_finished_run_on_a_read_only_file_system_is_read(tmp_path, fit):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or not mount("-t", "tmpfs", "tmpfs", disk):
        pytest.skip("only root can mount")
    try:
        fit(disk / "a")
        # As a run is that was killed before its last file was removed.
        last = disk / "a" / "fold-0" / "checkpoints" / "last.ckpt"
        if last.parent.is_dir():
            last.touch()
        assert mount("-o", "remount,ro", disk)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit(disk / "a")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
