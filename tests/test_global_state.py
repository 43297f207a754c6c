"""After any call the global state of the process is as before, also where the call fails."""

import logging
import os
import random
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import sklearn  # noqa: F401  sets variables of OpenMP when it is imported
import torch
import wandb

from dlblocks.cli import main
from dlblocks.crossval import CrossValidationResult, cross_validate, nested_cross_validate
from dlblocks.data import ArrayDataModule, TabularDataModule
from dlblocks.ensembles import AdaBoost, Bagging, DeepEnsemble, GradientBoosting
from dlblocks.ensembles.results import BaggingResult
from dlblocks.models import MLPClassifier, MLPRegressor
from dlblocks.runs import fit_and_test

LOGGERS = ("", "lightning.pytorch", "lightning.fabric", "wandb", "mine")
# By deterministic= Lightning changes settings of torch and of the environment.
TRAINER = {"max_epochs": 1, "accelerator": "cpu", "deterministic": True}
QUIET = {"progress_bar": False, "figures": False}


# Which folders calls without `run_dir` chose stays, for processes of other ranks.
NOT_OURS = ("PYTEST_CURRENT_TEST", "WANDB_SERVICE", "DLBLOCKS_RUN_DIR")


def state():
    """All that a call could change, as values that can be compared."""
    cudnn = torch.backends.cudnn
    return {
        "python": random.getstate(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (cudnn.benchmark, cudnn.deterministic),
        "gradients": torch.is_grad_enabled(),
        "anomalies": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        # pytest's own, and where wandb's process is
        "variables": {k: v for k, v in os.environ.items() if k not in NOT_OURS},
        "filters": list(warnings.filters),
        "levels": [logging.getLogger(name).level for name in LOGGERS],
        "folder": os.getcwd(),
        "run": wandb.run,
    }


def different(before):
    after = state()
    names = [name for name in before if before[name] != after[name]]
    return {name: (before[name], after[name]) for name in names}


class Meddles(pl.Callback):
    """Changes what a user's callback may change."""

    def on_fit_start(self, trainer, pl_module):
        torch.autograd.set_detect_anomaly(True)

    def on_train_start(self, trainer, pl_module):
        torch.set_float32_matmul_precision("medium")
        torch.set_num_threads(2)
        warnings.simplefilter("ignore")
        logging.getLogger("mine").setLevel(logging.ERROR)
        os.environ["PL_GLOBAL_SEED"] = "99"


def model():
    return MLPClassifier(4, 3, hidden=[4])


def iris():
    return TabularDataModule("iris", test_fraction=0.2)


def validated(**arguments):
    return cross_validate(
        model, iris(), num_folds=2, run_dir="cv",
        **{"make_callbacks": lambda: [Meddles()], "trainer": TRAINER, **QUIET, **arguments},
    )  # fmt: skip


def nested():
    nested_cross_validate(
        lambda lr: MLPClassifier(4, 3, hidden=[4], lr=lr), iris(), {"lr": [0.1]}, num_folds=2,
        inner_folds=2, run_dir="nested", trainer=TRAINER, make_callbacks=lambda: [Meddles()],
        **QUIET,
    ).refit()  # fmt: skip


def after():
    result = validated()
    result.test(result.refit())
    loaded = CrossValidationResult.load("cv")
    loaded.ensemble()


def ensemble(kind):
    kind(
        model, iris(), num_members=2, run_dir="run", trainer=TRAINER,
        make_callbacks=lambda: [Meddles()], **QUIET,
    ).fit()  # fmt: skip
    BaggingResult.load("run")


def boosted():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    GradientBoosting(
        lambda: MLPRegressor(2, 1, hidden=[4]), ArrayDataModule(x, x[:, :1]), num_stages=2,
        trainer=trainer, run_dir="a", progress_bar=False,
    ).fit()  # fmt: skip
    AdaBoost(
        lambda: MLPClassifier(4, 3, lr=0.1), iris(), num_stages=1, run_dir="b",
        trainer={"max_epochs": 10, "accelerator": "cpu"}, progress_bar=False,
    ).fit()  # fmt: skip


def command():
    main([
        "fit", "--model=MLPClassifier", "--model.in_features=4", "--model.num_classes=3",
        "--data=TabularDataModule", "--data.data=iris", "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu", "--trainer.deterministic=true", "--run_dir=run",
        "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    ])  # fmt: skip


CALLS = {
    "cross_validate": validated,
    "vectorized": lambda: validated(
        engine="vectorized", make_callbacks=None, trainer={"max_epochs": 1, "accelerator": "cpu"}
    ),
    "workers": lambda: validated(n_jobs=2, make_callbacks=None),
    "wandb": lambda: validated(logger="wandb"),
    "nested": nested,
    "after": after,
    "bagging": lambda: ensemble(Bagging),
    "deep ensemble": lambda: ensemble(DeepEnsemble),
    "boosting": boosted,
    "fit_and_test": lambda: fit_and_test(
        model(), iris(), trainer=TRAINER, callbacks=[Meddles()], progress_bar=False
    ),
    "command line": command,
}


@pytest.fixture
def own_state(monkeypatch):
    """A state that is not the default."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    logging.getLogger("mine").setLevel(logging.DEBUG)
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "name",
    [pytest.param(k, marks=pytest.mark.processes) if k == "workers" else k for k in CALLS],
)
def test_the_global_state_is_as_before(name, own_state, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "123")
    if name == "fit_and_test":  # the model is the caller's
        made = model()
        monkeypatch.setitem(globals(), "model", lambda: made)
    before = state()
    CALLS[name]()
    assert different(before) == {}


def test_nothing_is_set_that_was_not(own_state):
    validated()
    assert not {"PL_GLOBAL_SEED", "PL_SEED_WORKERS"} & os.environ.keys()


class Fails(Meddles):
    def on_train_batch_end(self, *args):
        raise RuntimeError("on purpose")


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_as_before_after_an_error(engine, own_state):
    failing = (
        {"make_callbacks": lambda: [Fails()]}
        if engine == "sequential"
        else {"make_callbacks": None, "make_model": _diverges}
    )
    before = state()
    with pytest.raises((RuntimeError, FloatingPointError)):
        cross_validate(
            **{"make_model": model, **failing}, datamodule=iris(), num_folds=2, engine=engine,
            trainer={"max_epochs": 2, "accelerator": "cpu"}, run_dir="failed", **QUIET,
        )  # fmt: skip
    assert different(before) == {}


def _diverges():
    return MLPClassifier(4, 3, hidden=[4], optimizer="sgd", lr=1e30)
