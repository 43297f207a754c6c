"""What the tests of bagging run."""

from dlblocks.data import DigitsDataModule, TabularDataModule
from dlblocks.models import MLPClassifier, MLPRegressor

EPOCHS = 3


def settings(**more):
    trainer = {"max_epochs": EPOCHS, "accelerator": "cpu"}
    quiet = {"progress_bar": False, "figures": False, "logger": None}
    return {"num_members": 3, "trainer": trainer, **quiet, **more}


def digits(**arguments):
    return DigitsDataModule(**{"batch_size": 32, "test_fraction": 0.5, **arguments})


def diabetes():
    return TabularDataModule("diabetes", batch_size=32)


def mlp():
    return MLPClassifier(64, 10, hidden=[16], norm="batch", lr=0.03)


def regressor():
    return MLPRegressor(10, 1, hidden=[16], lr=0.03, standardize_targets=True)
