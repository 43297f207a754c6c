"""Progress bars of the caller: shown in place of ours, or left out where no bar is wanted."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from dlblocks.crossval import cross_validate, nested_cross_validate
from dlblocks.data import ArrayDataModule, TabularDataModule
from dlblocks.engine import NotVectorizable
from dlblocks.ensembles import Bagging, GradientBoosting
from dlblocks.models import MLPClassifier, MLPRegressor
from dlblocks.runs import fit_and_test

CPU = {"max_epochs": 1, "accelerator": "cpu"}
OURS, LIGHTNING = "elapsed", "it/s"


class Counts(ProgressBar):
    """A bar that only counts the fits that it was used in."""

    used = 0

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        assert trainer.progress_bar_callback is self
        Counts.used += 1

    def enable(self):
        pass

    def disable(self):
        pass


@pytest.fixture(autouse=True)
def _from_none():
    Counts.used = 0


def model(lr=0.01):
    return MLPClassifier(4, 3, hidden=[4], lr=lr)


def folds(trainer=CPU, bar=None, **arguments):
    return cross_validate(
        model, TabularDataModule("iris"), num_folds=2, trainer=trainer, run_dir="cv",
        make_callbacks=(lambda: [bar()]) if bar else None, figures=False, **arguments,
    )  # fmt: skip


def bagging(trainer=CPU, bar=None, **arguments):
    Bagging(
        model, TabularDataModule("iris"), num_members=2, trainer=trainer, run_dir="bag",
        make_callbacks=(lambda: [bar()]) if bar else None, figures=False, **arguments,
    ).fit()  # fmt: skip


def single(trainer=CPU, bar=None, **arguments):
    fit_and_test(
        model(), TabularDataModule("iris", test_fraction=0.2), trainer=trainer, run_dir="fit",
        callbacks=[bar()] if bar else [], **arguments,
    )  # fmt: skip


def boosting(trainer=CPU, **arguments):
    x = torch.randn(40, 2)
    GradientBoosting(
        lambda: MLPRegressor(2, 1, hidden=[4]), ArrayDataModule(x, x[:, :1]), num_stages=1,
        trainer=trainer, run_dir="boost", **arguments,
    ).fit()  # fmt: skip


@pytest.mark.parametrize(("call", "fits"), [(folds, 2), (bagging, 2), (single, 1)])
def test_a_bar_of_the_caller_takes_the_place_of_ours(call, fits, capfd):
    call(bar=Counts)
    assert Counts.used == fits
    assert OURS not in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [{"progress_bar": False}, {"trainer": {**CPU, "enable_progress_bar": False}}],
    ids=["argument", "trainer"],
)
@pytest.mark.parametrize("bar", [None, Counts])
@pytest.mark.parametrize("call", [folds, bagging, single])
def test_no_bar_means_none(call, bar, arguments, capfd):
    call(bar=bar, **arguments)
    assert Counts.used == 0
    said = "".join(capfd.readouterr())
    assert OURS not in said
    assert LIGHTNING not in said


def test_no_bar_of_boosting(capfd):
    boosting({**CPU, "enable_progress_bar": False})
    assert "stage" not in capfd.readouterr().err


def test_true_is_harmless(capfd):
    folds({**CPU, "enable_progress_bar": True})
    assert OURS in capfd.readouterr().err
    boosting({**CPU, "enable_progress_bar": True})
    settings = json.loads(Path("cv/plan.json").read_text())["config"]["trainer"]
    assert "enable_progress_bar" not in settings


def test_lightnings_own_bar(capfd):
    folds(bar=lambda: TQDMProgressBar(refresh_rate=1))
    said = "".join(capfd.readouterr())
    assert "Epoch 0" in said
    assert OURS not in said


def test_another_bar_does_not_make_another_run():
    first = folds(bar=Counts)
    assert folds(bar=lambda: TQDMProgressBar(refresh_rate=7)).folds == first.folds


@pytest.mark.processes
def test_bars_of_several_processes_or_of_a_search_are_ours(capfd):
    folds(bar=TQDMProgressBar, n_jobs=2)
    assert "Epoch 0" not in capfd.readouterr().out
    result = nested_cross_validate(
        model, TabularDataModule("iris"), {"lr": [0.01]}, num_folds=2, inner_folds=2, trainer=CPU,
        make_callbacks=lambda: [Counts()], run_dir="nested", figures=False,
    )  # fmt: skip
    result.refit()
    assert Counts.used == 0
    assert OURS in capfd.readouterr().err


def test_folds_as_one_fit_refuse_it_by_name():
    with pytest.raises(NotVectorizable, match="Counts"):
        folds(bar=Counts, engine="vectorized")


@pytest.mark.parametrize("shown", [True, False])
def test_a_rich_bar_is_used_in_every_fold(shown, capsys):
    used = []

    class Rich(RichProgressBar):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            used.append(trainer.progress_bar_callback is self)

    result = folds(bar=Rich, engine="sequential", progress_bar=shown)
    assert used == [True, True] * shown
    assert len(result.folds) == 2
    assert OURS not in capsys.readouterr().err
