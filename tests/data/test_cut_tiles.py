"""Large images cut into tiles, and maps of tiles put together, against loops over pixels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dlblocks.cli import main
from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule, SegmentationDataModule, cut_tiles, join_tiles
from dlblocks.models import Segmenter

SIZES = [(23, 31), (16, 16), (40, 17)]


@pytest.fixture
def folders(tmp_path):
    """Images of three sizes whose red and green say where a pixel lies, and masks."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    images, masks = [], []
    for i, (height, width) in enumerate(SIZES):
        rows, columns = np.indices((height, width))
        images.append(np.stack([rows, columns, np.full_like(rows, i)]).astype(np.uint8))
        masks.append(rng.integers(0, 3, (height, width)).astype(np.uint8))
        Image.fromarray(images[-1].transpose(1, 2, 0)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(masks[-1]).save(tmp_path / "masks" / f"{i}.png")
    return tmp_path, images, masks


def make(folder, **arguments):
    return SegmentationDataModule(str(folder / "images"), str(folder / "masks"), **arguments)


@pytest.mark.parametrize("stride", [None, 5, 1])
def test_tiles_are_cut_where_their_positions_say_and_cover_all(folders, stride):
    _, images, _ = folders
    tiles, positions = cut_tiles(images, 12, stride=stride)
    assert len(tiles) == len(positions)
    covered = [np.zeros(size, int) for size in SIZES]
    for tile, (image, row, column, height, width) in zip(tiles, positions, strict=True):
        assert (height, width) == (12, 12)
        for r, c in ((0, 0), (11, 4), (11, 11)):
            assert tile[:, r, c].tolist() == [row + r, column + c, image]
        covered[image][row : row + 12, column : column + 12] += 1
    assert all((count > 0).all() for count in covered)
    starts = np.unique(positions[positions[:, 0] == 2, 1])
    assert (
        starts.tolist()
        == {None: [0, 12, 24, 28], 5: [*range(0, 28, 5), 28], 1: [*range(29)]}[stride]
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_joined_pixels_come_from_the_tile_that_has_them_most_central(dtype):
    rng = np.random.default_rng(0)
    positions = np.array([(1, r, c, 6, 8) for r in (0, 3, 7) for c in (0, 5, 20)])
    tiles = rng.permutation(9 * 6 * 8).reshape(9, 6, 8).astype(dtype)
    (number, whole), = join_tiles(tiles, positions).items()  # fmt: skip
    assert number == 1
    assert whole.shape == (13, 28)
    for r, c in np.ndindex(13, 28):
        depth, value = 0, {np.uint8: 255, np.int16: -1, np.float32: np.nan}[dtype]
        for tile, (_, top, left, height, width) in zip(tiles, positions, strict=True):
            y, x = r - top, c - left
            if 0 <= y < height and 0 <= x < width:
                inside = min(y, x, height - 1 - y, width - 1 - x) + 1
                if inside > depth:
                    depth, value = inside, tile[y, x]
        assert whole[r, c] == value or (np.isnan(value) and np.isnan(whole[r, c]))


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("stride", [None, 7])
def test_folders_of_large_images_become_tiles(folders, cache, stride, tmp_path):
    folder, images, masks = folders
    place = str(tmp_path / "cache") if cache else None
    data = make(folder, tile=12, stride=stride, cache=place, split="blocks", class_names=[*"abc"])
    expected, positions = cut_tiles(images, 12, stride=stride)
    assert (data.source.inputs.numpy() == expected).all()
    assert (data.source.targets.numpy() == cut_tiles(masks, 12, stride=stride)[0]).all()
    assert (data.columns.positions == positions).all()
    joined = join_tiles(data.source.targets, data.columns.positions)
    assert all((joined[i] == mask).all() for i, mask in enumerate(masks))
    assert [path[-5] for path in data.files] == ["0", "1", "2"]
    again = make(folder, tile=12, stride=stride, cache=place, split="blocks", class_names=[*"abc"])
    assert again.fingerprint() == data.fingerprint()
    for rows in data.splits(2):
        val = [*map(tuple, positions[rows["val"]][:, :3])]
        for image, r, c in positions[rows["train"]][:, :3].tolist():
            assert not any(i == image and abs(r - y) < 13 and abs(c - x) < 13 for i, y, x in val)


def test_other_splits_keep_the_tiles_of_an_image_together(folders):
    folder, *_ = folders
    data = make(folder, tile=12)
    image = data.columns.positions[:, 0]
    for rows in data.splits(3):
        assert not {*image[rows["train"]]} & {*image[rows["val"]]}
        assert len(rows["train"]) + len(rows["val"]) == len(image)
    named = make(folder, tile=12, groups=lambda path: "b" if path == "2.png" else "a")
    assert [*named.columns.groups] == ["b" if i == 2 else "a" for i in image]


class Lower(Segmenter):
    """Predicts class 1 from row 11 on: what the red of its image says."""

    def __init__(self):
        net = torch.nn.Conv2d(3, 3, 1)
        super().__init__(net, 3, optimizer="sgd", lr=1e-12)
        with torch.no_grad():
            net.weight.zero_()[1, 0] = 255
            net.bias.copy_(torch.tensor([0.0, -10.5, -1e3]))


def test_out_of_fold_tiles_make_maps_of_whole_images(folders, tmp_path):
    folder, images, _ = folders
    data = make(
        folder, tile=12, stride=6, split="blocks", class_names=[*"abc"], normalize=False,
        batch_size=16,
    )  # fmt: skip
    result = cross_validate(
        Lower, data, num_folds=2, trainer={"max_epochs": 1, "accelerator": "cpu"},
        run_dir=tmp_path / "run", progress_bar=False, figures=False, select="last",
    )  # fmt: skip
    maps = join_tiles(result.oof.prediction, data.columns.positions[result.oof.index])
    for number, image in enumerate(images):
        assert maps[number].shape == image.shape[1:]
        assert (maps[number] == (image[0] > 10)).all()
    assert result.oof.index.tolist() == list(range(len(data.source.inputs)))


def test_refused(folders):
    folder, images, _ = folders
    for make_it, message in (
        (lambda: make(folder, tile=17).source, "1.png has 16×16 pixels, less than tile=17"),
        (lambda: make(folder).source, "set size=, to which all are resized, or tile="),
        (lambda: make(folder, stride=3), "stride=3 has no effect without tile"),
        (lambda: make(folder, tile=8, stride=9), "stride=9"),
        (lambda: make(folder, split="blocks"), "set tile="),
        (lambda: make(folder, tile=8, groups="duplicates"), "with tile=8 leave groups out"),
        (lambda: cut_tiles(images, 17), r"images\[1\] has shape \(3, 16, 16\)"),
        (lambda: cut_tiles([], 17), "images is empty"),
        (lambda: join_tiles(np.zeros((2, 3, 3)), np.zeros((2, 3))), r"and \(M, 5\)"),
        (
            lambda: join_tiles(np.zeros((1, 3, 3)), np.array([[0, 0, 0, 4, 4]])),
            "resize the tiles first",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make_it()
    for i in (1, 2):
        (folder / "images" / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="cuts a single image, whose tiles must not be on both"):
        make(folder, tile=8).source  # noqa: B018
    assert make(folder, tile=8, split="blocks").splits(2)


def test_arrays_of_tiles_take_their_positions():
    images = np.zeros((1, 1, 32, 32), np.uint8)
    tiles, positions = cut_tiles(images, 8)
    masks, _ = cut_tiles(np.zeros((1, 32, 32), np.int64), 8)
    data = ArrayDataModule(tiles, masks, positions=positions, split="blocks", num_folds=4)
    assert sorted(len(rows["val"]) for rows in data.splits(4)) == [4, 4, 4, 4]
    assert {len(rows["train"]) for rows in data.splits(4)} == {16 - 4 - 5}


def test_the_command_line_cuts_and_splits(folders, tmp_path):
    folder, *_ = folders
    main([
        "cross-validate", "--model=UNetSegmenter", "--model.width=2", "--model.depth=1",
        "--data=SegmentationDataModule", f"--data.images={folder / 'images'}",
        f"--data.masks={folder / 'masks'}", "--data.class_names=[a,b,c]", "--data.tile=8",
        "--data.stride=4", "--data.split=blocks", "--data.margin=2", "--data.num_blocks=4",
        "--data.batch_size=16", "--num_folds=2", f"--run_dir={tmp_path / 'run'}",
        "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
    ])  # fmt: skip
    written = json.loads((tmp_path / "run" / "folds.json").read_text())
    positions = make(
        folder, tile=8, stride=4, split="blocks", class_names=[*"abc"]
    ).columns.positions[:, :3].astype(int)  # fmt: skip
    for fold in written["folds"]:
        for image, r, c in positions[fold["selection"]].tolist():
            near = [
                abs(r - y) < 10 and abs(c - x) < 10
                for i, y, x in positions[fold["val"]].tolist()
                if i == image
            ]
            assert not any(near)
