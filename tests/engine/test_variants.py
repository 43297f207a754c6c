"""Variants with several seeds as one fit, held against fits by Lightning alone."""

import csv

import lightning.pytorch as pl
import pytest
import torch

from dlblocks.data import DigitsDataModule
from dlblocks.engine import fit_variants
from dlblocks.models import MLPClassifier

SETTINGS = {"trainer": {"max_epochs": 2, "accelerator": "cpu"}, "progress_bar": False}


def with_rate(lr):
    def new(seed):
        model = MLPClassifier(64, 10, hidden=[16], optimizer="sgd", lr=lr)
        return model, DigitsDataModule(split_seed=0, shuffle_seed=seed)

    return new


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    variants = {"lr 0.05": with_rate(0.05), "too high": with_rate(1e30)}
    members = fit_variants(variants, [3, 4], folder, logger="csv", **SETTINGS)
    assert torch.equal(before, torch.get_rng_state())
    return folder, members


def test_every_fit_is_that_of_its_seed(found):
    _, members = found
    for seed, member in zip((3, 4), members["lr 0.05"], strict=True):
        pl.seed_everything(seed, verbose=False)
        model, data = with_rate(0.05)(seed)
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(model, datamodule=data)
        assert member.seed == seed and member.error is None
        losses = member.curve("val/loss")
        assert len(losses) == 2 and min(losses) == member.best.value
        assert losses[-1] == pytest.approx(float(trainer.callback_metrics["val/loss"]), rel=1e-4)
        for mine, theirs in zip(member.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_a_fit_that_diverges_leaves_the_others_alone(found):
    _, members = found
    assert all(isinstance(m.error, FloatingPointError) for m in members["too high"])


def test_each_fit_logs(found):
    folder, members = found
    with (folder / "lr-0.05" / "seed-4" / "metrics.csv").open(newline="") as file:
        logged = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert logged == pytest.approx(members["lr 0.05"][1].curve("val/loss"))


@pytest.mark.parametrize(("variants", "seeds"), [({}, [0]), ({"one": with_rate(0.1)}, [])])
def test_nothing_to_fit_is_refused(variants, seeds, tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        fit_variants(variants, seeds, tmp_path, **SETTINGS)


def test_a_dev_run_is_one_epoch_of_one_batch(tmp_path):
    trainer = {"max_epochs": 5, "accelerator": "cpu", "fast_dev_run": True}
    settings = {**SETTINGS, "trainer": {**trainer, "check_val_every_n_epoch": 5}}
    (member,) = fit_variants({"a": with_rate(0.05)}, [3], tmp_path, **settings)["a"]
    assert (member.steps, member.epochs, len(member.curve("val/loss"))) == (1, 1, 1)
