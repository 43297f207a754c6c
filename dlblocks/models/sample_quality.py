"""Judge samples of a generative model by numbers.

All but the last two are plain functions of arrays. Distances are Euclidean, between flattened
images in the same units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlblocks.models.generative import GenerativeModel

Array = npt.NDArray[np.float64]
CHUNK = 512  # rows of a distance matrix at a time


def distances(queries: npt.ArrayLike, points: npt.ArrayLike, k: int = 1) -> Array:
    """Return distances (N,) from queries to their k-th nearest points.

    Args:
        queries: Shape (N, ...).
        points: Shape (M, ...), with M at least k.
        k: Which neighbour; 1 is the nearest.

    Example:
        >>> distances([[0.0], [5.0]], [[1.0], [3.0]])
        array([1., 2.])
    """
    a, b = _flat(queries), _flat(points)
    if not 1 <= k <= len(b):
        raise ValueError(f"k={k} is outside 1 … {len(b)}, the number of points.")
    found = []
    for start in range(0, len(a), CHUNK):
        part = a[start : start + CHUNK]
        squares = (part**2).sum(1)[:, None] + (b**2).sum(1) - 2 * part @ b.T
        found.append(np.partition(squares, k - 1, axis=1)[:, k - 1])
    nearest: Array = np.sqrt(np.maximum(np.concatenate(found), 0))
    return nearest


def neighbour_ratio(samples: npt.ArrayLike, train: npt.ArrayLike, unseen: npt.ArrayLike) -> float:
    """Compare how near samples and unseen images are to training images.

    The result is the mean distance of samples to their nearest training image, over that of unseen
    images. It is about 1 for new images of the same distribution. Copies of training images bring
    it towards 0, also where no copy is exact.

    Args:
        samples: Shape (N, ...).
        train: Images that the model was trained on, shape (M, ...).
        unseen: Other real images, shape (K, ...).
    """
    return float(distances(samples, train).mean() / distances(unseen, train).mean())


def precision_and_recall(
    samples: npt.ArrayLike, real: npt.ArrayLike, k: int = 3
) -> tuple[float, float]:
    """Compute improved precision and recall (Kynkäänniemi et al. 2019).

    Precision is the share of samples that lie in the ball around some real image, whose radius is
    the distance to its k-th nearest other real image. Recall is the share of real images that lie
    in such a ball around some sample. Both sets should have equal sizes.

    Args:
        samples: Shape (N, ...).
        real: Shape (M, ...).
        k: Which neighbour gives the radius.
    """
    return _covered(samples, real, k), _covered(real, samples, k)


def _covered(queries: npt.ArrayLike, points: npt.ArrayLike, k: int) -> float:
    a, b = _flat(queries), _flat(points)
    # The nearest of all is the point itself.
    radii = distances(b, b, k + 1) ** 2
    inside = np.zeros(len(a), bool)
    for start in range(0, len(a), CHUNK):
        part = a[start : start + CHUNK]
        squares = (part**2).sum(1)[:, None] + (b**2).sum(1) - 2 * part @ b.T
        inside[start : start + CHUNK] = (squares <= radii).any(1)
    return float(inside.mean())


def two_sample_accuracy(samples: npt.ArrayLike, real: npt.ArrayLike) -> float:
    """Compute how often a nearest neighbour tells samples from real images.

    Each image is judged by its nearest other image (leave-one-out; Lopez-Paz and Oquab 2017). 1/2
    means that the two cannot be told apart, 1 that they can, and less than 1/2 that samples are
    copies of these real images. Both sets must have equal sizes.

    Args:
        samples: Shape (N, ...).
        real: Shape (N, ...).
    """
    a, b = _flat(samples), _flat(real)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} samples and {len(b)} real images; give equal numbers.")
    both, label = np.concatenate([a, b]), np.repeat([0, 1], len(a))
    squares = (both**2).sum(1)[:, None] + (both**2).sum(1) - 2 * both @ both.T
    np.fill_diagonal(squares, np.inf)
    return float((label[squares.argmin(1)] == label).mean())


def _flat(images: npt.ArrayLike) -> Array:
    found = np.asarray(images, dtype=np.float64)
    return found.reshape(len(found), -1)


def baseline_bits(
    train: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
    levels: int,
    labels: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None,
) -> Array:
    """Compute bits per dimension (N,) of histograms of single pixels.

    Each level counts one more than it occurs (Laplace 1814).

    Args:
        train: Levels, shape (M, ...).
        test: Levels, shape (N, ...).
        levels: Number of levels.
        labels: Classes of both, for a histogram of each class. The result is then that of the
            mixture of all classes, by their shares.

    Example:
        >>> zeros = np.zeros((2, 1), np.int64)
        >>> baseline_bits(zeros, zeros[:1], 2)
        array([0.4150375])
    """
    train, test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    classes = np.zeros(len(train), np.int64) if labels is None else labels[0]
    places, parts = np.arange(train.shape[1]), []
    for each in np.unique(classes):
        rows = train[classes == each]
        counts = np.stack([(rows == level).sum(0) for level in range(levels)], 1) + 1.0
        log_shares = np.log2(counts / counts.sum(1, keepdims=True))
        log_prior = np.log2(len(rows) / len(train))
        parts.append(log_prior + log_shares[places, test].sum(1))
    found: Array = -np.logaddexp2.reduce(parts, axis=0) / train.shape[1]
    return found


def judge(
    samples: npt.ArrayLike,
    asked: npt.ArrayLike | None,
    train: tuple[npt.ArrayLike, npt.ArrayLike],
    test: tuple[npt.ArrayLike, npt.ArrayLike],
) -> dict[str, float]:
    """Judge samples, with their classes if they were made of classes.

    A support vector machine with radial basis functions is the classifier.

    Args:
        samples: Images that were made, shape (N, ...).
        asked: The class that each should have, shape (N,); None for a model without classes.
        train: Real images and classes that the model was trained on.
        test: Other real images and classes.

    Returns:
        ``neighbour_ratio``, ``precision``, ``recall`` and ``two_sample_accuracy``, as the functions
        of this module compute them, the last three with as many samples as there are test images.

        With classes also ``judged_as_asked``, how often a classifier trained on real images finds
        the class that was asked for; ``share_error``, by how much the share of a class among the
        samples, by that classifier, differs at most from its share among `asked` (0.3 for 7 or 13
        instead of 10); ``trained_on_samples``, the accuracy on `test` of a classifier trained on
        samples alone, and ``trained_on_real`` beside it.
    """
    made, real, unseen = _flat(samples), _flat(train[0]), _flat(test[0])
    of_classes = {}
    if asked is not None:
        of_classes = _judge_classes((made, np.asarray(asked)), (real, train[1]), (unseen, test[1]))
    count = min(len(made), len(unseen))
    # At random, because samples may be sorted by class.
    some = made[np.random.default_rng(0).permutation(len(made))[:count]]
    precision, recall = precision_and_recall(some, unseen[:count])
    return of_classes | {
        "neighbour_ratio": neighbour_ratio(made, real, unseen),
        "precision": precision,
        "recall": recall,
        "two_sample_accuracy": two_sample_accuracy(some, unseen[:count]),
    }


def _judge_classes(
    samples: tuple[Array, npt.NDArray[Any]],
    train: tuple[Array, npt.ArrayLike],
    test: tuple[Array, npt.ArrayLike],
) -> dict[str, float]:
    from sklearn.svm import SVC

    on_real, on_samples = SVC().fit(*train), SVC().fit(*samples)
    said, wanted = on_real.predict(samples[0]), samples[1]
    counts = [((said == each).sum(), (wanted == each).sum()) for each in np.unique(wanted)]
    return {
        "judged_as_asked": float((said == wanted).mean()),
        "share_error": float(max(abs(found / asked_for - 1) for found, asked_for in counts)),
        "trained_on_samples": float(on_samples.score(*test)),
        "trained_on_real": float(on_real.score(*test)),
    }


def judge_model(
    model: GenerativeModel, datamodule: Any, num_samples: int = 1500, **options: Any
) -> tuple[Tensor, dict[str, float]]:
    """Judge samples of a model, in units of its levels.

    Args:
        model: The model, trained on the training part.
        datamodule: Its data, with a test set.
        num_samples: Number of samples, of all classes in turn if the model has classes.
        **options: Arguments of `GenerativeModel.sample`.

    Returns:
        The samples, raw images (num_samples, C, H, W) on the CPU, and the result of `judge`.
    """
    count = model.num_classes
    asked = None if count is None else torch.arange(num_samples) % count
    samples = model.sample(num_samples, asked, **options).cpu()
    train, test = (_levels_of(model, datamodule, part) for part in ("train", "test"))
    levels = model.to_levels(model.preprocess(samples.to(model.device))).cpu()
    return samples, judge(levels, asked, train, test)


def baselines_of(model: GenerativeModel, datamodule: Any) -> dict[str, Array]:
    """Return bits per dimension (N,) of simple models, for each test image.

    They are uniform levels, `baseline_bits`, and those of classes.
    """
    (train, classes), (test, true) = (
        _levels_of(model, datamodule, part) for part in ("train", "test")
    )
    return {
        "uniform": np.full(len(test), np.log2(model.levels)),
        "independent pixels": baseline_bits(train, test, model.levels),
        "class histograms": baseline_bits(train, test, model.levels, (classes, true)),
    }


def _levels_of(
    model: GenerativeModel, datamodule: Any, part: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    images, labels, _ = datamodule.arrays(part)
    levels = model.to_levels(model.preprocess(images.to(model.device)))
    return levels.cpu().numpy(), labels.cpu().numpy()
