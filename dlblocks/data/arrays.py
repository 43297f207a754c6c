"""Arrays of the user's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlblocks.data.base import DataModule, Source


class ArrayDataModule(DataModule):
    """Tensors or NumPy arrays as a datamodule: splits, folds, normalisation, loaders.

    The arrays are shared, not copied, and never written to. uint8 stays uint8 until a batch is on
    its device; float64 becomes float32.

    Args:
        inputs: Images (N, C, H, W), uint8 or floating point, or features (N, F), floating point.
        targets: Classes (N,), integers from 0, or names, which are sorted; or values (N,) or
            (N, D), floating point.
        test_inputs: An official test set, outside every fold.
        test_targets: Its targets.
        groups: Group of each sample, shape (N,): no group is in two parts.
        class_names: Names of the classes 0 … C-1.
        batch_size: Samples a batch.
        num_workers: Worker processes a loader.
        num_folds: Number of folds, or None for a single split by `val_fraction`.
        fold: Which fold validates.
        val_fraction: Validation share of the development set when `num_folds` is None.
        test_fraction: Share held out first as test set, outside every fold.
        split_seed: Seed of every split.
        shuffle_seed: Seed of the order of training samples.
        stratify: Keep the proportions of the classes in every part; None: for classes, yes.
        normalize: Standardise by the training part's mean and standard deviation.

    Raises:
        ValueError: Lengths differ, values are not finite, images are NHWC, and the like; said at
            the first use of the data.

    Example:
        >>> data = ArrayDataModule(np.random.rand(20, 3), np.arange(20) % 2, num_folds=5)
        >>> data.in_features, data.num_classes
        (3, 2)
    """

    def __init__(
        self,
        inputs: Tensor | npt.ArrayLike,
        targets: Tensor | npt.ArrayLike,
        *,
        test_inputs: Tensor | npt.ArrayLike | None = None,
        test_targets: Tensor | npt.ArrayLike | None = None,
        groups: npt.ArrayLike | None = None,
        class_names: list[str] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        num_folds: int | None = None,
        fold: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        shuffle_seed: int = 0,
        stratify: bool | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            num_folds=num_folds,
            fold=fold,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            split_seed=split_seed,
            shuffle_seed=shuffle_seed,
            stratify=stratify,
            normalize=normalize,
        )
        if (test_inputs is None) != (test_targets is None):
            raise ValueError("give test_inputs and test_targets together, or neither.")
        self.given = inputs, targets, test_inputs, test_targets
        self.groups = None if groups is None else np.asarray(groups)
        self.given_class_names = class_names
        self.save_hyperparameters(
            ignore=["inputs", "targets", "test_inputs", "test_targets", "groups"]
        )

    def load(self) -> Source:
        inputs, targets, test_inputs, test_targets = self.given
        classes, names = _targets("targets", targets, self.given_class_names)
        source = Source(_inputs("inputs", inputs), classes, class_names=names, groups=self.groups)
        if self.groups is not None and self.groups.shape != (len(source.inputs),):
            raise ValueError(
                f"groups has shape {self.groups.shape}, expected one a sample, "
                f"({len(source.inputs)},)."
            )
        if test_inputs is not None:
            source.test_inputs = _inputs("test_inputs", test_inputs)
            source.test_targets, _ = _targets("test_targets", test_targets, names)
        return source


def _inputs(argument: str, values: Any) -> Tensor:
    tensor = values if isinstance(values, Tensor) else _as_tensor(argument, values)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{argument} is {tensor.dtype}; expected floating point or uint8.")
    if tensor.ndim == 4 and tensor.shape[-1] in (1, 3, 4) and tensor.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"{argument} has shape {tuple(tensor.shape)}, whose last axis looks like channels; "
            f"images are (N, C, H, W): pass {argument}.transpose(0, 3, 1, 2) "
            "(NumPy) or .permute(0, 3, 1, 2) (torch)."
        )
    if tensor.dtype == torch.uint8 and tensor.ndim == 4:
        return tensor
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor.float()
    return tensor


def _targets(
    argument: str, values: Any, class_names: list[str] | None
) -> tuple[Tensor, list[str] | None]:
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind in "USO":
            names = class_names or sorted({str(value) for value in array.ravel()})
            unknown = sorted({str(value) for value in array.ravel()} - set(names))
            if unknown:
                raise ValueError(
                    f"{argument} has the class {unknown[0]!r}, which is not among {names}."
                )
            numbers = [names.index(str(value)) for value in array.ravel()]
            return torch.tensor(numbers).reshape(array.shape), names
        values = _as_tensor(argument, array)
    if values.is_floating_point():
        if class_names is not None:
            raise ValueError(
                f"{argument} are floating point and class_names is given; classes must be integers."
            )
        return values.float() if values.dtype == torch.float64 else values, None
    if values.ndim == 2:
        raise ValueError(
            f"{argument} has shape {tuple(values.shape)} and is integer; for one-hot rows pass "
            f"{argument}.argmax(1), for values to regress floating point."
        )
    return values.long(), class_names


def _as_tensor(argument: str, values: Any) -> Tensor:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{argument} has dtype {array.dtype}; expected numbers.")
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch can share neither
    return torch.from_numpy(array)
