"""Find direction and range of a metric by its name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Literal

from torch import nn
from torchmetrics import Metric, MetricCollection

Mode = Literal["min", "max"]
Range = tuple[float | None, float | None]

# Words of names, in lower case and without what separates them. torchmetrics' classes are added.
_HIGHER = """
    acc accuracy f1 fbeta auc auroc rocauc aucroc prauc aucpr auprc precision recall sensitivity
    specificity tpr tnr truepositiverate truenegativerate ppv npv r2 iou miou giou jaccard dice
    kappa mcc matthews ap map mar ndcg mrr psnr ssim bleu rouge meteor pearson spearman kendall
    likelihood loglikelihood exactmatch adjustedrandscore normalizedmutualinfoscore
"""
_LOWER = """
    loss error err cost mse rmse mae mape smape msle rmsle nll negativeloglikelihood ce bce
    crossentropy logloss perplexity ppl ece mce brier kl kld fid wer cer lpips hinge huber eer fpr
    fnr falsepositiverate falsenegativerate rootmeansquarederror mase pinball pinballloss bpd
    bitsperdim bitsperdimension bitspercharacter energyscore
"""
# torchmetrics 1.9 has these the wrong way round.
_MISTAKEN = {
    "DaviesBouldinScore": False,
    "PerceptualPathLength": False,
    "SpectralDistortionIndex": False,
    "WordInfoPreserved": True,
}
# Words that turn the meaning of a metric's name round, or make it another quantity.
_UNSURE = """
    neg negative minus inverse inv reverse complement not gap diff difference delta change drop
    gain reduction improvement std var variance deviation sem weight scale count num number time
    seconds ratio threshold skill log adjusted
"""
_RANGES: dict[Range, str] = {
    (0.0, 1.0): """
        acc accuracy exactmatch f1 f1score fbeta fbetascore auc auroc rocauc aucroc prauc aucpr
        auprc ap averageprecision map meanaverageprecision mar precision recall sensitivity
        specificity tpr tnr fpr fnr truepositiverate truenegativerate falsepositiverate
        falsenegativerate npv ppv iou miou meaniou intersectionoverunion jaccard jaccardindex dice
        dicescore ece calibrationerror hammingdistance ndcg mrr coverage
    """,
    (0.0, None): """
        mse rmse mae mape msle rmsle meansquarederror rootmeansquarederror meanabsoluteerror
        meanabsolutepercentageerror meansquaredlogerror logloss ce bce crossentropy perplexity ppl
        mase pinball pinballloss
    """,
    (None, 1.0): "r2 r2score explainedvariance",
    (-1.0, 1.0): """
        kappa cohenkappa mcc matthews matthewscorrcoef pearson pearsoncorrcoef spearman
        spearmancorrcoef kendall kendallrankcorrcoef
    """,
}


def metric_mode(name: str) -> Mode | None:
    """Tell from its name whether a metric is best low or high.

    Looks for the names of torchmetrics' classes and the usual short ones in the words of `name`.

    Args:
        name: As logged, such as ``"val/loss"``, ``"val_acc"`` or ``"val/MulticlassF1Score"``.

    Returns:
        ``"min"``, ``"max"``, or None where no word is known, two contradict each other
        (``"val/dice_loss"``) or a word changes the meaning (``"val/accuracy_std"``).

    Example:
        >>> metric_mode("val/balanced_accuracy"), metric_mode("valid_loss"), metric_mode("val/it")
        ('max', 'min', None)
    """
    modes = _directions()
    found = {modes.get(word) for word in _known_words(name)}
    return found.pop() if len(found) == 1 else None


def metric_range(name: str) -> Range:
    """Tell from its name between which values a metric lies.

    Returns:
        The lowest and the highest value; None on a side without a known bound. A ``loss`` has no
        known range, since that depends on the module.

    Example:
        >>> metric_range("val/accuracy"), metric_range("val_rmse"), metric_range("val/r2")
        ((0.0, 1.0), (0.0, None), (None, 1.0))
    """
    ranges = _ranges()
    found = {ranges.get(word, (None, None)) for word in _known_words(name)}
    return found.pop() if len(found) == 1 else (None, None)


def metric_ranges(names: Iterable[str], loss: Range = (None, None)) -> dict[str, Range]:
    """Ranges of logged metrics by their names, without those of unknown range.

    Args:
        names: As logged.
        loss: The range of the module's own loss.

    Example:
        >>> metric_ranges(["val/loss", "val/accuracy", "val/it"], (0.0, None))
        {'val/loss': (0.0, None), 'val/accuracy': (0.0, 1.0)}
    """
    found = {name: loss if name.endswith("/loss") else metric_range(name) for name in names}
    return {name: bounds for name, bounds in found.items() if bounds != (None, None)}


def mode_of_metric(module: nn.Module, name: str) -> Mode | None:
    """Tell the direction of a logged metric from a module's torchmetrics objects.

    For ``"val/kappa"`` these are the attribute `val_kappa` and the entries ``"val/kappa"`` and
    ``"kappa"`` of a `MetricCollection`.

    Returns:
        ``"min"`` or ``"max"``; None where no metric is found, or the metric itself does not say.
    """
    attribute = getattr(module, re.sub(r"\W", "_", name), None)
    found = [attribute] if isinstance(attribute, Metric) else []
    for part in module.modules():
        if isinstance(part, MetricCollection):
            entries = dict(part.items(keep_base=False, copy_state=False))
            found += [entries[key] for key in (name, name.rpartition("/")[2]) if key in entries]
    modes = {mode for metric in found if (mode := mode_of(metric))}
    return modes.pop() if len(modes) == 1 else None


def mode_of(metric: Any) -> Mode | None:
    """Direction of a torchmetrics object or class, None if it has none."""
    name = (metric if isinstance(metric, type) else type(metric)).__name__
    higher = _MISTAKEN.get(name, getattr(metric, "higher_is_better", None))
    if not isinstance(higher, bool):
        return None
    return "max" if higher else "min"


@cache
def _directions() -> dict[str, Mode]:
    """The direction of each known name."""
    for domain in ("clustering", "detection", "nominal", "segmentation"):
        importlib.import_module(f"torchmetrics.{domain}")
    found: dict[str, Mode] = {}
    for metric in _subclasses(Metric):
        mode, name = mode_of(metric), metric.__name__.lower()
        is_theirs = metric.__module__.startswith("torchmetrics.") and name[0] != "_"
        if is_theirs and mode and not name.endswith("metric"):
            short = re.sub("^(binary|multiclass|multilabel|retrieval)", "", name)
            found |= dict.fromkeys([name, short, re.sub("(score|index)$", "", short)], mode)
    return found | dict.fromkeys(_HIGHER.split(), "max") | dict.fromkeys(_LOWER.split(), "min")


@cache
def _ranges() -> dict[str, Range]:
    """The range of each name that has one."""
    names = {word: bounds for bounds, words in _RANGES.items() for word in words.split()}
    kinds = ("", "binary", "multiclass", "multilabel")
    return {f"{kind}{name}": bounds for name, bounds in names.items() for kind in kinds}


@cache
def _vocabulary() -> frozenset[str]:
    return frozenset([*_directions(), *_ranges(), *_UNSURE.split()])


def _subclasses(base: Any) -> Iterator[type[Metric]]:
    for metric in base.__subclasses__():
        yield metric
        yield from _subclasses(metric)


def _known_words(name: str) -> Iterator[str]:
    """Known words of a metric's name.

    The longest run of words counts: ``calibration_error`` is one, not ``error``.
    """
    known = _vocabulary()
    for part in name.split("/"):
        words = [word.lower() for word in re.findall("[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])", part)]
        start = 0
        while start < len(words):
            for stop in range(len(words), start, -1):
                joined = "".join(words[start:stop])
                numbered = joined.rstrip("0123456789") if stop - start == 1 else ""  # acc5
                if joined in known or numbered in known:
                    yield joined if joined in known else numbered
                    start = stop
                    break
            else:
                start += 1
