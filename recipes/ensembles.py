"""What do ensembles of small nets gain, and what do they cost?

One MLP; ten of them that differ by initialisation and order alone (a deep ensemble), and ten on
bootstrap samples (bagging); gradient boosting and AdaBoost of smaller ones; and a vote of three
models of different kinds: all beside scikit-learn's random forest and gradient boosting and the
average of these two, on handwritten digits (classes) and on diabetes (values), on the same splits
of a repeated K-fold. The nets choose their epoch, or number of stages, on 15 % of the training
samples of a split; the trees, which choose nothing, train on those too. The fold that scores is
seen by none of them. Settings are plain ones.

Result: (seed 0, two repeats of five folds) nearly every ensemble of nets is a little better than
one net, and no gain is beyond doubt; AdaBoost is worse. Mean, 95 % interval of the difference from
one net, seconds of a split:

    digits             accuracy                    log loss   s    diabetes: RMSE            s
    single net         97.27 %                     0.085    1.0    57.59                    1.0
    deep ensemble      97.80 %  (-0.11 … +1.17)    0.075    1.2    55.28  (-6.19 … +1.58)   1.0
    bagging            97.75 %  (-0.44 … +1.39)    0.085    1.4    55.00  (-7.16 … +2.00)   1.1
    voting             97.94 %  (-0.14 … +1.48)    0.083    3.8    54.71  (-6.68 … +0.93)   2.9
    gradient boosting  98.14 %  (-0.04 … +1.77)    0.079    2.1    55.65  (-6.25 … +2.38)   1.2
    AdaBoost           95.35 %  (-3.55 … -0.29)    2.253    2.9
    random forest      97.47 %  (-0.80 … +1.19)    0.306    0.2    58.96  (-6.26 … +9.00)   0.2
    tree boosting      96.52 %  (-1.96 … +0.45)    0.118    5.3    58.55  (-5.37 … +7.29)   0.1
    both trees         96.86 %  (-1.50 … +0.67)    0.186    5.6    58.12  (-6.36 … +7.42)   0.2

After Holm's correction no p is below 0.2. Ten nets trained as one take little longer than one net
by itself. AdaBoost's log loss is that of a vote, which is never sure. It has no early stopping,
with which it had 94.43 %: the one setting that was changed after a look at scores. About 4 minutes
(one thread of two CPU cores, torch 2.14, lightning 2.6.6); twice as long beside other work.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch import seed_everything
from torch import Tensor
from tqdm import tqdm

from dlblocks import plots, tracking
from dlblocks._errors import check_choice, check_range
from dlblocks._files import write_json, write_rows
from dlblocks._quiet import quiet
from dlblocks._scores import pooled_metrics
from dlblocks.cli import run_recipe
from dlblocks.crossval.statistics import (
    Comparison,
    corrected_t_test,
    holm,
    mean_interval,
)
from dlblocks.data import DataModule, DigitsDataModule, TabularDataModule
from dlblocks.ensembles import AdaBoost, Bagging, DeepEnsemble, GradientBoosting, Voting
from dlblocks.models import CNNClassifier, MLPClassifier, MLPRegressor, Model
from dlblocks.plots._style import new_figure, style_axis
from dlblocks.runs.fit import fit
from dlblocks.runs.folder import check_new_run_dir, next_run_dir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Members = list[Callable[[], Model]]


@dataclass(frozen=True)
class Task:
    """A data set, and what is made for it.

    Attributes:
        make_data: The data, with a seed for their folds.
        metrics: The metric that is compared, and another one.
        make_net: The net that ensembles have many of.
        make_learner: What gradient boosting has many of.
        others: What votes beside one such net.
        make_weak: What AdaBoost has many of; None for values.
        percent: Whether the metric is a share.
        epochs: Epochs of a net.
    """

    make_data: Callable[[int], DataModule]
    metrics: tuple[str, str]
    make_net: Callable[[], Model]
    make_learner: Callable[[], Model]
    others: Members
    make_weak: Callable[[], Model] | None
    percent: bool
    epochs: int


TASKS = {
    "digits": Task(
        lambda seed: DigitsDataModule(
            test_fraction=0.0, val_fraction=0.15, split_seed=seed, shuffle_seed=seed
        ),
        ("accuracy", "log_loss"),
        lambda: MLPClassifier(64, 10, hidden=[64], optimizer="adamw", lr=0.003),
        lambda: MLPRegressor(64, 10, hidden=[32], lr=0.01),
        [
            lambda: CNNClassifier(1, 10, channels=[8, 16], optimizer="adamw", lr=0.01),
            lambda: MLPClassifier(64, 10, hidden=[], optimizer="adamw", lr=0.01),
        ],
        lambda: MLPClassifier(64, 10, hidden=[16], lr=0.01),
        percent=True,
        epochs=30,
    ),
    "diabetes": Task(
        lambda seed: TabularDataModule(
            "diabetes",
            test_fraction=0.0,
            val_fraction=0.15,
            batch_size=32,
            split_seed=seed,
            shuffle_seed=seed,
        ),
        ("rmse", "r2"),
        lambda: MLPRegressor(
            10, hidden=[32], standardize_targets=True, optimizer="adamw", lr=0.003
        ),
        lambda: MLPRegressor(10, hidden=[8], lr=0.01),
        [
            lambda: MLPRegressor(
                10, hidden=[16, 16], activation="tanh", standardize_targets=True, lr=0.003
            ),
            lambda: MLPRegressor(10, hidden=[], standardize_targets=True, lr=0.01),
        ],
        None,
        percent=False,
        epochs=40,
    ),
}
STAGE_EPOCHS = 5
PEERS = ("random forest", "tree boosting", "both trees")


@dataclass(frozen=True)
class Split:
    """Where the methods work on one split.

    Attributes:
        task: What is to be learned.
        data: The training samples of the split, some of which validate.
        folder: For all that they write.
        seed: Their seed.
        trainer: Arguments of the Trainer, all but the epochs.
        epochs: Epochs of a net.
        members: Members of an ensemble.
        stages: Stages of boosting, at most.
        engine: How the members are fitted.
    """

    task: Task
    data: DataModule
    folder: Path
    seed: int
    trainer: dict[str, Any]
    epochs: int
    members: int
    stages: int
    engine: Literal["sequential", "vectorized", "auto"]


def main(
    datasets: list[Literal["digits", "diabetes"]] = ["digits", "diabetes"],  # noqa: B006 - only read
    num_folds: int = 5,
    repeats: int = 2,
    num_members: int = 10,
    num_stages: int = 40,
    engine: Literal["sequential", "vectorized", "auto"] = "vectorized",
    run_dir: str | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] = "csv",
    fast_dev_run: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """What do ensembles of small nets gain, and what do they cost?

    Args:
        datasets: Which data sets.
        num_folds: Number of folds.
        repeats: How often to cross-validate, each time with other folds.
        num_members: Members of bagging and of the deep ensemble.
        num_stages: Stages of boosting, at most; fewer where validation does not gain by more.
        engine: How the members are fitted: one after another, as one fit, or as is faster.
        run_dir: Where everything goes; by default runs/ensembles, or runs/ensembles-2 and so on.
        logger: Where the scores of each method are logged, one run each, a step a split.
        fast_dev_run: Two folds, two members and stages, one epoch, to see that it runs.
        accelerator: What to train on, as for Lightning's Trainer.
        devices: One device fits all.
        precision: Numeric precision, as for Lightning's Trainer.
        seed: Seed of folds, initialisation and samples.
    """
    for name in datasets:
        check_choice("datasets", name, TASKS)
    check_range("repeats", repeats, 1)
    check_range("num_members", num_members, 1)
    check_range("num_stages", num_stages, 1)
    if fast_dev_run:
        num_folds, repeats, num_members, num_stages = 2, 1, 2, 2
    folder = check_new_run_dir(run_dir or next_run_dir("runs/ensembles"))
    trainer = {
        "accelerator": accelerator,
        "devices": 1 if devices == "auto" else devices,
        "precision": precision,
    }
    rows: list[dict[str, Any]] = []
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for name in datasets:
        task = TASKS[name]
        data = task.make_data(seed)
        folds = [
            (repeat, fold, split["train"], split["val"])
            for repeat in range(repeats)
            for fold, split in enumerate(data.splits(num_folds, repeat=repeat))
        ]
        methods = [m for m in METHODS if m != "AdaBoost" or task.make_weak is not None]
        scores: dict[str, list[dict[str, float]]] = {m: [] for m in (*methods, *PEERS)}
        total = len(folds) * (len(methods) + 1)
        seldom = 0.1 if sys.stderr.isatty() else 10.0
        with tqdm(total=total, dynamic_ncols=True, mininterval=seldom) as bar:
            for i, (repeat, fold, train, held_out) in enumerate(folds):
                bar.set_description_str(f"{name} | split {i + 1}/{len(folds)}", refresh=False)
                split = Split(
                    task,
                    data.subset(train),
                    folder / name / f"split-{i}",
                    seed + i,
                    trainer,
                    1 if fast_dev_run else task.epochs,
                    num_members,
                    num_stages,
                    engine,
                )
                predicted = nets(split, data.raw_inputs("train")[held_out], methods, bar)
                predicted |= trees(data, train, held_out, num_trees=10 if fast_dev_run else 100)
                bar.update()
                target = data.source.targets[held_out].numpy()
                for method, (prediction, seconds) in predicted.items():
                    values = pooled_metrics(target, prediction)
                    row = {m: values[m] for m in task.metrics} | {"seconds": seconds}
                    scores[method].append(row)
                    place = {"dataset": name, "method": method, "repeat": repeat, "fold": fold}
                    rows.append({**place, **row})
        found[name] = {
            method: {key: np.array([row[key] for row in each]) for key in each[0]}
            for method, each in scores.items()
        }
        print("\n" + table(name, found[name], num_folds, repeats), flush=True)
        for method, each in scores.items():
            log(name, method, each, logger, folder)
    write_rows(folder / "scores.csv", rows)
    figure = dots(found, num_folds)
    for ending in ("png", "pdf"):
        plots.save(figure, folder / "figures" / f"ensembles.{ending}")
    write_json(folder / "summary.json", summary(found, num_folds))
    print(f"\nEverything is in {folder}: summary.json, scores.csv, figures/, and the models.")


# The methods: each trains on a split, and returns a model of inputs in the units of the source.


def single(split: Split) -> Model:
    """One net."""
    return trained(split, split.task.make_net, "single")


def deep_ensemble(split: Split) -> Model:
    """Nets that differ by initialisation and order of the data."""
    return (
        DeepEnsemble(split.task.make_net, split.data, **members(split, "deep-ensemble")).fit().model
    )


def bagging(split: Split) -> Model:
    """Nets on bootstrap samples."""
    return Bagging(split.task.make_net, split.data, **members(split, "bagging")).fit().model


def members(split: Split, name: str) -> dict[str, Any]:
    """What bagging and the deep ensemble have in common."""
    return {
        "num_members": split.members,
        "trainer": {**split.trainer, "max_epochs": split.epochs},
        "engine": split.engine,
        **silent(split, name),
        "figures": False,
    }


def gradient_boosting(split: Split) -> Model:
    """Smaller nets, each of which learns what is left over."""
    boosting = GradientBoosting(
        split.task.make_learner,
        split.data,
        num_stages=split.stages,
        shrinkage=0.2,
        subsample=0.5,
        patience=10,
        trainer={**split.trainer, "max_epochs": STAGE_EPOCHS},
        **silent(split, "boosting"),
    )
    return boosting.fit().model


def ada_boost(split: Split) -> Model:
    """Smaller nets, each of which looks at what the others got wrong."""
    assert split.task.make_weak is not None  # for the type checker
    boosting = AdaBoost(
        split.task.make_weak,
        split.data,
        num_stages=split.stages,
        trainer={**split.trainer, "max_epochs": STAGE_EPOCHS},
        **silent(split, "adaboost"),
    )
    return boosting.fit().model


def voting(split: Split) -> Model:
    """One net, and models of other kinds."""
    models = [
        trained(split, make_model, f"voting-{i}")
        for i, make_model in enumerate([split.task.make_net, *split.task.others])
    ]
    return Voting(models)


METHODS: dict[str, Callable[[Split], Model]] = {
    "single net": single,
    "deep ensemble": deep_ensemble,
    "bagging": bagging,
    "voting": voting,
    "gradient boosting": gradient_boosting,
    "AdaBoost": ada_boost,
}


def silent(split: Split, name: str) -> dict[str, Any]:
    """Where an ensemble writes, and that it shows nothing."""
    return {
        "seed": split.seed,
        "logger": None,
        "run_dir": split.folder / name,
        "progress_bar": False,
    }


def trained(split: Split, make_model: Callable[[], Model], name: str) -> Model:
    """A model with the weights of its best epoch."""
    seed_everything(split.seed, workers=True, verbose=False)
    model = make_model()
    fit(
        model,
        split.data,
        split.folder / name,
        callbacks=[],
        trainer={**split.trainer, "max_epochs": split.epochs, "enable_model_summary": False},
        monitor="val/loss",
        mode="min",
        logger=None,
        bar=False,
    )
    return model


def nets(
    split: Split, inputs: Tensor, methods: Sequence[str], bar: tqdm
) -> dict[str, tuple[np.ndarray, float]]:
    """What the methods predict for the inputs when they are trained on a split; with seconds."""
    found = {}
    for method in methods:
        bar.set_postfix_str(method, refresh=False)
        started = time.monotonic()
        with quiet():
            model = METHODS[method](split)
        seconds = time.monotonic() - started
        found[method] = predict(model, inputs), seconds
        bar.update()
    return found


def trees(
    data: DataModule, train: np.ndarray, held_out: np.ndarray, *, num_trees: int
) -> dict[str, tuple[np.ndarray, float]]:
    """What scikit-learn's forest and boosting predict, and the average of both; with seconds."""
    from sklearn import ensemble

    if data.is_classification:
        kinds: list[Any] = [ensemble.RandomForestClassifier, ensemble.GradientBoostingClassifier]
    else:
        kinds = [ensemble.RandomForestRegressor, ensemble.GradientBoostingRegressor]
    inputs = data.raw_inputs("train").flatten(1).numpy()
    targets = data.source.targets.numpy()
    found: list[tuple[np.ndarray, float]] = []
    for kind in kinds:
        started = time.monotonic()
        model = kind(n_estimators=num_trees, random_state=0).fit(inputs[train], targets[train])
        ask = model.predict_proba if data.is_classification else model.predict
        seconds = time.monotonic() - started
        found.append((ask(inputs[held_out]), seconds))
    (forest, first), (boosting, second) = found
    found.append(((forest + boosting) / 2, first + second))
    return dict(zip(PEERS, found, strict=True))


@torch.inference_mode()
def predict(model: Model, inputs: Tensor) -> np.ndarray:
    """Probabilities (N, C), or values (N,)."""
    found = model.prediction(model.cpu().eval()(inputs))
    return (found.squeeze(1) if found.shape[1] == 1 else found).numpy()


Scores = Mapping[str, Mapping[str, np.ndarray]]


def versus(name: str, found: Scores, num_folds: int) -> dict[str, tuple[Comparison, float]]:
    """For each method the difference from the first, and its p-value after Holm's correction."""
    metric = TASKS[name].metrics[0]
    first, *others = found
    tests = [
        corrected_t_test(
            found[method][metric], found[first][metric], 1 / (num_folds - 1), metric=metric
        )
        for method in others
    ]
    adjusted = holm([test.p for test in tests])
    return dict(zip(others, zip(tests, adjusted, strict=True), strict=True))


def table(name: str, found: Scores, num_folds: int, repeats: int) -> str:
    """One line a method, with 95 % intervals; p after Holm's correction."""
    task = TASKS[name]
    metric, other = task.metrics
    scale, digits = (100, 2) if task.percent else (1, 2)
    compared = versus(name, found, num_folds)
    first = next(iter(found))
    unit = " in %" if task.percent else ""
    head = (
        f"{name:<19}{metric + unit:<25}{'minus ' + first:<25}{'p Holm':>7}{other:>10}{'seconds':>9}"
    )
    lines = [head, "─" * len(head)]
    for method, scores in found.items():
        low, high = (scale * x for x in mean_interval(scores[metric], 1 / (num_folds - 1)))
        mean = scale * scores[metric].mean()
        line = f"{method:<19}{f'{mean:.{digits}f}  ({low:.{digits}f} … {high:.{digits}f})':<25}"
        difference, p = "", ""
        if method in compared:
            test, adjusted = compared[method]
            low, high = (scale * x for x in test.interval)
            middle = f"{scale * test.difference:+.{digits}f}"
            difference = f"{middle}  ({low:+.{digits}f} … {high:+.{digits}f})"
            p = f"{adjusted:.3f}"
        line += f"{difference:<25}{p:>7}{scores[other].mean():>10.3f}"
        lines.append(line + f"{scores['seconds'].mean():>9.1f}")
    lines.append(
        f"means of {num_folds} folds × {repeats}, 95 % intervals and p of the corrected t-test; "
        "seconds of a split"
    )
    return "\n".join(lines)


def summary(found: Mapping[str, Scores], num_folds: int) -> dict[str, Any]:
    """What ``summary.json`` holds."""
    metrics: dict[str, Any] = {}
    for name, scores in found.items():
        compared = versus(name, scores, num_folds)
        for method, values in scores.items():
            entry: dict[str, Any] = {key: value.mean() for key, value in values.items()}
            metric = TASKS[name].metrics[0]
            entry = {"mean": entry[metric], **entry}
            entry["interval"] = mean_interval(values[metric], 1 / (num_folds - 1))
            if method in compared:
                test, adjusted = compared[method]
                entry |= {"difference": test.difference, "difference_interval": test.interval}
                entry |= {"p": test.p, "p_holm": adjusted}
            metrics[f"{name}/{method}"] = entry
    return {"metrics": metrics, "num_folds": num_folds, "versions": tracking.versions()}


def log(
    name: str, method: str, rows: Sequence[Mapping[str, float]], kind: str, folder: Path
) -> None:
    """Logs the scores of one method as a run; a step is a split."""
    run = f"{name}-{method.replace(' ', '-')}"
    logger = tracking.make_logger(
        kind,
        folder / "logs" / run,
        run_name=run,
        group=folder.name,
        job_type="method",
        config={"dataset": name, "method": method},
    )
    if logger is None:
        return
    try:
        for i, row in enumerate(rows):
            logger.log_metrics({f"test/{key}": value for key, value in row.items()}, step=i)
        logger.save()
    finally:
        tracking.finish_logger(logger)


def dots(found: Mapping[str, Scores], num_folds: int) -> Figure:
    """Difference of each method from one net, with its interval, and the seconds it took."""
    count = max(len(scores) for scores in found.values()) - 1
    figure = new_figure(1.8 + 4.1 * len(found), 1.4 + 0.42 * count)
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, (name, scores) in zip(axes, found.items(), strict=True):
        task = TASKS[name]
        metric = task.metrics[0]
        scale = 100 if task.percent else 1
        first = next(iter(scores))
        compared = versus(name, scores, num_folds)
        for y, (method, (test, _)) in enumerate(compared.items()):
            colour = plots.ORANGE if method in PEERS else plots.BLUE
            differences = scale * (scores[method][metric] - scores[first][metric])
            each = np.full(len(differences), y + 0.25)
            axis.plot(differences, each, "o", color="#bbbbbb", markersize=4, alpha=0.7)
            axis.plot([scale * x for x in test.interval], [y, y], color=colour, linewidth=2.4)
            axis.plot(scale * test.difference, y, "o", color=colour, markersize=8)
            took = f"{scores[method]['seconds'].mean():.1f} s"
            axis.text(1.02, y, took, transform=axis.get_yaxis_transform(), va="center", fontsize=10)
        axis.axvline(0, color="#333333", linewidth=1)
        unit = (
            "accuracy in percentage points (right is better)"
            if task.percent
            else "RMSE (left is better)"
        )
        style_axis(axis, f"{unit}, minus that of one net", "")
        value = scale * scores[first][metric].mean()
        took = f"{scores[first]['seconds'].mean():.1f} s"
        said = f"{value:.1f} %" if task.percent else f"an RMSE of {value:.1f}"
        axis.set_title(f"{name}: one net has {said}, in {took}", fontsize=12)
        axis.set_yticks(range(len(compared)), list(compared))
        axis.tick_params(axis="y", length=0)
        axis.invert_yaxis()
    for label, colour in (("nets", plots.BLUE), ("scikit-learn's trees", plots.ORANGE)):
        axes[0].plot([], [], "o-", color=colour, linewidth=2.4, label=f"{label}, 95 % interval")
    axes[0].plot([], [], "o", color="#bbbbbb", markersize=4, label="each split")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3 if len(found) > 1 else 1,
    )
    return figure


if __name__ == "__main__":
    run_recipe(main)
