"""Match detected boxes to objects, and score them as COCO does.

COCO's rule (Lin et al., "Microsoft COCO: Common Objects in Context", 2014, and its reference
code pycocotools): within an image and a class, detections are taken from the highest score on. Each
gets the free object with the largest IoU, if that reaches the threshold. The average precision is
the mean of the precision at 101 recalls, where the precision at a recall is the highest one at this
recall or a larger one.

Two things are defined here that pycocotools leaves to chance or to a special value. Detections of
equal score count at once, as one threshold on the scores admits or refuses all of them, so that
their order does not matter. Without any object, scores are 0 and not -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from dlblocks._npz import Ragged

Array = npt.NDArray[np.float64]
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # detections of an image and class
AT_ONCE = 2**22  # numbers in memory


@dataclass
class Matches:
    """Detections and objects, with a mark for each detection that found one.

    Attributes:
        num_images: Number of images N.
        thresholds: IoU from which on an object is found, shape (T,).
        image: The image of each detection, int64 (D,).
        label: Its class, int64 (D,).
        score: Its score, (D,).
        hit: Whether it found an object, bool (T, D).
        object_image: The image of each object, int64 (G,).
        object_label: Its class, int64 (G,).
    """

    num_images: int
    thresholds: Array
    image: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    score: Array
    hit: npt.NDArray[np.bool_]
    object_image: npt.NDArray[np.int64]
    object_label: npt.NDArray[np.int64]

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """The classes that some object has."""
        return np.unique(self.object_label)


def match(target: Ragged, prediction: Ragged, thresholds: Array = IOUS) -> Matches:
    """Match the detections of each image to its objects.

    Args:
        target: For each image rows (x0, y0, x1, y1, class).
        prediction: For each image rows (x0, y0, x1, y1, score, class).
        thresholds: IoU from which on an object is found, shape (T,).
    """
    objects, object_image = np.asarray(target.values, np.float64), _owners(target)
    found, image = np.asarray(prediction.values, np.float64), _owners(prediction)
    objects, found = objects.reshape(-1, 5), found.reshape(-1, 6)
    # By image and class, then from the highest score on. The coordinates decide between equal
    # ones, so that the order in which they come does not.
    order = np.lexsort((*found.T[:4], -found[:, 4], found[:, 5], image))
    found, image = found[order], image[order]
    group, rank = _groups(image, found[:, 5])
    keep = rank < MOST
    found, image, group, rank = found[keep], image[keep], group[keep], rank[keep]
    order = np.lexsort((*objects.T[:4], objects[:, 4], object_image))
    objects, object_image = objects[order], object_image[order]
    hit = np.zeros((len(thresholds), len(found)), bool)
    # Each group of detections may find the objects of its image and class.
    _, place = _groups(object_image, objects[:, 4])
    starts = np.flatnonzero(place == 0)
    sizes = np.diff(np.append(starts, len(objects)))
    first = np.flatnonzero(rank == 0)
    key = {(int(object_image[s]), int(objects[s, 4])): i for i, s in enumerate(starts)}
    of_group = np.array([key.get((int(image[f]), int(found[f, 5])), -1) for f in first], np.int64)
    some = of_group >= 0
    if some.any():
        # Groups with many objects apart from those with few, so that padding stays small.
        width = np.zeros(len(first), np.int64)
        width[some] = sizes[of_group[some]]
        for low in 2 ** np.arange(int(width.max()).bit_length()):
            chosen = np.flatnonzero((width >= low) & (width < 2 * low))
            step = max(1, AT_ONCE // int(2 * low * len(thresholds)))
            for part in (chosen[i : i + step] for i in range(0, len(chosen), step)):
                _match(part, of_group, starts, sizes, objects, found, first, group, hit, thresholds)
    return Matches(
        len(target), thresholds, image, found[:, 5].astype(np.int64), found[:, 4], hit,
        object_image, objects[:, 4].astype(np.int64),
    )  # fmt: skip


def _match(
    part: npt.NDArray[np.int64],
    of_group: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    objects: Array,
    found: Array,
    first: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    hit: npt.NDArray[np.bool_],
    thresholds: Array,
) -> None:
    """Match the detections of some groups, rank by rank."""
    begin, count = starts[of_group[part]], sizes[of_group[part]]
    most = int(count.max())
    slot = np.arange(most)
    padded = slot >= count[:, None]  # (P, most)
    boxes = objects[np.minimum(begin[:, None] + slot, len(objects) - 1), :4]  # (P, most, 4)
    taken = np.repeat(padded[:, None], len(thresholds), 1)  # (P, T, most)
    lengths = np.diff(np.append(first, len(found)))[part]
    for rank in range(int(lengths.max())):
        alive = np.flatnonzero(lengths > rank)
        row = first[part[alive]] + rank
        iou = _iou(found[row, None, :4], boxes[alive])  # (A, most)
        free = np.where(taken[alive], -1.0, iou[:, None])  # (A, T, most)
        # Of equal IoUs the last, as in pycocotools.
        best = most - 1 - free[..., ::-1].argmax(2)
        value = np.take_along_axis(free, best[..., None], 2)[..., 0]
        success = value >= np.minimum(thresholds, 1 - 1e-10)
        where, which = np.nonzero(success)
        taken[alive[where], which, best[where, which]] = True
        hit[:, row] = success.T


def _iou(a: Array, b: Array) -> Array:
    """Return the IoU of boxes (…, 4)."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = np.prod(np.maximum(sides, 0), -1)
    area_a, area_b = (np.prod(x[..., 2:] - x[..., :2], -1) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(both > 0, both / (area_a + area_b - both), 0.0)


def _owners(rows: Ragged) -> npt.NDArray[np.int64]:
    """Return the image of each row."""
    return np.repeat(np.arange(len(rows)), np.diff(np.asarray(rows.offsets)))


def _groups(
    image: npt.NDArray[np.int64], label: Array
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Number the groups of sorted rows, and the rows within each."""
    if not len(image):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    new = np.ones(len(image), bool)
    new[1:] = (np.diff(image) != 0) | (np.diff(label) != 0)
    group = np.cumsum(new) - 1
    start = np.flatnonzero(new)
    return group, np.arange(len(image)) - start[group]


def precisions(matches: Matches, label: int, weights: Array) -> tuple[Array, Array]:
    """Compute the average precision and the largest recall of one class.

    Args:
        matches: The matches.
        label: A class that some object has.
        weights: How much each image counts, shape (B, N).

    Returns:
        Shape (B, T) each; NaN where all images with such objects have weight 0.
    """
    mine = np.flatnonzero(matches.label == label)
    mine = mine[np.argsort(-matches.score[mine], kind="stable")]
    score, hit = matches.score[mine], matches.hit[:, mine]
    total = weights[:, matches.object_image[matches.object_label == label]].sum(1)  # (B,)
    each = weights[:, matches.image[mine]]  # (B, D)
    # A threshold on the scores cannot part equal ones: (D,), the last place of each one's score.
    last = np.searchsorted(-score, -score, side="right") - 1
    all_of = np.cumsum(each, 1)  # (B, D)
    average, recall = (np.zeros((len(weights), len(hit))) for _ in range(2))
    for t, right in enumerate(hit):
        # Detections that find nothing only lower the precision, so places with hits suffice.
        hits = np.flatnonzero(right)
        if not len(hits):
            continue
        ends, count = np.unique(last[hits], return_counts=True)
        true = np.cumsum(each[:, hits], 1)[:, np.cumsum(count) - 1]  # (B, E)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = true / np.maximum(all_of[:, ends], np.spacing(1))
            reached = true / total[:, None]
        highest = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        # Count the recalls, of 101, that each threshold is the first to reach.
        some = np.searchsorted(RECALLS, reached, side="right")
        average[:, t] = (highest * np.diff(some, axis=1, prepend=0)).sum(1) / len(RECALLS)
        recall[:, t] = reached[:, -1]
    none = total == 0
    average[none], recall[none] = np.nan, np.nan
    return average, recall


NAMES = ("map", "map_50", "map_75", "mar")


def scores_of(
    matches: Matches, weights: Array | None = None, names: Sequence[str] = NAMES
) -> dict[str, Array]:
    """Compute COCO's scores, each of shape (B,).

    ``map`` is the mean over IoU 0.5, 0.55, … 0.95 and over the classes that have objects;
    ``map_50`` and ``map_75`` are those at one IoU; ``mar`` is the mean recall with up to 100
    detections an image and class.

    Args:
        matches: Matches at the thresholds `IOUS`.
        weights: How much each image counts, shape (B, N); None for (1, N) ones.
        names: The scores to compute.
    """
    if weights is None:
        weights = np.ones((1, matches.num_images))
    if not len(matches.classes):
        return dict.fromkeys(names, np.zeros(len(weights)))
    one = {"map_50": slice(0, 1), "map_75": slice(5, 6)}
    # The average precision at no more thresholds than are asked for.
    some = one[names[0]] if len(names) == 1 and names[0] in one else slice(None)
    part = replace(matches, thresholds=matches.thresholds[some], hit=matches.hit[some])
    found = [precisions(part, int(label), weights) for label in matches.classes]
    average, recall = (np.stack(each) for each in zip(*found, strict=True))  # (C, B, T)
    result = {}
    for name in names:
        values = recall if name == "mar" else average
        if name in one and len(names) > 1:
            values = values[..., one[name]]
        result[name] = _mean(values, (0, 2))
    return result


def _mean(values: Array, axis: tuple[int, ...]) -> Array:
    """Return the mean of the finite values, 0 without any."""
    known = np.isfinite(values)
    total: Array = np.where(known, values, 0).sum(axis) / np.maximum(known.sum(axis), 1)
    return total


def f1_score(matches: Matches, score: float, weights: Array | None = None) -> dict[str, Array]:
    """Compute precision, recall and their harmonic mean over all classes at once.

    Args:
        matches: Matches at one threshold.
        score: Detections of a lower score do not count.
        weights: How much each image counts, shape (B, N).

    Returns:
        ``f1``, ``precision`` and ``recall``, shape (B,); 0 where there is neither a detection nor
        an object.
    """
    if weights is None:
        weights = np.ones((1, matches.num_images))
    shown = matches.score >= score
    counted = weights[:, matches.image[shown]]
    true = (counted * matches.hit[0, shown]).sum(1)
    said, there = counted.sum(1), weights[:, matches.object_image].sum(1)
    return {
        "f1": 2 * true / np.maximum(said + there, np.spacing(1)),
        "precision": true / np.maximum(said, np.spacing(1)),
        "recall": true / np.maximum(there, np.spacing(1)),
    }


class BoxScores(Metric):
    """COCO's scores of boxes."""

    full_state_update = False
    rows: list[Tensor]
    counts: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, rows: Tensor, counts: Tensor) -> None:
        """Add images.

        Args:
            rows: As of `DetectionTask.for_metrics`.
            counts: Likewise.
        """
        self.rows.append(rows.detach().cpu() if rows.device.type == "mps" else rows.detach())
        self.counts.append(counts)

    def compute(self) -> dict[str, Tensor]:
        """Return ``map``, ``map_50``, ``map_75`` and ``mar``."""
        rows, counts = (_joined(x) for x in (self.rows, self.counts))
        values = rows.cpu().double().numpy().reshape(-1, 6)
        each = counts.cpu().numpy().reshape(-1, 2)
        is_object = np.repeat(np.tile([False, True], len(each)), each.reshape(-1))
        offsets = np.concatenate([np.zeros((1, 2), np.int64), each.cumsum(0)])
        target = Ragged(values[is_object][:, [0, 1, 2, 3, 5]], offsets[:, 1])
        prediction = Ragged(values[~is_object], offsets[:, 0])
        found = scores_of(match(target, prediction))
        return {name: torch.tensor(float(value[0])) for name, value in found.items()}


def _joined(parts: Any) -> Tensor:
    """Join the parts of a state."""
    if isinstance(parts, Tensor):
        return parts
    return torch.cat(parts) if parts else torch.zeros(0)
