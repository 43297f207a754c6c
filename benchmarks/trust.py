"""Measure bias, coverage and false positives of cross-validation.

Scores should be what the fold models score on new samples; a 95 % interval should hold that in 95 %
of runs; and a test of two equally good procedures should find a difference in 5 % of them at most.

- *Simulated scores*: 10,000 tables of fold scores for each row, by the formulas of
  `CrossValidationResult.interval` and `compare`. Each sample is hard or easy, for both models and
  in every repeat; each data set is good or bad for training, and each fit a little. The strength c
  of that is the variance of a data set's expected score, over the variance of the score of as many
  independent samples. The true score is known. "plain" is Nadeau and Bengio's (2003) formula
  alone, without a floor of the error and with n - 1 degrees of freedom.
- *Fits*: real cross-validations, trained as one fit. The truth of a setting is the mean accuracy of
  its fold models on 100,000 new samples; the bias is the mean of what is reported minus that.
  Labels are random, or tell two Gaussians apart. The epoch is selected by accuracy.
- *Comparisons* of training for 40 epochs with training for 2, on random labels: no difference.

Measured (numbers do not depend on the machine; 10×3 is 10 folds, repeated three times; found is the
share of tests with p < 0.05; ± is the standard error of the bias):

    simulated, worst of 9    coverage  found    plain coverage  found
    n=60     2×1            1.000  0.000             0.605  0.108
    n=60     5×1            0.949  0.011             0.724  0.028
    n=60    10×1            0.950  0.021             0.744  0.024
    n=60    10×3            0.931  0.030             0.777  0.051
    n=400    2×1            1.000  0.000             0.907  0.078
    n=400    5×1            0.959  0.014             0.949  0.031
    n=400   10×1            0.952  0.028             0.950  0.032
    n=400   10×3            0.945  0.032             0.918  0.052
    fits                                   reported   truth     bias       ±  coverage  width  runs
    random labels, n=60, 2×1, inner          0.4992  0.4999  -0.0007  0.0023     1.000  1.000   720
    random labels, n=60, 5×1, inner          0.4999  0.4999  -0.0000  0.0025     1.000  0.504   720
    random labels, n=60, 10×1, inner         0.5001  0.5001  +0.0001  0.0025     0.989  0.403   720
    random labels, n=60, 10×3, inner         0.4975  0.5001  -0.0026  0.0020     0.998  0.337   480
    random labels, n=60, 2×1, last           0.4970  0.5000  -0.0030  0.0027     1.000  1.000   720
    random labels, n=60, 5×1, last           0.4944  0.4999  -0.0055  0.0029     0.988  0.498   720
    random labels, n=60, 10×1, last          0.5002  0.5001  +0.0001  0.0029     0.981  0.406   720
    random labels, n=60, 10×3, last          0.4943  0.5001  -0.0058  0.0029     0.996  0.339   480
    random labels, n=60, 5×1, fold           0.6452  0.4999  +0.1452  0.0021     0.806  0.426   720
    random labels, n=400, 2×1, inner         0.4987  0.5001  -0.0013  0.0019     1.000  0.788   200
    random labels, n=400, 5×1, inner         0.4974  0.5000  -0.0025  0.0018     0.995  0.190   200
    random labels, n=400, 10×1, inner        0.4997  0.5000  -0.0003  0.0020     0.980  0.159   200
    random labels, n=400, 10×3, inner        0.4995  0.5000  -0.0005  0.0014     0.995  0.131   200
    random labels, n=400, 2×1, last          0.5008  0.5001  +0.0006  0.0021     1.000  0.768   200
    random labels, n=400, 5×1, last          0.5005  0.5000  +0.0005  0.0020     0.995  0.197   200
    random labels, n=400, 10×1, last         0.5002  0.5000  +0.0002  0.0021     0.975  0.154   200
    random labels, n=400, 10×3, last         0.5006  0.5000  +0.0006  0.0018     0.995  0.132   200
    random labels, n=400, 5×1, fold          0.5697  0.5000  +0.0697  0.0015     0.635  0.161   200
    two Gaussians, n=60, 2×1, inner          0.6017  0.6040  -0.0023  0.0025     1.000  0.999   480
    two Gaussians, n=60, 5×1, inner          0.6323  0.6380  -0.0057  0.0027     0.996  0.525   480
    two Gaussians, n=60, 10×1, inner         0.6559  0.6521  +0.0038  0.0028     0.979  0.397   480
    two Gaussians, n=60, 10×3, inner         0.6537  0.6528  +0.0009  0.0021     0.998  0.334   480
    two Gaussians, n=60, 2×1, last           0.6815  0.6817  -0.0002  0.0030     1.000  0.991   480
    two Gaussians, n=60, 5×1, last           0.6933  0.6973  -0.0040  0.0030     0.992  0.453   480
    two Gaussians, n=60, 10×1, last          0.7081  0.7060  +0.0021  0.0029     0.977  0.362   480
    two Gaussians, n=60, 10×3, last          0.7055  0.7060  -0.0005  0.0025     0.983  0.306   480
    two Gaussians, n=60, 5×1, fold           0.7862  0.6637  +0.1225  0.0023     0.802  0.379   480
    two Gaussians, n=400, 2×1, inner         0.7385  0.7393  -0.0009  0.0015     1.000  0.722   200
    two Gaussians, n=400, 5×1, inner         0.7532  0.7554  -0.0022  0.0015     0.990  0.173   200
    two Gaussians, n=400, 10×1, inner        0.7572  0.7568  +0.0003  0.0017     0.980  0.140   200
    two Gaussians, n=400, 10×3, inner        0.7567  0.7568  -0.0002  0.0014     0.975  0.116   200
    two Gaussians, n=400, 2×1, last          0.7344  0.7347  -0.0004  0.0017     1.000  0.667   200
    two Gaussians, n=400, 5×1, last          0.7399  0.7402  -0.0003  0.0016     1.000  0.177   200
    two Gaussians, n=400, 10×1, last         0.7406  0.7424  -0.0019  0.0016     0.985  0.142   200
    two Gaussians, n=400, 10×3, last         0.7413  0.7424  -0.0011  0.0015     0.980  0.117   200
    two Gaussians, n=400, 5×1, fold          0.7959  0.7601  +0.0358  0.0014     0.920  0.154   200
    comparisons of 40 epochs with 2                 p < 0.05  runs
    random labels, n=60, 5×1, inner                    0.000   200
    random labels, n=60, 10×3, inner                   0.000   200
    random labels, n=60, 5×1, last                     0.000   200
    random labels, n=60, 10×3, last                    0.005   200
    random labels, n=60, 5×1, fold                     0.010   200
    random labels, n=400, 5×1, inner                   0.005   200
    random labels, n=400, 10×3, inner                  0.000   200
    random labels, n=400, 5×1, last                    0.005   200
    random labels, n=400, 10×3, last                   0.000   200
    random labels, n=400, 5×1, fold                    0.035   200

Of "inner" and "last" no bias is beyond 0.006, every interval covers 97 % or more, and at most 0.5 %
of the comparisons find a difference. The price is length: intervals and tests are cautious on real
fits, most so with two folds, which tell almost nothing. "fold" is optimistic by 4 to 15 points, and
its intervals miss the truth in up to 37 % of the runs. About 42 minutes of one core's time, or 21
on two; beside other work it took 77.

Run: python benchmarks/trust.py [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from joblib import Parallel, delayed
from scipy import stats

from dlblocks._quiet import quiet
from dlblocks.crossval import CrossValidationResult
from dlblocks.crossval._out_of_fold import join
from dlblocks.crossval.statistics import (
    corrected_t_test,
    least_error,
    least_paired_error,
    mean_interval,
)
from dlblocks.data import ArrayDataModule
from dlblocks.engine import Member, StackedFit
from dlblocks.metrics import metric_ranges
from dlblocks.models import MLPClassifier, Model
from dlblocks.runs._fits import FitResult

Array = npt.NDArray[np.floating]
Classes = npt.NDArray[np.integer]
LAYOUTS = ((2, 1), (5, 1), (10, 1), (10, 3))  # folds, repeats
SIZES = (60, 400)
STRENGTHS = (0.0, 0.4, 0.8)
TRUTHS = (0.6, 0.9, 0.97)
# Shares of a sample's difficulty that both models have, and that both repeats have.
SHARED, KEPT = 0.7, 0.97
# Real cross-validations of so many samples, and how many of them have three repeats.
RUNS = {
    ("random labels", 60): (720, 480),
    ("random labels", 400): (200, 200),
    ("two Gaussians", 60): (480, 480),
    ("two Gaussians", 400): (200, 200),
}
COMPARED = 200  # of them, with another procedure
FEATURES, HIDDEN, EPOCHS, NEW = 10, 8, 40, 100_000
AT_ONCE = 1500  # fits
CHECKED = 20  # tables of a row by which the formulas here are held against the package's


@dataclass
class Scores:
    """Many cross-validations of two equally good models.

    Attributes:
        fits: Accuracies, shape (2, T, n) for n fits.
        right: Share of the repeats in which each sample is right, shape (2, T, N).
        folds: Number of folds K.
        truth: The expected accuracy.
    """

    fits: Array
    right: Array
    folds: int
    truth: float


@dataclass
class Row:
    """A line of the table.

    Attributes:
        what: What was run.
        coverage: Share of 95 % intervals that hold the truth.
        width: Mean width of these intervals.
        false_positives: Share of tests with p < 0.05.
        plain_coverage: `coverage` by Nadeau and Bengio's formula alone.
        plain_false_positives: Likewise.
    """

    what: str
    coverage: float
    width: float
    false_positives: float
    plain_coverage: float
    plain_false_positives: float


def judge(what: str, scores: Scores) -> Row:
    """Counts how often the intervals hold the truth and the tests find a difference."""
    tables, fits = scores.fits.shape[1:]
    samples = scores.right.shape[2]
    ratio = 1 / (scores.folds - 1)
    freedom = scores.folds - 1
    quantiles = {n: stats.t.ppf(0.975, n) for n in (freedom, fits - 1)}

    def error(values: Array) -> Array:
        return np.sqrt((1 / fits + ratio) * values.var(1, ddof=1))

    values, differences = scores.fits[0], scores.fits[0] - scores.fits[1]
    mean, gap = values.mean(1), differences.mean(1)
    share = (samples * mean + 1) / (samples + 2)
    mean_error = np.maximum(error(values), np.sqrt(share * (1 - share) / samples))
    discordant = ((scores.right[0] - scores.right[1]) ** 2).sum(1)
    gap_error = np.maximum(error(differences), np.sqrt(discordant + 1) / samples)
    low, high = (np.clip(mean + s * quantiles[freedom] * mean_error, 0, 1) for s in (-1, 1))
    found = np.abs(gap) > quantiles[freedom] * gap_error

    for i in range(min(CHECKED, tables)):
        expected = mean_interval(
            values[i], ratio, least_error=least_error(float(mean[i]), (0, 1), samples),
            bounds=(0, 1), degrees_of_freedom=freedom,
        )  # fmt: skip
        np.testing.assert_allclose((low[i], high[i]), expected, atol=1e-9)
        test = corrected_t_test(
            scores.fits[0, i], scores.fits[1, i], ratio, degrees_of_freedom=freedom,
            least_error=least_paired_error(scores.right[0, i] - scores.right[1, i]),
        )  # fmt: skip
        assert found[i] == (test.p < 0.05)

    near = 1e-9  # rounding of equal scores
    plain = quantiles[fits - 1]
    return Row(
        what,
        coverage=float(np.mean((low - near <= scores.truth) & (scores.truth <= high + near))),
        width=float((high - low).mean()),
        false_positives=float(found.mean()),
        plain_coverage=float(np.mean(np.abs(mean - scores.truth) <= plain * error(values) + near)),
        plain_false_positives=float(np.mean(np.abs(gap) > plain * error(differences) + near)),
    )


def fold_means(right: npt.NDArray[Any], fold: Classes, folds: int) -> Array:
    """Accuracy of each fold, shape (T, K), of right or wrong samples (T, N)."""
    order = np.argsort(fold, kind="stable")
    counts = np.bincount(fold, minlength=folds)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.add.reduceat(right[:, order], starts, axis=1, dtype=float) / counts


# Simulated scores


def simulate(
    samples: int, folds: int, repeats: int, *, truth: float, strength: float, tables: int
) -> Scores:
    """Scores of two models over samples that are right where a normal variable is above zero."""
    rng = np.random.default_rng([samples, folds, repeats, int(1000 * truth), int(10 * strength)])
    at = stats.norm.ppf(truth)
    shift = np.sqrt(strength * truth * (1 - truth) / samples) / stats.norm.pdf(at)
    center = at * np.sqrt(1 + 2 * shift**2)
    both = stats.multivariate_normal([0, 0], [[1, SHARED], [SHARED, 1]]).cdf([at, at])
    # Of being right, between the models: what a data set does to them is as alike.
    alike = (both - truth**2) / (truth * (1 - truth))

    def normal(*shape: int, variance: float) -> Array:
        return np.float32(np.sqrt(variance)) * rng.standard_normal(shape, dtype=np.float32)

    shared = normal(tables, samples, variance=SHARED)
    set_shared = normal(tables, 1, variance=alike * shift**2)
    fold = [rng.permutation(samples) % folds for _ in range(repeats)]
    fits, right = [], []
    for _ in range(2):
        own = shared + normal(tables, samples, variance=KEPT - SHARED)
        own += set_shared + normal(tables, 1, variance=(1 - alike) * shift**2) + center
        scores, counts = [], np.zeros((tables, samples), dtype=np.float32)
        for r in range(repeats):
            of_fit = normal(tables, folds, variance=shift**2)[:, fold[r]]
            is_right = own + of_fit + normal(tables, samples, variance=1 - KEPT) > 0
            scores.append(fold_means(is_right, fold[r], folds))
            counts += is_right
        fits.append(np.concatenate(scores, 1))
        right.append(counts / repeats)
    return Scores(np.stack(fits), np.stack(right), folds, truth)


def simulated(quick: bool) -> Iterator[Row]:
    for samples in SIZES:
        for folds, repeats in LAYOUTS:
            for strength in STRENGTHS:
                for truth in TRUTHS:
                    scores = simulate(
                        samples, folds, repeats, truth=truth, strength=strength,
                        tables=500 if quick else 10_000,
                    )  # fmt: skip
                    yield judge(
                        f"n={samples:<4} {folds:>2}×{repeats}  c={strength}  accuracy {truth}",
                        scores,
                    )


# Fits


@dataclass(frozen=True)
class Setting:
    """A kind of cross-validation.

    Attributes:
        problem: ``"random labels"`` or ``"two Gaussians"``.
        samples: Samples N, half of each class.
        folds: Number of folds.
        repeats: Number of repeats.
        select: As for `cross_validate`.
        epochs: Epochs of a fit.
    """

    problem: str
    samples: int
    folds: int
    repeats: int
    select: str
    epochs: int = EPOCHS


def draw(problem: str, samples: int, rng: np.random.Generator) -> tuple[Array, Classes]:
    """New samples of a problem, half of them of each class."""
    targets = rng.permutation(np.arange(samples) % 2)
    inputs = rng.normal(size=(samples, FEATURES)).astype(np.float32)
    if problem == "two Gaussians":
        inputs[:, 0] += 1.6 * targets - 0.8
    return inputs, targets


def cross_validations(
    setting: Setting, numbers: Sequence[int]
) -> tuple[list[CrossValidationResult], Array]:
    """Real cross-validations, their fits trained as one.

    Args:
        setting: What they are.
        numbers: Numbers of the runs, which seed their data.

    Returns:
        The results, and the accuracy of every fold model on new samples, shape (runs, fits).
    """
    torch.set_num_threads(1)
    parts = [
        draw(
            setting.problem,
            setting.samples,
            np.random.default_rng([1, setting.samples, setting.folds, number]),
        )
        for number in numbers
    ]
    batch_size: Any = "full" if setting.samples < 100 else 64
    whole = ArrayDataModule(
        *map(np.concatenate, zip(*parts, strict=True)), normalize=False, batch_size=batch_size
    )
    members = []
    for i, number in enumerate(numbers):
        run = whole.subset(np.arange(setting.samples) + i * setting.samples)
        for repeat in range(setting.repeats):
            for fold in range(setting.folds):
                data = run.for_fold(fold, setting.folds, repeat=repeat)
                if setting.select == "inner":
                    data = data.with_selection(0.15)
                data.validate_on = {"inner": "selection", "last": None, "fold": "val"}[
                    setting.select
                ]
                torch.manual_seed(1000 * number + 100 * repeat + fold)
                model = MLPClassifier(FEATURES, 2, hidden=[HIDDEN], lr=0.03)
                members.append(Member(f"{number}, {repeat}, {fold}", model, data, []))
    with quiet():
        together = StackedFit(
            members,
            trainer={"max_epochs": setting.epochs, "accelerator": "cpu"},
            monitor="val/accuracy",
            mode="max",
        )
        together.fit()
    results, fits = [], setting.folds * setting.repeats
    for i in range(len(numbers)):
        rows, predicted = [], []
        for j, member in enumerate(members[i * fits : (i + 1) * fits]):
            place = {"repeat": j // setting.folds, "fold": j % setting.folds}
            found = together.predict(member, "val")
            size = len(found)
            # As in a data set of its own.
            found = found.with_columns(index=found.index - i * setting.samples)
            assert member.best is not None
            sizes = {"num_train": setting.samples - size, "num_val": size}
            rows.append({**place, **sizes, **member.best.metrics})
            predicted.append(FitResult(rows[-1], found, []))
        info = {
            "monitor": "val/accuracy", "num_folds": setting.folds,
            "ranges": metric_ranges(["val/accuracy"]),
        }  # fmt: skip
        results.append(CrossValidationResult(Path(), rows, join(predicted), info=info))
    return results, accuracies([m.model for m in members], setting.problem).reshape(-1, fits)


def accuracies(models: Sequence[Model], problem: str) -> Array:
    """Accuracy of each model on 100,000 new samples."""
    drawn, targets = map(torch.from_numpy, draw(problem, NEW, np.random.default_rng(2)))
    inputs, positive = drawn.T.contiguous(), targets.bool()
    found = []
    for i in range(0, len(models), 100):
        some = [dict(model.net.named_parameters()) for model in models[i : i + 100]]
        first, shift, second, last = (
            torch.stack([tensors[name].data for tensors in some]) for name in some[0]
        )
        weights, bias = second[:, 1:] - second[:, :1], (last[:, 1] - last[:, 0])[:, None, None]
        hits = torch.zeros(len(some))
        # Few samples at a time: the hidden units of 100 models then fit into the cache.
        for x, y in zip(inputs.split(1000, 1), positive.split(1000), strict=True):
            hidden = torch.addmm(shift.reshape(-1, 1), first.flatten(0, 1), x).relu_()
            logit = torch.baddbmm(bias, weights, hidden.view(len(some), HIDDEN, -1))
            hits += ((logit[:, 0] > 0) == y).sum(1)
        found.append(hits / NEW)
    return torch.cat(found).double().numpy()


def run_all(setting: Setting, numbers: Sequence[int]) -> tuple[list[CrossValidationResult], Array]:
    """Runs `cross_validations` in two processes, as many at once as memory and cache like."""
    step = max(1, AT_ONCE // (setting.folds * setting.repeats))
    step = min(step, -(-len(numbers) // 2))
    chunks = [numbers[i : i + step] for i in range(0, len(numbers), step)]
    done = Parallel(n_jobs=2)(delayed(cross_validations)(setting, chunk) for chunk in chunks)
    return [result for results, _ in done for result in results], np.concatenate(
        [truths for _, truths in done]
    )


def judged(what: str, results: Sequence[CrossValidationResult], truths: Array) -> str:
    """A line of the table: bias, and how often the intervals hold the truth."""
    reported = np.array([result.mean("val/accuracy") for result in results])
    truth = float(truths.mean())
    difference = reported - truths.mean(1)
    ends = np.array([result.interval("val/accuracy") for result in results])
    covered = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
    return (
        f"{what:<44}{reported.mean():>9.4f}{truth:>8.4f}{difference.mean():>+9.4f}"
        f"{difference.std() / len(results) ** 0.5:>8.4f}{covered.mean():>10.3f}"
        f"{np.ptp(ends, axis=1).mean():>7.3f}{len(results):>6}"
    )


def first_repeat(result: CrossValidationResult) -> CrossValidationResult:
    """The first repeat alone."""
    oof = result.oof
    assert oof is not None  # for the type checker: our models predict
    rows = [row for row in result.folds if row["repeat"] == 0]
    return CrossValidationResult(Path(), rows, oof[oof.repeat == 0], info=result.info)


def fits(quick: bool) -> None:
    """Prints bias and coverage of real cross-validations, then comparisons of two procedures."""
    print(f"\n{'fits':<44}{'reported':>9}{'truth':>8}{'bias':>9}{'±':>8}{'coverage':>10}"
          f"{'width':>7}{'runs':>6}")  # fmt: skip
    kept: dict[tuple[str, int, str], list[CrossValidationResult]] = {}
    for (problem, samples), (runs, repeated) in RUNS.items():
        if quick:
            runs, repeated = 10, 5
        for select in ("inner", "last", "fold"):
            found = {}
            for folds in (5,) if select == "fold" else (2, 5, 10):
                setting = Setting(problem, samples, folds, 1, select)
                if folds == 10:
                    thrice = run_all(replace(setting, repeats=3), range(repeated))
                    found["10×3"] = thrice
                    once = [first_repeat(result) for result in thrice[0]]
                    more = run_all(setting, range(repeated, runs)) if runs > repeated else None
                    found["10×1"] = (
                        once + (more[0] if more else []),
                        np.concatenate([thrice[1][:, :10], *([more[1]] if more else [])]),
                    )
                else:
                    found[f"{folds}×1"] = run_all(setting, range(runs))
            for layout, (results, truths) in sorted(found.items(), key=lambda pair: pair[0]):
                what = f"{problem}, n={samples}, {layout}, {select}"
                print(judged(what, results, truths), flush=True)
                if problem == "random labels":
                    kept[layout, samples, select] = results[:COMPARED]
    print(f"\n{'comparisons of ' + str(EPOCHS) + ' epochs with 2':<44}{'p < 0.05':>9}{'runs':>6}")
    for samples in SIZES:
        for select in ("inner", "last", "fold"):
            for folds, repeats in ((5, 1), (10, 3)):
                key = f"{folds}×{repeats}", samples, select
                if key not in kept:
                    continue
                first = kept[key]
                setting = Setting("random labels", samples, folds, repeats, select, 2)
                second, _ = run_all(setting, range(len(first)))
                p = [a.compare(b).p for a, b in zip(first, second, strict=True)]
                what = f"random labels, n={samples}, {key[0]}, {select}"
                print(f"{what:<44}{np.mean(np.array(p) < 0.05):>9.3f}{len(p):>6}", flush=True)


def show(title: str, rows: Iterator[Row]) -> None:
    """Prints a table, row by row as they come."""
    print(f"\n{title:<48}{'coverage':>9}{'width':>8}{'found':>8}{'plain coverage, found':>24}")
    for row in rows:
        print(
            f"{row.what:<48}{row.coverage:>9.3f}{row.width:>8.3f}{row.false_positives:>8.3f}"
            f"{row.plain_coverage:>16.3f}{row.plain_false_positives:>8.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="Few tables, to see that it runs.")
    quick = parser.parse_args().quick
    started = time.monotonic()
    show("Simulated scores", simulated(quick))
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    fits(quick)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
