"""Scenes of digits: masks, boxes and counts agree, parts share no digit, all is deterministic."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dlblocks.data import DigitScenesDataModule
from dlblocks.data.scenes import INK

FEW = {"num_scenes": 60, "num_test_scenes": 20}


def test_masks_boxes_labels_and_counts_agree():
    data = DigitScenesDataModule(**FEW)
    images, masks = data.part("train")["images"], data.masks
    for i, (image, mask) in enumerate(zip(images[:, 0], masks, strict=True)):
        boxes, labels = data.boxes[i].long().tolist(), data.labels[i].tolist()
        assert len(boxes) == len(labels) == data.counts[i]
        rest = mask.clone()
        for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
            inside = mask[y0:y1, x0:x1] == 1 + label
            # Tight, and no pixel of it is outside.
            assert inside.any(0)[[0, -1]].all()
            assert inside.any(1)[[0, -1]].all()
            rest[y0:y1, x0:x1][inside] = 0
        assert not rest.any()
        assert (image[mask > 0] >= int(255 * INK)).all()
    assert data.counts.min() == 1
    assert data.counts.max() == 4


def test_parts_share_no_digit():
    data = DigitScenesDataModule(**FEW, num_folds=5)
    train, test = data.part("train"), data.part("test")
    known = set(train["digits"].tolist())
    assert not known & set(test["digits"].tolist())
    owner = torch.arange(60).repeat_interleave(data.counts)
    for fold in range(5):
        one = data.for_fold(fold, 5)
        one.setup()
        mine, others = (
            set(train["digits"][torch.isin(owner, one.indices(part))].tolist())
            for part in ("train", "val")
        )
        assert mine
        assert others
        assert not mine & others
    labels = torch.from_numpy(load_digits().target)
    assert (labels[train["digits"]] == data.labels.values).all()


def test_masks_have_the_shapes_of_their_digits():
    data, bunch = DigitScenesDataModule(**FEW, clutter=0), load_digits()
    part = data.part("train")
    owner = torch.arange(60).repeat_interleave(data.counts)
    right = []
    for n, box in enumerate(data.boxes.values.long().tolist()):
        x0, y0, x1, y1 = box
        mask = (part["masks"][owner[n], y0:y1, x0:x1] > 0).float()
        digit = torch.from_numpy(bunch.images[part["digits"][n]] >= 8)
        rows, columns = digit.any(1).nonzero(), digit.any(0).nonzero()
        digit = digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].float()
        size = digit.shape
        small = torch.nn.functional.interpolate(mask[None, None], size, mode="area")[0, 0]
        right.append(((small > 0.5) == (digit > 0.5)).float().mean())
    assert np.mean(right) > 0.75


def test_all_depends_on_the_seed_alone():
    first = DigitScenesDataModule(**FEW)
    torch.manual_seed(1)
    np.random.seed(1)
    again = DigitScenesDataModule(**FEW, split_seed=3, shuffle_seed=4)
    other = DigitScenesDataModule(**FEW, seed=1)
    for name in ("images", "masks", "digits"):
        for part in ("train", "test"):
            assert torch.equal(first.part(part)[name], again.part(part)[name])
            assert not torch.equal(first.part(part)[name], other.part(part)[name])
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(("arguments", "num_classes"), [({}, 11), ({"classes": "digit"}, 2)])
def test_batches_of_masks(arguments, num_classes):
    data = DigitScenesDataModule(**FEW, **arguments, size=45, digits_per_scene=3, batch_size=8)
    data.setup()
    inputs, targets = next(iter(data.train_dataloader()))
    assert inputs.shape == (8, 1, 45, 45)
    assert targets.shape == (8, 45, 45)
    assert targets.dtype == torch.int64
    assert data.num_classes == num_classes == len(data.class_names)
    assert int(data.masks.max()) == num_classes - 1
    assert len(data.indices("test")) == 20


def test_counts_and_boxes_as_targets():
    data = DigitScenesDataModule(**FEW, target="count", num_folds=3)
    data.setup()
    assert torch.equal(data.source.targets, data.counts.float())
    assert data.num_classes is None
    boxes = DigitScenesDataModule(**FEW, target="boxes")
    boxes.setup()
    inputs, targets = next(iter(boxes.val_dataloader()))[:2]
    assert len(targets) == len(inputs)
    rows = boxes.indices("val")[: len(targets)].tolist()
    for row, target in zip(rows, targets, strict=True):
        assert torch.equal(target["boxes"], boxes.boxes[row])
        assert torch.equal(target["labels"], boxes.labels[row])
    assert boxes.class_names == [str(i) for i in range(10)]
    one = DigitScenesDataModule(**FEW, target="boxes", classes="digit")
    assert one.class_names == ["digit"]
    assert not one.source.targets.values[:, 4].any()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"size": 10}, "size=10"),
        ({"digits_per_scene": 5}, "digits_per_scene=5 must be 1 … 4"),
        ({"classes": "digitz"}, "classes='digitz'"),
        ({"target": "masks"}, "did you mean 'mask'"),
        ({"num_scenes": 0}, "num_scenes=0"),
        ({"test_fraction": 0.2}, "has an official test set"),
    ],
)
def test_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        DigitScenesDataModule(**arguments).setup()
