"""DetectionDataModule over arrays, COCO and Pascal VOC; wrong files by name."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dlblocks.data import DetectionDataModule, boxes_of_tiles, cut_tiles
from dlblocks.data.annotations import fitted
from dlblocks.fields import Ragged


def drawn(folder, name, size=(20, 30), boxes=()):
    """A black image with white boxes."""
    pixels = np.zeros((*size, 3), np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = 255
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


ROWS = {
    "a.png": [(3, 4, 10, 12, "cat"), (15, 2, 25, 18, "dog")],
    "b.png": [],
    "sub/c.png": [(0, 0, 30, 20, "dog")],
    "sub/d.png": [(5, 5, 9, 9, "cat")],
}


def images(tmp_path, size=(20, 30)):
    for name, rows in ROWS.items():
        drawn(tmp_path / "images", name, size, [row[:4] for row in rows])
    return str(tmp_path / "images")


def coco(tmp_path, **changes):
    ids = {"dog": 18, "cat": 17}  # not from 0, and not in order
    found = {
        "images": [{"id": 7 * i, "file_name": name, "height": 20, "width": 30}
                   for i, name in enumerate(ROWS)],
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
        "annotations": [
            {"id": 100 * i + k, "image_id": 7 * i, "category_id": ids[row[4]], "iscrowd": 0,
             "bbox": [row[0], row[1], row[2] - row[0], row[3] - row[1]]}
            for i, rows in enumerate(ROWS.values()) for k, row in enumerate(rows)
        ],
    }  # fmt: skip
    for key, change in changes.items():
        change(found[key])
    (tmp_path / "boxes.json").write_text(json.dumps(found))
    return str(tmp_path / "boxes.json")


def voc(tmp_path, first=1, change=lambda text: text):
    for name, rows in ROWS.items():
        path = tmp_path / "xml" / name.replace(".png", ".xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x0 + first}</xmin><ymin>{y0 + first}"
            f"</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for x0, y0, x1, y1, label in rows
        )
        size = "<size><width>30</width><height>20</height><depth>3</depth></size>"
        if rows:  # an image without objects may have no file
            path.write_text(change(f"<annotation>{size}{objects}</annotation>"))
    return str(tmp_path / "xml")


def check_pixels(data):
    """Boxes are where the images are white."""
    data.setup()
    for part in ("train", "val"):
        pictures, targets, _ = data.arrays(part)
        for picture, target in zip(pictures, targets, strict=True):
            expected = torch.zeros_like(picture)
            for x0, y0, x1, y1 in target["boxes"].long().tolist():
                expected[:, y0:y1, x0:x1] = 255
            assert torch.equal(picture, expected)


@pytest.mark.parametrize("kind", ["coco", "voc", "voc from 0"])
def test_files_are_read_to_the_pixel(tmp_path, kind):
    folder = images(tmp_path)
    boxes = coco(tmp_path) if kind == "coco" else voc(tmp_path, first=1 - ("0" in kind))
    first = 0 if "0" in kind else 1
    data = DetectionDataModule(folder, boxes, val_fraction=0.25, first_pixel=first)
    check_pixels(data)
    assert data.class_names == ["cat", "dog"]
    assert data.num_classes == 2
    source = data.source
    found = [[(*map(int, row[:4]), data.class_names[int(row[4])]) for row in source.targets[i]]
             for i in range(4)]  # fmt: skip
    assert found == list(ROWS.values())


def test_a_test_set_has_the_classes_of_the_training_set(tmp_path):
    folder = images(tmp_path)
    only = coco(tmp_path, annotations=lambda rows: None)
    data = DetectionDataModule(
        folder, only, test_images=folder, test_boxes=voc(tmp_path), class_names=["dog", "cat"],
        val_fraction=0.25,
    )  # fmt: skip
    data.setup()
    assert torch.equal(data.source.targets.values, data.source.test_targets.values)
    assert data.source.targets[3][0, 4] == 1
    assert len(next(iter(data.test_dataloader()))[1]) == 4


def test_resizing_moves_boxes_as_the_pixels(tmp_path):
    """The shorter side is resized, the centre cut out, and what leaves the image is dropped."""
    folder = tmp_path / "images"
    drawn(folder, "a.png", (40, 80), [(30, 10, 50, 30), (0, 0, 19, 40)])
    rows = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [30, 10, 20, 20]},
            {"id": 2, "image_id": 0, "category_id": 1, "bbox": [0, 0, 19, 40]}]  # fmt: skip
    drawn(folder, "b.png", (40, 40))
    (tmp_path / "boxes.json").write_text(json.dumps({
        "images": [{"id": 0, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "x"}], "annotations": rows,
    }))  # fmt: skip
    data = DetectionDataModule(
        str(folder), str(tmp_path / "boxes.json"), size=20, in_channels=1, val_fraction=0.5
    )
    source = data.source
    assert source.inputs.shape == (2, 1, 20, 20)
    assert source.targets[0].tolist() == [[5, 5, 15, 15, 0]]
    bright = (source.inputs[0, 0] > 127).nonzero()
    assert bright.min(0).values.tolist() == [5, 5]
    assert bright.max(0).values.tolist() == [14, 14]
    moved, share = fitted(np.array([[10.0, 0, 30, 40]]), (40, 80), (20, 20))
    assert moved.tolist() == [[0, 0, 5, 20]]
    assert share.tolist() == [0.5]


def test_arrays_and_formats():
    pictures = np.zeros((4, 1, 20, 30), np.uint8)
    corners = [np.array([row[:4] for row in rows]) for rows in ROWS.values()]  # (0,) for none
    names = [[row[4] for row in rows] for rows in ROWS.values()]
    one = DetectionDataModule(pictures, corners, names, class_names=["cat", "dog"])
    sides = [np.column_stack([c[:, :2], c[:, 2:] - c[:, :2]]) if len(c) else c for c in corners]
    two = DetectionDataModule(pictures, sides, names, class_names=["cat", "dog"],
                              box_format="xywh")  # fmt: skip
    assert torch.equal(one.source.targets.values, two.source.targets.values)
    assert one.source.targets.offsets.tolist() == [0, 2, 2, 3, 4]
    three = DetectionDataModule(
        pictures, Ragged.of([torch.tensor(c, dtype=torch.float32).reshape(-1, 4) for c in corners])
    )
    assert three.num_classes == 1
    assert one.fingerprint() != three.fingerprint()


def test_batches_and_groups(tmp_path):
    data = DetectionDataModule(
        images(tmp_path), coco(tmp_path), groups=r"^(sub/)?", num_folds=2, batch_size=4
    )
    data.setup()
    parts = [sorted(data.indices(part).tolist()) for part in ("train", "val")]
    assert sorted(parts) == [[0, 1], [2, 3]]
    pictures, targets = next(iter(data.train_dataloader()))
    assert pictures.shape == (2, 3, 20, 30)
    for target in targets:
        assert target["boxes"].dtype == torch.float32
        assert target["labels"].dtype == torch.int64
        assert target["boxes"].shape == (len(target["labels"]), 4)


def test_cache(tmp_path):
    folder, boxes = images(tmp_path), coco(tmp_path)
    made = DetectionDataModule(folder, boxes, cache=str(tmp_path / "cache"))
    made.prepare_data()
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    plain = DetectionDataModule(folder, boxes)
    assert torch.equal(torch.as_tensor(made.source.inputs), plain.source.inputs)


def without(name):
    def change(rows):
        rows.append({"id": 99, "file_name": name, "height": 20, "width": 30})

    return change


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"images": without("e.png")}, FileNotFoundError, r"names 1 of 5 images .*: e.png"),
        ({"annotations": lambda rows: rows[0].update(image_id=5)}, ValueError, "image_id=5, which"),
        ({"annotations": lambda rows: rows[0].update(category_id=1)}, ValueError, "category_id=1"),
        ({"annotations": lambda rows: rows[0].update(bbox=[5, 5, -2, 4])}, ValueError,
         r"a.png: box 0 is \[5.0, 5.0, 3.0, 9.0\] .* inverted"),
        ({"annotations": lambda rows: rows[0].update(bbox=[5, 5, 0, 4])}, ValueError,
         "without area"),
        ({"annotations": lambda rows: rows[0].update(bbox=[25, 5, 8, 4])}, ValueError, "outside"),
        ({"images": lambda rows: rows[0].update(height=30, width=20)}, ValueError,
         "has 20×30 pixels, but its annotation says 30×20"),
        # Files that were joined: boxes would move to another image, or classes be renamed.
        ({"images": lambda rows: rows[1].update(id=0)}, ValueError, "has id=0 twice in images"),
        ({"images": lambda rows: rows[1].update(file_name="a.png")}, ValueError,
         "has file_name='a.png' twice in images"),
        ({"categories": lambda rows: rows[1].update(id=18)}, ValueError, "id=18 twice in categ"),
        ({"categories": lambda rows: rows[1].update(name="dog")}, ValueError, "name='dog' twice"),
        ({"images": lambda rows: rows[0].pop("file_name")}, ValueError, "needs 'id' and 'file_n"),
        ({"annotations": lambda rows: rows[0].update(bbox=[5, 5, 4])}, ValueError,
         r"annotation 0 has bbox=\[5, 5, 4\]; expected four numbers"),
        ({"annotations": lambda rows: rows[0].pop("bbox")}, ValueError, "bbox=None; expected"),
    ],
)  # fmt: skip
def test_wrong_coco_files(tmp_path, changes, error, says):
    folder = images(tmp_path)
    with pytest.raises(error, match=says):
        DetectionDataModule(folder, coco(tmp_path, **changes)).setup()


def test_rounding_is_clipped_and_crowds_are_left_out(tmp_path):
    def change(rows):
        rows[1].update(bbox=[15, 2, 15.4, 18.3])  # 30.4 and 20.3
        rows[0].update(iscrowd=1)

    data = DetectionDataModule(images(tmp_path), coco(tmp_path, annotations=change))
    assert data.source.targets[0].tolist() == [[15, 2, 30, 20, 1]]


def test_pascal_voc_that_counts_from_0_is_told(tmp_path):
    folder, xml = images(tmp_path), voc(tmp_path, first=0)
    with pytest.warns(UserWarning, match=r"sub/c.xml has the box \[0.0, .*set first_pixel=0"):
        DetectionDataModule(folder, xml).setup()


def test_other_wrong_files(tmp_path):
    folder = images(tmp_path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x.json is not JSON"):
        DetectionDataModule(folder, str(tmp_path / "x.json")).setup()
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="has no list 'images'; a COCO file has"):
        DetectionDataModule(folder, str(tmp_path / "x.json")).setup()
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        DetectionDataModule(folder, str(tmp_path / "none")).setup()
    with pytest.raises(FileNotFoundError, match="is no folder"):
        DetectionDataModule(str(tmp_path / "none"), coco(tmp_path)).setup()
    with pytest.raises(TypeError, match="boxes is a list, but images is a folder"):
        DetectionDataModule(folder, []).setup()
    xml = voc(tmp_path, change=lambda text: text.replace("xmin", "left"))
    with pytest.raises(ValueError, match=r"\.xml is not an annotation of Pascal VOC .*no xmin"):
        DetectionDataModule(folder, xml).setup()
    xml = voc(tmp_path)
    (tmp_path / "xml" / "z.xml").write_text("<annotation/>")
    with pytest.raises(FileNotFoundError, match=r"z\.xml is of no image"):
        DetectionDataModule(folder, xml).setup()
    (tmp_path / "xml" / "z.xml").unlink()
    with pytest.raises(ValueError, match="class 'dog', which is not among 1 class_names"):
        DetectionDataModule(folder, xml, class_names=["cat"]).setup()
    drawn(tmp_path / "images", "wide.png", (20, 50))
    with pytest.raises(ValueError, match=r"wide\.png has 20×50 pixels .* set size="):
        DetectionDataModule(folder, xml).setup()


def test_tiles_of_a_large_image(tmp_path):
    """Each pixel of a box lies in the tiles that have a part of the box."""
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 80, (30, 2))
    rows = np.column_stack([corner, corner + rng.integers(3, 25, (30, 2)), np.arange(30)])
    image = rng.integers(0, 255, (3, 70, 110))
    _, positions = cut_tiles([image], 32)
    found = boxes_of_tiles([rows], positions, min_visible=0.3)
    assert positions[:, 1:3].tolist() == [[r, c] for r in (0, 32, 38) for c in (0, 32, 64, 78)]
    for boxes, (_, top, left, *_) in zip(found, positions, strict=True):
        mine = {int(row[4]): row[:4] for row in boxes}
        for row in rows:
            painted = np.zeros((140, 140), bool)
            painted[row[1] : row[3], row[0] : row[2]] = True
            part = painted[top : top + 32, left : left + 32]
            assert (part.sum() >= 0.3 * painted.sum()) == (int(row[4]) in mine)
            if int(row[4]) in mine:
                ys, xs = np.nonzero(part)
                expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                assert mine[int(row[4])].tolist() == expected
    assert boxes_of_tiles([[]], positions)[0].shape == (0, 4)
    with pytest.raises(ValueError, match="positions has image 1, but boxes has 1 entries"):
        boxes_of_tiles([rows], positions + np.eye(1, 5, dtype=int))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[25, 12, 15, 2]], r"\[25.0, 12.0, 15.0, 2.0\] in image 1"),
        ([[15, 12, 25, 2]], "x0 < x1 and y0 < y1"),
        ([[1, 1, 5, 5], [np.nan, 2, 25, 12]], "expected finite"),
        ([1, 2, 3, 4], r"shape \(4,\) in image 1; .* for one box"),
        ([[1, 2, 3]], r"shape \(1, 3\) in image 1"),
    ],
)
def test_wrong_boxes_are_not_dropped_from_tiles(rows, says):
    _, positions = cut_tiles([np.zeros((1, 40, 40))] * 2, 20)
    with pytest.raises(ValueError, match=says):
        boxes_of_tiles([[], rows], positions)


def test_tiles_of_an_image_without_boxes_have_the_same_columns():
    _, positions = cut_tiles([np.zeros((1, 20, 40))] * 2, 20)
    found = boxes_of_tiles([[], [[2, 2, 8, 8, 5]]], positions)
    assert [rows[:, 4].tolist() for rows in found] == [[], [], [5], []]


def test_blocks_of_tiles_with_boxes_keep_their_margin():
    tiles, positions = cut_tiles([np.zeros((1, 120, 160), np.uint8)], 20)
    data = DetectionDataModule(
        tiles, [[]] * len(tiles), positions=positions, split="blocks", margin=15
    ).for_fold(1, 3)
    data.setup()
    train, val = (positions[data.indices(part)] for part in ("train", "val"))
    gaps = np.abs(train[:, None, 1:3] - val[None, :, 1:3]) - 20
    assert len(train) and len(val) and gaps.max(-1).min() >= 15
    with pytest.raises(ValueError, match="would put neighbours on both"):
        DetectionDataModule(tiles, [[]] * len(tiles), positions=positions)


PICTURES = np.zeros((2, 1, 20, 30), np.uint8)


@pytest.mark.parametrize(
    ("boxes", "labels", "error", "says"),
    [
        ([[[1, 2, 3]], []], None, ValueError, r"shape \(1, 3\) in image 0; expected \(n, 4\)"),
        ([[1, 2, 3, 4], []], None, ValueError, r"also for one box: \(1, 4\)"),
        ([[[1, 2, 3, 4]], []], [[0, 1], []], ValueError, "image 0 has 1 boxes and 2 labels"),
        ([[[1, 2, 3, 4]], []], [[0]], ValueError, "boxes has 2 images and labels 1"),
        ([[[1, 2, 3, 4]], []], [["cow"], []], ValueError, "class 'cow', which is not among 2"),
        ([[[1, 2, 3, 4]]], None, ValueError, "2 samples and targets has 1"),
        ([[[1, 9, 3, 4]], []], None, ValueError, "inverted"),
        ({"a": 1}, None, TypeError, "boxes is a dict; give a list"),
    ],
)
def test_wrong_arrays(boxes, labels, error, says):
    names = ["cat", "dog"] if labels else None
    with pytest.raises(error, match=says):
        DetectionDataModule(PICTURES, boxes, labels, class_names=names).setup()
