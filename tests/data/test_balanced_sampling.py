"""`balanced_sampling`: all classes equally often, whoever asks, and nothing else changes."""

import contextlib
from collections import Counter

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dlblocks.callbacks import ExactResume
from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule, EpochSampler, FoldedDataModule
from dlblocks.data.dataset import balanced_order
from dlblocks.ensembles import AdaBoost
from dlblocks.models import MLPClassifier

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no")

# 90, 25 and 5 samples; labels that do not count from 0 are classes, too.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [90, 25, 5]))
X = np.arange(120, dtype=np.float32)[:, None].repeat(4, 1)  # each sample says its number


def data(**arguments):
    settings = {"batch_size": 16, "normalize": False, "balanced_sampling": True}
    return ArrayDataModule(X, LABELS, **{**settings, **arguments})


def foreign(**arguments):
    loader = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(LABELS)), 16)
    return FoldedDataModule(loader, **{"balanced_sampling": True, **arguments})


class Killed(Exception):
    pass


class Kill(pl.Callback):
    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise Killed


def rows(datamodule, epoch=0):
    """Numbers of the samples of one training epoch."""
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return torch.cat([batch[0] for batch in loader])[:, 0].long().tolist()


def check(drawn, part):
    """Holds an epoch against the definition, counted sample by sample."""
    classes = sorted({int(LABELS[row]) for row in part})
    assert len(drawn) == len(part)
    quotas = []
    for number in classes:
        members = Counter(row for row in part if LABELS[row] == number)
        seen = Counter(row for row in drawn if LABELS[row] == number)
        quotas.append(sum(seen.values()))
        rounds = quotas[-1] // sum(members.values())
        for row, times in members.items():  # a row of a bootstrap sample may be there twice
            assert rounds * times <= seen[row] <= (rounds + 1) * times
    assert max(quotas) - min(quotas) <= 1
    return quotas


@pytest.mark.parametrize("counts", [[90, 25, 5], [1, 1, 60], [7], [2, 2], [1, 2, 3, 4, 7]])
def test_order_is_that_of_a_slow_loop(counts):
    classes = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)) * 3, counts))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        found = balanced_order(classes, np.random.default_rng(seed))
        largest = rng.permutation(len(counts)) < len(classes) % len(counts)
        expected = []
        for number, more in zip(sorted(set(classes)), largest, strict=True):
            bag: list[int] = []
            own = rng.permutation([i for i, c in enumerate(classes) if c == number]).tolist()
            for _ in range(len(classes) // len(counts) + int(more)):
                bag = bag or list(own)
                expected.append(bag.pop(0))
        assert found.tolist() == [expected[i] for i in rng.permutation(len(classes))]


def test_each_class_gets_the_larger_quota_at_times():
    classes = np.repeat([0, 1, 2], [20, 10, 2])
    quotas = [
        np.bincount(classes[balanced_order(classes, np.random.default_rng((0, epoch)))])
        for epoch in range(300)
    ]
    mean = np.mean(quotas, 0)
    assert {*np.ravel(quotas)} == {10, 11}
    np.testing.assert_allclose(mean, 32 / 3, atol=0.1)


@pytest.mark.parametrize("make", [data, foreign])
def test_epochs_are_balanced_and_differ(make):
    made = make(num_folds=3)
    part = made.indices("train").tolist()
    epochs = [rows(made, epoch) for epoch in range(4)]
    for drawn in epochs:
        check(drawn, part)
        batches = [Counter(LABELS[drawn[i : i + 40]].tolist()) for i in (0, 40)]
        assert all(min(batch.values()) > 5 for batch in batches)  # classes are mixed
    assert len({tuple(drawn) for drawn in epochs}) == 4
    assert len({tuple(sorted(drawn)) for drawn in epochs}) == 4  # other samples, too
    torch.manual_seed(5)
    assert rows(make(num_folds=3), 2) == epochs[2]
    assert rows(make(num_folds=3, shuffle_seed=1), 2) != epochs[2]


def test_workers_change_nothing():
    assert rows(data(num_workers=2), 1) == rows(data(), 1)


def test_a_bootstrap_sample_is_balanced_by_its_own_classes():
    made = data()
    train = made.indices("train").numpy()
    drawn = np.random.default_rng(3).choice(train, len(train))
    check(rows(made.with_train_indices(drawn), 1), drawn.tolist())
    without = drawn[LABELS[drawn] != 2]  # a class that the sample lacks
    assert len(check(rows(made.with_train_indices(without)), without.tolist())) == 2


@pytest.mark.parametrize("ranks", [2, 7])
def test_ranks_share_the_positions(ranks):
    whole = EpochSampler(range(120), shuffle=True, seed=3, classes=LABELS)
    whole.set_epoch(2)
    shares = []
    for rank in range(ranks):
        sampler = EpochSampler(
            range(120), shuffle=True, seed=3, classes=LABELS, num_replicas=ranks, rank=rank
        )
        sampler.set_epoch(2)
        shares.append(list(sampler))
    assert len({len(share) for share in shares}) == 1
    order = [position for step in zip(*shares, strict=True) for position in step]
    assert order[:120] == list(whole)
    assert order[120:] == order[: len(order) - 120]  # ranks get equally many


@pytest.mark.parametrize("kill", [3, 6, 9])
def test_a_killed_run_resumes_with_the_same_samples(tmp_path, kill, plain_module):
    def run(folder, kill=-1):
        pl.seed_everything(0, verbose=False)
        model = plain_module()
        trainer = pl.Trainer(
            max_epochs=2,
            callbacks=[ExactResume(folder, every_n_train_steps=2), Kill(kill)],
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with contextlib.suppress(Killed):
            trainer.fit(model, datamodule=data(), ckpt_path="last")
        return model

    with pytest.warns(UserWarning, match="is set, but there is no last"):
        whole = run(tmp_path / "whole")
        run(tmp_path / "killed", kill)
    resumed = run(tmp_path / "killed")
    assert 0 < len(resumed.seen) < len(whole.seen)
    pairs = zip(resumed.seen, whole.seen[-len(resumed.seen) :], strict=True)
    assert all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))
    assert torch.equal(resumed.net[1].weight, whole.net[1].weight)


@pytest.mark.parametrize("make", [data, foreign])
def test_nothing_else_changes(make):
    balanced, plain = (make(test_fraction=0.2, balanced_sampling=on) for on in (True, False))
    assert balanced.fingerprint() == plain.fingerprint()
    assert torch.equal(balanced.train_targets(), plain.train_targets())
    for part in ("train", "val", "test"):
        assert torch.equal(balanced.indices(part), plain.indices(part))
    for name in ("val_dataloader", "test_dataloader", "predict_dataloader"):
        pairs = zip(getattr(balanced, name)(), getattr(plain, name)(), strict=True)
        assert all(torch.equal(a[0], b[0]) for a, b in pairs)
    assert sorted(rows(plain)) == plain.indices("train").tolist()


class Unknown(Dataset):
    """Its targets cannot be read without loading it."""

    def __len__(self):
        return 30

    def __getitem__(self, i):
        return torch.zeros(4), i % 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArrayDataModule(X, X[:, 0], balanced_sampling=True), "are values; leave balanced"),
        (
            lambda: ArrayDataModule(X, LABELS[:, None] == [0, 1], balanced_sampling=True),
            "are several labels per sample; use class_weights='balanced'",
        ),
        (
            lambda: FoldedDataModule(Unknown(), balanced_sampling=True, stratify=False),
            "cannot be read; give targets=",
        ),
    ],
)
def test_data_without_one_class_a_sample_are_refused(
    make, message, make_trainer, plain_module, tmp_path
):
    model = plain_module()
    with pytest.raises(ValueError, match=f"balanced_sampling=True needs one.* {message}"):
        make_trainer().fit(model, datamodule=make())
    assert not model.seen
    with pytest.raises(ValueError, match=f"^balanced_sampling=True needs one.* {message}"):
        cross_validate(plain_module, make(), run_dir=tmp_path / "a", task="multiclass")
    assert not (tmp_path / "a").exists()


def test_given_targets_are_the_classes():
    made = FoldedDataModule(Unknown(), targets=["a", "b", "b"] * 10, balanced_sampling=True)
    made.setup("fit")
    positions = made.indices("train")[list(made.train_dataloader().sampler)]
    assert Counter((positions % 3 > 0).tolist()) == {True: 12, False: 12}


def test_boosting_refuses_it():
    with pytest.raises(ValueError, match="does not heed balanced_sampling= of ArrayDataModule"):
        AdaBoost(lambda: MLPClassifier(4, 3), data(), num_stages=1).fit()


def test_correcting_twice_is_said(make_trainer):
    model = MLPClassifier(4, 3, class_weights="balanced")
    with pytest.warns(UserWarning, match="both correct for unequal classes"):
        make_trainer().fit(model, datamodule=data())


@pytest.mark.parametrize("saves", [True, False])
def test_another_run_does_not_read_its_results(tmp_path, saves):
    class Mine(ArrayDataModule):  # does not save hyperparameters
        def save_hyperparameters(self, *args, **kwargs):
            pass

    kind = ArrayDataModule if saves else Mine

    def validate(balanced):
        made = kind(X, LABELS, batch_size=16, balanced_sampling=balanced)
        cross_validate(
            lambda: MLPClassifier(4, 3), made, num_folds=2, run_dir=tmp_path / "a", figures=False,
            trainer={"max_epochs": 1, "accelerator": "cpu"}, progress_bar=False,
        )  # fmt: skip

    validate(True)
    with pytest.raises(FileExistsError, match=r"data\.balanced_sampling"):
        validate(False)
