"""Boosting of small nets: ours against Ensemble-Pytorch's (package torchensemble).

The same nets, data, batches, passes, shrinkage and number of stages, in turn in one process, on
one thread. The peer gets our fast loader, of inputs that are normalised already. It keeps no
predictions, so each of its steps runs all earlier learners, and its backward pass goes through
them; it searches no step. Ours searches a step for each stage, scores training and validation,
and writes its run folder.

Measured (2-core x86 VM, no GPU, one thread, torch 2.14, torchensemble 0.2.0, three turns, median
and range): the peer takes 5.0 times as long for the digits (4.9 to 5.3), 4.7 times for the diabetes
data (3.7 to 5.2); wanted: 4.

Run: pip install 'dlblocks[bench]', then python benchmarks/boosting.py
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch.utils.data import DataLoader

from dlblocks.data import DataModule, DigitsDataModule, TabularDataModule
from dlblocks.data.dataset import ArrayDataset, collate
from dlblocks.ensembles import GradientBoosting
from dlblocks.models import MLPRegressor
from dlblocks.nets import MLP

STAGES, PASSES, TURNS, HIDDEN = 50, 5, 3, [32]


def ours(data: DataModule, in_features: int, width: int) -> Callable[[], object]:
    def run() -> object:
        return GradientBoosting(
            lambda: MLPRegressor(in_features, width, hidden=HIDDEN),
            data,
            num_stages=STAGES,
            trainer={"max_epochs": PASSES, "accelerator": "cpu"},
            run_dir=tempfile.mkdtemp(),
            progress_bar=False,
        ).fit()

    return run


def theirs(data: DataModule, in_features: int, width: int) -> Callable[[], object]:
    from torchensemble import GradientBoostingClassifier, GradientBoostingRegressor

    inputs, targets, _ = data.arrays("train")
    inputs = data.transform(inputs)
    targets = targets if data.is_classification else targets.reshape(-1, 1)
    dataset = ArrayDataset(inputs, targets)
    loader = DataLoader(dataset, int(data.batch_size), shuffle=True, collate_fn=collate)
    kind = GradientBoostingClassifier if data.is_classification else GradientBoostingRegressor

    def run() -> object:
        model = kind(
            estimator=MLP,
            n_estimators=STAGES,
            estimator_args={"in_features": in_features, "out_features": width, "hidden": HIDDEN},
            shrinkage_rate=0.1,
            cuda=False,
        )
        model.set_optimizer("Adam", lr=1e-3)
        model.fit(loader, epochs=PASSES, use_reduction_sum=False, save_model=False)
        return model

    return run


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    cases: dict[str, tuple[DataModule, int, int]] = {
        "digits, 10 classes": (DigitsDataModule(), 64, 10),
        "diabetes, values": (TabularDataModule("diabetes"), 10, 1),
    }
    print(f"{STAGES} stages of {PASSES} passes, MLP with {HIDDEN}, batches of 64, {TURNS} turns")
    print(f"{'':20}{'ours':>9}{'peer':>9}   peer / ours: median (min to max)")
    for name, case in cases.items():
        runs = ours(*case), theirs(*case)
        pairs = [(seconds(runs[0]), seconds(runs[1])) for _ in range(TURNS)]
        ratios = [peer / own for own, peer in pairs]
        own, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"{name:20}{own:8.2f}s{peer:8.2f}s   {statistics.median(ratios):.1f} "
            f"({min(ratios):.1f} to {max(ratios):.1f})"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
