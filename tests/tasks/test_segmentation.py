"""Losses against slow loops, IoU and Dice against NumPy, ignored pixels, wrong input."""

import math

import numpy as np
import pytest
import torch
import torchmetrics
from torch.nn import functional as F

from dlblocks.data import ArrayDataModule
from dlblocks.losses import dice_loss, focal_loss
from dlblocks.tasks import PredictionTable, SegmentationTask
from dlblocks.tasks._pixel_scores import (
    PixelScores,
    PixelSums,
    class_sums,
    confusion,
    narrow,
    scores_of,
)

C = 4


def sample(n=3, h=5, w=6, ignored=0.2, classes=C):
    logits = 2 * torch.randn(n, classes, h, w)
    targets = torch.randint(classes, (n, h, w))
    targets[torch.rand(n, h, w) < ignored] = 255
    return logits, targets


def one_hot(targets):
    return torch.stack([(targets == c).float() for c in range(C)], 1)


# Losses


def slow_dice(logits, targets, weight=None, smooth=1.0, each=None):
    total = pixels = 0.0
    for i in range(len(logits)):
        known = targets[i] != 255
        p = logits[i].double().softmax(0)
        loss = mass = 0.0
        for c in range(C):
            y = (targets[i] == c)[known].double()
            q = p[c][known]
            dice = (2 * (q * y).sum() + smooth) / (q.sum() + y.sum() + smooth)
            w = 1.0 if weight is None else float(weight[c])
            loss, mass = loss + w * (1 - dice), mass + w
        count = int(known.sum())
        total += (1.0 if each is None else float(each[i])) * count * float(loss) / mass
        pixels += count
    return total / pixels


def slow_focal(logits, targets, gamma, weight=None, each=None):
    total = mass = 0.0
    for i, j, k in np.ndindex(*targets.shape):
        y = int(targets[i, j, k])
        if y == 255:
            continue
        p = float(logits[i, :, j, k].double().softmax(0)[y])
        w = 1.0 if weight is None else float(weight[y])
        total -= (1.0 if each is None else float(each[i])) * w * (1 - p) ** gamma * math.log(p)
        mass += w
    return total / mass


WEIGHT = torch.tensor([0.5, 2.0, 1.0, 3.0])


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("each", [None, torch.tensor([0.5, 2.0, 0.0])])
def test_losses_are_those_of_slow_loops(weight, each):
    logits, targets = sample()
    options = {"weight": weight, "ignore_index": 255, "sample_weight": each}
    found = dice_loss(logits, targets, **options)
    assert float(found) == pytest.approx(slow_dice(logits, targets, weight, each=each), rel=1e-5)
    for gamma in (0.0, 0.5, 2.0):
        found = focal_loss(logits, targets, gamma=gamma, **options)
        slow = slow_focal(logits, targets, gamma, weight, each)
        assert float(found) == pytest.approx(slow, rel=1e-5)
    task = SegmentationTask(C, class_weights=weight.tolist() if weight is not None else None)
    assert float(task.loss(logits, targets, each)) == pytest.approx(
        slow_focal(logits, targets, 0.0, weight, each), rel=1e-5
    )


def test_focal_without_gamma_is_torchs_cross_entropy():
    logits, targets = sample()
    for weight in (None, WEIGHT):
        theirs = F.cross_entropy(logits, targets, weight=weight, ignore_index=255)
        torch.testing.assert_close(
            focal_loss(logits, targets, gamma=0.0, weight=weight, ignore_index=255), theirs
        )


@pytest.mark.parametrize("loss", ["cross_entropy", "dice", "focal", "cross_entropy+dice"])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 3.0]])
def test_soft_masks_that_are_one_hot_have_the_same_loss(loss, weights):
    logits, targets = sample()
    smoothing = 0.1 if "cross" in loss else 0.0
    task = SegmentationTask(C, loss=loss, class_weights=weights, label_smoothing=smoothing)
    torch.testing.assert_close(task.loss(logits, targets), task.loss(logits, one_hot(targets)))
    torch.testing.assert_close(task.counted(targets).float(), task.counted(one_hot(targets)))


def test_label_smoothing_is_torchs():
    logits, targets = sample()
    task = SegmentationTask(C, label_smoothing=0.1, class_weights=WEIGHT.tolist())
    theirs = F.cross_entropy(logits, targets, WEIGHT, ignore_index=255, label_smoothing=0.1)
    torch.testing.assert_close(task.loss(logits, targets), theirs)
    task.eval()
    torch.testing.assert_close(
        task.loss(logits, targets), F.cross_entropy(logits, targets, ignore_index=255)
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "dice", "focal", "cross_entropy+dice+focal"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 3.0]])
def test_all_pixels_ignored_cost_nothing(loss, soft, gamma, weights):
    """torch's cross-entropy and segmentation-models-pytorch's focal loss give NaN."""
    logits, targets = sample()
    logits[0] = 60 * logits[0]  # probabilities of exactly 0 and 1
    targets[:] = 255
    task = SegmentationTask(C, loss=loss, gamma=gamma, class_weights=weights)
    given = one_hot(targets) if soft else targets
    logits.requires_grad_()
    found = task.loss(logits, given)
    found.backward()
    assert found.item() == 0
    assert (logits.grad == 0).all()
    assert not task.counted(given).any()
    # One sample alone without any changes nothing for the others.
    logits, targets = sample()
    targets[1] = 255
    given = one_hot(targets) if soft else targets
    both = task.loss(logits[[0, 2]], given[[0, 2]])
    torch.testing.assert_close(task.loss(logits, given), both)


@pytest.mark.parametrize("loss", ["cross_entropy", "dice", "focal", "cross_entropy+dice"])
def test_an_epoch_of_small_batches_has_the_loss_of_one_batch(loss):
    logits, targets = sample(n=7)
    targets[2], targets[4, :4] = 255, 255
    task = SegmentationTask(C, loss=loss)
    whole = task.loss(logits, targets)
    parts = [(task.loss(logits[i], targets[i]), task.counted(targets[i]).sum()) for i in (
        slice(0, 2), slice(2, 3), slice(3, 7))]  # fmt: skip
    mean = sum(value * count for value, count in parts) / sum(count for _, count in parts)
    torch.testing.assert_close(mean, whole)


def test_dice_counts_classes_that_the_batch_lacks():
    """In segmentation-models-pytorch an absent class costs a third at most."""
    targets = torch.zeros(1, 32, 32, dtype=torch.long)
    wrong = torch.zeros(1, 3, 32, 32)
    wrong[:, 2] = 20.0
    right = torch.zeros(1, 3, 32, 32)
    right[:, 0] = 20.0
    assert float(dice_loss(wrong, targets)) == pytest.approx(2 / 3, abs=1e-2)
    assert float(dice_loss(right, targets)) == pytest.approx(0, abs=1e-3)


def test_dice_in_half_precision_sums_in_float32():
    logits, targets = sample(2, 64, 64)
    exact = dice_loss(logits.bfloat16().float(), targets, ignore_index=255)
    torch.testing.assert_close(dice_loss(logits.bfloat16(), targets, ignore_index=255), exact)


def test_masks_of_one_and_three_dimensions():
    logits, targets = torch.randn(2, 3, 4, 5, 6), torch.randint(3, (2, 4, 5, 6))
    flat = logits.flatten(2), targets.flatten(1)
    for loss in (dice_loss, focal_loss):
        torch.testing.assert_close(loss(logits, targets), loss(*flat))


# Metrics


def slow_scores(predictions, targets, classes=C):
    """By loops over classes, as the formulas say, over all pixels of the data set."""
    known = (targets >= 0) & (targets != 255)
    t, p = targets[known], predictions[known]
    iou, dice = [], []
    for c in range(classes):
        inter, union = ((t == c) & (p == c)).sum(), ((t == c) | (p == c)).sum()
        if union:
            iou.append(inter / union)
            dice.append(2 * inter / ((t == c).sum() + (p == c).sum()))
    if not iou:
        return dict.fromkeys(("iou", "dice", "accuracy"), np.nan)
    return {"iou": np.mean(iou), "dice": np.mean(dice), "accuracy": (t == p).mean()}


@pytest.mark.parametrize("classes", [2, 4, 300])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_scores_are_those_of_numpy(classes, ignored):
    logits, targets = sample(9, 6, 5, ignored, classes)
    targets[3] = 255
    targets[targets == 1] = 0  # a class that does not occur among the targets
    guess = logits.argmax(1)
    expected = slow_scores(guess.numpy(), targets.numpy(), classes) if classes < 255 else None
    if expected is None:  # 255 is a class
        targets[targets == 255] = -100
        expected = slow_scores(guess.numpy(), np.where(targets == 255, -1, targets), classes)
        targets = targets.where(targets != 255, -100)
    task = SegmentationTask(classes, ignore_index=-100 if classes > 255 else 255)
    for stage in ("train", "val"):
        metrics = task.make_metrics(stage)
        for i in range(0, 9, 2):
            metrics.update(*task.for_metrics(logits[i : i + 2], targets[i : i + 2], stage))
        found = metrics.compute()
        assert {name: float(v) for name, v in found.items()} == pytest.approx(expected, rel=1e-6)
    parts = [
        task.keep(task.predict(x), y)
        for x, y in zip(logits.split(4), targets.split(4), strict=True)
    ]
    columns = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    assert columns["prediction"].dtype == (np.int16 if classes > 255 else np.uint8)
    table = PredictionTable(columns, task="segmentation")
    assert table.score() == pytest.approx(expected, rel=1e-6)
    for i in range(9):
        mine = slow_scores(guess[i].numpy(), targets[i].numpy(), classes)["iou"]
        assert columns["iou"][i] == pytest.approx(mine, rel=1e-5, nan_ok=True)


def test_scores_are_those_of_torchmetrics():
    logits, targets = sample(6)
    theirs = torchmetrics.JaccardIndex("multiclass", num_classes=C, ignore_index=255)
    task = SegmentationTask(C)
    metrics = task.make_metrics("val")
    metrics.update(*task.for_metrics(logits, targets, "val"))
    torch.testing.assert_close(metrics.compute()["iou"], theirs(logits.softmax(1), targets))


def test_iou_is_that_of_the_data_set_not_a_mean_over_images():
    """torchmetrics' `MeanIoU` gives 0.6875 here."""
    target = np.zeros((2, 4, 4), np.int64)
    target[0, :1], target[1, :3] = 1, 1
    guess = target.copy()
    guess[0, 0, :2] = 0
    metric = PixelScores(2)
    metric.update(torch.from_numpy(guess), torch.from_numpy(target))
    # Class 0: 16 of 18 pixels, class 1: 14 of 16.
    assert float(metric.compute()["iou"]) == pytest.approx((16 / 18 + 14 / 16) / 2)
    assert metric.class_iou().tolist() == pytest.approx([16 / 18, 14 / 16])


def test_absent_and_missed_classes_differ():
    """torchmetrics' `JaccardIndex` gives 0 for both."""
    target, guess = torch.tensor([[[0, 0, 1]]]), torch.tensor([[[0, 0, 0]]])
    metric = PixelScores(3)
    metric.update(guess, target)
    absent = metric.class_iou()
    assert absent[1] == 0
    assert absent[2].isnan()
    assert float(metric.compute()["iou"]) == pytest.approx((2 / 3 + 0) / 2)
    table = PredictionTable({"target": target.numpy(), "prediction": guess.numpy()})
    assert SegmentationTask.class_iou(table)[:2] == pytest.approx([2 / 3, 0])


def test_ignored_pixels_are_left_out_not_a_class():
    """torchgeo's Jaccard leaves out the class; 255 raises in torchmetrics' `MeanIoU`."""
    logits, targets = sample(4, ignored=0.0)
    metric, with_zeros = PixelScores(C, 0), targets.clone()
    metric.update(logits.argmax(1), with_zeros)
    counted = confusion(np.where(targets == 0, -1, targets), logits.argmax(1).numpy(), C)
    assert (metric.confusion.view(C, C).numpy() == counted).all()


def test_nothing_counts():
    metric = PixelScores(2)
    metric.update(torch.zeros(1, 2, 2, dtype=torch.uint8), torch.full((1, 2, 2), 255))
    assert all(value.isnan() for value in metric.compute().values())
    assert np.isnan(scores_of(class_sums(np.full((1, 2, 2), 255, np.uint8), np.zeros((1, 2, 2))))[
        "iou"])  # fmt: skip


def test_weighted_samples_count_as_if_repeated():
    logits, targets = sample(3)
    weights = torch.tensor([2.0, 0.0, 1.0])
    task = SegmentationTask(C)
    task.weighted = True
    metrics = task.make_metrics("val")
    metrics.update(*task.for_metrics(logits, targets, "val"), weights)
    rows = [0, 0, 2]
    expected = slow_scores(logits[rows].argmax(1).numpy(), targets[rows].numpy())
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found == pytest.approx(expected, rel=1e-5)
    kept = {name: column.numpy() for name, column in task.keep(logits, targets).items()}
    table = PredictionTable({**kept, "weight": weights.numpy()}, task="segmentation")
    assert table.score() == pytest.approx(expected, rel=1e-5)
    drawn = task.weighted_metrics(kept["target"], kept["prediction"])
    for name, metric in drawn.items():
        two = metric(np.array([[2.0, 0, 1], [1, 1, 1]]))
        assert two[0] == pytest.approx(expected[name])


def test_what_waits_for_the_metrics_takes_a_byte_a_pixel():
    logits, targets = sample(2, 8, 8)
    kept = SegmentationTask(C).for_metrics(logits, targets, "val")
    assert [part.dtype for part in kept] == [torch.uint8] * 2
    assert sum(part.nbytes for part in kept) == 2 * 2 * 64
    assert narrow(torch.tensor([0, 299, -100]), 300, -100).tolist() == [0, 299, -1]


def test_metrics_by_name():
    logits, targets = sample(8)
    task = SegmentationTask(C, metrics=["cohen_kappa", "jaccard_index"])
    metrics = task.make_metrics("val")
    metrics.update(*task.for_metrics(logits, targets, "val"))
    found = metrics.compute()
    assert {*found} == {"iou", "dice", "accuracy", "cohen_kappa", "jaccard_index"}
    torch.testing.assert_close(found["jaccard_index"], found["iou"])


# Ensembles


def test_average_is_the_mean_of_probabilities_or_of_votes():
    task = SegmentationTask(C)
    outputs = torch.randn(3, 2, C, 5, 4)
    torch.testing.assert_close(task.predict(task.average(outputs)), outputs.softmax(2).mean(0))
    votes = torch.stack([(outputs.argmax(2) == c).float().mean(0) for c in range(C)], 1)
    torch.testing.assert_close(
        task.predict(task.average(outputs, hard=True)), votes, atol=1e-4, rtol=1e-4
    )


# Bad input


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"loss": "cross_entorpy"}, "did you mean 'cross_entropy'"),
        ({"loss": "dice+"}, "loss="),
        ({"loss": "dice", "label_smoothing": 0.1}, "that of the cross-entropy"),
        ({"class_weights": [1.0]}, "must be 4 numbers"),
        ({"metrics": ["cohen_kapa"]}, "did you mean 'cohen_kappa'"),
    ],
)
def test_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        SegmentationTask(C, **arguments).make_metrics("val")


def test_batches_that_do_not_fit():
    task = SegmentationTask(C)
    logits, targets = sample(2)
    task.check_batch(logits, targets)
    task.check_batch(logits, one_hot(targets))
    for outputs, given, says in (
        (logits[:, :2], targets, r"num_classes=4.*shape \(2, 2, 5, 6\)"),
        (logits, targets[:, :4], r"shape \(2, 4, 6\).*of the size of the outputs"),
        (logits, targets[:, None], r"shape \(2, 1, 5, 6\)"),
        (logits, targets.float(), "soft masks"),
    ):
        with pytest.raises(ValueError, match=says):
            task.check_batch(outputs, given)
    targets[1, 2, 3] = 7
    with pytest.raises(ValueError, match=r"label 7 in sample 1, row 2, column 3.*0 … 3.*255"):
        task.check_batch(logits, targets)


def test_sums_of_several_models_are_those_of_each_by_itself():
    rng, models = np.random.default_rng(0), 3
    together = SegmentationTask(C).stacked_metrics(models, torch.device("cpu"))
    each = [PixelScores(C) for _ in range(models)]
    for step, dtype in enumerate((torch.int64, torch.uint8, torch.int64)):
        _, targets = sample(7, ignored=0.4)
        guesses = torch.randint(C - step, targets.shape)  # a class that some have not
        targets[targets == 2] = 255 if step else 2
        owner = torch.from_numpy(rng.integers(0, models - 1, 7))  # the last has no sample
        together.update(owner, guesses.to(dtype), targets.to(dtype))
        for k in range(models - 1):
            if (owner == k).any():
                each[k].update(guesses[owner == k], targets[owner == k])
    found = together.compute(whole=True)
    assert found.keys() == {"iou", "dice", "accuracy"}
    for k in range(models - 1):
        for name, value in each[k].compute().items():
            torch.testing.assert_close(found[name][k].float(), value)
    assert all(value[-1].isnan() for value in found.values())
    narrow_one = PixelSums(1, 2, 7, torch.device("cpu"))
    narrow_one.update(torch.tensor([0]), torch.tensor([[[1, 0]]]), torch.tensor([[[1, 7]]]))
    assert narrow_one.confusion.tolist() == [0, 0, 0, 1]
    assert SegmentationTask(C, metrics=["cohen_kappa"]).stacked_metrics(2, "cpu") is None


@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy+dice"])
def test_the_auxiliary_loss_is_added_by_its_weight(loss):
    logits, targets = sample()
    auxiliary, _ = sample()
    plain, task = SegmentationTask(C, loss=loss), SegmentationTask(C, loss=loss, aux_weight=0.5)
    both = torch.cat([logits, auxiliary], 1)
    expected = plain.loss(logits, targets) + 0.5 * plain.loss(auxiliary, targets)
    torch.testing.assert_close(task.loss(both, targets), expected)
    torch.testing.assert_close(task.loss(logits, targets), plain.loss(logits, targets))
    torch.testing.assert_close(task.predict(both), logits.softmax(1))
    guesses, _ = task.for_metrics(both, targets, "train")
    assert torch.equal(guesses.long(), logits.argmax(1))
    task.check_batch(both, targets)
    with pytest.raises(ValueError, match="num_classes=4, but the net puts out"):
        plain.check_batch(both, targets)
    with pytest.raises(ValueError, match="aux_weight=-1"):
        SegmentationTask(C, aux_weight=-1)


def test_255_does_not_count_in_the_masks_of_somebody_elses_module():
    target = torch.randint(3, (6, 5, 4))
    target[:, 0] = 255
    guess = torch.randint(3, (6, 5, 4))
    scores = []
    for dtype in (np.uint8, np.int32, np.int64):
        table = PredictionTable(
            {"index": np.arange(6), "target": target.numpy().astype(dtype),
             "prediction": guess.numpy()},
            task="segmentation",
        )  # fmt: skip
        scores.append(SegmentationTask.score(table))
    assert scores[0] == scores[1] == scores[2]
    known = target != 255
    assert scores[0]["accuracy"] == pytest.approx((guess == target)[known].double().mean().item())
    # Among more than 255 classes it is one.
    many = np.array([[[255, 300]]])
    assert class_sums(many, many)[0].sum() == 2


def test_black_and_white_masks_are_not_ignored_in_silence():
    images, masks = torch.rand(4, 1, 3, 3), torch.zeros(4, 3, 3, dtype=torch.uint8)
    masks[:, 1] = 255
    data = ArrayDataModule(images, masks, target_kind="mask")
    with pytest.raises(ValueError, match=r"no labels but 0 and 255, .*labels=\[0, 255\]"):
        SegmentationTask(2).check_data(data, "Net")
    masks[0, 0, 0] = 1
    SegmentationTask(2).check_data(ArrayDataModule(images, masks, target_kind="mask"), "Net")
