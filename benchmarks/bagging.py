"""Compare bagging of small nets with Ensemble-Pytorch, and the two engines.

Twenty MLPs (64→128→128→10, Adam, batch 64) on bootstrap samples of the digits, ten epochs:

- *ours*: `Bagging`, all it does by default but figures: each member validated every epoch, its best
  weights kept, out-of-bag predictions, files written.
- *Ensemble-Pytorch* (package torchensemble): `BaggingClassifier` with its defaults, each epoch the
  ensemble validated on the same validation part; nothing saved, its prints swallowed. Once more
  without validation, which is all that can be left out.

Run: pip install 'dlblocks[bench]', then python benchmarks/bagging.py
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from functools import partial
from typing import Any

import torch
from _timing import Bench, Run, start
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.data import DigitsDataModule
from dlblocks.ensembles import Bagging
from dlblocks.models import MLPClassifier

MEMBERS, EPOCHS, BATCH = 20, 10, 64


def model() -> MLPClassifier:
    return MLPClassifier(64, 10, hidden=[128, 128])


def net() -> torch.nn.Module:
    return model().net


def ours(engine: Any) -> Run:
    return lambda: Bagging(
        model,
        DigitsDataModule(batch_size=BATCH),
        num_members=MEMBERS,
        trainer={"max_epochs": EPOCHS, "accelerator": "cpu"},
        progress_bar=False,
        figures=False,
        run_dir=tempfile.mkdtemp(),
        engine=engine,
    ).fit()


def theirs(*, validate: bool) -> Run:
    from torchensemble import BaggingClassifier

    data = DigitsDataModule(batch_size=BATCH)
    loaders = {}
    for part in ("train", "val"):
        inputs, targets, _ = data.arrays(part)
        pair = TensorDataset(data.transform(inputs), targets)
        loaders[part] = DataLoader(pair, batch_size=BATCH, shuffle=part == "train")

    def run() -> None:
        bag = BaggingClassifier(net, MEMBERS, cuda=False)
        # A function that makes the net: an instance would start all members with the same weights.
        bag._make_estimator = net
        bag.set_optimizer("Adam", lr=1e-3)
        with contextlib.redirect_stdout(io.StringIO()):
            bag.fit(
                loaders["train"],
                epochs=EPOCHS,
                test_loader=loaders["val"] if validate else None,
                save_model=False,
            )

    return run


def tables(bench: Bench) -> None:
    bench.compare(
        f"Bagging, {MEMBERS} MLPs",
        {
            "ours, vectorized": partial(ours, "vectorized"),
            "Ensemble-Pytorch": partial(theirs, validate=True),
            "Ensemble-Pytorch without validation": partial(theirs, validate=False),
            "ours, sequential": partial(ours, "sequential"),
        },
        unit="s",
        goals={"Ensemble-Pytorch": 5},
    )


if __name__ == "__main__":
    start(tables, __doc__)
