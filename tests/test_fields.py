"""Kinds of fields: masks move with their images, tokens stay whole, a new kind is one class."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from dlblocks.callbacks import Augment, CutMix, Cutout, OneOf, affine, affine_matrix
from dlblocks.data import ArrayDataModule, DataModule, FoldedDataModule, Source
from dlblocks.data.dataset import ArrayDataset
from dlblocks.fields import Boxes, Class, Features, Image, Kind, Labels, Mask, Ragged, Tokens
from dlblocks.fields import Values as ValuesKind

N, SIZE = 24, (10, 14)
EVERY_MOVE = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "crop_padding": 2,
    "translation": 0.1,
    "rotation": 30,
    "scale": (0.7, 1.3),
    "shear": 10,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def masks_of(size=N, classes=4):
    return torch.randint(0, classes, (size, *SIZE))


def scenes(size=N):
    """Images whose grey value is ten times the label plus ten, so that both can be compared."""
    masks = masks_of(size)
    return (10 + 10 * masks[:, None]).to(torch.uint8), masks


# A mask moves with its image


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("size", [1, 2, 17])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_whole_pixels_move_image_and_mask_alike(dtype, size, padding):
    images, masks = scenes(size)
    augment = Augment(
        horizontal_flip=0.5, vertical_flip=0.5, crop_padding=3, padding=padding, target_kind="mask"
    )
    moved, labels = augment.transform(images.to(dtype), masks, generator())
    assert labels.dtype == torch.int64
    assert labels.shape == masks.shape
    expected = torch.where(moved[:, 0] == 0, 255, (moved[:, 0].long() - 10) // 10)
    assert torch.equal(labels, expected)
    if padding != "zeros":
        assert (labels != 255).all()


def test_flips_are_exact():
    images, masks = scenes()
    for axis, name in ((3, "horizontal_flip"), (2, "vertical_flip")):
        augment = Augment(**{name: 1.0}, target_kind="mask")
        moved, labels = augment.transform(images, masks, generator())
        assert torch.equal(moved, images.flip(axis))
        assert torch.equal(labels, masks.flip(axis - 1))


MOVES = {
    "horizontal_flip": 1.0,
    "vertical_flip": 1.0,
    "crop_padding": 3,
    "translation": 0.3,
    "rotation": 170,
    "scale": (0.4, 2.0),
    "shear": 40,
}


def moved_point(x, y, geometry, i, size):
    """Where a point (x, y) of image i goes, with sines and cosines, one point at a time."""
    height, width = size
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    if geometry.flip[i, 0]:
        x = -x
    if geometry.flip[i, 1]:
        y = -y
    slant, angle = (math.radians(float(v[i])) for v in (geometry.shear, geometry.rotation))
    x -= math.tan(slant) * y
    x, y = (
        math.cos(angle) * x - math.sin(angle) * y,
        math.sin(angle) * x + math.cos(angle) * y,
    )
    x, y = (float(geometry.scale[i]) * v for v in (x, y))
    return (
        x + float(geometry.shift[i, 0]) + (width - 1) / 2,
        y + float(geometry.shift[i, 1]) + (height - 1) / 2,
    )


@pytest.mark.parametrize("moves", [*({name: value} for name, value in MOVES.items()), MOVES])
def test_masks_follow_points_that_are_moved_one_by_one(moves, monkeypatch):
    """Each label of the moved mask is that of the nearest point; far from all it is ignored."""
    masks = masks_of(6, classes=90)
    augment, drawn = Augment(**moves, target_kind="mask"), []
    monkeypatch.setattr(
        augment, "_geometry",
        lambda *args: drawn.append(Augment._geometry(augment, *args)) or drawn[-1],
    )  # fmt: skip
    _, labels = augment.transform(torch.zeros(6, 1, *SIZE), masks, generator())
    (geometry,) = drawn
    checked = 0
    for i in range(6):
        # A moved grid of points is a parallelogram; its sides turn distances back into pixels.
        origin, right, down = (
            np.array(moved_point(*point, geometry, i, SIZE)) for point in ((0, 0), (1, 0), (0, 1))
        )
        sides = np.linalg.inv(np.stack([right - origin, down - origin], 1))
        points = {
            (row, column): np.array(moved_point(column, row, geometry, i, SIZE))
            for row, column in np.ndindex(*SIZE)
        }
        for row, column in np.ndindex(*SIZE):
            away = {at: np.abs(sides @ (point - (column, row))) for at, point in points.items()}
            (y, x), nearest = min(away.items(), key=lambda item: item[1].max())
            if abs(nearest.max() - 0.5) < 1e-3:
                continue  # in the middle between two points, or on the edge
            expected = 255 if nearest.max() > 0.5 else int(masks[i, y, x])
            assert int(labels[i, row, column]) == expected
            checked += 1
    assert checked > 0.8 * 6 * SIZE[0] * SIZE[1]


@pytest.mark.parametrize(
    ("angle", "move", "scale", "shear"),
    [
        (30, (0, 0), 1, 0),
        (-75, (0, 0), 1, 0),
        (0, (3, -2), 1, 0),
        (0, (0, 0), 1.4, 0),
        (17, (2, 1), 0.8, -12),
    ],
)
def test_nearest_is_torchvisions(angle, move, scale, shear):
    image = torch.rand(3, 20, 31) + 1
    matrix = affine_matrix(
        torch.tensor([float(angle)]), torch.tensor([move], dtype=torch.float32),
        torch.tensor([float(scale)]), torch.tensor([float(shear)]), torch.tensor([[False, False]]),
    )  # fmt: skip
    found = affine(image[None], matrix, nearest=True, fill=7)[0]
    expected = TF.affine(
        image, angle, list(move), scale, [shear, 0.0], interpolation=InterpolationMode.NEAREST,
        fill=7,
    )  # fmt: skip
    # Where a pixel's centre lies on the border of two pixels, rounding decides.
    assert (found == expected).float().mean() > 0.97


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_nearest_is_grid_samples(padding):
    """The same maps by torch's own nearest neighbour, of numbers that floats hold."""
    masks = torch.randint(1, 90, (64, 1, 11, 16))
    matrix = affine_matrix(
        torch.rand(64) * 90, torch.randn(64, 2), 0.5 + torch.rand(64), torch.rand(64) * 20,
        torch.rand(64, 2) < 0.5,
    )  # fmt: skip
    size = torch.tensor([16.0, 11.0])
    linear = matrix[:, :, :2] * size[None, None, :] / size[None, :, None]
    theta = torch.cat([linear, matrix[:, :, 2:] * 2 / size[None, :, None]], dim=2)
    grid = torch.nn.functional.affine_grid(theta, [64, 1, 11, 16], align_corners=False)
    expected = torch.nn.functional.grid_sample(
        masks.float(), grid, mode="nearest", padding_mode=padding, align_corners=False
    )
    found = affine(masks, matrix, padding=padding, nearest=True)
    assert (found == expected).float().mean() > 0.999


def test_large_labels_survive():
    """float32 would make 16777216 of it."""
    masks = torch.full((2, 6, 6), 2**24 + 1)
    _, labels = Augment(rotation=40, target_kind=Mask(-1)).transform(
        torch.zeros(2, 1, 6, 6), masks, generator()
    )
    assert set(labels.unique().tolist()) == {-1, 2**24 + 1}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_move_is_one_map_for_image_and_mask(dtype):
    """A slow loop over pixels, with the map that the image shows: a ramp says where it is from."""
    height, width = 40, 60
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    masks = (rows // 4 * 15 + columns // 4)[None].expand(16, -1, -1)
    ramps = torch.stack([rows + 60, columns + 60, torch.full_like(rows, 200)])
    augment = Augment(**EVERY_MOVE, target_kind="mask")
    moved, labels = augment.transform(ramps.expand(16, -1, -1, -1).to(dtype), masks, generator())
    compared = 0
    for image, mask in zip(moved.float(), labels, strict=True):
        for y in range(0, height, 3):
            for x in range(0, width, 3):
                row, column, cover = image[:, y, x].tolist()
                row, column = row - 60, column - 60
                # Away from the edge of the image, and of a square of one label.
                if cover > 199.9 and 0.7 < row % 4 < 2.3 and 0.7 < column % 4 < 2.3:
                    assert mask[y, x] == row // 4 * 15 + column // 4
                    compared += 1
                elif cover == 0:
                    assert mask[y, x] == 255
    assert compared > 200


@pytest.mark.parametrize("ignore_index", [255, 0, -100])
def test_labels_are_those_that_were_there_or_ignored(ignore_index):
    images, masks = scenes(200)
    masks = masks + 1
    _, labels = Augment(
        **EVERY_MOVE, erase=0.5, brightness=0.5, noise=0.1, target_kind=Mask(ignore_index)
    ).transform(images, masks, generator())
    assert set(labels.unique().tolist()) == {ignore_index, 1, 2, 3, 4}
    for before, after in zip(masks, labels, strict=True):
        assert set(after.unique().tolist()) <= {ignore_index, *before.unique().tolist()}


def test_colours_leave_masks_alone_and_no_draw_depends_on_them():
    images, masks = scenes()
    colours = {"brightness": 0.5, "contrast": 0.5, "noise": 0.1}
    _, labels = Augment(**colours, target_kind="mask").transform(images, masks, generator())
    assert labels is masks
    Augment(**colours).transform(images, masks, generator())  # nothing moves, so nothing is refused
    alone, _ = Augment(**EVERY_MOVE).transform(images, torch.zeros(N), generator())
    together, _ = Augment(**EVERY_MOVE, target_kind="mask").transform(images, masks, generator())
    assert torch.equal(alone, together)


def test_what_is_erased_does_not_count():
    images, masks = scenes()
    for transform in (Augment(erase=1.0, target_kind="mask"), Cutout(4, target_kind="mask")):
        original = masks.clone()
        moved, labels = transform.transform(images, masks, generator())
        assert torch.equal(labels, torch.where(moved[:, 0] == 0, 255, masks))
        assert torch.equal(masks, original)  # nothing is written in place
    # Soft masks of MixUp get rows of zeros, which dlblocks.losses.cross_entropy leaves out.
    soft = torch.nn.functional.one_hot(masks).movedim(3, 1).float()
    moved, shares = Cutout(4, target_kind="mask").transform(images, soft, generator())
    assert torch.equal(shares.sum(1) == 0, moved[:, 0] == 0)


def test_image_targets_move_as_images_do():
    images = torch.rand(N, 3, *SIZE)
    moved, targets = Augment(**EVERY_MOVE, target_kind="image").transform(
        images, images.clone(), generator()
    )
    assert torch.equal(moved, targets)
    assert not torch.equal(moved, images)


def test_cutmix_pastes_masks():
    images, masks = scenes()
    mixed, labels = CutMix().transform(images, masks, generator())
    assert torch.equal(mixed[:, 0].long(), 10 + 10 * labels)
    assert not torch.equal(labels, masks)


# What nobody knows is refused


@pytest.mark.parametrize("shape", [(4, 10, 14), (4, 2, 10, 14)])
@pytest.mark.parametrize("make", [lambda: Augment(horizontal_flip=0.5), Cutout])
def test_targets_of_the_images_size_do_not_stay_behind(shape, make):
    images, targets = torch.zeros(4, 3, 10, 14), torch.zeros(shape)
    with pytest.raises(ValueError, match=r"height and width; set target_kind='mask'"):
        make().transform(images, targets, generator())
    # Also on the first batch of a run that begins without the transform.
    late = make()
    late.start_epoch = 3
    with pytest.raises(ValueError, match="target_kind='mask'"):
        late.apply([images, targets], epoch=0, step=0, rank=0)
    make().transform(images, torch.zeros(4, 14), generator())  # not two axes
    kept = type(late)(**({} if make is Cutout else {"horizontal_flip": 1.0}), target_kind="values")
    assert kept.transform(images, targets, generator())[1] is targets


def test_bad_kinds_are_named():
    with pytest.raises(ValueError, match=r"target_kind='maks'.*mask"):
        Augment(target_kind="maks")
    with pytest.raises(TypeError, match="input_kind=3 is not a Kind"):
        ArrayDataModule(np.zeros((4, 2)), [0, 1, 0, 1], input_kind=3)


# A module that keeps what it is given


def module(seen):
    class Look(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            seen.append(batch)
            return self.net.weight.sum()

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Look()


def test_a_fit_moves_masks_without_being_told(make_trainer):
    images, masks = scenes()
    seen = []
    data = ArrayDataModule(images, masks, normalize=False, batch_size=7)
    callbacks = [OneOf([Augment(**EVERY_MOVE), Augment(vertical_flip=1.0)])]
    make_trainer(max_epochs=4, callbacks=callbacks).fit(module(seen), datamodule=data)
    inputs, targets = (torch.cat(column) for column in zip(*seen, strict=True))
    assert (targets == 255).any()
    # A pixel of the image's own grey has its label.
    grey = (inputs[:, 0] * 255).round().long()
    sure = (targets != 255) & (grey % 10 == 0) & (grey > 0)
    agree = (grey[sure] == 10 + 10 * targets[sure]).float().mean()
    assert agree > 0.9  # a mixture of two greys may look like a third
    seen.clear()
    flips = Augment(horizontal_flip=0.5, crop_padding=2)
    make_trainer(max_epochs=2, callbacks=[flips]).fit(module(seen), datamodule=data)
    inputs, targets = (torch.cat(column) for column in zip(*seen, strict=True))
    grey = (inputs[:, 0] * 255).round().long()
    assert torch.equal(targets, torch.where(grey == 0, 255, (grey - 10) // 10))


def test_a_foreign_batch_is_refused_or_told(make_trainer):
    images, masks = scenes()
    data = FoldedDataModule(TensorDataset(images.float(), masks), stratify=False)
    assert getattr(data, "kinds", None) is None
    seen = []
    with pytest.raises(ValueError, match="target_kind='mask'"):
        make_trainer(callbacks=[Augment(horizontal_flip=0.5)]).fit(module(seen), datamodule=data)
    make_trainer(callbacks=[Augment(horizontal_flip=0.5, target_kind="mask")]).fit(
        module(seen), datamodule=data
    )
    for inputs, targets in seen:
        assert torch.equal(inputs[:, 0].long(), 10 + 10 * targets)


def test_a_foreign_datamodule_may_tell_its_kinds(make_trainer):
    images, masks = scenes()

    class Theirs(pl.LightningDataModule):
        kinds: ClassVar = {"inputs": Image(), "targets": Mask(ignore_index=9)}

        def train_dataloader(self):
            return DataLoader(TensorDataset(images.float(), masks), batch_size=8)

    seen = []
    data = FoldedDataModule(Theirs(), stratify=False).for_fold(0, 3)
    assert data.kinds == Theirs.kinds
    augment = Augment(crop_padding=3)
    make_trainer(max_epochs=1, callbacks=[augment]).fit(module(seen), datamodule=data)
    for inputs, targets in seen:
        assert torch.equal(targets == 9, inputs[:, 0] == 0)


def test_kinds_can_be_given_on_the_command_line(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((N, 3), np.int32))
    np.save(tmp_path / "y.npy", np.arange(N) % 2)
    parser = ArgumentParser()
    parser.add_class_arguments(ArrayDataModule, "data")
    arguments = [f"--data.inputs={tmp_path}/x.npy", f"--data.targets={tmp_path}/y.npy"]
    made = parser.instantiate(parser.parse_args([*arguments, "--data.input_kind=tokens"]))
    assert made.data.kinds["inputs"] == Tokens()


def corners(count):
    """Boxes of an image of 8 × 8 pixels."""
    low = torch.rand(count, 2) * 4
    return torch.cat([low, low + 1 + torch.rand(count, 2) * 3], 1)


def test_boxes_come_as_torchvisions_dictionaries(make_trainer):
    boxes = Ragged.of([corners(i % 3) for i in range(N)])
    data = ArrayDataModule(torch.zeros(N, 1, 8, 8), boxes, val_fraction=0.25, batch_size=4)
    seen = []
    make_trainer(max_epochs=1).fit(module(seen), datamodule=data)
    assert all(len(inputs) == len(targets) for inputs, targets in seen)
    index = data.indices("train")
    for inputs, targets, row in data.predict_dataloader():
        assert [t["boxes"].shape for t in targets] == [(int(i) % 3, 4) for i in row]
        assert [t["labels"].tolist() for t in targets] == [[0] * (int(i) % 3) for i in row]
        assert len(inputs) == len(row)
    assert torch.equal(data.arrays("train")[1][0]["boxes"], boxes[int(index[0])])
    other = Ragged.of([*(boxes[i] for i in range(N - 1)), corners(2)])
    changed = ArrayDataModule(torch.zeros(N, 1, 8, 8), other)
    assert changed.fingerprint() != data.fingerprint()


@dataclass(frozen=True)
class Fixed(Kind):
    """Values for which nobody knows how they move."""

    refusal = "they cannot; remove transforms that move pixels"


def test_a_kind_that_cannot_move_is_refused_by_name_before_the_first_step(make_trainer):
    data = ArrayDataModule(torch.zeros(N, 1, 8, 8), torch.rand(N), target_kind=Fixed())
    seen = []
    with pytest.raises(ValueError, match="Augment cannot change targets of kind 'fixed'"):
        make_trainer(callbacks=[Augment(rotation=5)]).fit(module(seen), datamodule=data)
    assert not seen


def test_transforms_of_single_images_are_refused_for_masks():
    images, masks = scenes()
    data = ArrayDataModule(images, masks, train_transform=TF.hflip)
    with pytest.raises(ValueError, match=r"train_transform=hflip .* kind 'mask'; use .*Augment"):
        data.setup()
    ArrayDataModule(images, np.arange(N) % 2, train_transform=TF.hflip).setup()


# A new kind is one class


def test_an_angle_is_one_new_class(make_trainer):
    @dataclass(frozen=True)
    class Angle(Kind):
        """Direction of a needle in degrees, clockwise."""

        def move(self, values, geometry):
            mirrored = torch.where(geometry.flip[:, 0], 180 - values, values)
            return (mirrored + geometry.rotation.to(values)) % 360

    def needle(angle, size=41):
        """A line from the centre, drawn pixel by pixel."""
        image = torch.zeros(1, size, size)
        for step in range(60):
            x = size // 2 + 0.3 * step * math.cos(math.radians(angle))
            y = size // 2 + 0.3 * step * math.sin(math.radians(angle))
            image[0, round(y), round(x)] = 1
        return image

    def read(image):
        """The direction of the centre of mass."""
        size = image.shape[-1]
        x = y = 0.0
        for i in range(size):
            for j in range(size):
                x += float(image[i, j]) * (j - size // 2)
                y += float(image[i, j]) * (i - size // 2)
        return math.degrees(math.atan2(y, x)) % 360

    angles = torch.rand(12) * 360
    images = torch.stack([needle(float(angle)) for angle in angles])
    data = ArrayDataModule(images, angles, target_kind=Angle(), normalize=False, batch_size=4)
    assert not data.is_classification
    assert data.kinds == {"inputs": Image(), "targets": Angle()}
    seen = []
    augment = Augment(rotation=90, horizontal_flip=0.5)
    make_trainer(max_epochs=1, callbacks=[augment]).fit(module(seen), datamodule=data)
    moved = 0
    for inputs, targets in seen:
        for image, angle in zip(inputs, targets, strict=True):
            difference = (read(image[0]) - float(angle) + 180) % 360 - 180
            assert abs(difference) < 4
            moved += float((angles - angle).abs().min()) > 1
    assert moved > 6


# Tokens, features and images


def test_tokens_reach_the_model_as_they_are(make_trainer):
    tokens = torch.randint(0, 3000, (N, 5))
    targets = torch.arange(N) % 2
    for given in (tokens, tokens.numpy().astype(np.int32), tokens.numpy().astype(np.uint16)):
        data = ArrayDataModule(given, targets, input_kind="tokens", num_folds=3, batch_size=4)
        assert data.kinds == {"inputs": Tokens(), "targets": Class()}
        seen = []
        make_trainer(max_epochs=1).fit(module(seen), datamodule=data)
        inputs = torch.cat([batch[0] for batch in seen])
        assert inputs.dtype == torch.int64
        rows = data.indices("train")
        assert sorted(inputs.tolist()) == sorted(tokens[rows].tolist())
        assert torch.equal(data.transform(data.arrays("val")[0]), tokens[data.indices("val")])


def test_tokens_in_a_file_are_mapped(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 99, (N, 5)).astype(np.int16)
    np.save(tmp_path / "tokens.npy", tokens)
    data = ArrayDataModule(tmp_path / "tokens.npy", np.arange(N) % 2, input_kind="tokens")
    data.setup()
    assert data.source.inputs.dtype == torch.int16
    batch = next(iter(data.train_dataloader()))
    assert batch[0].dtype == torch.int64


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(N, 5), (N, 5, 6)])
def test_whole_numbers_of_no_clear_kind_are_refused(dtype, shape):
    numbers = np.ones(shape, dtype)
    with pytest.raises(ValueError, match=r"input_kind='tokens' to keep .* input_kind='features'"):
        ArrayDataModule(numbers, np.arange(N) % 2).setup()
    features = ArrayDataModule(numbers, np.arange(N) % 2, input_kind="features")
    features.setup()
    assert features.source.inputs.dtype == torch.float32
    assert ArrayDataModule(np.ones(shape, bool), np.arange(N) % 2).kinds["inputs"] == Features()

    class Own(DataModule):
        def load(self):
            return Source(torch.from_numpy(numbers.astype(np.int64)), torch.arange(N) % 2)

    with pytest.raises(ValueError, match="input_kind='tokens'"):
        Own().setup()


def test_float_tokens_and_masks_are_refused():
    with pytest.raises(ValueError, match=r"inputs is torch.float32, but kind 'tokens' needs whole"):
        ArrayDataModule(np.ones((4, 2), np.float32), [0, 1, 0, 1], input_kind="tokens").setup()
    with pytest.raises(ValueError, match=r"targets is torch.float32, but kind 'mask' needs whole"):
        ArrayDataModule(torch.zeros(4, 1, 8, 8), torch.zeros(4, 8, 8), target_kind="mask").setup()


@pytest.mark.parametrize(
    ("inputs", "targets", "kinds"),
    [
        (torch.zeros(8, 3), torch.arange(8) % 2, (Features(), Class())),
        (torch.zeros(8, 3), torch.rand(8), (Features(), ValuesKind())),
        (torch.zeros(8, 3, 4, 4).byte(), torch.rand(8, 2), (Image(), ValuesKind())),
        (torch.zeros(8, 3, 4, 4), torch.arange(128).view(8, 4, 4) % 3, (Image(), Mask())),
        (torch.zeros(8, 3), torch.tensor([[1, 1], [0, 1]] * 4), (Features(), Labels())),
        (
            torch.zeros(8, 3, 4, 4),
            Ragged.of([torch.tensor([[0.0, 1, 2, 3]])] * 8),
            (Image(), Boxes()),
        ),
    ],
)
def test_kinds_are_found(inputs, targets, kinds):
    source = Source(inputs, targets)
    assert tuple(source.kinds.values()) == kinds
    assert [field.role for field in source.fields.values()] == ["input", "target"]
    assert tuple(ArrayDataModule(inputs, targets).kinds.values()) == kinds
    assert replace(source, target_kind=Kind()).kinds["targets"] == Kind()


# Masks as data


def test_masks_are_data_like_any_other(make_trainer):
    images, masks = scenes()
    masks[:, 0] = 255
    data = ArrayDataModule(images, masks.to(torch.uint8), num_folds=3, test_fraction=0.25)
    assert data.columns.targets is None
    assert not data.is_classification
    assert data.num_classes == data.out_features == 4
    parts = [data.for_fold(fold, 3) for fold in range(3)]
    rows = torch.cat([part.indices("val") for part in parts])
    assert sorted([*rows.tolist(), *data.indices("test").tolist()]) == list(range(N))
    for part in (*parts, data.subset(data.indices("train")), data.with_selection(0.2)):
        assert part.kinds == {"inputs": Image(), "targets": Mask()}
        part.setup()
        seen = []
        for inputs, targets in part.train_dataloader():
            assert targets.dtype == torch.int64
            shown = (inputs[:, 0].long() - 10) // 10
            assert torch.equal(targets[:, 1:], shown[:, 1:])
            seen.append(targets)
        assert torch.equal(
            torch.cat(seen).flatten().bincount(), masks[part.indices("train")].flatten().bincount()
        )
    same = ArrayDataModule(images, masks.to(torch.uint8))
    assert same.fingerprint() == data.fingerprint()
    masks[0, 5, 5] += 1
    assert ArrayDataModule(images, masks.to(torch.uint8)).fingerprint() != data.fingerprint()
    named = ArrayDataModule(images, masks, class_names=["sky", "sea", "sand", "grass", "stone"])
    assert named.num_classes == 5
    assert named.for_fold(0, 3).class_names[0] == "sky"


@pytest.mark.parametrize(
    ("images", "masks", "arguments", "message"),
    [
        (torch.zeros(4, 1, 8, 8), torch.zeros(4, 6, 6).long(), {}, r"expected classes \(N,\)"),
        (
            torch.zeros(4, 1, 8, 8), torch.zeros(4, 6, 6).long(), {"target_kind": "mask"},
            "need the height and width",
        ),
        (torch.zeros(4, 8), torch.zeros(4, 8, 8).long(), {"target_kind": "mask"}, "need the h"),
        (torch.zeros(4, 1, 8, 8), torch.full((4, 8, 8), -1), {}, r"Mask\(ignore_index=-1\)"),
        (
            torch.zeros(4, 1, 8, 8), torch.full((4, 8, 8), 2), {"class_names": ["a", "b"]},
            "label 2, but there are 2 classes; pixels to ignore have label 255",
        ),
        (
            torch.zeros(4, 1, 8, 8), torch.zeros(4, 1, 8, 8).long(), {"target_kind": "mask"},
            "Remove the axis",
        ),
        (torch.zeros(4, 1, 8, 8), torch.zeros(4, 8, 8), {}, r"expected classes \(N,\)"),
    ],
)  # fmt: skip
def test_bad_masks_are_refused(images, masks, arguments, message):
    with pytest.raises(ValueError, match=message):
        ArrayDataModule(images, masks, **arguments).setup()
    ignored = ArrayDataModule(
        torch.zeros(4, 1, 8, 8), torch.full((4, 8, 8), -1), target_kind=Mask(ignore_index=-1)
    )
    ignored.setup()
    assert ignored.num_classes == 0


def test_hyperparameters_name_the_kinds():
    data = ArrayDataModule(
        torch.zeros(4, 1, 8, 8), torch.zeros(4, 8, 8).long(), target_kind=Mask(0)
    )
    assert data.hparams["target_kind"] == "Mask(ignore_index=0)"
    assert data.hparams["input_kind"] is None


# Ragged


def test_ragged_is_a_list_of_rows():
    rows = [torch.rand(i, 4) for i in (2, 0, 3)]
    ragged = Ragged.of(rows)
    assert all(torch.equal(a, b) for a, b in zip([ragged[i] for i in range(3)], rows, strict=True))
    assert torch.equal(ragged[-1], rows[2])
    with pytest.raises(IndexError):
        ragged[3]
    for offsets in ([0, 2], [1, 5], [0, 4, 2, 5]):
        with pytest.raises(ValueError, match="offsets must"):
            Ragged(torch.zeros(5, 4), torch.tensor(offsets))
    data = ArrayDataset(torch.arange(3.0)[:, None], ragged, kinds={"targets": Boxes()})
    assert torch.equal(data[2][1]["boxes"], rows[2])
