"""Boxes under augmentation, against corner points moved one by one and against painted pixels."""

import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dlblocks._boxes import are_boxes, box_rows
from dlblocks._geometry import Geometry
from dlblocks.callbacks import Augment, CutMix, Cutout, InputNoise, LabelSmoothing, MixUp, OneOf
from dlblocks.data import ArrayDataModule, DetectionDataModule, DigitScenesDataModule
from dlblocks.fields import Boxes, Ragged
from dlblocks.tasks import DetectionTask

H, W = 30, 40


def random_boxes(count, rng, low=0.0):
    corner = rng.random((count, 2)) * [W - 12, H - 12]
    side = 3 + rng.random((count, 2)) * 9
    return torch.tensor(np.concatenate([corner, corner + side], 1), dtype=torch.float32)


def targets(n=6, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"boxes": random_boxes(i, rng), "labels": torch.arange(i)} for i in (3, 0, 5, 1, 2, 4)[:n]
    ]


def slow_point(x, y, i, geometry):
    """Move a point as the docstring says: mirror, scale, shear, rotate, shift; about the centre."""
    x, y = x - W / 2, y - H / 2
    if geometry.flip[i, 0]:
        x = -x
    if geometry.flip[i, 1]:
        y = -y
    scale, angle = float(geometry.scale[i]), math.radians(float(geometry.rotation[i]))
    x, y = scale * (x - math.tan(math.radians(float(geometry.shear[i]))) * y), scale * y
    x, y = (
        math.cos(angle) * x - math.sin(angle) * y,
        math.sin(angle) * x + math.cos(angle) * y,
    )
    return x + float(geometry.shift[i, 0]) + W / 2, y + float(geometry.shift[i, 1]) + H / 2


def slow_move(target, i, geometry, kind):
    boxes, labels = [], []
    for (x0, y0, x1, y1), label in zip(
        target["boxes"].tolist(), target["labels"].tolist(), strict=True
    ):
        points = [slow_point(x, y, i, geometry) for x in (x0, x1) for y in (y0, y1)]
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        box = [min(xs), min(ys), max(xs), max(ys)]
        area = (box[2] - box[0]) * (box[3] - box[1])
        box = [min(max(v, 0), limit) for v, limit in zip(box, (W, H, W, H), strict=True)]
        wide, tall = box[2] - box[0], box[3] - box[1]
        if (
            wide >= kind.min_size
            and tall >= kind.min_size
            and wide * tall >= kind.min_visible * area
        ):
            boxes.append(box)
            labels.append(label)
    return torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels).long()


CHANGES = {
    "flips": {"horizontal_flip": 0.5, "vertical_flip": 0.5},
    "crop": {"crop_padding": 9},
    "shift": {"translation": 0.4},
    "rotation": {"rotation": 180},
    "scale": {"scale": (0.5, 2.0)},
    "shear": {"shear": 30},
    "all": {"horizontal_flip": 0.5, "vertical_flip": 0.5, "crop_padding": 3, "translation": 0.2,
            "rotation": 45, "scale": (0.6, 1.6), "shear": 20, "brightness": 0.2, "noise": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_boxes_are_those_around_corners_moved_one_by_one(name, monkeypatch):
    seen = []
    moved = Geometry.moved
    monkeypatch.setattr(
        Geometry, "moved", lambda self, *a, **k: (seen.append(self), moved(self, *a, **k))[1]
    )
    dropped = 0
    for seed in range(8):
        before = targets(seed=seed)
        copies = [{k: v.clone() for k, v in t.items()} for t in before]
        draw = torch.Generator().manual_seed(seed)
        _, after = Augment(**CHANGES[name]).transform(torch.rand(6, 3, H, W), before, draw)
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            assert all(torch.equal(old[key], copies[i][key]) for key in old)  # not in place
            boxes, labels = slow_move(old, i, seen[-1], Boxes())
            torch.testing.assert_close(new["boxes"], boxes, atol=2e-3, rtol=0)
            assert torch.equal(new["labels"], labels)
            assert new["boxes"].shape[1:] == (4,)
            assert new["boxes"].dtype == torch.float32
            dropped += len(old["labels"]) - len(labels)
    assert dropped or name in ("flips", "rotation", "scale", "shear")


def painted(boxes):
    """An image a box, 1 inside it; boxes of whole pixels."""
    image = torch.zeros(1, max(len(boxes), 1), H, W)
    for plane, (x0, y0, x1, y1) in zip(image[0], boxes.long().tolist(), strict=False):
        plane[y0:y1, x0:x1] = 1
    return image


def around(plane):
    ys, xs = plane.nonzero(as_tuple=True)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize("callback", [
    Augment(horizontal_flip=0.5, vertical_flip=0.5, crop_padding=12),
    Augment(erase=1.0, erase_area=(0.1, 0.6)), Cutout(0.6), Cutout(16),
], ids=["crop", "erase", "cutout", "cutout-pixels"])  # fmt: skip
def test_boxes_are_those_around_the_pixels_that_remain(callback):
    """Neither a pixel off (as kornia's flips), nor with a side of 0 (as torchvision's crops)."""
    draw, gone, changed = torch.Generator().manual_seed(0), 0, 0
    for seed in range(40):
        boxes = random_boxes(5, np.random.default_rng(seed)).round()
        before = [{"boxes": boxes, "labels": torch.arange(5)}]
        images, (after,) = callback.transform(painted(boxes), before, draw)
        kept = dict(zip(after["labels"].tolist(), after["boxes"].tolist(), strict=True))
        for i, plane in enumerate(images[0]):
            area = float((boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1]))
            if not plane.any():
                assert i not in kept
                gone += 1
                continue
            expected = [float(v) for v in around(plane)]
            share = (expected[2] - expected[0]) * (expected[3] - expected[1]) / area
            assert (i in kept) == (share >= 0.1)
            if i in kept:
                assert kept[i] == expected
                changed += kept[i] != boxes[i].tolist()
    assert gone > 3
    assert changed > 20


def test_a_box_that_cannot_move_right_is_refused():
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(6, 1, H, W)
    with pytest.raises(ValueError, match=r"'reflection' mirrors objects .* no boxes"):
        Augment(translation=0.1, padding="reflection").transform(images, targets(), draw)
    with pytest.raises(ValueError, match="'masks' beside their boxes"):
        bad = [t | {"masks": torch.zeros(len(t["labels"]), H, W)} for t in targets()]
        Augment(horizontal_flip=1.0).transform(images, bad, draw)
    with pytest.raises(ValueError, match=r"must be a tensor \(n, 4\), got shape \(0,\)"):
        Augment(horizontal_flip=1.0).transform(
            images, [*targets(5), {"boxes": torch.zeros(0), "labels": torch.zeros(0)}], draw
        )
    from torchvision import tv_tensors

    other = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYWH", canvas_size=(H, W))
    with pytest.raises(ValueError, match="boxes are XYWH; give corners"):
        Augment(horizontal_flip=1.0).transform(
            images[:1], [{"boxes": other, "labels": torch.zeros(1)}], draw
        )


def test_further_entries_of_torchvisions_targets():
    given = [{
        "boxes": torch.tensor([[0.0, 0, 4, 4], [30, 20, 40, 30]]), "labels": torch.tensor([7, 8]),
        "area": torch.tensor([16.0, 100.0]), "iscrowd": torch.tensor([0, 1]),
        "image_id": torch.tensor([5]),
    }]  # fmt: skip
    one = torch.zeros(1)
    geometry = Geometry((H, W), torch.zeros(1, 2, dtype=torch.bool), torch.tensor([[-5.0, 0.0]]),
                        one, one + 1, one, whole_pixels=True)  # fmt: skip
    (found,) = Boxes().move(given, geometry)
    assert found["boxes"].tolist() == [[25, 20, 35, 30]]
    assert found["labels"].tolist() == [8]
    assert found["area"].tolist() == [100]
    assert found["iscrowd"].tolist() == [1]
    assert found["image_id"].tolist() == [5]


@pytest.mark.parametrize(
    "callback", [MixUp(), CutMix(), LabelSmoothing(0.1)], ids=lambda c: type(c).__name__
)
def test_what_changes_labels_is_refused_before_training(callback, make_trainer):
    data = DigitScenesDataModule(num_scenes=20, num_test_scenes=4, target="boxes", val_fraction=0.2)
    trainer = make_trainer(callbacks=[callback])
    with pytest.raises(ValueError, match="cannot change boxes and their labels"):
        trainer.fit(Watching(), data)


class Watching(pl.LightningModule):
    """A user's own module; it keeps the batches."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight])


def test_boxes_of_our_datamodules_move_and_noise_leaves_them(make_trainer):
    data = DigitScenesDataModule(
        num_scenes=24, num_test_scenes=4, target="boxes", val_fraction=0.2, normalize=False
    )
    model = Watching()
    callbacks = [Augment(crop_padding=6, horizontal_flip=0.5), InputNoise(0.01), Cutout(0.2)]
    make_trainer(callbacks=callbacks).fit(model, data)
    for images, found in model.batches:
        assert are_boxes(found)
        assert len(found) == len(images)
        for target in found:
            assert target["labels"].dtype == torch.int64
            assert len(target["boxes"]) == len(target["labels"])
            assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
    assert data.num_classes == 10
    assert data.class_names == [str(i) for i in range(10)]


def test_a_dictionary_with_boxes_of_a_users_own_loader(make_trainer):
    """A mask beside boxes, which crashes in torchvision, is named; without it boxes move."""
    given = targets()
    images = torch.rand(6, 1, H, W)
    batch = {"image": images, "found": given, "id": torch.arange(6)}
    loader = DataLoader([0], collate_fn=lambda _: batch)
    augment = Augment(horizontal_flip=1.0, input_key="image", target_key="found")
    model = Watching()
    make_trainer(callbacks=[augment], limit_val_batches=0).fit(model, loader, loader)
    (after,) = model.batches
    assert torch.equal(after["image"], images.flip(3))
    for old, new in zip(given, after["found"], strict=True):
        torch.testing.assert_close(new["boxes"][:, 0], W - old["boxes"][:, 2])
        torch.testing.assert_close(new["boxes"][:, 2], W - old["boxes"][:, 0])
    batch["mask"] = torch.zeros(6, H, W)
    augment = Augment(horizontal_flip=1.0, input_key="image", target_key="found")
    with pytest.raises(ValueError, match="does not know how to change entry 'mask'"):
        make_trainer(callbacks=[augment], limit_val_batches=0).fit(Watching(), loader, loader)


def test_one_of_for_the_batch_alone(make_trainer):
    data = DigitScenesDataModule(num_scenes=20, num_test_scenes=4, target="boxes", val_fraction=0.2)
    choices = [Augment(horizontal_flip=1.0), Augment(crop_padding=4)]
    make_trainer(callbacks=[OneOf(choices)]).fit(Watching(), data)
    choices = [Augment(horizontal_flip=1.0), Augment(crop_padding=4)]
    with pytest.raises(ValueError, match="cannot choose boxes sample by sample"):
        make_trainer(callbacks=[OneOf(choices, per_sample=True)]).fit(Watching(), data)


def test_transforms_that_do_not_know_boxes_are_refused():
    """torchvision's v2 passes boxes that are plain tensors through unchanged, in silence."""
    from torchvision.transforms import v2

    rows = Ragged.of([torch.tensor([[1.0, 1, 5, 5, 0]])] * 6)
    data = ArrayDataModule(
        torch.zeros(6, 1, 8, 8), rows, train_transform=v2.RandomHorizontalFlip(1.0)
    )
    with pytest.raises(ValueError, match=r"kind 'boxes'; use .*Augment, which moves both"):
        data.setup()


# The field


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([5, 5, 2, 8, 0], r"box \[5.0, 5.0, 2.0, 8.0\] in sample 2, box 1, which is inverted"),
        ([5, 5, 5, 8, 0], "has no area"),
        ([5, 5, 20, 8, 0], r"reaches out of the image of 16×16 pixels"),
        ([-1, 5, 4, 8, 0], r"sample 2, box 1, which reaches out"),
        ([1, 5, 4, 8, -1], r"label -1 in sample 2, box 1; classes are whole numbers 0"),
        ([1, 5, 4, 8, 2], r"label 2 in sample 2, box 1; .* 0 … 1, .* Subtract 1"),
        ([1, 5, 4, 8, 0.5], r"label 0.5 in sample 2"),
        ([float("nan"), 5, 4, 8, 0], "inverted|not finite"),
    ],
)
def test_wrong_boxes_are_named(row, says):
    good = torch.tensor([[1.0, 2, 3, 4, 1]])
    rows = [good, torch.zeros(0, 5), torch.cat([good, torch.tensor([row])]), good]
    data = ArrayDataModule(
        torch.zeros(4, 1, 16, 16), Ragged.of(rows), class_names=["a", "b"], val_fraction=0.25
    )
    with pytest.raises(ValueError, match=says):
        data.setup()


def test_plain_tensors_are_no_boxes():
    images = np.zeros((4, 1, 16, 16), np.uint8)
    with pytest.raises(TypeError, match=r"boxes is one array of shape \(4, 4\); give a list"):
        DetectionDataModule(images, torch.rand(4, 4)).setup()
    with pytest.raises(ValueError, match="must be boxes, a Ragged with rows"):
        ArrayDataModule(images, torch.rand(4, 4), target_kind="boxes").setup()
    data = ArrayDataModule(images, torch.rand(4, 4), val_fraction=0.25)
    with pytest.raises(ValueError, match=r"Detector needs boxes as targets, .* kind 'values'"):
        DetectionTask(2).check_data(data, "Detector")


def test_rows_of_boxes():
    given = targets(3)
    assert [r.shape for r in box_rows(given)] == [(3, 5), (0, 5), (5, 5)]
    scored = [t | {"scores": torch.rand(len(t["labels"]))} for t in given]
    found = box_rows(scored)
    assert torch.equal(found[2][:, 4], scored[2]["scores"])
    assert torch.equal(found[2][:, 5], given[2]["labels"].float())
    assert box_rows(torch.zeros(3)).shape == (3,)
