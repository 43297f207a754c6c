import itertools
import os

import forked
import numpy as np
import pytest
import torch
import torchmetrics.classification
import torchmetrics.clustering
import torchmetrics.retrieval
import torchmetrics.text
from sklearn import metrics as sklearn_metrics
from torch.nn import functional as F

from dlblocks.losses import MixedTargets
from dlblocks.metrics import (
    classification_metrics,
    hard_labels,
    metric_mode,
    metric_range,
    mode_of,
    mode_of_metric,
    regression_metrics,
)
from dlblocks.tasks._stacked import RegressionSums

N, C = 200, 5
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(N, C, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.randint(C, (N,), generator=GENERATOR)


def test_classification_metrics_are_scikit_learns():
    metrics = classification_metrics(C)
    probabilities = LOGITS.float().softmax(1)
    for rows in torch.arange(N).split(64):
        metrics.update(probabilities[rows], TARGETS[rows])
    found = metrics.compute()
    predicted = LOGITS.argmax(1)
    assert float(found["accuracy"]) == pytest.approx(
        sklearn_metrics.accuracy_score(TARGETS, predicted)
    )
    assert float(found["f1"]) == pytest.approx(
        sklearn_metrics.f1_score(TARGETS, predicted, average="macro")
    )
    confidence, right = probabilities.max(1).values.numpy(), (predicted == TARGETS).numpy()
    expected = 0.0
    edges = np.linspace(0, 1, 16)
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(confidence[inside].mean() - right[inside].mean())
            expected += inside.mean() * gap
    assert float(found["calibration_error"]) == pytest.approx(expected, rel=1e-4)


def test_f1_leaves_absent_classes_out():
    metrics = classification_metrics(4)
    targets, predicted = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    metrics.update(F.one_hot(predicted, 4).float(), targets)
    expected = sklearn_metrics.f1_score(targets, predicted, average="macro")
    assert float(metrics.compute()["f1"]) == pytest.approx(expected)


def test_soft_targets_count_by_their_dominant_class():
    soft = torch.tensor([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]])
    assert hard_labels(soft).tolist() == [0, 2]
    assert hard_labels(TARGETS) is TARGETS


def test_dominant_labels_of_other_kinds():
    several = torch.tensor([[0.6, 0.4, 0.5], [0.0, 1.0, 0.2]])
    assert hard_labels(several, task="multilabel").tolist() == [[1, 0, 1], [0, 1, 0]]
    assert hard_labels(several[0], task="binary").tolist() == [1, 0, 1]
    assert hard_labels(torch.rand(2, 3, 4, 5)).shape == (2, 4, 5)
    ignored = torch.tensor([[0.0, 0.0], [0.4, 0.6], [0.0, 0.1]])
    assert hard_labels(ignored, ignore_index=-100).tolist() == [-100, 1, 1]
    pair = MixedTargets(
        torch.tensor([0, 1, 2]), torch.tensor([3, 4, 0]), torch.tensor([0.5, 0.2, 1])
    )
    assert hard_labels(pair).tolist() == [0, 4, 2]
    rows = MixedTargets(torch.eye(2), torch.eye(2).flip(0), torch.tensor([0.3, 0.7]))
    assert hard_labels(rows).tolist() == [1, 1]
    assert hard_labels(rows, task="multilabel").tolist() == [[0, 1], [0, 1]]
    with pytest.raises(ValueError, match="task='binary'"):
        hard_labels(torch.rand(4))
    with pytest.raises(ValueError, match="task='multi'"):
        hard_labels(torch.rand(4, 2), task="multi")


def test_torchmetrics_needs_the_dominant_labels():
    """The trap that hard_labels is for; if torchmetrics mends it, its docstring can say so."""
    from torchmetrics.functional.classification import multiclass_accuracy

    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    soft = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    assert multiclass_accuracy(probabilities, soft, 2, average="micro") == 0
    assert multiclass_accuracy(probabilities, hard_labels(soft), 2, average="micro") == 1


def r2_score(y, guess):
    return sklearn_metrics.r2_score(y.numpy(), guess.numpy())  # scikit-learn 1.6 takes no tensors


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_metrics_are_scikit_learns(outputs):
    y = torch.randn(50, outputs, generator=GENERATOR) * 3 + 10
    guess = y + torch.randn(50, outputs, generator=GENERATOR)
    metrics = regression_metrics()
    for rows in torch.arange(50).split(16):
        metrics.update(guess[rows], y[rows])
    found = {name: float(value) for name, value in metrics.compute().items()}
    mse = sklearn_metrics.mean_squared_error(y.numpy(), guess.numpy())
    assert found["rmse"] == pytest.approx(mse**0.5, rel=1e-5)
    mae = sklearn_metrics.mean_absolute_error(y.numpy(), guess.numpy())
    assert found["mae"] == pytest.approx(mae, rel=1e-5)
    assert found["r2"] == pytest.approx(r2_score(y, guess), rel=1e-4)


def cases_of_r2():
    """Targets of all scales and offsets, constant ones, and a perfect model: name, y, ŷ."""
    y = torch.randn(90, 3, generator=GENERATOR)
    error = torch.randn(90, 3, generator=GENERATOR)
    for offset in (0.0, 1e4, -1e6):
        far = offset + torch.arange(90.0)[:, None].expand(90, 3) / 9
        yield f"offset {offset}", far, far + 0.5 * error
    yield "small", 1e-4 * y, 1e-4 * (y + error)
    yield "outlier first", torch.cat([torch.full((1, 3), 1e5), y[1:]]), 0.9 * y
    for constant in (0.0, 0.1, 12345.678):
        same = torch.full((90, 3), constant)
        yield f"constant {constant}", same, same + error
        yield f"constant {constant}, no errors", same, same
    yield "one column constant", torch.cat([y[:, :2], torch.ones(90, 1)], 1), y
    yield "perfect", y, y


CASES_OF_R2 = list(cases_of_r2())


@pytest.mark.parametrize(("name", "y", "guess"), CASES_OF_R2, ids=[case[0] for case in CASES_OF_R2])
def test_r2_is_scikit_learns_in_float64(name, y, guess):
    """In one update and in several, of the metric and of the engine."""
    expected = pytest.approx(r2_score(y.double(), guess.double()), rel=1e-5)
    parts = torch.tensor([0, 1, 8, 40, 90])
    rows = [slice(a, b) for a, b in itertools.pairwise(parts.tolist())]
    for chosen in ([slice(None)], rows, rows[::-1]):
        metric = regression_metrics()["r2"]
        for each in chosen:
            metric.update(guess[each], y[each])
        assert float(metric.compute()) == expected
        metric.reset()
        for each in chosen:  # `forward`, which gives each batch its own score
            score = float(metric(guess[each], y[each]))
            if len(y[each]) > 1:
                alone = r2_score(y[each].double(), guess[each].double())
                assert score == pytest.approx(alone, rel=1e-5)
        assert float(metric.compute()) == expected

    sums = RegressionSums(2, 3, torch.device("cpu"))
    for each in rows:
        # The first model's samples between the second's, whose predictions are other ones.
        both, order = [0, 1], torch.randperm(2 * len(y[each]), generator=GENERATOR)
        model = torch.tensor(both).repeat_interleave(len(y[each]))[order]
        predictions = torch.cat([guess[each], -guess[each]])[order]
        sums.update(model, predictions, torch.cat([y[each], y[each]])[order])
    found = sums.compute(whole=True)["r2"].tolist()
    assert found[0] == expected
    other = r2_score(y.double(), -guess.double())
    assert found[1] == pytest.approx(other, rel=1e-5)


def score_on_one_rank():
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    for name, y, guess in CASES_OF_R2:
        for columns in (slice(None), 0):
            metric = regression_metrics()["r2"]
            for rows in (torch.arange(90)[rank:30:2], torch.arange(30, 90)[(rank > 0) :: 5]):
                metric.update(guess[rows, columns], y[rows, columns])
            used = torch.cat([torch.arange(30), torch.arange(30, 90)[::5], torch.arange(31, 90, 5)])
            true, given = y[used, columns].double(), guess[used, columns].double()
            expected = r2_score(true, given)
            assert float(metric.compute()) == pytest.approx(expected, rel=1e-5), name
    torch.distributed.destroy_process_group()


def test_r2_of_two_processes_is_that_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": forked.free_port(), "WORLD_SIZE": "2"}
    forked.run(score_on_one_rank, environments=[{**place, "RANK": str(i)} for i in range(2)])


def test_r2_of_targets_of_one_column_and_after_moves():
    y = 1e4 + torch.arange(50.0) / 5
    guess = y + 0.5
    expected = pytest.approx(r2_score(y, guess), rel=1e-5)
    holder = torch.nn.ModuleList([regression_metrics()])
    for move in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.to("cpu")):
        move(holder)
        metric = holder[0]["r2"]
        for rows in (slice(0, 20), slice(20, 20), slice(20, 50)):
            metric.update(guess[rows], y[rows])
        assert float(metric.compute()) == expected
        assert metric.compute().dtype == torch.float32
        metric.reset()
    metric.set_dtype(torch.float64)
    metric.update(guess, y)
    assert float(metric.compute()) == expected


def test_r2_of_a_failed_training_is_not_a_number():
    y = torch.arange(6.0)[:, None]
    metric = regression_metrics()["r2"]
    metric.update(y * torch.nan, y)
    assert metric.compute().isnan()
    sums = RegressionSums(1, 1, torch.device("cpu"))
    sums.update(torch.zeros(6, dtype=torch.int64), y * torch.nan, y)
    assert sums.compute(whole=True)["r2"].isnan()


def test_r2_of_one_sample_is_not_a_number():
    metrics = regression_metrics()
    metrics.update(torch.ones(1, 1), torch.zeros(1, 1))
    found = metrics.compute()
    assert found["r2"].isnan()
    assert float(found["mae"]) == 1


# What a metric's name says


@pytest.mark.parametrize(
    ("names", "mode"),
    [
        (
            "val/loss val_loss valid_loss valLoss loss/val val/loss_ce loss_of_mine val/log_loss",
            "min",
        ),
        ("val/rmse val_mae val/mse_epoch val/ece val/calibration_error val/error_rate cer", "min"),
        ("val/negative_log_likelihood val/nll val_loss/dataloader_idx_0 train/perplexity", "min"),
        ("val/DaviesBouldinScore val/false_positive_rate val/KLDivergence", "min"),
        ("val/accuracy val_acc acc accuracy/val val/top5_acc acc5 val/balanced_accuracy", "max"),
        (
            "val/f1 val/f1_macro val/MulticlassF1Score val/BinaryAUROC val/roc_auc mIoU val/mAP",
            "max",
        ),
        ("val/r2 val/R2Score val/dice val/kappa val/CohenKappa val/specificity val/psnr", "max"),
        ("val/explained_variance val/mean_average_precision val/log_likelihood", "max"),
        ("score val/it val/quality val/hmean val/5", None),
        ("val/dice_loss val/accuracy_loss val/f1_error", None),
        ("val/accuracy_std val/neg_mse val/loss_ratio val/accuracy_gap val/num_errors", None),
    ],
)
def test_direction_of_names(names, mode):
    for name in names.split():
        assert metric_mode(name) == mode, name


def test_directions_are_those_of_torchmetrics():
    checked = 0
    for domain in (torchmetrics.classification, torchmetrics.regression, torchmetrics.retrieval):
        for name in domain.__all__:
            higher = getattr(getattr(domain, name), "higher_is_better", None)
            if isinstance(higher, bool) and name != "RetrievalMetric" and "GroupStat" not in name:
                assert metric_mode(f"val/{name}") == ("max" if higher else "min"), name
                checked += 1
    assert checked > 70


@pytest.mark.parametrize(
    ("names", "bounds"),
    [
        ("val/accuracy val_acc f1 val/auc val/MulticlassRecall val/iou val/mean_iou", (0, 1)),
        ("val/dice_score val/average_precision val/calibration_error val/fpr", (0, 1)),
        ("val/rmse val/mae val/mean_squared_error val/log_loss", (0, None)),
        ("val/r2 val/R2Score val/explained_variance", (None, 1)),
        ("val/kappa val/MulticlassMatthewsCorrCoef val/spearman", (-1, 1)),
        ("val/loss val/mse_loss val/score val/accuracy_loss val/accuracy_gap", (None, None)),
        ("val/psnr val/error val/acc_rmse", (None, None)),
    ],
)
def test_ranges_of_names(names, bounds):
    for name in names.split():
        assert metric_range(name) == bounds, name


def test_direction_of_the_objects_of_a_module():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.val_hinge = torchmetrics.classification.BinaryHingeLoss()
            self.mean = torchmetrics.MeanMetric()
            self.both = torchmetrics.MetricCollection(
                {"s": torchmetrics.classification.BinaryAccuracy()}, prefix="val/"
            )

    module = Module()
    assert mode_of_metric(module, "val/hinge") == mode_of_metric(module, "val_hinge") == "min"
    assert mode_of_metric(module, "val/s") == "max"
    for name in ("mean", "hinge", "s", "val/t"):
        assert mode_of_metric(module, name) is None
    assert mode_of(module.mean) is None


def test_torchmetrics_mistakes_are_mended():
    # The index is 0 for clusters that are points, and grows with their spread.
    assert mode_of(torchmetrics.clustering.DaviesBouldinScore()) == "min"
    assert mode_of(torchmetrics.text.WordInfoPreserved) == "max"


@pytest.mark.parametrize(
    "name", ["val/brier_skill_score", "val/mse_skill_score", "val/log_mse", "val/rmse_log"]
)
def test_words_that_turn_a_metric_round_leave_it_unknown(name):
    assert metric_mode(name) is None
    assert metric_range(name) == (None, None)
