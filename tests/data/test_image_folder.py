import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from dlblocks.cli import main
from dlblocks.crossval import CrossValidationResult
from dlblocks.data import ImageFolderDataModule
from dlblocks.models import CNNClassifier

# Folders of images


def paint(path, colour, size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_image_folder(tmp_path):
    for i in range(4):
        paint(tmp_path / "red" / f"{i}.png", (255, 0, 0))
        paint(tmp_path / "blue" / f"{i}.bmp", (0, 0, 255), size=(8, 30))
    data = ImageFolderDataModule(str(tmp_path), size=(6, 8))
    assert data.class_names == ["blue", "red"]
    assert data.source.inputs.shape == (8, 3, 6, 8)
    assert data.source.inputs.dtype == torch.uint8
    for image, target in zip(data.source.inputs, data.source.targets, strict=True):
        assert (image[0 if target else 2] == 255).all()
    grey = ImageFolderDataModule(str(tmp_path), size=4, in_channels=1)
    assert grey.input_shape == (1, 4, 4)


def test_image_folder_trains_a_cnn_with_a_logger(tmp_path, make_trainer):
    """Lightning refuses hyperparameters of model and data that share a name and differ."""
    for i in range(6):
        paint(tmp_path / "images" / "red" / f"{i}.png", (255, 40 * i, 0))
        paint(tmp_path / "images" / "blue" / f"{i}.png", (0, 40 * i, 255))
    trainer = make_trainer(logger=CSVLogger(tmp_path / "log"), log_every_n_steps=1)
    trainer.fit(
        CNNClassifier(3, 2, channels=[4]),
        datamodule=ImageFolderDataModule(str(tmp_path / "images"), size=8, batch_size=4),
    )
    assert trainer.global_step == 3


WRITERS = ("anna", "bert", "carl")


@pytest.fixture
def written(tmp_path):
    """Two letters by three writers, unequally many."""
    for letter in "ab":
        for number, writer in enumerate(WRITERS):
            for i in range(2 + number):
                paint(tmp_path / "images" / letter / f"{writer}-{i}.png", (i, number, 0))
    return str(tmp_path / "images")


@pytest.mark.parametrize(
    "groups", ["/([a-z]+)-", "[a-z]{4}", lambda path: path.split("/")[1].split("-")[0]]
)
def test_groups_of_images(written, groups):
    data = ImageFolderDataModule(written, size=4, groups=groups, split="leave_one_group_out")
    assert data.count_folds() == 3
    for fold, writer in enumerate(WRITERS):
        part = data.for_fold(fold, None)
        # The green of an image is the number of its writer.
        assert set(part.arrays("val")[0][:, 1].unique().tolist()) == {fold}, writer
        assert len(part.indices("val")) == 2 * (2 + fold)
        assert fold not in part.arrays("train")[0][:, 1]
    kfold = ImageFolderDataModule(written, size=4, groups=groups, num_folds=3)
    for fold in range(3):
        assert len(kfold.for_fold(fold, 3).arrays("val")[0][:, 1].unique()) == 1


def test_predefined_folds_of_images(written):
    data = ImageFolderDataModule(written, size=4, folds=r"-(\d)", split="predefined")
    assert data.count_folds() == 4
    assert [len(data.for_fold(fold, None).indices("val")) for fold in range(4)] == [6, 6, 4, 2]
    # An empty name always trains.
    some = ImageFolderDataModule(written, size=4, folds="(bert|carl|$)", split="predefined")
    assert some.count_folds() == 2
    assert len(some.indices("val")) == 6
    assert len(some.indices("train")) == 12


def test_groups_of_images_from_yaml(written, tmp_path):
    (tmp_path / "letters.yaml").write_text(f"""
model:
  class_path: dlblocks.models.CNNClassifier
  init_args: {{in_channels: 3, num_classes: 2, channels: [4]}}
data:
  class_path: dlblocks.data.ImageFolderDataModule
  init_args: {{root: {written}, size: 4, groups: "/([a-z]+)-", split: leave_one_group_out}}
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false}}
logger: none
run_dir: {tmp_path / "run"}
""")
    main(["cross-validate", f"--config={tmp_path / 'letters.yaml'}"])
    result = CrossValidationResult.load(tmp_path / "run")
    assert [row["num_val"] for row in result.folds] == [4, 6, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": "(", "num_folds": 2}, r"groups='\(' is not a regular expression"),
        ({"groups": "dora", "num_folds": 2}, "matches nothing in 'a/anna-0.png'"),
        (
            {"split": "leave_one_group_out"},
            "set groups= of ArrayDataModule or ImageFolderDataModule",
        ),
        ({"split": "time_series"}, "sorted by class"),
        ({"folds": r"(\d)"}, "use split='predefined'"),
    ],
)
def test_bad_groups_of_images_are_refused(written, arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageFolderDataModule(written, size=4, **arguments).setup()


def test_image_folder_with_a_test_set(tmp_path):
    for part, count in (("train", 6), ("test", 2)):
        for name in ("a", "b"):
            for i in range(count):
                paint(tmp_path / part / name / f"{i}.png", (i, i, i))
    data = ImageFolderDataModule(str(tmp_path), size=4)
    assert len(data.arrays("test")[0]) == 4
    assert len(data.arrays("train")[0]) + len(data.arrays("val")[0]) == 12


def test_bad_image_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        ImageFolderDataModule(str(tmp_path / "none"), size=4).setup()
    paint(tmp_path / "a" / "good.png", (1, 2, 3))
    paint(tmp_path / "b" / "good.png", (1, 2, 3))
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (9, 9, 9)).save(buffer, "PNG")
    (tmp_path / "b" / "broken.png").write_bytes(buffer.getvalue()[:60])
    with pytest.raises(ValueError, match=r"broken\.png cannot be decoded"):
        ImageFolderDataModule(str(tmp_path), size=4).setup()
    with pytest.raises(ValueError, match="in_channels=2"):
        ImageFolderDataModule(str(tmp_path), size=4, in_channels=2)


@pytest.mark.parametrize("size", [2.5, (8.5, 8), (8, 8, 8), "8", None])
def test_bad_sizes_are_refused(size):
    with pytest.raises(ValueError, match=r"size=.* must be a whole number or 2 values"):
        ImageFolderDataModule("folder", size=size)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_scaled(tmp_path, name):
    pixels = np.arange(65536).reshape(256, 256).astype(np.uint16)
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / name)
    for channels in (1, 3):
        data = ImageFolderDataModule(str(tmp_path), size=256, in_channels=channels)
        expected = np.round(pixels / 65535 * 255)
        assert (data.source.inputs.numpy() == expected).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_images_of_unknown_range_are_refused(tmp_path, dtype):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / folder / "a.tif")
    with pytest.raises(ValueError, match=r"x/a\.tif cannot be .*mode [FI], .*8 or 16 bits"):
        ImageFolderDataModule(str(tmp_path), size=4).setup()


def test_empty_class_folder_is_refused(tmp_path):
    paint(tmp_path / "a" / "good.png", (1, 2, 3))
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match=r"/b has no image .*; remove this class"):
        ImageFolderDataModule(str(tmp_path), size=4).setup()


# Parts


def paint_parts(root, **parts):
    """A folder for each part, with so many images of the classes a and b, of a grey of its own."""
    for grey, (part, count) in enumerate(parts.items(), start=1):
        for name in "ab":
            for i in range(count):
                paint(root / part / name / f"{i}.png", (grey, grey, grey))
    return str(root)


def greys(data, part):
    return data.arrays(part)[0][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "training_set", "train-data",
                                   "train_images", "images_train", "train2017"])  # fmt: skip
@pytest.mark.parametrize("val", ["val", "Val", "valid", "VALIDATION", "validation set", "dev"])
@pytest.mark.parametrize("test", ["test", "Testing", "TEST", "test_set"])
def test_parts_in_any_spelling(tmp_path, train, val, test):
    root = paint_parts(tmp_path, **{train: 3, val: 2, test: 1})
    data = ImageFolderDataModule(root, size=4)
    assert data.class_names == ["a", "b"]
    assert greys(data, "train") == [1] * 6
    assert greys(data, "val") == [2] * 4
    assert greys(data, "test") == [3] * 2


def test_a_validation_folder_and_folds(tmp_path):
    data = ImageFolderDataModule(paint_parts(tmp_path, train=4, val=2, test=1), size=4)
    for num_folds, fold in ((3, 0), (3, 2)):
        part = data.for_fold(fold, num_folds)
        assert len(part.indices("val")) == 4
        assert sorted(greys(part, "train") + greys(part, "val")) == [1] * 8 + [2] * 4
        assert greys(part, "test") == [3] * 2
    assert "the 4 images of the validation folder are in the folds too" in " ".join(data.notes())
    assert sorted(greys(data.without_validation(), "train")) == [1] * 8 + [2] * 4
    # Of some rows alone, their images of the folder validate, if there are any.
    some = data.subset([0, 1, 4, 5, 8, 10])
    assert (some.indices("train").tolist(), some.indices("val").tolist()) == ([0, 1, 4, 5], [8, 10])
    assert len(data.subset(range(8)).indices("val")) == 2  # by val_fraction
    plain = ImageFolderDataModule(paint_parts(tmp_path / "plain", train=2, test=1), size=4)
    assert plain.notes() == []


def test_a_validation_folder_and_a_share_held_out(tmp_path):
    root = paint_parts(tmp_path, train=10, val=10)
    data = ImageFolderDataModule(root, size=4, test_fraction=0.25)
    assert len(data.indices("test")) == 10
    assert (set(greys(data, "train")), set(greys(data, "val"))) == ({1}, {2})
    assert len(data.indices("train")) + len(data.indices("val")) == 30


def test_groups_in_both_folders_are_refused(tmp_path):
    root = paint_parts(tmp_path, train=3, val=2)
    for groups, name in ((r"/(\d)", "'0'"), ("duplicates", "equal images")):
        paint(tmp_path / "val" / "a" / "0.png", (1, 1, 1))
        data = ImageFolderDataModule(root, size=4, groups=groups)
        with pytest.raises(ValueError, match=f"groups has {name} in the folders of both"):
            data.setup()


def test_parts_may_lack_classes_of_training_alone(tmp_path):
    root = paint_parts(tmp_path, train=3, val=2, test=2)
    for part in ("val", "test"):
        (tmp_path / part / "a").rename(tmp_path / part / "c")
    with pytest.raises(ValueError, match="/val has the class 'c', which training lacks"):
        ImageFolderDataModule(root, size=4).setup()
    (tmp_path / "val" / "c").rename(tmp_path / "c")
    with pytest.raises(ValueError, match="beside other folders of images, such as 'c'"):
        ImageFolderDataModule(root, size=4).setup()
    (tmp_path / "c").rename(tmp_path / "train" / "c")
    data = ImageFolderDataModule(root, size=4)
    assert data.class_names == ["a", "b", "c"]
    assert data.arrays("val")[1].tolist() == [1, 1]
    assert data.arrays("test")[1].tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("val", "test"), "has 'test' and 'val', but no folder 'train'; add"),
        (("train", "Training"), "'Training' and 'train', which both mean 'train'"),
        (("train", "val", "valid"), "'val' and 'valid', which both mean 'val'"),
        (("train", "cats"), "has 'train' beside other folders of images, such as 'cats'; move"),
        (("cats/train", "cats/test", "dogs/train"), "inside of 'cats', which would be a class"),
    ],
)
def test_ambiguous_parts_are_refused(tmp_path, parts, message):
    root = paint_parts(tmp_path, **dict.fromkeys(parts, 1))
    with pytest.raises(ValueError, match=message):
        ImageFolderDataModule(root, size=4).setup()


def test_other_folders_beside_the_parts_are_left_alone(tmp_path):
    root = paint_parts(tmp_path, train=4, val=1)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.json").write_text("{}")
    assert ImageFolderDataModule(root, size=4).num_classes == 2
    (tmp_path / "test").mkdir()
    with pytest.raises(FileNotFoundError, match="/test has no folder of a class"):
        ImageFolderDataModule(root, size=4).setup()
    (tmp_path / "test" / "a").mkdir()
    with pytest.raises(FileNotFoundError, match="/test has no image; remove this folder"):
        ImageFolderDataModule(root, size=4).setup()


# Formats


def two_classes(root, save):
    """The same picture in two classes; returns the pixels of one, as a datamodule reads them."""
    for name in "xy":
        (root / name).mkdir(parents=True, exist_ok=True)
        save(root / name)

    def read(**arguments):
        data = ImageFolderDataModule(str(root), **{"size": 4, **arguments})
        images = data.source.inputs
        assert torch.equal(images[0], images[1]) and len(images) == 2
        return images[0].numpy()

    return read


RAMP = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17  # 0 … 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("background", [255, 0, 100])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette", "key"])
def test_transparent_pixels_are_laid_on_the_background(tmp_path, mode, background, channels):
    alpha = np.full((4, 4), 255, np.uint8)
    alpha[:2] = 0
    if mode in ("RGBA", "LA"):
        alpha[1] = 51
        bands = [RAMP] * (len(mode) - 1) + [alpha]
        image, options = Image.merge(mode, [Image.fromarray(band) for band in bands]), {}
    elif mode == "palette":
        image, options = Image.fromarray(RAMP).convert("P"), {"transparency": 0}
        alpha = np.where(np.asarray(image) == 0, 0, 255)
    else:
        image, options = Image.fromarray(RAMP), {"transparency": 17}
        alpha = np.where(RAMP == 17, 0, 255)
    read = two_classes(tmp_path, lambda folder: image.save(folder / "a.png", **options))
    share = alpha / 255
    expected = share * RAMP + (1 - share) * background
    found = read(background=background, in_channels=channels)
    np.testing.assert_allclose(found, np.stack([expected] * channels), atol=0.51)


def test_the_background_may_be_a_colour(tmp_path):
    image = Image.new("RGBA", (4, 4))
    read = two_classes(tmp_path, lambda folder: image.save(folder / "a.webp", lossless=True))
    assert read(background=(10, 20, 30))[:, 0, 0].tolist() == [10, 20, 30]
    assert read()[:, 0, 0].tolist() == [255, 255, 255]
    for bad in ((1, 2), 256, -1, (0, 0, 300)):
        with pytest.raises(ValueError, match="background"):
            read(background=bad)


@pytest.mark.parametrize("cache", [False, True])
def test_another_background_is_another_cache(tmp_path, cache):
    image = Image.new("RGBA", (4, 4))
    read = two_classes(tmp_path, lambda folder: image.save(folder / "a.png"))
    assert (read(cache=cache) == 255).all()
    if not cache:
        assert (read(cache=cache, background=0) == 0).all()
        return
    with pytest.warns(UserWarning, match=r"built with background=\(255.*, and now .*\(0, 0, 0\)"):
        assert (read(cache=cache, background=0) == 0).all()
    assert (read(cache=cache, background=0) == 0).all()  # without a warning


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["JPG", "png", "webp"])
def test_photographs_are_upright(tmp_path, orientation, ending):
    """The pixels that a viewer shows, by the table of the EXIF standard."""
    shown = np.zeros((8, 8), np.uint8)
    shown[:4, :4], shown[:4, 4:] = 255, 128  # a corner and an edge, of which all turns differ
    stored = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda x: np.rot90(x, 1),
        7: lambda x: np.rot90(x, 2).T,
        8: lambda x: np.rot90(x, -1),
    }[orientation](shown)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if ending == "JPG" else {"lossless": True}
    image = Image.fromarray(np.ascontiguousarray(stored)).convert("RGB")
    read = two_classes(
        tmp_path, lambda folder: image.save(folder / f"a.{ending}", exif=exif, **options)
    )
    np.testing.assert_allclose(read(size=8)[0], shown, atol=3)


def test_of_several_frames_the_first_is_taken(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (50, 100, 150)]
    for ending in ("gif", "tif", "webp"):
        more = {"save_all": True, "append_images": frames[1:]}
        more |= {"lossless": True} if ending == "webp" else {}
        read = two_classes(
            tmp_path / ending,
            lambda folder, e=ending, m=more: frames[0].save(folder / f"a.{e}", **m),
        )
        assert (read() == 50).all(), ending


def test_other_modes(tmp_path):
    """CMYK by Pillow's formula, and black and white."""
    ink = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    read = two_classes(tmp_path / "ink", lambda folder: ink.save(folder / "a.tif"))
    assert read()[:, 0, 0].tolist() == [255, 0, 0]
    bits = Image.fromarray(RAMP > 100)
    assert bits.mode == "1"
    read = two_classes(tmp_path / "bits", lambda folder: bits.save(folder / "a.png"))
    np.testing.assert_array_equal(read(in_channels=1)[0], np.where(RAMP > 100, 255, 0))


def test_files_that_cannot_be_read_are_named(tmp_path):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    read = two_classes(
        tmp_path / "cut", lambda folder: (folder / "ä.JPG").write_bytes(buffer.getvalue()[:2000])
    )
    with pytest.raises(ValueError, match=r"x/ä\.JPG cannot be .*truncated.*; repair or remove"):
        read()
    read = two_classes(tmp_path / "phone", lambda folder: (folder / "a.HEIC").write_bytes(b"..."))
    with pytest.raises(ValueError, match=r"a\.HEIC cannot be .*; save it as JPEG, or call"):
        read()


def test_a_folder_of_phone_photographs(tmp_path):
    """Turned JPEGs of several sizes with capital endings, hidden copies, and train and Val."""
    random = np.random.default_rng(0)

    def shoot(path, bright, orientation):
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (48, 64) if orientation < 5 else (64, 48)
        pixels = random.integers(0, 60, (*size, 3), dtype=np.uint8) + np.uint8(120 * bright)
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = orientation, "Phone"
        Image.fromarray(pixels).save(path, "JPEG", exif=exif)

    for part, count in (("train", 8), ("Val", 3)):
        for bright, name in enumerate(("Küche", "garden")):
            for i in range(count):
                shoot(tmp_path / part / name / f"IMG_{i:04}.JPG", bright, (1, 6, 3, 8)[i % 4])
            for hidden in (".ipynb_checkpoints/IMG_0000-checkpoint.JPG", "._IMG_0001.JPG"):
                shoot(tmp_path / part / name / hidden, 1 - bright, 1)
            (tmp_path / part / name / ".DS_Store").write_bytes(b"\0")
            (tmp_path / part / name / "Thumbs.db").write_bytes(b"\0")
        (tmp_path / part / ".ipynb_checkpoints").mkdir()
    shoot(tmp_path / "__MACOSX" / "train" / "garden" / "._IMG_0000.JPG", 1, 1)
    shoot(tmp_path / "train" / "__MACOSX" / "._IMG_0000.JPG", 1, 1)
    (tmp_path / ".git").mkdir()

    data = ImageFolderDataModule(str(tmp_path), size=16, cache=True)
    assert data.class_names == ["Küche", "garden"]
    data.setup()
    assert (len(data.indices("train")), len(data.indices("val"))) == (16, 6)
    images, targets, _ = data.arrays("train")
    assert ((images.float().mean((1, 2, 3)) > 100) == (targets == 1)).all()


# Photographs that come with scikit-image: colour, grey, transparent, PNG and JPEG, wide and tall.
PHOTOGRAPHS = {
    "animals": ["chelsea.png", "horse.png"],
    "people": ["astronaut.png", "camera.png"],
    "things": ["cell.png", "coffee.png", "coins.png", "logo.png"],
    "space": ["hubble_deep_field.jpg", "moon.png", "rocket.jpg"],
}
GROUND = (0, 120, 255)  # of transparent pixels
SHIPPED = Path(str(importlib.util.find_spec("skimage").origin)).parent / "data"


def by_hand(file, turned, size):
    """An image with its ground, shrunk and cut by Pillow and NumPy without `ImageOps`."""
    with Image.open(file) as opened:
        image = opened.convert("RGBA")
    pixels = np.asarray(image).astype(np.float64)
    pixels = np.rot90(pixels, k=3) if turned else pixels
    alpha = pixels[..., 3:] / 255
    laid = (alpha * pixels[..., :3] + (1 - alpha) * GROUND).round().astype(np.uint8)
    height, width = laid.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(laid).resize((size, size), Image.Resampling.BILINEAR, box))


@pytest.mark.parametrize("cache", [False, True])
def test_real_photographs(tmp_path, cache):
    """A folder as a camera and a Mac leave it, with the test set apart."""
    expected = {"train": [], "Test": []}
    for name in sorted(PHOTOGRAPHS):
        for i, file in enumerate(PHOTOGRAPHS[name]):
            part = "Test" if i == 0 else "train"
            folder = tmp_path / part / name
            folder.mkdir(parents=True, exist_ok=True)
            path, turned = folder / file, file == "rocket.jpg"
            content = (SHIPPED / file).read_bytes()
            if turned:  # the camera was held upright, as its note says
                exif = Image.Exif()
                exif[0x0112] = 6
                note = exif.tobytes()  # in a segment of its own, after the first two bytes
                segment = b"\xff\xe1" + (len(note) + 2).to_bytes(2, "big") + note
                content = content[:2] + segment + content[2:]
            path.write_bytes(content)
            if file == "logo.png":  # cut out: its white is transparent
                with Image.open(path) as logo:
                    pixels = np.array(logo)
                pixels[..., 3] = 255 - pixels[..., :3].min(axis=2)
                Image.fromarray(pixels).save(path)
            (folder / f"._{file}").write_bytes(b"\0\5\x16\7Mac OS X")
            expected[part].append((sorted(PHOTOGRAPHS).index(name), file,
                                   by_hand(path, turned, 32)))  # fmt: skip
        (tmp_path / name / ".ipynb_checkpoints").mkdir(parents=True, exist_ok=True)
    data = ImageFolderDataModule(str(tmp_path), size=32, background=GROUND, cache=cache)
    assert data.class_names == sorted(PHOTOGRAPHS)
    source = data.source
    for part, images, targets in (
        ("train", source.inputs, source.targets),
        ("Test", source.test_inputs, source.test_targets),
    ):
        wanted = sorted(expected[part], key=lambda row: row[:2])
        assert targets.tolist() == [row[0] for row in wanted]
        for image, (_, file, pixels) in zip(images, wanted, strict=True):
            found = image.numpy().transpose(1, 2, 0).astype(int)
            assert np.abs(found - pixels).max() <= 1, file  # the ground's rounding
            assert found.std() > 5, file


def test_links_to_folders_above_are_not_followed(tmp_path):
    for name in ("cat", "dog"):
        paint(tmp_path / "all" / name / "0.png", "red")
    paint(tmp_path / "elsewhere" / "1.png", "blue")
    (tmp_path / "all" / "cat" / "loop").symlink_to("..")
    (tmp_path / "all" / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    data = ImageFolderDataModule(str(tmp_path / "all"), size=4)
    assert data.source.targets.tolist() == [0, 1, 1]


def test_hidden_copies_are_no_samples(tmp_path):
    """The visible images are those of torchvision, in its order."""
    from torchvision.datasets import ImageFolder

    for name in ("a/1.png", "a/b/2.PNG", "a/b-c/3.bmp", "b/ö/4.jpeg", "b/z.webp"):
        paint(tmp_path / "all" / name, (1, 2, 3))
    theirs = [path for path, _ in ImageFolder(str(tmp_path / "all")).samples]
    for name in ("a/.x/1.png", "a/.2.png", "b/@eaDir/z.webp", "__MACOSX/b/._4.jpeg", ".c/1.png"):
        paint(tmp_path / "all" / name, (1, 2, 3))
    seen = []
    ImageFolderDataModule(
        str(tmp_path / "all"), size=4, groups=lambda path: seen.append(path) or path
    ).setup()
    assert [str(tmp_path / "all" / path) for path in seen] == theirs
