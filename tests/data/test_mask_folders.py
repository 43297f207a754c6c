"""Folders of images and masks: pairs, decoding, sizes, and errors that name file and pixel."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from dlblocks.data import SegmentationDataModule
from dlblocks.models import UNetSegmenter

H, W = 6, 9


def write(folder, count=6, size=(H, W), mode="L", suffix="", values=(0, 1, 2, 255)):
    """Images whose red is that of their mask's class, times 40. Returns the masks."""
    rng = np.random.default_rng(0)
    masks = rng.choice(values, (count, *size)).astype(np.uint8)
    for i, mask in enumerate(masks):
        for part in ("images", "masks"):
            (folder / part / f"p{i % 2}").mkdir(parents=True, exist_ok=True)
        pixels = np.stack([40 * (mask % 6), np.full(size, i), np.zeros(size)], -1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"p{i % 2}" / f"{i}.png")
        image = Image.fromarray(mask)
        if mode == "P":
            image.putpalette([x for c in range(256) for x in (c, 255 - c, 7)])
        image.save(folder / "masks" / f"p{i % 2}" / f"{i}{suffix}.png")
    order = np.argsort([f"p{i % 2}/{i}" for i in range(count)])
    return masks[order]


def make(folder, **arguments):
    return SegmentationDataModule(str(folder / "images"), str(folder / "masks"), **arguments)


@pytest.mark.parametrize("mode", ["L", "P"])
@pytest.mark.parametrize("cache", [False, True])
def test_pairs_are_decoded_alike(tmp_path, mode, cache):
    masks = write(tmp_path, mode=mode, suffix="_mask")
    data = make(tmp_path, mask_suffix="_mask", cache=str(tmp_path / "cache") if cache else None)
    assert data.source.targets.shape == (6, H, W)
    assert (data.source.targets.numpy() == masks).all()
    assert (data.source.inputs[:, 0].numpy() == 40 * (masks % 6)).all()
    assert data.num_classes == 3
    again = make(tmp_path, mask_suffix="_mask", cache=str(tmp_path / "cache") if cache else None)
    assert again.fingerprint() == data.fingerprint()


def test_resized_masks_keep_their_values_and_follow_their_images(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    mask = np.zeros((20, 40), np.uint8)
    mask[:, 18:22] = 200
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    Image.fromarray(mask).save(tmp_path / "images" / "a.png")
    source = make(tmp_path, size=10, in_channels=1, labels=[0, 200]).source
    assert source.targets.unique().tolist() == [0, 1]
    bright = source.inputs[0, 0] > 100
    assert (source.targets[0].bool() == bright).float().mean() > 0.85


@pytest.mark.parametrize("mode", ["L", "1"])
def test_black_and_white(tmp_path, mode):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    mask = np.zeros((4, 4), np.uint8)
    mask[1] = 255
    for i in range(3):
        Image.fromarray(mask).convert(mode).save(tmp_path / "masks" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "images" / f"{i}.png")
    data = make(tmp_path, labels=[0, 255], ignore_index=254, class_names=["ground", "cell"])
    assert (data.source.targets[0].numpy() == mask // 255).all()
    assert data.class_names == ["ground", "cell"]


def test_a_fit(tmp_path, make_trainer):
    write(tmp_path, count=10)
    write(tmp_path / "held_out", count=4)
    test = {f"test_{part}": str(tmp_path / "held_out" / part) for part in ("images", "masks")}
    data = make(tmp_path, groups="(p.)/", batch_size=4, num_folds=2, **test)
    data.setup()
    assert len(data.indices("train")) == len(data.indices("val")) == 5
    model = UNetSegmenter(3, 3, width=4, depth=2, lr=0.01)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(model, data)
    assert 0 < trainer.test(model, data, verbose=False)[0]["test/iou"] <= 1
    prediction = trainer.predict(model, data)[0]["prediction"]
    assert prediction.shape == (4, 3, H, W)


def save(path, array, **arguments):
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **arguments)


def wrong_size(folder):
    save(folder / "masks/p0/2.png", np.zeros((H, W + 1)))


def wrong_value(folder):
    mask = np.zeros((H, W))
    mask[2, 3] = 7
    save(folder / "masks/p0/2.png", mask)


def in_colour(folder):
    save(folder / "masks/p0/2.png", np.zeros((H, W, 3)))


def missing(folder):
    os.rename(folder / "masks/p0/2.png", folder / "masks/p0/22.png")


def lossy(folder):
    os.remove(folder / "masks/p0/2.png")
    save(folder / "masks/p0/2.jpg", np.zeros((H, W)))


def cut_off(folder):
    path = folder / "masks/p0/2.png"
    path.write_bytes(path.read_bytes()[:40])


def other_size(folder):
    for part in ("images", "masks"):
        save(folder / part / "p0/2.png", np.zeros((H, W + 1)))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (wrong_size, r"masks/p0/2.png has 6×10 pixels, but its image .*images/p0/2.png has 6×9"),
        (wrong_value, r"masks/p0/2.png has the value 7 in row 2, column 3, .*0, 1, 2, .*255"),
        (in_colour, r"masks/p0/2.png is a mask of mode RGB"),
        (missing, r"images/p0/2.png has no mask .*did you mean 'p0/22'"),
        (lossy, r"masks/p0/2.jpg is a mask in a format that may change"),
        (cut_off, r"masks/p0/2.png"),
        (other_size, r"images/p0/2.png has 6×10 pixels and .*6×9; set size="),
    ],
)
def test_errors_name_the_file(tmp_path, harm, says):
    write(tmp_path)
    harm(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        make(tmp_path, class_names=["a", "b", "c"]).setup()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"labels": [0, 255]}, "ignore_index=255, which is no class"),
        ({"labels": [0, 1], "class_names": ["a"]}, "labels has 2 values and class_names 1"),
        ({"size": 0}, "size=0"),
        ({"ignore_index": -1}, "ignore_index=-1"),
        ({"test_images": "x"}, "test_images and test_masks together"),
    ],
)
def test_arguments(tmp_path, arguments, says):
    with pytest.raises(ValueError, match=says):
        make(tmp_path, **arguments)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        make(tmp_path).setup()


def test_values_that_are_no_class_are_found_before_training(tmp_path, make_trainer):
    write(tmp_path, values=(0, 1, 9))
    model = UNetSegmenter(3, 2, width=4, depth=2)
    with pytest.raises(ValueError, match=r"label 9 in sample \d, row \d, column \d"):
        make_trainer().fit(model, make(tmp_path))
    assert torch.isfinite(next(model.parameters())).all()
