"""Fit a generative model in a run folder, and judge its samples."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from dlblocks import plots
from dlblocks.data import DataModule
from dlblocks.models import GenerativeModel
from dlblocks.models.sample_quality import baselines_of, judge_model
from dlblocks.runs.intervals import HeldOutScores
from dlblocks.runs.single import fit_in_folder
from dlblocks.runs.summary import extend_summary, say_where, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 40  # samples of the figure


def fit_and_judge(
    model: GenerativeModel,
    datamodule: DataModule,
    *,
    samplers: Mapping[str, Mapping[str, Any]] | None = None,
    num_samples: int = 1500,
    trainer: Mapping[str, Any] | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] | None = "csv",
    run_dir: str | PathLike[str] | None = None,
) -> HeldOutScores:
    """Fit and test a generative model, and judge its samples.

    The run folder is that of `fit_and_test`. ``summary.json`` also has the numbers of
    `dlblocks.models.sample_quality.judge_model`, and bits per dimension of simple models as
    ``baselines``. ``figures`` has samples, and so have W&B and TensorBoard. The tables are printed,
    and where all is.

    Args:
        model: A new model.
        datamodule: Its data over arrays, with a test set of classes.
        samplers: Arguments of `GenerativeModel.sample` by name, such as
            ``{"5 steps": {"steps": 5}}``. None: those of the model.
        num_samples: Samples of each that are judged; 100 under ``fast_dev_run``.
        trainer: As for `fit_and_test`.
        logger: Likewise.
        run_dir: Likewise.

    Returns:
        Metrics of validation and test, and on the first rank ``samples/<number>``, or with several
        samplers ``<sampler>/<number>``. The model is on the CPU then.
    """

    def judge(folder: Path, scores: HeldOutScores) -> tuple[dict[str, float], dict[str, Figure]]:
        model.cpu()
        count = 100 if dict(trainer or {}).get("fast_dev_run") else num_samples
        rows = []
        metrics: dict[str, float] = {}
        figures: dict[str, Figure] = {}
        for name, options in (samplers or {"samples": {}}).items():
            samples, found = judge_model(model, datamodule, count, **options)
            file = name.replace(" ", "_").replace(",", "")
            figures[file] = _drawn(samples[:SHOWN], model.num_classes)
            plots.save(figures[file], folder / "figures" / f"{file}.png")
            rows.append({"samples": name, **found})
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
        simple = {}
        if model.measure == "bits_per_dim":
            found_bits = baselines_of(model, datamodule)
            simple = {name: float(each.mean()) for name, each in found_bits.items()}
        baselines = {name: {"test/bits_per_dim": value} for name, value in simple.items()}
        extend_summary(folder, metrics, {"baselines": baselines})
        for name, value in (scores | simple).items():
            print(f"{name:<24}{value:.4f}")
        print(table(rows))
        say_where(folder)
        return metrics, figures

    return fit_in_folder(
        model, datamodule, trainer=trainer, logger=logger, run_dir=run_dir, also=judge
    )


def _drawn(samples: Tensor, num_classes: int | None) -> Figure:
    """Draw samples, of which the classes take turns."""
    said = np.arange(len(samples)) % (num_classes or 1)
    return plots.batch(samples, np.full(len(samples), "") if num_classes is None else said)
