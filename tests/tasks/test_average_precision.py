"""Scores of boxes against pycocotools and faster-coco-eval, ties, empty data, weights."""

import contextlib
import io

import numpy as np
import pytest
import torch

from dlblocks._boxes import box_rows
from dlblocks._npz import Ragged
from dlblocks.models._predict_batches import target_in
from dlblocks.tasks import DetectionTask, PredictionTable
from dlblocks.tasks._average_precision import f1_score, match, precisions, scores_of

NAMES = ("map", "map_50", "map_75", "mar")


def case(seed, images=None, classes=None, tied=False):
    """Objects, and detections near some of them, of random number."""
    rng = np.random.default_rng(seed)
    images = images or int(rng.integers(1, 9))
    classes = classes or int(rng.integers(1, 5))
    targets, predictions = [], []
    for _ in range(images):
        count = int(rng.integers(0, 7)) if rng.random() < 0.8 else 0
        corner, side = rng.random((count, 2)) * 60, 4 + rng.random((count, 2)) * 30
        boxes = np.concatenate([corner, corner + side], 1)
        targets.append(np.column_stack([boxes, rng.integers(0, classes, count)]))
        rows = [np.zeros((0, 6))]
        for box, label in zip(boxes, targets[-1][:, 4], strict=True):
            for _ in range(int(rng.integers(0, 4))):
                moved = box + rng.normal(0, 2.5, 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                own = label if rng.random() < 0.8 else rng.integers(0, classes)
                rows.append(np.array([[*moved, rng.random(), own]]))
        for _ in range(int(rng.integers(0, 4))):
            at = rng.random(2) * 60
            rows.append(np.array([[*at, *(at + 5 + 20 * rng.random(2)), rng.random(),
                                   rng.integers(0, classes)]]))  # fmt: skip
        predictions.append(np.concatenate(rows))
    if tied:
        for rows in predictions:
            rows[:, 4] = np.round(rows[:, 4] * 3) / 3
    return targets, predictions


def ours(targets, predictions):
    found = scores_of(match(Ragged.of(targets), Ragged.of(predictions)))
    return {name: float(value[0]) for name, value in found.items()}


def coco(targets, predictions, module):
    """The scores of pycocotools, or of what imitates it."""
    images, objects, found = [], [], []
    for i, (rows, guesses) in enumerate(zip(targets, predictions, strict=True)):
        images.append({"id": i, "height": 200, "width": 200})
        for x0, y0, x1, y1, label in rows:
            objects.append({
                "id": len(objects) + 1, "image_id": i, "category_id": int(label), "iscrowd": 0,
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
            })  # fmt: skip
        for x0, y0, x1, y1, score, label in guesses:
            found.append({"image_id": i, "category_id": int(label), "score": score,
                          "bbox": [x0, y0, x1 - x0, y1 - y0]})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = module.COCO()
        truth.dataset = {
            "images": images, "annotations": objects, "categories": [{"id": c} for c in range(9)],
            "info": {},
        }  # fmt: skip
        truth.createIndex()
        evaluation = module.COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = evaluation.stats
    return {"map": stats[0], "map_50": stats[1], "map_75": stats[2], "mar": stats[8]}


class _Pycocotools:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_scores_are_those_of_pycocotools(start):
    compared = 0
    for seed in range(start, start + 50):
        targets, predictions = case(seed)
        if not sum(map(len, targets)) or not sum(map(len, predictions)):
            continue
        theirs = coco(targets, predictions, _Pycocotools)
        assert ours(targets, predictions) == pytest.approx(theirs, abs=1e-12), seed
        compared += 1
    assert compared > 40


def test_more_detections_than_count():
    """Of an image and class the 100 of the highest score count."""
    rng = np.random.default_rng(0)
    targets = [np.array([[0, 0, 10, 10, 0], [20, 20, 40, 40, 0]])]
    boxes = np.concatenate([rng.random((250, 2)) * 30, 40 + rng.random((250, 2)) * 30], 1)
    guesses = np.column_stack([boxes, 0.5 + 0.5 * rng.random(250), np.zeros(250)])
    for late in (0.4, 0.99):  # below all others, and above most
        rows = np.concatenate([guesses, [[0, 0, 10, 10, late, 0]]])
        theirs = coco(targets, [rows], _Pycocotools)
        assert ours(targets, [rows]) == pytest.approx(theirs, abs=1e-12)
    assert ours(targets, [rows])["map"] > 0


def test_the_order_of_equal_scores_does_not_matter():
    """With torchmetrics, the first two give 1.0 and 0.5 (or the reverse)."""
    hit, miss = [[0, 0, 10, 10, 0.9, 0]], [[30, 30, 40, 40, 0.9, 0]]
    here, nowhere = [[0, 0, 10, 10, 0]], np.zeros((0, 5))
    one = ours([np.array(here), nowhere], [np.array(hit), np.array(miss)])
    two = ours([nowhere, np.array(here)], [np.array(miss), np.array(hit)])
    assert one == two
    assert one["map_50"] == 0.5  # at the only threshold there are two detections, one right
    for seed in range(30):
        rng = np.random.default_rng(seed)
        targets, predictions = case(seed, tied=True)
        expected = ours(targets, predictions)
        images = rng.permutation(len(targets))
        shuffled = [predictions[i][rng.permutation(len(predictions[i]))] for i in images]
        assert ours([targets[i] for i in images], shuffled) == pytest.approx(expected, abs=1e-12)


def test_equal_scores_are_the_limit_of_wrong_ones_first():
    """A threshold that admits a tie admits its wrong detections, too."""
    for seed in range(20):
        targets, predictions = case(seed, images=4, classes=1, tied=True)
        found = match(Ragged.of(targets), Ragged.of(predictions))
        for t in (0, 4):
            total = sum(map(len, targets))
            rows = sorted(zip(-found.score, found.hit[t], strict=True))  # False before True
            right = np.cumsum([hit for _, hit in rows])
            precision = right / np.arange(1, len(rows) + 1)
            if total:
                recall = right / total
                area = [max(precision[recall >= r], default=0) for r in np.linspace(0, 1, 101)]
                fast = precisions(found, 0, np.ones((1, 4)))[0][0, t]
                assert fast == pytest.approx(np.mean(area), abs=1e-9)


def test_defined_without_objects_and_without_detections():
    none, some = np.zeros((0, 5)), np.array([[0.0, 0, 5, 5, 1]])
    nothing, guess = np.zeros((0, 6)), np.array([[0.0, 0, 5, 5, 0.5, 1]])
    zero = dict.fromkeys(NAMES, 0.0)
    assert ours([none, none], [nothing, nothing]) == zero
    assert ours([none], [guess]) == zero
    assert ours([some], [nothing]) == zero
    assert ours([some, none], [guess, nothing]) == dict.fromkeys(NAMES, 1.0)
    # A class without objects does not count, as with COCO.
    other = np.array([[0.0, 0, 5, 5, 0.9, 0]])
    assert ours([some], [np.concatenate([guess, other])]) == dict.fromkeys(NAMES, 1.0)


def test_weights_are_repeated_images():
    targets, predictions = case(3, images=6, classes=3)
    weights = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 1, 3, 0, 1]], float)
    found = scores_of(match(Ragged.of(targets), Ragged.of(predictions)), weights)
    for b, each in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(6), each)
        repeated = ours([targets[i] for i in rows], [predictions[i] for i in rows])
        assert {n: float(v[b]) for n, v in found.items()} == pytest.approx(repeated, abs=1e-12)


def test_f1_counts_boxes():
    targets = [np.array([[0, 0, 10, 10, 0], [20, 20, 30, 30, 0.0]]), np.zeros((0, 5))]
    guesses = [np.array([[0, 0, 10, 9, 0.9, 0], [0, 0, 10, 10, 0.6, 0], [20, 20, 30, 30, 0.1, 0]]),
               np.array([[5, 5, 9, 9, 0.8, 0.0]])]  # fmt: skip
    found = f1_score(match(Ragged.of(targets), Ragged.of(guesses), np.array([0.4])), 0.5)
    # One of three shown is right, one of two objects is found.
    assert float(found["precision"][0]) == pytest.approx(1 / 3)
    assert float(found["recall"][0]) == pytest.approx(1 / 2)
    assert float(found["f1"][0]) == pytest.approx(2 / 5)


def test_f1_of_a_table_has_an_interval_of_images():
    targets, predictions = case(5, images=8, classes=2)
    table = PredictionTable(
        {"target": Ragged.of(targets), "prediction": Ragged.of(predictions)}, task="detection"
    )
    found = DetectionTask.f1(table, iou=0.4, score=0.3, draws=400)
    expected = f1_score(match(table["target"], table["prediction"], np.array([0.4])), 0.3)
    for name, (value, low, high) in found.items():
        assert value == pytest.approx(float(expected[name][0]))
        assert low <= value <= high
        assert low < high
    one = DetectionTask.f1(table, iou=0.4, score=0.3, groups=np.zeros(8))  # nothing to draw
    assert one["f1"][1] == one["f1"][2]
    assert DetectionTask.class_map(table, 0.5) == pytest.approx(
        {c: float(precisions(match(table["target"], table["prediction"], np.array([0.5])), c,
                             np.ones((1, 8)))[0][0, 0]) for c in (0, 1)}
    )  # fmt: skip
    assert table.score() == pytest.approx(ours(targets, predictions))


def test_boxes_and_labels_of_a_dictionary_batch_belong_together():
    batch = {
        "image": torch.zeros(2, 1, 8, 8),
        "boxes": [torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.zeros(0, 4)],
        "labels": [torch.tensor([3]), torch.zeros(0, dtype=torch.long)],
    }
    first, second = box_rows(target_in(batch))
    assert first.tolist() == [[0, 0, 2, 2, 3]]
    assert second.shape == (0, 5)
