"""Measure the scores of boxes beside pycocotools, and the steps of detectors.

The scores: images with about ten objects of several classes and twenty detections each, in both
cases from arrays to numbers: ours as `DetectionTask.score`, pycocotools with its dictionaries,
``evaluate``, ``accumulate`` and ``summarize``. faster-coco-eval is shown beside them. All must give
the same numbers. The steps: forward and backward of a batch of 16 at 96 pixels.

Run: pip install 'dlblocks[bench]', then python benchmarks/detection.py
"""

from __future__ import annotations

import contextlib
import importlib
import io
from functools import partial
from typing import Any

import numpy as np
import torch
from _timing import Bench, Run, start

from dlblocks._npz import Ragged
from dlblocks.models import Detector
from dlblocks.tasks import DetectionTask, PredictionTable

NAMES = ("map", "map_50", "map_75", "mar")


def boxes(images: int, classes: int) -> tuple[list[Any], list[Any]]:
    """Objects, and detections of which half are near one."""
    rng = np.random.default_rng(0)
    targets, predictions = [], []
    for _ in range(images):
        count = int(rng.integers(5, 16))
        corner, side = rng.random((count, 2)) * 400, 20 + rng.random((count, 2)) * 80
        rows = np.column_stack([corner, corner + side, rng.integers(0, classes, count)])
        near = rows[:, :4] + rng.normal(0, 4, (count, 4))
        far = rng.random((count, 2)) * 400
        every = np.concatenate(
            [near, np.column_stack([far, far + 20 + 60 * rng.random((count, 2))])]
        )
        label = np.concatenate([rows[:, 4], rng.integers(0, classes, count)])
        targets.append(rows)
        predictions.append(np.column_stack([every, rng.random(2 * count), label]))
    return targets, predictions


def ours(targets: list[Any], predictions: list[Any]) -> list[float]:
    table = PredictionTable(
        {"target": Ragged.of(targets), "prediction": Ragged.of(predictions)}, task="detection"
    )
    found = DetectionTask.score(table)
    return [found[name] for name in NAMES]


def peer(targets: list[Any], predictions: list[Any], files: Any, evaluate: Any) -> list[float]:
    objects, found = list[dict[str, Any]](), list[dict[str, Any]]()
    for i, rows in enumerate(targets):
        for x0, y0, x1, y1, label in rows.tolist():
            objects.append({
                "id": len(objects) + 1, "image_id": i, "category_id": int(label), "iscrowd": 0,
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
            })  # fmt: skip
        for x0, y0, x1, y1, score, label in predictions[i].tolist():
            box = [x0, y0, x1 - x0, y1 - y0]
            found.append({"image_id": i, "category_id": int(label), "score": score, "bbox": box})
    labels = sorted({each["category_id"] for each in objects})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = files()
        truth.dataset = {
            "images": [{"id": i, "height": 600, "width": 600} for i in range(len(targets))],
            "annotations": objects, "categories": [{"id": c, "name": str(c)} for c in labels],
            "info": {},
        }  # fmt: skip
        truth.createIndex()
        evaluation = evaluate(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(evaluation.stats[i]) for i in (0, 1, 2, 8)]


def peer_from(package: str, evaluate: str, data: Any, files: str = "") -> Run:
    """Return a run that first checks that the peer has the same scores."""
    root = importlib.import_module(package)
    files_of = importlib.import_module(files) if files else root
    score = partial(peer, *data, files=files_of.COCO, evaluate=getattr(root, evaluate))
    np.testing.assert_allclose(score(), ours(*data), atol=1e-9)
    return score


def scores(bench: Bench, images: int = 500) -> None:
    """Compare the scores of boxes."""
    for classes in (1, 10, 80):
        data = boxes(images, classes)
        found = {
            "ours": lambda d=data: partial(ours, *d),
            "pycocotools": partial(
                peer_from, "pycocotools.cocoeval", "COCOeval", data, "pycocotools.coco"
            ),
            "faster-coco-eval": partial(peer_from, "faster_coco_eval", "COCOeval_faster", data),
        }
        bench.compare(
            f"Average precision of {images} images, {classes} classes",
            found,
            goals={"pycocotools": 20, "faster-coco-eval": 3},
            turns=min(3, bench.turns),
        )


def step(arch: str, size: int, count: int, device: str) -> Run:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=draw).to(device)
    targets = []
    for i in range(count):
        corner = torch.rand(i % 5, 2, generator=draw) * (size - 40)
        sides = 12 + 28 * torch.rand(i % 5, 2, generator=draw)
        targets.append({
            "boxes": torch.cat([corner, corner + sides], 1).to(device),
            "labels": torch.arange(i % 5).to(device),
        })  # fmt: skip
    net: Any = Detector(arch, 10).to(device, memory_format=torch.channels_last).net
    net.train()

    def run() -> None:
        losses, _ = net.step(images, targets, detect=False)
        torch.stack([*losses.values()]).sum().backward()

    return run


def tables(bench: Bench) -> None:
    if bench.device == "cpu":
        scores(bench)
    for arch in ("fcos", "retinanet", "fasterrcnn"):
        bench.compare(
            f"Forward and backward of {arch}, an image of 96 pixels",
            {"ours": partial(step, arch, 96, 16, bench.device)},
            per=16,
            turns=min(3, bench.turns),
        )


if __name__ == "__main__":
    start(tables, __doc__)
