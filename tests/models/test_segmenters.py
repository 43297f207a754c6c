"""Segmenters in real fits: cross-validation with both engines, averages, tests, checkpoints."""

import copy
import json
from pathlib import Path

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dlblocks.callbacks import Augment, CutMix, Cutout, MixUp
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.data import ArrayDataModule, FoldedDataModule
from dlblocks.fields import Mask
from dlblocks.models import Segmenter, UNetSegmenter, VisionSegmenter, VotingEnsemble, load
from dlblocks.models._predict_batches import target_in
from dlblocks.tasks import SegmentationTask


def shapes(count=40, size=11):
    """Grey images with one square of class 1 or 2; the first row does not count."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, size, size, generator=draw) * 0.3
    masks = torch.zeros(count, size, size, dtype=torch.uint8)
    for i in range(count):
        y, x = torch.randint(0, size - 5, (2,), generator=draw).tolist()
        masks[i, y : y + 5, x : x + 5] = 1 + i % 2
        images[i, 0, y : y + 5, x : x + 5] += 0.4 * (1 + i % 2)
    masks[:, 0] = 255
    return images, masks


IMAGES, MASKS = shapes()


def data(**arguments):
    return ArrayDataModule(IMAGES, MASKS, **{"test_fraction": 0.2, "batch_size": 8, **arguments})


def model(**arguments):
    return UNetSegmenter(1, 3, **{"width": 4, "depth": 2, "lr": 0.01, **arguments})


def slow_iou(predictions, targets):
    known = targets != 255
    t, p = targets[known], predictions[known]
    pairs = [((t == c) & (p == c), (t == c) | (p == c)) for c in range(3)]
    return np.mean([both.sum() / either.sum() for both, either in pairs if either.any()])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    found = {}
    for engine in ("sequential", "vectorized"):
        found[engine] = cross_validate(
            lambda: model(loss="cross_entropy+dice"),
            data(),
            num_folds=2,
            trainer={"max_epochs": 2, "accelerator": "cpu"},
            run_dir=folder / engine,
            engine=engine,
            figures=engine == "sequential",
        )
    return found


def test_both_engines_agree(run):
    one, two = run["sequential"], run["vectorized"]
    for name in ("val/loss", "val/iou", "val/dice", "val/accuracy"):
        assert one.values(name) == pytest.approx(two.values(name), rel=2e-3)
    assert np.array_equal(one.oof.target, two.oof.target)


def test_out_of_fold_predictions_are_maps_of_classes(run):
    result = run["sequential"]
    oof = result.oof
    assert oof.prediction.dtype == oof.target.dtype == np.uint8
    assert oof.prediction.shape == (32, 11, 11)
    assert np.array_equal(oof.target, MASKS.numpy()[oof.index])
    assert result.pooled()["iou"] == pytest.approx(slow_iou(oof.prediction, oof.target))
    for row in result.folds:
        mine = oof[oof.fold == row["fold"]]
        assert row["val/iou"] == pytest.approx(slow_iou(mine.prediction, mine.target), rel=1e-5)
    assert CrossValidationResult.load(result.run_dir).pooled() == result.pooled()
    assert SegmentationTask.class_iou(oof).shape == (3,)


def test_figures_and_report(run):
    result = run["sequential"]
    names = {path.stem for path in (result.run_dir / "figures").glob("*.png")}
    assert {"classes", "confusion_matrix", "worst", "learning_curves"} <= names
    assert "Worst samples" in result.report().read_text()
    frame = result.to_pandas("oof")
    assert list(frame) == ["repeat", "fold", "index", "iou"]


def test_fold_average_is_the_mean_of_probabilities_and_is_tested_once(run):
    result = run["sequential"]
    average = result.ensemble()
    assert isinstance(average, VotingEnsemble)
    each = [member(IMAGES[:5]).softmax(1) for member in average.net.members]
    torch.testing.assert_close(average(IMAGES[:5]).softmax(1), torch.stack(each).mean(0))
    scores = result.test(average)
    loader = data()
    loader.setup()
    images, masks, _ = loader.arrays("test")
    guess = average(images).argmax(1).numpy()
    assert scores["test/iou"] == pytest.approx(slow_iou(guess, masks.numpy()), rel=1e-5)
    for name in ("test/iou", "test/dice", "test/accuracy"):
        low, high = scores.interval(name)
        assert low < scores[name] < high
    with pytest.raises(ValueError, match="kept as maps of classes"):
        result.ensemble(fit_temperature=True)


def test_the_loss_of_an_epoch_is_that_of_all_its_pixels(make_trainer):
    masks = MASKS.clone()
    masks[:9] = 255
    masks[9, :8] = 255
    segmenter = model().eval()
    module = ArrayDataModule(IMAGES, masks, test_fraction=0.5, batch_size=3)
    found = make_trainer().test(segmenter, module, verbose=False)[0]
    images, targets, _ = module.arrays("test")
    prepared = module.transform(images)
    with torch.no_grad():
        loss = segmenter.task.loss(segmenter.forward_prepared(prepared), targets)
    assert found["test/loss"] == pytest.approx(float(loss), rel=1e-5)


def test_batches_without_a_pixel_that_counts_change_nothing(make_trainer):
    masks = MASKS.clone()
    masks[:20] = 255
    module = ArrayDataModule(IMAGES, masks, batch_size=2, val_fraction=0.5)
    segmenter = model(optimizer="sgd", lr=0.1)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(segmenter, module)
    assert all(p.isfinite().all() for p in segmenter.parameters())
    assert np.isfinite(float(trainer.callback_metrics["train/loss"]))


@pytest.mark.parametrize("callback", [
    Augment(horizontal_flip=0.5, rotation=20, target_kind="mask"), Cutout(4), CutMix(),
    MixUp(0.4, ignore_index=255),
], ids=lambda c: type(c).__name__)  # fmt: skip
def test_augmentation_and_mixing(callback, make_trainer):
    segmenter = model(loss="cross_entropy+dice+focal")
    trainer = make_trainer(max_epochs=2, callbacks=[copy.deepcopy(callback)])
    trainer.fit(segmenter, data())
    assert np.isfinite(float(trainer.callback_metrics["val/iou"]))


def test_bf16(make_trainer):
    segmenter = model(loss="cross_entropy+dice")
    trainer = make_trainer(precision="bf16-mixed")
    trainer.fit(segmenter, data())
    assert np.isfinite(float(trainer.callback_metrics["val/loss"]))


def test_batch_of_one_and_odd_sizes(make_trainer):
    segmenter = model()
    make_trainer(limit_train_batches=3).fit(segmenter, data(batch_size=1))
    assert segmenter.eval()(IMAGES[:1, :, :7, :9]).shape == (1, 3, 7, 9)


def test_balanced_weights_count_pixels_of_the_training_part(make_trainer):
    segmenter, module = model(class_weights="balanced"), data()
    make_trainer(limit_train_batches=1, limit_val_batches=1).fit(segmenter, module)
    labels = MASKS[module.indices("train")].numpy()
    counts = np.bincount(labels[labels != 255], minlength=3)
    np.testing.assert_allclose(segmenter.task.class_weight, counts.sum() / (3 * counts), rtol=1e-5)


def test_sample_weights(make_trainer):
    weights = np.linspace(0, 2, len(IMAGES))
    segmenter = model()
    trainer = make_trainer()
    trainer.fit(segmenter, data(weights=weights))
    assert np.isfinite(float(trainer.callback_metrics["val/loss"]))


def test_checkpoint(tmp_path, make_trainer):
    segmenter = model(loss="dice", ignore_index=255, norm="group")
    make_trainer().fit(segmenter, data())
    segmenter.eval().save(tmp_path / "model.ckpt")
    again = load(tmp_path / "model.ckpt")
    assert isinstance(again, UNetSegmenter)
    assert again.task.losses == ["dice"]
    torch.testing.assert_close(again(IMAGES[:2]), segmenter(IMAGES[:2]))


def test_nets_of_torchvision_in_a_fit(make_trainer):
    segmenter = VisionSegmenter("lraspp_mobilenet_v3_large", 3, in_channels=1)
    trainer = make_trainer(limit_train_batches=2, limit_val_batches=1)
    trainer.fit(segmenter, data())
    assert "val/iou" in trainer.callback_metrics
    with pytest.raises(ValueError, match="did you mean 'deeplabv3_resnet50'"):
        VisionSegmenter("deeplabv3_resnet5", 3)


def test_auxiliary_classifiers_are_trained_and_then_left_out(tmp_path, make_trainer):
    segmenter = VisionSegmenter(
        "deeplabv3_mobilenet_v3_large", 3, in_channels=1, aux_weight=0.5, optimizer="sgd", lr=0.1
    )
    images, masks = IMAGES[:2].repeat(1, 1, 3, 3), MASKS[:2].repeat(1, 3, 3).long()
    net = segmenter.net.net
    torch.manual_seed(0)
    outputs = segmenter.forward_prepared(images)
    assert outputs.shape == (2, 6, 33, 33)
    torch.manual_seed(0)  # DeepLab has dropout
    theirs = net(images)
    torch.testing.assert_close(outputs, torch.cat([theirs["out"], theirs["aux"]], 1))
    out, aux = (
        torch.nn.functional.cross_entropy(theirs[name], masks, ignore_index=255)
        for name in ("out", "aux")
    )
    torch.testing.assert_close(segmenter.loss(outputs, masks), out + 0.5 * aux)
    before = copy.deepcopy(net.aux_classifier.state_dict())
    module = ArrayDataModule(images, masks, batch_size=2, val_fraction=0.0)
    make_trainer(limit_val_batches=0).fit(segmenter, module)
    after = net.aux_classifier.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    segmenter.eval().save(tmp_path / "model.ckpt")
    loaded = load(tmp_path / "model.ckpt")
    assert loaded(images).shape == (2, 3, 33, 33)
    torch.testing.assert_close(loaded(images), segmenter(images))
    with pytest.raises(ValueError, match="has no auxiliary classifier; set aux_weight=0"):
        VisionSegmenter("lraspp_mobilenet_v3_large", 3, aux_weight=0.5)


# Bad input, before training


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: (Segmenter(torch.nn.Conv2d(1, 2, 1), 2), data()), r"label 2 in sample \d+, row"),
        (lambda: (model(ignore_index=-1), data()), "ignore_index=-1, but .* label 255"),
        (
            lambda: (model(), ArrayDataModule(IMAGES, np.arange(40) % 3)),
            "needs masks .*kind 'class'",
        ),
        (
            lambda: (model(), data(class_names=["a", "b", "c", "d"])),
            "num_classes=3, but ArrayDataModule has 4",
        ),
        (
            lambda: (model(), ArrayDataModule(IMAGES, MASKS[:, :9], target_kind="mask")),
            r"masks of shape \(40, 9, 11\)",
        ),
        (
            lambda: (UNetSegmenter(3, 3, width=4, depth=2), data()),
            r"in_channels=3, but one image has shape \(1, 11, 11\)",
        ),
        (
            lambda: (Segmenter(torch.nn.Conv2d(1, 3, 3), 3), data()),
            "of the size of the outputs",
        ),
    ],
)
def test_bad_input_is_refused_before_training(make, says, make_trainer):
    segmenter, module = make()
    before = copy.deepcopy([*segmenter.parameters()])
    with pytest.raises(ValueError, match=says):
        make_trainer().fit(segmenter, module)
    assert all(map(torch.equal, before, segmenter.parameters()))


def test_other_labels_for_pixels_that_do_not_count(make_trainer):
    masks = MASKS.long()
    masks[masks == 255] = -1
    module = ArrayDataModule(IMAGES, masks, target_kind=Mask(ignore_index=-1), test_fraction=0.2)
    trainer = make_trainer()
    trainer.fit(model(ignore_index=-1), module)
    assert isinstance(trainer, pl.Trainer)
    found = trainer.test(model(ignore_index=-1), module, verbose=False)[0]
    assert 0 <= found["test/iou"] <= 1


def measure(devices):
    torch.manual_seed(0)
    segmenter = model()
    masks = MASKS.clone()
    masks[::3, :7] = 255  # ranks and batches get unequal numbers of pixels that count
    module = ArrayDataModule(IMAGES, masks, test_fraction=0.5, batch_size=3)
    strategy = {"strategy": "ddp"} if devices > 1 else {}
    trainer = pl.Trainer(
        devices=devices, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **strategy,
    )  # fmt: skip
    (found,) = trainer.test(segmenter, module, verbose=False)
    # Two ranks with batches of 4 see what one sees in batches of 8. All images have equally many
    # pixels that count, so that the mean of the ranks' gradients is that of all pixels.
    torch.manual_seed(0)
    trained = model(norm="group", optimizer="sgd", lr=0.1, loss="cross_entropy+dice")
    even = ArrayDataModule(IMAGES, MASKS, val_fraction=0.2, batch_size=8 // devices)  # 32 train
    fitter = pl.Trainer(
        devices=devices, accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=2,
        enable_model_summary=False, enable_checkpointing=False, **strategy,
    )  # fmt: skip
    fitter.fit(trained, even)
    if trainer.is_global_zero:
        Path(f"metrics-{devices}.json").write_text(json.dumps(found))
        torch.save(trained.state_dict(), f"weights-{devices}.pt")


@pytest.mark.slow
def test_metrics_of_two_processes_are_those_of_one():
    measure(1)
    forked.torchrun(measure, 2)
    one, two = (json.loads(Path(f"metrics-{n}.json").read_text()) for n in (1, 2))
    assert {"test/loss", "test/iou", "test/dice", "test/accuracy"} == {*one}
    assert two == pytest.approx(one, rel=1e-5)
    one, two = (torch.load(f"weights-{n}.pt") for n in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


class Pixelwise(pl.LightningModule):
    """Somebody's own module over batches that are dictionaries."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Conv2d(1, 2, 3, padding=1)

    def loss(self, batch):
        logits = self.net(batch["image"])
        return torch.nn.functional.cross_entropy(logits, batch["mask"], ignore_index=255)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def predict_step(self, batch, batch_idx):
        return self.net(batch["image"]).argmax(1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.05)


def test_masks_of_dictionaries_are_the_targets_of_out_of_fold_predictions(tmp_path):
    images = torch.randn(12, 1, 8, 8)
    masks = (images[:, 0] > 0).long()
    masks[:, 0] = 255
    rows = [{"image": image, "mask": mask} for image, mask in zip(images, masks, strict=True)]
    result = cross_validate(
        Pixelwise,
        FoldedDataModule(DataLoader(rows, batch_size=4), stratify=False),
        num_folds=2,
        trainer={"max_epochs": 2, "accelerator": "cpu"},
        run_dir=tmp_path / "cv",
        task="segmentation",
        figures=False,
    )
    known = masks[result.oof.index].numpy() != 255
    assert (result.oof.target == masks[result.oof.index].numpy()).all()
    right = (result.oof.prediction == result.oof.target)[known].mean()
    assert result.pooled()["accuracy"] == pytest.approx(right)


def test_masks_of_sequences_are_no_targets():
    tokens = {"tokens": torch.zeros(2, 5), "mask": torch.ones(2, 5)}
    assert target_in(tokens) is None
    image = {"image": torch.zeros(2, 1, 4, 5), "mask": torch.ones(2, 4, 5)}
    assert target_in(image) is image["mask"]
    assert target_in(image | {"label": 3}) == 3
