"""Compare gradient boosting of small nets with Ensemble-Pytorch (package torchensemble).

The same nets, data, batches, passes, shrinkage and number of stages. The peer gets our fast loader,
of inputs that are normalised already. It keeps no predictions, so each of its steps runs all
earlier learners, and its backward pass goes through them; it searches no step. Ours searches a step
for each stage, scores training and validation, and writes its run folder.

Run: pip install 'dlblocks[bench]', then python benchmarks/boosting.py
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from functools import partial

from _timing import Bench, Run, start
from torch.utils.data import DataLoader

from dlblocks.data import DataModule, DigitsDataModule, TabularDataModule
from dlblocks.data.dataset import ArrayDataset, collate
from dlblocks.ensembles import GradientBoosting
from dlblocks.models import MLPRegressor
from dlblocks.nets import MLP

STAGES, PASSES, HIDDEN = 50, 5, [32]


def ours(data: DataModule, in_features: int, width: int) -> Run:
    return lambda: GradientBoosting(
        lambda: MLPRegressor(in_features, width, hidden=HIDDEN),
        data,
        num_stages=STAGES,
        trainer={"max_epochs": PASSES, "accelerator": "cpu"},
        run_dir=tempfile.mkdtemp(),
        progress_bar=False,
    ).fit()


def theirs(data: DataModule, in_features: int, width: int) -> Run:
    from torchensemble import GradientBoostingClassifier, GradientBoostingRegressor

    inputs, targets, _ = data.arrays("train")
    inputs = data.transform(inputs)
    targets = targets if data.is_classification else targets.reshape(-1, 1)
    dataset = ArrayDataset(inputs, targets)
    loader = DataLoader(dataset, int(data.batch_size), shuffle=True, collate_fn=collate)
    kind = GradientBoostingClassifier if data.is_classification else GradientBoostingRegressor

    def run() -> None:
        model = kind(
            estimator=MLP,
            n_estimators=STAGES,
            estimator_args={"in_features": in_features, "out_features": width, "hidden": HIDDEN},
            shrinkage_rate=0.1,
            cuda=False,
        )
        model.set_optimizer("Adam", lr=1e-3)
        with contextlib.redirect_stdout(io.StringIO()):
            model.fit(loader, epochs=PASSES, use_reduction_sum=False, save_model=False)

    return run


def tables(bench: Bench) -> None:
    cases: dict[str, tuple[DataModule, int, int]] = {
        "digits": (DigitsDataModule(), 64, 10),
        "diabetes": (TabularDataModule("diabetes"), 10, 1),
    }
    for name, case in cases.items():
        bench.compare(
            f"GradientBoosting, {name}, {STAGES} stages",
            {"ours": partial(ours, *case), "Ensemble-Pytorch": partial(theirs, *case)},
            unit="s",
            goals={"Ensemble-Pytorch": 4},
        )


if __name__ == "__main__":
    start(tables, __doc__)
