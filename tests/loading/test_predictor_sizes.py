"""Maps of new images of another size than in training."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dlblocks
from dlblocks.data import ArrayDataModule, SegmentationDataModule
from dlblocks.fields import Boxes, Ragged
from dlblocks.models import Classifier, CNNClassifier, Segmenter, UNetSegmenter

IMAGES = torch.randint(0, 256, (12, 1, 16, 16), dtype=torch.uint8)
MASKS = (IMAGES[:, 0] > 128).long()
LARGE = torch.randint(0, 256, (3, 1, 29, 38), dtype=torch.uint8)


def fitted(model, data=None):
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data or ArrayDataModule(IMAGES, MASKS, batch_size=4))
    return model.eval()


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    model = fitted(UNetSegmenter(1, 2, width=2, depth=2))
    path = tmp_path_factory.mktemp("unet") / "model.ckpt"
    model.save(path)
    return model, dlblocks.load(path)


@pytest.mark.parametrize("size", [(29, 38), (5, 7), (16, 16), (1, 64)])
def test_maps_have_the_size_of_the_images(unet, size):
    model, predictor = unet
    images = torch.randint(0, 256, (3, 1, *size), dtype=torch.uint8)
    found = predictor.predict(images.numpy(), batch_size=2)
    assert found.prediction.shape == (3, 2, *size)
    with torch.no_grad():
        expected = model(images).softmax(1).numpy()  # raw images: the model normalises them
    np.testing.assert_allclose(found.prediction, expected, atol=1e-5)


def test_what_is_no_image_of_that_kind_is_still_refused(unet):
    _, predictor = unet
    for shape in ((3, 2, 16, 16), (3, 16, 16), (1, 16, 16)):
        with pytest.raises(ValueError, match=r"trained on samples of shape \(1, 16, 16\)"):
            predictor.predict(np.zeros(shape, np.uint8))


class Fixed(nn.Module):
    """Takes images of 16×16 alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(256, 512)

    def forward(self, x):
        return self.layer(x.flatten(1)).view(-1, 2, 16, 16)


class Cut(nn.Module):
    """Puts out 16×16 whatever comes in."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return self.layer(x)[..., :16, :16]


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (Fixed, "was trained on images of 16×16 pixels and fails with 29×38"),
        (Cut, "makes maps of 16×16 of images of 29×38; resize the images, or cut them into tiles"),
    ],
)
def test_a_net_that_cannot_take_them_is_named(net, says):
    predictor = dlblocks.load(fitted(Segmenter(net(), 2)))
    assert predictor.predict(IMAGES).prediction.shape == (12, 2, 16, 16)
    with pytest.raises(ValueError, match=says):
        predictor.predict(LARGE)


def test_classifiers_keep_their_size():
    predictor = dlblocks.load(
        fitted(
            CNNClassifier(1, 2, channels=[2]),
            ArrayDataModule(IMAGES, torch.arange(12) % 2, batch_size=4),
        )
    )
    assert isinstance(predictor.model, Classifier)
    with pytest.raises(ValueError, match=r"trained on samples of shape \(1, 16, 16\)"):
        predictor.predict(LARGE)


@pytest.mark.parametrize("size", [None, 16])
def test_files_keep_their_size_unless_training_resized(tmp_path, size):
    for part in ("images", "masks", "new"):
        (tmp_path / part).mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 256, (16 + i % 2 * 4, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray((pixels > 128).astype(np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    new = rng.integers(0, 256, (2, 24, 33), dtype=np.uint8)
    for i, pixels in enumerate(new):
        Image.fromarray(pixels).save(tmp_path / "new" / f"{i}.png")
    how = {"tile": 8} if size is None else {"size": size}
    data = SegmentationDataModule(
        str(tmp_path / "images"), str(tmp_path / "masks"), in_channels=1, batch_size=4,
        val_fraction=0.3, **how,
    )  # fmt: skip
    model = fitted(UNetSegmenter(1, 2, width=2, depth=1), data)
    predictor = dlblocks.load(model)
    found = predictor.predict(str(tmp_path / "new"))
    assert found.prediction.shape == (2, 2, *((24, 33) if size is None else (16, 16)))
    if size is None:
        with torch.no_grad():
            expected = model(torch.from_numpy(new)[:, None]).softmax(1)
        np.testing.assert_allclose(found.prediction, expected, atol=1e-5)
        with pytest.raises(ValueError, match="predict images of one size at a time"):
            predictor.predict(str(tmp_path / "images"))


@pytest.mark.parametrize("target_kind", ["boxes", "mask"])
def test_boxes_are_in_the_pixels_of_the_file(target_kind):
    images = np.zeros((10, 1, 8, 8), np.uint8)
    if target_kind == "boxes":
        targets = Ragged.of([torch.tensor([[1.0, 1, 5, 5, 0]])] * 10)
        data = ArrayDataModule(images, targets, target_kind=Boxes())
    else:
        data = ArrayDataModule(images, np.zeros((10, 8, 8), np.int64), target_kind="mask")
    # An empty list leaves files as they are; None is the size of training.
    assert data.encoder.file_size == ([] if target_kind == "boxes" else None)
