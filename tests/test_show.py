"""Pictures of batches and predictions, the worst samples, and all of it in real W&B runs."""

import numpy as np
import pytest
import torch
import wandb
from matplotlib.patches import Rectangle
from wandb_offline import read_runs

from dlblocks import plots
from dlblocks.callbacks import CutMix
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.data import ArrayDataModule, DigitScenesDataModule, TabularDataModule
from dlblocks.fields import Mask
from dlblocks.models import MLPClassifier, UNetSegmenter
from dlblocks.plots.masks import IGNORED
from dlblocks.runs import fit_and_test
from dlblocks.tasks import (
    MulticlassTask,
    MultilabelTask,
    Predictions,
    PredictionTable,
    RegressionTask,
    SegmentationTask,
)

RNG = np.random.default_rng(0)
TRAINER = {"max_epochs": 1, "accelerator": "cpu"}


def scenes(**arguments):
    return DigitScenesDataModule(
        num_scenes=24, num_test_scenes=6, size=20, digits_per_scene=1, clutter=1, num_groups=4,
        batch_size=12, **arguments,
    )  # fmt: skip


def unet():
    return UNetSegmenter(1, 11, width=2, depth=1, lr=0.01)


@pytest.fixture(scope="module")
def wandb_run(tmp_path_factory):
    """A cross-validation of a segmenter with W&B offline: its folder, data and result."""
    patch = pytest.MonkeyPatch()
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    folder, data = tmp_path_factory.mktemp("wandb") / "run", scenes()
    result = cross_validate(
        unet, data, num_folds=2, trainer=TRAINER, run_dir=folder, logger="wandb",
        progress_bar=False,
    )  # fmt: skip
    result.report()
    yield folder, data, result
    wandb.teardown()
    patch.undo()


@pytest.mark.filterwarnings("ignore:.*Exception ignored in.*yaml")
def test_wandb_gets_masks_over_images(wandb_run):
    folder, *_ = wandb_run
    found = []
    for run in read_runs(folder):
        for row in run["history"]:
            for name in ("worst", "train/batch"):
                if f"{name}/path" in row:
                    found.append((run["name"], name))
                    (path,) = folder.rglob(row[f"{name}/path"])
                    assert path.stat().st_size == row[f"{name}/size"] > 1000
    assert found == [
        ("run-fold-0", "train/batch"), ("run-fold-1", "train/batch"), ("run-summary", "worst")
    ]  # fmt: skip
    page = (folder / "report.html").read_text()
    assert "Worst samples, with the lowest out-of-fold IoU" in page
    assert (folder / "figures" / "worst.png").is_file()


def test_worst_samples_of_a_segmenter_are_those_of_the_lowest_iou(wandb_run):
    _, data, result = wandb_run
    worst = result.worst(5)
    slow = {}
    for index, target, guess in zip(
        result.oof.index, result.oof.target, result.oof.prediction, strict=True
    ):
        each = []
        for c in {*target.ravel().tolist(), *guess.ravel().tolist()}:
            both = ((target == c) | (guess == c)).sum()
            each.append(((target == c) & (guess == c)).sum() / both)
        slow[int(index)] = np.mean(each)
    assert worst.index.tolist() == sorted(slow, key=lambda i: (np.float32(slow[i]), i))[:5]
    np.testing.assert_allclose(1 - worst.loss, [slow[i] for i in worst.index], atol=1e-6)
    figure = result.show_results(worst)
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 10
    titles = [axis.get_title(loc="left") for axis in shown[::2]]
    assert titles[0] == f"sample {worst.index[0]}, IoU {worst.iou[0]:.2f}"
    # The picture is that of the sample: its grey where neither mask has a class.
    free = (worst.target[0] == 0) & (worst.prediction[0] == 0)
    grey = data.source.inputs[worst.index[0], 0].numpy().astype(float)
    grey = (grey - grey.min()) / np.ptp(grey)
    np.testing.assert_allclose(np.asarray(shown[0].images[0].get_array())[free, 0], grey[free])


def test_results_of_some_samples_and_of_a_loaded_run(wandb_run):
    folder, data, result = wandb_run
    figure = result.show_results(count=3)
    titles = [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]
    assert [title.split(",")[0] for title in titles] == ["sample 0", "sample 11", "sample 23"]
    loaded = CrossValidationResult.load(folder)
    assert loaded.worst(2).index.tolist() == result.worst(2).index.tolist()
    with pytest.raises(ValueError, match="give datamodule="):
        loaded.show_results()
    assert len([a for a in loaded.show_results(count=2, datamodule=data).axes if a.images]) == 4


def test_a_batch_is_shown_under_its_masks():
    images = np.zeros((6, 1, 4, 4), np.uint8)
    masks = np.zeros((6, 4, 4), np.int64)
    masks[:, 0, 0], masks[:, 1, 1] = 1, 2
    data = ArrayDataModule(images, masks, target_kind=Mask(ignore_index=2), batch_size=4)
    figure = data.show_batch(count=2)
    first, second = (np.asarray(axis.images[0].get_array()) for axis in figure.axes[:2])
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first[1, 1], IGNORED)
    assert np.ptp(first[0, 0]) > 0.3
    assert np.ptp(first[2, 2]) == 0
    # Soft masks of mixed batches show the likeliest class.
    mixed = data.show_batch(CutMix(1.0))
    assert [text.get_text() for text in mixed.legends[0].get_texts()] == ["1"]
    pictures = ArrayDataModule(images, images, target_kind="image", batch_size=4)
    with pytest.raises(ValueError, match="no picture of targets of kind 'image'"):
        pictures.show_batch()


def test_a_batch_is_shown_with_its_boxes():
    data = scenes(target="boxes", val_fraction=0.3)
    figure = data.show_batch(count=3)
    data.setup("fit")
    rows = next(iter(data.train_dataloader()))[1][:3]
    drawn = [len([patch for patch in axis.patches if isinstance(patch, Rectangle)])
             for axis in figure.axes[:3]]  # fmt: skip
    assert drawn == [len(row["boxes"]) for row in rows]


def test_single_fits_log_the_masks_of_their_test_set(tmp_path):
    fit_and_test(
        unet(), scenes(val_fraction=0.3), trainer=TRAINER, run_dir=tmp_path, progress_bar=False
    )
    assert (tmp_path / "figures" / "worst.png").is_file()


def table(target, prediction, **columns):
    return PredictionTable(
        {"index": np.arange(len(target)), "target": target, "prediction": prediction, **columns}
    )


def test_losses_of_rows_are_those_of_torch():
    target, logits = RNG.integers(0, 3, 20), torch.from_numpy(RNG.normal(size=(20, 3)))
    found = MulticlassTask.sample_losses(table(target, logits.softmax(1).numpy()))
    theirs = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(target), reduction="none"
    ).numpy()
    np.testing.assert_allclose(found, theirs)
    guess = logits.argmax(1).numpy()
    assert MulticlassTask.sample_losses(table(target, guess)).tolist() == (guess != target).tolist()
    labels = RNG.integers(0, 2, (20, 3))
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(labels).double(), reduction="none"
    ).mean(1)
    found = MultilabelTask.sample_losses(table(labels, logits.sigmoid().numpy()))
    np.testing.assert_allclose(found, theirs)
    values = RNG.normal(size=(20, 3))
    found = RegressionTask.sample_losses(table(values, logits.numpy()))
    np.testing.assert_allclose(found, ((values - logits.numpy()) ** 2).mean(1))
    column = RegressionTask.sample_losses(table(values[:, 0], logits[:, :1].numpy()))
    np.testing.assert_allclose(column, (values[:, 0] - logits[:, 0].numpy()) ** 2)


def test_worst_rows_have_each_sample_once_and_no_row_without_a_prediction():
    values = np.array([0.0, 0, 0, 0, 0])
    guesses = np.array([3.0, np.nan, 1, -2, 3.5])
    found = PredictionTable(
        {"index": np.array([0, 1, 2, 2, 0]), "target": values, "prediction": guesses},
        task="regression",
    ).worst(4)
    assert found.index.tolist() == [0, 2]
    assert found.prediction.tolist() == [3.5, -2]
    assert found.loss.tolist() == [12.25, 4]
    with pytest.raises(ValueError, match="count=0"):
        found.worst(0)


@pytest.mark.parametrize(
    ("task", "target", "prediction", "said"),
    [
        (MulticlassTask, np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]]), ["a → a", "b → a"]),
        (
            MultilabelTask, np.array([[1, 1], [0, 0]]), np.array([[0.9, 0.1], [0.2, 0.4]]),
            ["a, b\n→ a", "–\n→ –"],
        ),
        (RegressionTask, np.array([0.5, 2.0]), np.array([[0.25], [3.0]]), ["0.5 → 0.25", "2 → 3"]),
    ],
)  # fmt: skip
def test_each_task_says_what_was_predicted(task, target, prediction, said):
    worst = table(target, prediction, loss=np.array([1.0, 2.5]))
    shown = Predictions(
        worst, class_names=["a", "b"], inputs=lambda rows: np.zeros((len(rows), 1, 3, 3), np.uint8)
    )
    axes = [axis for axis in task.show(shown, title="t").axes if axis.images]
    assert [axis.get_title() for axis in axes] == said
    assert axes[1].get_xlabel() == "loss 2.5\nsample 1"
    if task is not RegressionTask:
        right = [axis.title.get_color() for axis in axes]
        assert right == [plots.GREEN if task is MulticlassTask else plots.RED,
                         plots.RED if task is MulticlassTask else plots.GREEN]  # fmt: skip


def test_probabilities_of_pixels_are_shown_by_their_class():
    target = np.array([[[0, 1], [1, 255]]], np.uint8)
    scores = np.zeros((1, 2, 2, 2))
    scores[0, 1] = 1
    shown = Predictions(
        table(target, scores), inputs=lambda rows: np.zeros((len(rows), 3, 2, 2), np.uint8)
    )
    assert SegmentationTask.sample_losses(shown).tolist() == [1 - (0 + 2 / 3) / 2]
    assert SegmentationTask.show(shown).axes[0].get_title(loc="left") == "sample 0, IoU 0.33"


def test_tables_have_worst_rows_but_no_pictures(tmp_path):
    data = TabularDataModule("iris")
    result = cross_validate(
        lambda: MLPClassifier(4, 3, hidden=[4]), data, num_folds=2, trainer=TRAINER,
        run_dir=tmp_path / "run", progress_bar=False, figures=False,
    )  # fmt: skip
    true = np.take_along_axis(result.oof.prediction, result.oof.target[:, None], 1)[:, 0]
    assert (
        result.worst(3).index.tolist()
        == result.oof.index[np.argsort(true, kind="stable")[:3]].tolist()
    )
    with pytest.raises(AttributeError, match="not images"):
        result.show_results()
