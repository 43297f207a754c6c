"""Make the metrics that a user chooses."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchmetrics
from torchmetrics import Metric

from dlblocks._errors import did_you_mean

SHOWN = 60  # names in a message
# Their values are several numbers, or they take something else than predictions and targets.
NO_NUMBER = {
    "confusion_matrix", "precision_recall_curve", "roc", "stat_scores", "eer", "log_auc",
    "kendall_rank_corr_coef", "continuous_ranked_probability_score",
}  # fmt: skip


def choose_metrics(
    chosen: Sequence[str | Metric],
    *,
    kind: str,
    sizes: Mapping[str, int],
    standard: Sequence[str] = (),
    columns: int = 1,
) -> dict[str, Metric]:
    """Make metrics, by the names under which they are logged.

    Args:
        chosen: Names of torchmetrics' classes in lower case with ``_``, without `kind`, such as
            ``"auroc"`` or ``"cohen_kappa"``; or metrics, which are copied. A metric is named after
            its class.
        kind: ``"Multiclass"``, ``"Multilabel"``, or ``""`` for values.
        sizes: Arguments that torchmetrics' classes need, as far as a class has them.
        standard: Names that are taken.
        columns: Values a sample; a metric by name must give one number for all of them.

    Raises:
        ValueError: A name is not known, is taken or comes twice.
        TypeError: An entry is neither a name nor a metric.

    Example:
        >>> choose_metrics(["auroc"], kind="Multiclass", sizes={"num_classes": 3})
        {'auroc': MulticlassAUROC()}
    """
    if isinstance(chosen, (str, Metric)):
        raise TypeError(f"metrics={chosen!r} is a single one; give a list.")
    classes = _classes(kind, sizes)
    found: dict[str, Metric] = {}
    for each in chosen:
        if isinstance(each, Metric):
            name, metric = _snake(type(each).__name__), copy.deepcopy(each)
        elif isinstance(each, str):
            name = _snake(each)
            if name not in classes:
                names = ", ".join(sorted(classes)[:SHOWN])
                raise ValueError(
                    f"metrics has {each!r}, which is not known{did_you_mean(name, classes) or ';'} "
                    f"there are {names}; or give a torchmetrics.Metric."
                )
            cls = classes[name]
            known = inspect.signature(cls).parameters
            metric = cls(**{key: value for key, value in sizes.items() if key in known})
            if columns > 1 and not _is_one_number(metric, columns):
                raise ValueError(
                    f"metrics has {each!r}, which does not give one number for {columns} values a "
                    "sample; give a torchmetrics.Metric that does."
                )
        else:
            raise TypeError(
                f"metrics has a {type(each).__name__}; give names, or metrics of torchmetrics."
            )
        if name in found or name in ("loss", *standard):
            taken = "twice" if name in found else "which is logged in any case"
            raise ValueError(
                f"metrics gives the name {name!r}, {taken}; leave it out, or give a metric whose "
                "class has another name."
            )
        found[name] = metric
    return found


def _is_one_number(metric: Metric, columns: int) -> bool:
    values = torch.linspace(0.1, 1.0, 4 * columns).reshape(4, columns)
    try:
        metric.update(values, values.square())
        found = metric.compute()
    except (ValueError, IndexError, RuntimeError):
        return False
    metric.reset()
    return isinstance(found, torch.Tensor) and found.ndim == 0


def _classes(kind: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Find the classes of torchmetrics that give one number, by their short names.

    A class that needs further arguments, such as a least recall, must be given as a metric.
    """
    module = torchmetrics.classification if kind else torchmetrics.regression
    found = {}
    for name, cls in vars(module).items():
        is_metric = isinstance(cls, type) and issubclass(cls, Metric) and name.startswith(kind)
        if is_metric and _snake(name) not in NO_NUMBER:
            parameters = inspect.signature(cls).parameters.values()
            needed = {
                p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD
            }
            if needed <= {*sizes}:
                found[_snake(name)] = cls
    return found


def _snake(name: str) -> str:
    """``"average_precision"`` for ``"MulticlassAveragePrecision"``."""
    name = re.sub("^(Multiclass|Multilabel|Binary)", "", name)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
