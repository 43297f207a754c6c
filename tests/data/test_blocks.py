"""Spatial folds: blocks of the plane with a margin, against loops over pairs and pixels."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from dlblocks.crossval import cross_validate, nested_cross_validate
from dlblocks.data import ArrayDataModule, FoldedDataModule
from dlblocks.data._blocks import Plane, cut_into_blocks, nearer_than
from dlblocks.data._folds import block_folds
from dlblocks.ensembles import Bagging
from dlblocks.models import MLPClassifier, UNetSegmenter

SIDE = 8


def grid(rows, columns, images=1, step=SIDE, side=SIDE):
    """Tiles of a regular grid, (N, 5)."""
    return np.array(
        [[i, r * step, c * step, side, side]
         for i in range(images) for r in range(rows) for c in range(columns)], float,
    )  # fmt: skip


def scattered(count=150, images=3):
    """Rectangles of any size at any place, in no order."""
    rng = np.random.default_rng(0)
    return np.column_stack(
        [rng.integers(0, images, count), rng.integers(0, 200, (count, 2)),
         rng.integers(1, 20, (count, 2))]
    ).astype(float)  # fmt: skip


def distance(a, b):
    """Pixels between two rectangles, by their pixels; infinite in different images."""
    if a[0] != b[0]:
        return np.inf
    gaps = []
    for first, size in ((1, 3), (2, 4)):
        (x, w), (y, v) = (a[first], a[size]), (b[first], b[size])
        gaps.append(min(abs(p - q) for p in (x, x + w - 1) for q in (y, y + v - 1)) - 1
                    if x + w <= y or y + v <= x else -1)  # fmt: skip
    return max(gaps)


def least_distance(positions, some, others):
    return min(distance(positions[i], positions[j]) for i in some for j in others)


def painted(positions, rows):
    """All pixels of some tiles."""
    return {
        (image, r, c)
        for image, top, left, height, width in positions[rows].astype(int).tolist()
        for r in range(top, top + height)
        for c in range(left, left + width)
    }


@pytest.mark.parametrize("margin", [0, 1, 5, 30])
def test_near_rectangles_are_those_of_a_loop_over_pairs(margin):
    positions = scattered()
    some, others = positions[:100], positions[100:]
    slow = [any(distance(a, b) < margin for b in others) for a in some]
    assert nearer_than(some, others, margin).tolist() == slow
    assert 0 < sum(slow) < 100


@pytest.mark.parametrize("num_blocks", [2, 3, 5, 8])
@pytest.mark.parametrize("images", [1, 2, 4])
def test_blocks_are_rectangles_of_about_one_size(num_blocks, images):
    positions = grid(12, 10, images)
    blocks = cut_into_blocks(positions, num_blocks)
    counts = np.bincount(blocks)
    assert len(counts) == num_blocks
    if images == 1:
        assert counts.max() <= 1.5 * counts.min()
    for b in range(num_blocks):
        mine = positions[blocks == b]
        # A block that fills its bounding box in every image is a rectangle.
        for image in np.unique(mine[:, 0]):
            low, high = mine[mine[:, 0] == image, 1:3].min(0), mine[mine[:, 0] == image, 1:3].max(0)
            inside = (positions[:, 0] == image) & (positions[:, 1:3] >= low).all(1)
            inside &= (positions[:, 1:3] <= high).all(1)
            assert (blocks[inside] == b).all()
        if images >= num_blocks:
            assert np.bincount(mine[:, 0].astype(int)).max() == 120  # no image is cut


@pytest.mark.parametrize(
    ("positions", "margin"),
    [
        (grid(8, 8), 1),
        (grid(8, 8), 0),
        (grid(12, 12, step=4), 1),  # overlapping
        (grid(10, 10), 9),
        (grid(5, 4, images=3), 1),
        (grid(3, 3, images=7), 1),
        (scattered(), 3),
    ],
)
def test_no_tile_of_training_is_nearer_than_the_margin(positions, margin):
    folds = block_folds(Plane(positions, margin), 4)
    for train, val in folds:
        assert least_distance(positions, train, val) >= margin
        assert not painted(positions, train) & painted(positions, val)
        # And no other tile is left out.
        rest = np.setdiff1d(np.arange(len(positions)), np.concatenate([train, val]))
        assert all(least_distance(positions, [i], val) < margin for i in rest)
    validated = np.sort(np.concatenate([val for _, val in folds]))
    np.testing.assert_array_equal(validated, np.arange(len(positions)))


class Own(Dataset):
    """Somebody's data set of dictionaries."""

    def __len__(self):
        return 144

    def __getitem__(self, i):
        return {"x": torch.full((4,), float(i)), "y": i % 2}


POSITIONS = grid(12, 12)


def arrays(**arguments):
    images = torch.arange(144, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE)
    masks = (torch.arange(144) % 2).reshape(-1, 1, 1).expand(-1, SIDE, SIDE)
    given = {"positions": POSITIONS[:, :3], "split": "blocks", "batch_size": 48, **arguments}
    return ArrayDataModule(images, masks, **given)


@pytest.mark.parametrize("kind", ["arrays", "foreign"])
@pytest.mark.parametrize("margin", [1, 8])
def test_all_parts_are_apart_with_test_selection_and_subset(kind, margin):
    settings = {"split": "blocks", "margin": margin, "test_fraction": 0.15}
    data = FoldedDataModule(Own(), positions=POSITIONS, **settings)
    if kind == "arrays":
        data = arrays(**settings)
    test = data.for_fold(0, 3).indices("test").tolist()
    assert 0.1 < len(test) / 144 < 0.25
    outer = data.splits(3)
    for fold, rows in enumerate(outer):
        found = data.for_fold(fold, 3).with_selection(0.2)
        parts = {name: found.indices(name).tolist() for name in found.parts}
        assert parts["test"] == test
        assert parts["selection"]
        np.testing.assert_array_equal(parts["val"], rows["val"])
        assert {*parts["train"], *parts["selection"]} <= {*rows["train"].tolist()}
        for one in ("selection", "val", "test"):
            assert least_distance(POSITIONS, parts["train"], parts[one]) >= margin
        assert least_distance(POSITIONS, parts["selection"], parts["val"]) >= margin
        assert least_distance(POSITIONS, parts["val"], test) >= margin
    inner = data.subset(outer[0]["train"])
    for rows in inner.splits(2):
        assert rows["test"].tolist() == test
        assert {*rows["train"], *rows["val"]} <= {*outer[0]["train"]}
        assert least_distance(POSITIONS, rows["train"], rows["val"]) >= margin
        # The outer fold's margin holds in the inner folds too.
        assert least_distance(POSITIONS, rows["train"], outer[0]["val"]) >= margin
    whole = data.without_validation().indices("train").tolist()
    assert least_distance(POSITIONS, whole, test) >= margin
    single = data.for_fold(0, None)
    assert least_distance(POSITIONS, single.indices("train"), single.indices("val")) >= margin


def test_more_blocks_give_other_folds_in_every_repeat():
    data = arrays(num_blocks=12)
    first, second = data.splits(4), data.splits(4, repeat=1)
    assert any(list(a["val"]) != list(b["val"]) for a, b in zip(first, second, strict=True))
    assert data.count_repeats(3) == 3
    few = arrays().splits(4)
    assert sum(len(f["train"]) for f in first) < sum(len(f["train"]) for f in few)
    with pytest.raises(ValueError, match="same folds every time; use repeats=1, or num_blocks="):
        arrays().count_repeats(3)


def make_model():
    return UNetSegmenter(1, 2, width=2, depth=1, lr=0.01)


QUIET = {"max_epochs": 1, "accelerator": "cpu"}


def test_cross_validation_predicts_every_tile_once(tmp_path):
    result = cross_validate(
        make_model, arrays(margin=8), num_folds=3, trainer=QUIET, run_dir=tmp_path / "run",
        select="inner", progress_bar=False, figures=False,
    )  # fmt: skip
    assert result.oof.index.tolist() == list(range(144))
    written = json.loads((tmp_path / "run" / "folds.json").read_text())
    assert written["split"] == "blocks"
    for row, fold in zip(result.folds, written["folds"], strict=True):
        assert least_distance(POSITIONS, fold["selection"], fold["val"]) >= 8
        assert row["num_train"] + row["num_val"] + row["num_selection"] < 144
    assert any("nearer than the margin" in note for note in result.notes)
    changed = arrays(margin=9)
    with pytest.raises(FileExistsError, match=r"data\.margin was 8 and is 9"):
        cross_validate(
            make_model, changed, num_folds=3, trainer=QUIET, run_dir=tmp_path / "run",
            select="inner", progress_bar=False, figures=False,
        )  # fmt: skip


def test_nested_cross_validation_keeps_the_margin(tmp_path):
    classes = np.arange(144) % 2
    data = ArrayDataModule(
        np.random.default_rng(0).normal(size=(144, 4)).astype(np.float32), classes,
        positions=POSITIONS, split="blocks", margin=2, batch_size=48,
    )  # fmt: skip
    result = nested_cross_validate(
        lambda lr: MLPClassifier(4, 2, lr=lr), data, {"lr": [0.1, 0.01]}, num_folds=2,
        inner_folds=2, trainer=QUIET, run_dir=tmp_path / "run", progress_bar=False, figures=False,
    )  # fmt: skip
    assert result.oof.index.tolist() == list(range(144))
    outer = json.loads((tmp_path / "run" / "folds.json").read_text())
    for number, fold in enumerate(outer["folds"]):
        path = tmp_path / "run" / f"fold-{number}" / "point-0" / "folds.json"
        inner = json.loads(path.read_text())
        validated = [row for one in inner["folds"] for row in one["val"]]
        assert least_distance(POSITIONS, validated, fold["val"]) >= 2


def test_refused():
    table = np.zeros((6, 2), np.float32), np.zeros(6)
    with pytest.raises(ValueError, match="would put neighbours on both sides; use split='blocks'"):
        ArrayDataModule(*table, positions=POSITIONS[:6])
    for make, message in (
        (lambda: ArrayDataModule(*table, split="blocks"), "split='blocks' needs positions"),
        (
            lambda: ArrayDataModule(*table, split="blocks", positions=POSITIONS[:6, :3]),
            "the size of the samples is not known",
        ),
        (lambda: ArrayDataModule(*table, split="blocks", positions=POSITIONS[:5]), r"\(6, 5\)"),
        (
            lambda: ArrayDataModule(*table, split="blocks", positions=np.full((6, 5), np.nan)),
            "in row 0; image, row",
        ),
        (lambda: arrays(groups=np.arange(144)), "groups cannot be kept whole by split='blocks'"),
        (lambda: arrays(groups="duplicates"), "groups='duplicates' cannot be kept whole"),
        (lambda: arrays(margin=1000), "margin=1000 leaves no sample outside"),
        (
            lambda: arrays(positions=np.zeros((144, 3))),
            "144 samples at 1 different places cannot be cut into 5 blocks",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make().splits(5)
    with pytest.raises(ValueError, match="margin=3 and num_blocks=None have no effect"):
        ArrayDataModule(*table, margin=3)
    with pytest.raises(ValueError, match="neighbouring tiles apart"):
        Bagging(make_model, arrays()).fit()
