"""Detectors in real fits: cross-validation, the table of boxes, files, resume, wrong input."""

import copy
import json
from pathlib import Path

import forked
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
import wandb
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch.utils.data import DataLoader
from torchvision.ops import box_iou
from wandb_offline import read_runs

import dlblocks
from dlblocks._boxes import box_rows
from dlblocks._npz import Ragged
from dlblocks.callbacks import Augment, ExactResume
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.data import (
    ArrayDataModule,
    DetectionDataModule,
    DigitScenesDataModule,
    FoldedDataModule,
)
from dlblocks.models import Detector, load
from dlblocks.tasks import DetectionTask
from dlblocks.tasks._average_precision import match, scores_of


def squares(count=24, size=24):
    """Grey images with none to two squares, bright (class 1) or dim (class 0)."""
    draw = np.random.default_rng(0)
    images = draw.random((count, 1, size, size)) * 0.2
    boxes, labels = [], []
    for image in images:
        rows, classes = [], []
        for k in range(int(draw.integers(0, 3))):
            x, y = 12 * k + int(draw.integers(0, 3)), int(draw.integers(0, size - 10))
            label = int(draw.integers(0, 2))
            image[0, y : y + 9, x : x + 9] += 0.4 + 0.4 * label
            rows.append([x, y, x + 9, y + 9])
            classes.append(label)
        boxes.append(np.array(rows))  # (0,) without objects
        labels.append(np.array(classes))
    return (255 * images).clip(0, 255).astype(np.uint8), boxes, labels


IMAGES, BOXES, LABELS = squares()


def data(**arguments):
    settings = {"test_fraction": 0.25, "batch_size": 6, "class_names": ["dim", "bright"]}
    return DetectionDataModule(IMAGES, BOXES, LABELS, **{**settings, **arguments})


def model(arch="fcos", **arguments):
    settings = {"in_channels": 1, "channels": 32, "num_convs": 1, "lr": 2e-3}
    return Detector(arch, 2, **{**settings, **arguments})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        wandb.teardown()
        yield cross_validate(
            model,
            data(),
            num_folds=2,
            trainer={"max_epochs": 2, "accelerator": "cpu"},
            run_dir=tmp_path_factory.mktemp("runs") / "cv",
            monitor="val/map_50",
            mode="max",
            logger="wandb",
        )
        wandb.teardown()


def test_out_of_fold_predictions_are_ragged(run):
    oof = run.oof
    assert isinstance(oof["target"], Ragged)
    assert isinstance(oof["prediction"], Ragged)
    assert oof["prediction"].values.shape[1:] == (6,)
    for i, row in enumerate(oof.index):
        mine = np.asarray(BOXES[row]).reshape(-1, 4)
        np.testing.assert_array_equal(oof["target"][i][:, :4], mine)
        np.testing.assert_array_equal(oof["target"][i][:, 4], LABELS[row])
    for row in run.folds:
        part = oof[oof.fold == row["fold"]]
        found = DetectionTask.score(part)
        for name, value in found.items():
            assert row[f"val/{name}"] == pytest.approx(value, abs=1e-6)
    assert set(run.pooled()) == {"map", "map_50", "map_75", "mar"}
    again = CrossValidationResult.load(run.run_dir)
    assert again.pooled() == run.pooled()
    assert list(run.to_pandas("oof")) == ["repeat", "fold", "index"]


def test_figures_and_report(run):
    names = {path.stem for path in (run.run_dir / "figures").glob("*.png")}
    assert {"classes", "worst", "learning_curves"} <= names
    assert "val/map_50" in run.report().read_text()


@pytest.mark.filterwarnings("ignore:.*Exception ignored in.*yaml")
def test_wandb_gets_boxes_over_images_and_the_scores_of_each_fold(run):
    found, scores = [], {}
    for each in read_runs(run.run_dir):
        for row in each["history"]:
            found += [(each["name"], name) for name in ("worst", "train/batch")
                      if f"{name}/path" in row]  # fmt: skip
            if "val/map_50" in row:
                scores.setdefault(each["name"], []).append(row["val/map_50"])
    assert found == [
        ("cv-fold-0", "train/batch"),
        ("cv-fold-1", "train/batch"),
        ("cv-summary", "worst"),
    ]
    for row in run.folds:
        assert row["val/map_50"] in scores[f"cv-fold-{row['fold']}"]


def test_the_images_with_most_errors_come_first(run):
    worst = run.worst(4)
    assert (np.diff(worst.loss) <= 0).all()
    for i, row in enumerate(worst.index):
        objects, found = worst["target"][i], worst["prediction"][i]
        found = found[found[:, 4] >= 0.3]
        iou = box_iou(*(torch.as_tensor(x[:, :4]).double() for x in (found, objects)))
        same = found[:, None, 5] == objects[None, :, 4]
        hits = linear_sum_assignment((iou.numpy() >= 0.5) & same, maximize=True)
        right = ((iou.numpy() >= 0.5) & same)[hits].sum()
        assert worst.loss[i] == len(objects) + len(found) - 2 * right, row
    figure = run.show_results(worst)
    assert f"sample {worst.index[0]}: " in figure.axes[0].get_title(loc="left")


def test_the_range_of_the_mean_recall_is_known(run):
    low, high = run.interval("val/mar")
    assert 0 <= low <= high <= 1


def test_the_fold_average_is_refused_with_the_cure(run):
    with pytest.raises(ValueError, match=r"boxes of several detectors have no average.*refit"):
        run.ensemble()


def test_one_fold_is_tested_once_with_intervals(run):
    first = load(run.run_dir / run.folds[0]["checkpoint"])
    scores = run.test(first)
    module = data()
    module.setup()
    images, targets, _ = module.arrays("test")
    found = scores_of(
        match(*(Ragged.of([np.asarray(x.detach()) for x in box_rows(rows)])
                for rows in (targets, first(images))))
    )  # fmt: skip
    for name in ("map", "map_50", "mar"):
        value = float(found[name][0])
        assert scores[f"test/{name}"] == pytest.approx(value, abs=1e-6)
        low, high = scores.interval(f"test/{name}")
        assert np.isnan(low) or low <= value <= high


def test_new_images_become_a_table_of_boxes(run, tmp_path):
    predictor = dlblocks.load(run.run_dir / run.folds[0]["checkpoint"])
    table = predictor.predict(IMAGES, progress_bar=False, batch_size=5)
    table.to_csv(tmp_path / "boxes.csv")
    frame = pd.read_csv(tmp_path / "boxes.csv")
    assert list(frame) == ["index", "x0", "y0", "x1", "y1", "score", "class"]
    assert len(frame) == len(table["prediction"].values)
    assert {*frame["class"]} <= {"dim", "bright"}
    direct = predictor.model(torch.from_numpy(IMAGES))
    for i, found in enumerate(direct):
        mine = frame[frame["index"] == i]
        assert len(mine) == len(found["scores"])
        np.testing.assert_allclose(mine["score"], found["scores"].detach(), atol=1e-5)
        np.testing.assert_allclose(
            mine[["x0", "y0", "x1", "y1"]], found["boxes"].detach(), atol=1e-3
        )
    assert len(table) == len(IMAGES)


def test_scenes_of_another_size_are_those_of_the_detector(run, tmp_path):
    predictor = dlblocks.load(run.run_dir / run.folds[0]["checkpoint"])
    large = np.tile(IMAGES[:4], (1, 1, 2, 3))[..., :40, :70]
    found = predictor.predict(large, progress_bar=False)["prediction"]
    direct = predictor.model(torch.from_numpy(large))
    for i, expected in enumerate(direct):
        np.testing.assert_allclose(found[i][:, :4], expected["boxes"].detach(), atol=1e-3)
    assert max(found.values[:, 2]) > 24 and max(found.values[:, 3]) > 24
    for i, image in enumerate(large):
        Image.fromarray(image[0]).save(tmp_path / f"{i}.png")
    of_files = predictor.predict(str(tmp_path), progress_bar=False)["prediction"]
    np.testing.assert_allclose(of_files.values, found.values, atol=1e-3)
    with pytest.raises(ValueError, match=r"trained on samples of shape \(1, 24, 24\)"):
        predictor.predict(np.zeros((2, 3, 24, 24), np.uint8))


def test_refit_is_one_model(run):
    run.refit()
    assert isinstance(dlblocks.load(run.run_dir).model, Detector)


@pytest.mark.parametrize("arch", ["fcos", "retinanet", "fasterrcnn"])
def test_val_loss_is_the_training_loss_of_the_same_images(arch, make_trainer):
    torch.manual_seed(0)
    detector, module = model(arch), data(batch_size=24, val_fraction=0.3)
    make_trainer(max_epochs=1).fit(detector, module)
    found = make_trainer().validate(detector, module, verbose=False)[0]
    images, targets, _ = module.arrays("val")
    detector.eval()
    prepared = detector.preprocess(images)
    with torch.no_grad():
        losses, _ = detector.net.step(prepared, targets, detect=False)
    assert found["val/loss"] == pytest.approx(float(sum(losses.values())), abs=1e-6)
    # Images are normalised once, by the statistics of the training part.
    training = module.arrays("train")[0]
    assert abs(float(detector.preprocess(training).mean())) < 1e-3


def test_checkpoint(tmp_path, make_trainer):
    detector = model("retinanet", score_threshold=0.0)
    make_trainer().fit(detector, data())
    detector.eval().save(tmp_path / "model.ckpt")
    again = load(tmp_path / "model.ckpt")
    assert isinstance(again, Detector)
    for one, two in zip(again(torch.from_numpy(IMAGES[:3])),
                        detector(torch.from_numpy(IMAGES[:3])), strict=True):  # fmt: skip
        torch.testing.assert_close(one["boxes"], two["boxes"])
        assert torch.equal(one["labels"], two["labels"])


def test_bf16_and_what_would_round_boxes(make_trainer):
    trainer = make_trainer(precision="bf16-mixed")
    trainer.fit(model(), data())
    assert np.isfinite(float(trainer.callback_metrics["val/loss"]))
    with pytest.raises(ValueError, match=r"would round the coordinates of boxes; .*'bf16-mixed'"):
        make_trainer(precision="bf16-true").fit(model(), data())


def test_augmentation_and_images_without_any_object(make_trainer):
    empty = [np.zeros(0)] * len(IMAGES)
    module = DetectionDataModule(IMAGES, empty, batch_size=6, val_fraction=0.25)
    trainer = make_trainer(callbacks=[Augment(crop_padding=4, rotation=20, horizontal_flip=0.5)])
    detector = Detector("retinanet", 1, in_channels=1, channels=32)
    trainer.fit(detector, module)
    assert float(trainer.callback_metrics["val/map"]) == 0  # not -1
    assert np.isfinite(float(trainer.callback_metrics["train/loss"]))
    assert all(p.isfinite().all() for p in detector.parameters())


def test_show_draws_boxes():
    figure = data().show_batch(Augment(horizontal_flip=1.0), count=4)
    assert sum(len(axis.patches) for axis in figure.axes) > 0


def test_export_of_faster_rcnn_is_refused(tmp_path):
    Detector("fasterrcnn", 1, in_channels=1, channels=32).save(tmp_path / "detector.ckpt")
    predictor = dlblocks.load(tmp_path / "detector.ckpt")
    with pytest.raises(ValueError, match=r"fails with some images once exported; use arch="):
        predictor.export(tmp_path / "detector.onnx", example=torch.rand(1, 1, 40, 48))


@pytest.mark.parametrize("arch", ["fcos", "retinanet"])
def test_exported_detectors_predict_the_same_boxes(arch, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    detector = Detector(arch, 2, in_channels=1, channels=32, num_convs=1, score_threshold=1e-3)
    with torch.no_grad():  # scores of a new net are too close to each other for one order
        for parameter in detector.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    detector.save(tmp_path / "detector.ckpt")
    predictor = dlblocks.load(tmp_path / "detector.ckpt")
    example = torch.rand(1, 1, 40, 48)
    predictor.export(tmp_path / "detector.onnx", example=example)
    session = onnxruntime.InferenceSession(str(tmp_path / "detector.onnx"))
    assert {"task", "input_shape"} <= session.get_modelmeta().custom_metadata_map.keys()
    for scale in (1, 3):
        image = torch.rand(1, 1, 40, 48) * scale
        (found,) = session.run(None, {"inputs": image.numpy()})
        with torch.no_grad():
            (expected,) = detector.eval().predict_step([image], 0)["prediction"]
        assert len(found) == len(expected) > 0
        gaps = np.abs(found[:, None] - expected.numpy()[None]).max(-1)
        assert gaps.min(0).max() < 1e-3 and gaps.min(1).max() < 1e-3  # in any order
    with pytest.raises(ValueError, match=r"must end with \.onnx: how many rows"):
        predictor.export(tmp_path / "detector.pt2", example=example)


class Stop(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == 4:
            raise KeyError("killed")


@pytest.mark.filterwarnings("ignore:.*ckpt_path=.last.. is set, but there is no last")
@pytest.mark.parametrize("arch", ["fcos", "fasterrcnn"])
def test_a_killed_fit_is_resumed_to_the_bit(arch, make_trainer, tmp_path):
    """Faster R-CNN draws samples in training; boxes are moved at random."""

    def fit(folder, *callbacks, state=5):
        torch.manual_seed(0)
        detector = model(arch)
        callbacks = [Augment(crop_padding=3, seed=1), ExactResume(folder, every_n_train_steps=1),
                     *callbacks]  # fmt: skip
        trainer = make_trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=True,
                               log_every_n_steps=1)  # fmt: skip
        torch.manual_seed(state)
        trainer.fit(detector, data(batch_size=4, val_fraction=0.3), ckpt_path="last")
        return detector, {k: float(v) for k, v in trainer.callback_metrics.items()}

    whole, logged = fit(tmp_path / "whole")
    with pytest.raises(KeyError, match="killed"):
        fit(tmp_path / "part", Stop())
    resumed, again = fit(tmp_path / "part", state=99)  # another process is in another state
    assert again == logged
    for (name, one), two in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


# A user's own module


class Own(pl.LightningModule):
    """torchvision's detector as people use it, over batches that are dictionaries."""

    def __init__(self):
        super().__init__()
        self.net = model().net

    def _step(self, batch):
        losses, _ = self.net.step(batch["image"], batch["target"], detect=False)
        return sum(losses.values())

    def training_step(self, batch, batch_idx):
        return self._step(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self._step(batch), batch_size=len(batch["image"]))

    def predict_step(self, batch, batch_idx):
        return self.net(batch["image"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        boxes = torch.tensor(np.asarray(BOXES[i], np.float32)).reshape(-1, 4)
        target = {"boxes": boxes, "labels": torch.tensor(LABELS[i]).long()}
        return {"image": torch.from_numpy(IMAGES[i] / 255).float(), "target": target}


def together(samples):
    return {"image": torch.stack([s["image"] for s in samples]),
            "target": [s["target"] for s in samples]}  # fmt: skip


class Theirs(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Pictures(), batch_size=4, collate_fn=together, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Pictures(), batch_size=4, collate_fn=together)


def test_a_users_own_module_over_dictionaries(tmp_path):
    torch.manual_seed(0)
    result = cross_validate(
        Own, FoldedDataModule(Theirs()), num_folds=2, monitor="val_loss", run_dir=tmp_path / "cv",
        trainer={"max_epochs": 1, "accelerator": "cpu"},
    )  # fmt: skip
    oof = result.oof
    assert oof is not None
    assert isinstance(oof["prediction"], Ragged)
    for i, row in enumerate(oof.index):
        assert len(oof["target"][i]) == len(LABELS[row])
        assert oof["prediction"][i].shape[1:] == (6,)


def test_our_module_over_a_users_own_loader(make_trainer):
    loader = DataLoader(
        Pictures(), batch_size=4,
        collate_fn=lambda samples: [*together(samples).values()],
    )  # fmt: skip
    trainer = make_trainer()
    trainer.fit(model(), loader, loader)
    assert "val/map" in trainer.callback_metrics


# Bad input, before training


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ({"boxes": torch.zeros(0), "labels": torch.zeros(0).long()},
         r"boxes of image 0 of the batch have shape \(0,\), expected \(n, 4\)"),
        ({"boxes": torch.tensor([[9.0, 1, 2, 5]]), "labels": torch.tensor([0])}, "is inverted"),
        ({"boxes": torch.tensor([[1.0, 1, 1, 5]]), "labels": torch.tensor([0])}, "has no area"),
        ({"boxes": torch.tensor([[1.0, 1, 2, 5]]), "labels": torch.tensor([2])},
         "label 2, but num_classes=2 means the classes 0 … 1, .* subtract 1"),
        ({"boxes": torch.tensor([[1.0, 1, 2, 5]]), "labels": torch.tensor([-1])}, "label -1"),
        ({"boxes": torch.tensor([[1, 1, 2, 5]]), "labels": torch.tensor([0])}, r"use|\.float\(\)"),
        ({"boxes": torch.tensor([[1.0, 1, 2, 5]]), "labels": torch.tensor([0, 1])},
         r"labels of image 0 of the batch have shape \(2,\), expected \(1,\)"),
        (torch.zeros(4), "a list with a dictionary of boxes and labels"),
    ],
)  # fmt: skip
def test_wrong_targets_of_a_batch(target, says, make_trainer):
    targets = target if isinstance(target, torch.Tensor) else [target]
    batch = [torch.zeros(1, 1, 24, 24), targets]
    loader = DataLoader([0], collate_fn=lambda _: batch)
    detector = model()
    before = copy.deepcopy([*detector.parameters()])
    with pytest.raises(ValueError, match=says):
        make_trainer(limit_val_batches=0).fit(detector, loader, loader)
    assert all(map(torch.equal, before, detector.parameters()))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Detector("fcos", 1, in_channels=1), "num_classes=1, but .* has 2 classes"),
        (lambda: Detector("fcos", 2, in_channels=3), r"in_channels=3, but one image has shape"),
    ],
)
def test_a_model_that_does_not_fit_the_data(make, says, make_trainer):
    with pytest.raises(ValueError, match=says):
        make_trainer().fit(make(), data())


def test_labels_that_are_off_by_one():
    task, plus = DetectionTask(2), [label + 1 for label in LABELS]
    late = DetectionDataModule(IMAGES, BOXES, plus, val_fraction=0.25)
    with pytest.raises(ValueError, match=r"label 2, but num_classes=2 .* subtract 1"):
        task.check_data(late, "Detector")
    with pytest.warns(UserWarning, match=r"no object of .* has class 0"):
        DetectionTask(3).check_data(late, "Detector")
    named = DetectionDataModule(
        IMAGES, BOXES, plus, class_names=["background", "dim", "bright"], val_fraction=0.25
    )
    with pytest.raises(ValueError, match="class 0 of DetectionDataModule is 'background'"):
        DetectionTask(3).check_data(named, "Detector")
    minus = DetectionDataModule(IMAGES, BOXES, [label - 1 for label in LABELS])
    with pytest.raises(ValueError, match="label -1 in sample"):
        minus.setup()


def test_masks_and_weights_are_refused(make_trainer):
    scenes = DigitScenesDataModule(num_scenes=20, num_test_scenes=4)
    with pytest.raises(ValueError, match=r"Detector needs boxes as targets, .* kind 'mask'"):
        make_trainer().fit(Detector("fcos", 10, in_channels=1), scenes)
    rows = Ragged_of(BOXES)
    weighted = ArrayDataModule(IMAGES, rows, weights=np.ones(len(IMAGES)), val_fraction=0.25)
    with pytest.raises(ValueError, match="weights"):
        make_trainer().fit(model(), weighted)


def Ragged_of(boxes):
    from dlblocks.fields import Ragged as Rows

    return Rows.of([torch.tensor(np.asarray(b, np.float32)).reshape(-1, 4) for b in boxes])


# Several processes


def measure(devices):
    torch.manual_seed(0)
    strategy = {"strategy": "ddp"} if devices > 1 else {}
    trainer = pl.Trainer(
        devices=devices, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, max_epochs=1, **strategy,
    )  # fmt: skip
    detector = model(score_threshold=0.0)
    (found,) = trainer.test(detector, data(test_fraction=0.5, batch_size=3), verbose=False)
    trainer.fit(detector, data(batch_size=3))
    if trainer.is_global_zero:
        Path(f"metrics-{devices}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_scores_of_two_processes_are_those_of_one():
    measure(1)
    forked.torchrun(measure, 2)
    one, two = (json.loads(Path(f"metrics-{n}.json").read_text()) for n in (1, 2))
    assert {"test/loss", "test/map", "test/map_50", "test/map_75", "test/mar"} == {*one}
    for name in one:  # the loss is a mean over the boxes of a batch, and batches differ
        if name != "test/loss":
            assert two[name] == pytest.approx(one[name], abs=1e-6)
