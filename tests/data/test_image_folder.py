import io

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
        ({"groups": "(", "num_folds": 2}, r"groups='\(' is no regular expression"),
        ({"groups": "dora", "num_folds": 2}, "matches nothing in 'a/anna-0.png'"),
        ({"split": "leave_one_group_out"}, "ImageFolderDataModule have groups="),
        ({"split": "time_series"}, "class by class"),
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
    with pytest.raises(FileNotFoundError, match="is no folder"):
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
    with pytest.raises(ValueError, match=r"size=.* must be \(height, width\) or one number"):
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
    with pytest.raises(ValueError, match=r"x/a\.tif cannot be .* mode [FI], .*8 or 16 bits"):
        ImageFolderDataModule(str(tmp_path), size=4).setup()


def test_empty_class_folder_is_refused(tmp_path):
    paint(tmp_path / "a" / "good.png", (1, 2, 3))
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match="b"):
        ImageFolderDataModule(str(tmp_path), size=4).setup()
