"""The figures of a cross-validation."""

from __future__ import annotations

import numpy as np

from dlblocks import plots
from dlblocks.crossval.result import CrossValidationResult
from dlblocks.data import DataModule

NUM_HARDEST = 20


def write_figures(result: CrossValidationResult, datamodule: DataModule) -> None:
    """Draws what the result allows into ``figures/``: learning curves, and predictions."""
    folder = result.run_dir / "figures"
    best = [row["best_epoch"] - 1 for row in result.folds]
    names = ("loss", "accuracy") if datamodule.is_classification else ("loss", "rmse")
    plots.save(
        plots.learning_curves(result.histories, metrics=names, best_epochs=best),
        folder / "learning_curves.png",
    )
    oof = result.oof
    if oof is None:
        return
    first = oof.repeat == 0  # each sample once
    targets, predictions, index = oof.target[first], oof.prediction[first], oof.index[first]
    if not datamodule.is_classification:
        plots.save(
            plots.predicted_vs_true(targets.ravel(), predictions.ravel()),
            folder / "predicted_vs_true.png",
        )
        return
    class_names = datamodule.class_names or []
    plots.save(
        plots.confusion_matrix(
            targets, predictions.argmax(1), class_names, title="Out-of-fold predictions"
        ),
        folder / "confusion_matrix.png",
    )
    if len(datamodule.input_shape) == 3:
        probability = np.take_along_axis(predictions, targets[:, None], axis=1)[:, 0]
        worst = np.argsort(probability, kind="stable")[:NUM_HARDEST]
        images = datamodule.source.inputs[index[worst]].numpy()
        plots.save(
            plots.hardest(
                images, targets[worst], predictions[worst], class_names, indices=index[worst]
            ),
            folder / "hardest.png",
        )
