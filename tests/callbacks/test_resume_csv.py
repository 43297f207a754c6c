"""``metrics.csv`` of a run that was killed and goes on."""

import contextlib

import pytest
from lightning.pytorch.loggers import CSVLogger
from resume_runs import BATCHES, Kill, Killed, setting

from dlblocks.callbacks import ExactResume
from dlblocks.tracking._csv import ContinuedCSV

pytestmark = pytest.mark.filterwarnings("ignore:.*ckpt_path=.last.. is set, but there is no last")


@pytest.mark.parametrize("kill", [1, 6, BATCHES, 2 * BATCHES + 3])
def test_metrics_csv_is_that_of_the_run_that_was_not_killed(kill, tmp_path, make_trainer):
    def fit(folder, *killers):
        model, data, callbacks = setting("own", 0, False)
        trainer = make_trainer(
            max_epochs=3,
            enable_checkpointing=True,
            logger=CSVLogger(folder, name="", version=""),
            log_every_n_steps=1,
            callbacks=[*callbacks, *killers, ExactResume(folder, every_n_train_steps=3)],
        )
        with contextlib.suppress(Killed):
            trainer.fit(model, **data, ckpt_path="last")
        return (folder / "metrics.csv").read_text()

    whole = fit(tmp_path / "whole")
    killed = fit(tmp_path / "killed", Kill(kill))
    assert len(killed.splitlines()) < len(whole.splitlines())
    assert fit(tmp_path / "killed") == whole


def test_metrics_csv_grows_a_column_without_being_torn(tmp_path):
    path = tmp_path / "metrics.csv"
    writer = ContinuedCSV(str(tmp_path))
    writer.log_metrics({"a": 1.0}, step=0)
    writer.save()
    again = ContinuedCSV(str(tmp_path))
    again.log_metrics({"b": 2.0}, step=1)
    inode = path.stat().st_ino
    again.save()
    assert path.read_text().split() == ["a,b,step", "1.0,,0", ",2.0,1"]
    assert path.stat().st_ino != inode  # a new file took the old one's name
    again.keep(1)
    assert path.read_text().split() == ["a,b,step", "1.0,,0"]


def test_rows_logged_before_the_fit_stay(tmp_path, make_trainer):
    model, data, _ = setting("own", 0, False)
    logger = CSVLogger(tmp_path, name="", version="")
    logger.log_metrics({"before": 12345.0}, step=0)
    trainer = make_trainer(
        enable_checkpointing=True, logger=logger, callbacks=[ExactResume(tmp_path)]
    )
    trainer.fit(model, **data)
    assert (tmp_path / "metrics.csv").read_text().count("12345.0") == 1
