"""`FoldedDataModule`, folds of any LightningDataModule or data set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from typing_extensions import Self

from dlblocks._errors import other_lightning
from dlblocks.data._blocks import as_positions, check_positions
from dlblocks.data._described_data import SplitMetadata
from dlblocks.data._fingerprint import fingerprint, first_copies
from dlblocks.data._foreign import (
    GROUPS,
    TARGETS,
    arrays,
    count_shared,
    input_keys,
    is_dataset,
    length,
    read_column,
)
from dlblocks.data._foreign_loader import (
    LoadedSampler,
    check_has_test,
    check_loader,
    datasets_of,
    is_numbered,
    loader_like,
    test_loaders,
)
from dlblocks.data._labels import as_numpy, as_targets
from dlblocks.data.dataset import EpochSampler
from dlblocks.data.split_datamodule import SplitDataModule

HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class FoldedDataModule(SplitDataModule):
    """Folds of any data, for `dlblocks.crossval.cross_validate`.

    The development set is only the training data set. For a LightningDataModule this is the data
    set of its `train_dataloader()` after ``setup("fit")``. Its validation data are added with
    `use_val`. Its test and predict data are never in a fold. Samples are numbered by their position
    in the development set.

    Batches are the loader's own: its `batch_size`, `collate_fn`, workers, pinned memory and
    `worker_init_fn` are kept, and in training `drop_last`. Validation drops nothing. The
    datamodule's hooks that transfer batches are kept too. The training order is new in every epoch
    and depends only on `shuffle_seed` and the epoch. If the last batch would hold a single sample,
    this sample is left out of the epoch. Attributes that this class does not have are looked up in
    the wrapped datamodule.

    **Augmentation**: a training data set that augments also does so in validation, unless
    `eval_dataset` contains the same samples without augmentation.

    Args:
        data: A LightningDataModule, a DataLoader, or a Dataset with ``dataset[i]`` and a length,
            such as those of Hugging Face. A Dataset is loaded in batches of 64.
        targets: Classes or values, one per sample, for stratification. By default they are read
            from the data set's `targets`, `labels` or `y`, or the last tensor of a `TensorDataset`,
            also inside of a `Subset`. If there are none, folds are not stratified, and `notes` say
            so. Labels may be whole numbers or texts of any values, of shape (N,) or (N, 1). They
            are used for folds, `balanced_sampling` and out-of-fold predictions: batches keep the
            data set's own labels.
        class_names: Names of the classes 0 … C-1. The default is the data set's `classes`, else
            numbers.
        groups: Group of each sample. By default the data set's `groups`, if it has them. With
            ``"duplicates"`` samples with exactly equal inputs form a group; the data set must hold
            its inputs in arrays or lists of texts.
        folds: Fold of each sample, for ``split="predefined"``.
        positions: Image, row, column, height and width of each sample, shape (N, 5), for
            ``split="blocks"``.
        use_val: Add the data set of the datamodule's `val_dataloader()` to the development set,
            after the training samples. These samples are used as they are there, perhaps without
            augmentation.
        eval_dataset: The same samples, in the same order, for validation, test and prediction.
        **kwargs: How to split, shuffle and balance the data; see `SplitDataModule`. With
            ``test_fraction=0`` the test set is the datamodule's, if it has one.

    Raises:
        TypeError: `data` is none of these, or has no numbered samples.
        ValueError: Lengths differ, a label is missing, or the loader has a sampler that cannot be
            restricted to a fold. It is raised at the first use of the data.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> data = FoldedDataModule(TensorDataset(torch.zeros(6, 2), torch.arange(6) % 2))
        >>> data.for_fold(0, 3).indices("val").shape
        torch.Size([2])
    """

    def __init__(
        self,
        # jsonargparse takes no arguments of a Dataset[Any] from the command line.
        data: pl.LightningDataModule | DataLoader[Any] | Dataset,  # type: ignore[type-arg]
        *,
        targets: npt.ArrayLike | None = None,
        class_names: Sequence[str] | None = None,
        groups: Literal["duplicates"] | npt.ArrayLike | None = None,
        folds: npt.ArrayLike | None = None,
        positions: npt.ArrayLike | None = None,
        use_val: bool = False,
        eval_dataset: Dataset | None = None,  # type: ignore[type-arg]
        **kwargs: Any,
    ) -> None:
        named: Any = groups if isinstance(groups, str) else None
        super().__init__(groups=named, **kwargs)
        check_positions(positions, self.split, groups)
        if isinstance(data, SplitDataModule):
            raise TypeError(f"{type(data).__name__} has folds already; use it without wrapping.")
        if not isinstance(data, (pl.LightningDataModule, DataLoader)) and not is_dataset(data):
            raise TypeError(
                "data must be a LightningDataModule, a DataLoader or a Dataset, which has a length "
                f"and data[i], got {type(data).__name__}."
                f"{other_lightning(data) or ' Wrap tensors in a TensorDataset.'}"
            )
        self.data = data
        names = None if class_names is None else list(class_names)
        if len(set(names or ())) < len(names or ()):
            raise ValueError(f"class_names={names} has a name twice; give each class its own.")
        self._class_names = names
        own_groups = None if self._keep_duplicates else groups
        self.positions = positions
        self.given = {"targets": targets, "groups": own_groups, "folds": folds}
        if use_val and not isinstance(data, pl.LightningDataModule):
            what = type(data).__name__
            raise ValueError(f"use_val=True, but got a {what}; pass a ConcatDataset of both parts.")
        self.use_val = use_val
        self.eval_dataset = eval_dataset
        self._batch_size: int | None = None
        self._num_unused = 0  # validation samples of the wrapped datamodule
        if isinstance(data, pl.LightningDataModule):
            self.prepare_data_per_node = data.prepare_data_per_node
            # Only hooks that it overrides: Lightning prefers a datamodule's hooks to the model's.
            for hook in HOOKS:
                if is_overridden(hook, data):
                    setattr(self, hook, getattr(data, hook))
        given = ["data", "targets", "class_names", "groups", "folds", "eval_dataset", "positions"]
        self.save_hyperparameters(ignore=given)
        plain = (bool, int, float, str, type(None))
        theirs = dict(getattr(data, "hparams_initial", {}))
        wrapped = {key: value for key, value in theirs.items() if isinstance(value, plain)}
        self._set_hyperparameters({"wrapped": {"class": type(data).__name__, **wrapped}})

    def __getattr__(self, name: str) -> Any:
        data = vars(self).get("data")
        if name.startswith("_") or not isinstance(data, pl.LightningDataModule):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(data, name)

    # Description of the data

    @property
    def batch_size(self) -> int:
        """Samples per batch (of each rank).

        It is the loader's, unless it is set, for instance by Lightning's `BatchSizeFinder`.
        """
        return self._batch_size or int(self.loader.batch_size or 1)

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        self._batch_size = batch_size

    @cached_property
    def loader(self) -> DataLoader[Any]:
        """The given training loader, whose data set is split into folds."""
        loader: Any = self.data
        if isinstance(loader, pl.LightningDataModule):
            loader.setup("fit")
            loader = loader.train_dataloader()
        elif is_dataset(loader):
            loader = DataLoader(loader, batch_size=64)
        check_loader(loader, type(self.data).__name__)
        made = self._with_validation(loader)
        size = length(made.dataset)
        if self.eval_dataset is not None and length(self.eval_dataset) != size:
            raise ValueError(
                f"eval_dataset has {length(self.eval_dataset)} samples and the training data set "
                f"{size}; they must be the same samples in the same order."
            )
        return made

    def _with_validation(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """Return the training loader, over both parts with `use_val`."""
        data: Any = self.data
        who = type(data).__name__
        has = isinstance(data, pl.LightningDataModule) and is_overridden("val_dataloader", data)
        found = datasets_of(data.val_dataloader()) if has else []
        if not all(map(is_numbered, found)):
            found = []
        if not self.use_val:
            self._num_unused = sum(length(dataset) for dataset in found)
            return loader
        if len(found) != 1:
            raise ValueError(
                f"use_val=True needs one validation loader whose data set has a length, but {who} "
                f"has {len(found)}; pass a ConcatDataset of all parts."
            )
        shared = count_shared(found[0], loader.dataset)
        if shared:
            raise ValueError(
                f"use_val=True, but {shared} of {length(found[0])} validation samples of {who} are "
                "also training samples and would be in two folds; leave use_val out."
            )
        whole: Dataset[Any] = ConcatDataset([loader.dataset, found[0]])
        return loader_like(loader, whole, drop_last=loader.drop_last)

    def notes(self) -> list[str]:
        _ = self.loader
        notes = []
        if self._num_unused:
            unused = f"{self._num_unused} validation samples of {type(self.data).__name__}"
            notes.append(f"{unused} are not used; use_val=True adds them to the development set.")
        if self.columns.targets is None and self.split == "kfold" and self.stratify is None:
            notes.append(
                f"folds are not stratified: {type(self.loader.dataset).__name__} has no targets "
                f"that can be read ({', '.join(TARGETS)}); give targets=, one per sample, or "
                "stratify=False if they are not classes."
            )
        return notes

    @cached_property
    def columns(self) -> SplitMetadata:
        """Columns that decide the split."""
        dataset = self.loader.dataset
        size = length(dataset)
        found: dict[str, np.ndarray | None] = {}
        for name, attributes in (("targets", TARGETS), ("groups", GROUPS), ("folds", ())):
            given = self.given[name]
            values = read_column(dataset, attributes) if given is None else as_numpy(given)
            if values is not None and len(values) != size:
                raise ValueError(
                    f"{name} has {len(values)} values and the training data set {size} samples; "
                    "give one value per sample."
                )
            found[name] = values
        if found["targets"] is not None:
            is_given = self.given["targets"] is not None
            found["targets"] = as_targets(found["targets"], is_given=is_given)
            self._check_class_names(found["targets"])
        if self._keep_duplicates:
            keys = self.input_keys()
            if keys is None:
                raise ValueError(
                    f"groups='duplicates', but {type(dataset).__name__} holds no arrays or texts "
                    "of at most 4 GiB to compare; give groups= of your own."
                )
            found["groups"] = first_copies(keys)
        positions = None if self.positions is None else as_positions(self.positions, size)
        return SplitMetadata(size, **found, copies=self._keep_duplicates, positions=positions)

    def _check_class_names(self, targets: np.ndarray | None) -> None:
        names = self._class_names
        if names is None or targets is None or targets.dtype.kind not in "iub" or targets.ndim > 1:
            return
        largest = int(targets.max(initial=0))
        if len(names) <= largest:
            raise ValueError(
                f"class_names has {len(names)} names, but the targets have class {largest}; give "
                f"{largest + 1}, in the order of the classes."
            )

    def fingerprint(self) -> str:
        """Hash the data that are held in memory.

        These are the number of samples, targets, groups, folds and positions, and the tensors of a
        `TensorDataset`. For other data sets they are the attributes `data` and `samples`, and all
        attributes that are tensors or arrays. The same holds for `eval_dataset`. No sample is
        loaded, since it may be augmented at random. Changes in files therefore go unnoticed.
        """
        columns = self.columns
        held = arrays(self.loader.dataset)
        if self.eval_dataset is not None:
            held |= {f"eval.{name}": a for name, a in arrays(self.eval_dataset).items()}
        decide = {
            "num_samples": [columns.num_samples],
            "targets": columns.targets,
            "groups": columns.groups,
            "folds": columns.folds,
        }
        if columns.positions is not None:
            decide["positions"] = columns.positions
        return fingerprint(held, decide)

    def input_keys(self) -> np.ndarray | None:
        return self._input_keys

    @cached_property
    def _input_keys(self) -> np.ndarray | None:
        return input_keys(self.loader.dataset)

    def shared_with_test(self) -> int | None:
        """Count the test samples that are in the development set.

        Samples are compared by number if both parts are `Subset` views of one data set, else by the
        arrays, texts or file names that the data sets hold. If there are none, loaded samples are
        compared. The result is None if these are more than 20,000 or augmented at random.
        """
        if len(self.indices("test")):
            return 0
        known = [self.loader.dataset, *([] if self.eval_dataset is None else [self.eval_dataset])]
        total = 0
        for dataset in datasets_of(self.test_dataloader()):
            if not is_numbered(dataset):
                return None
            found = [count_shared(dataset, one) for one in known]
            counts = [count for count in found if count is not None]
            if not counts:
                return None
            total += max(counts)
        return total

    def count_test(self) -> int:
        return sum(length(dataset) for dataset in datasets_of(self.test_dataloader()))

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, or None for values.

        They are the given names, else the data set's `classes`, else numbers.
        """
        numbers = super().class_names
        if self._class_names is not None and (numbers is not None or self.columns.targets is None):
            return list(self._class_names)
        dataset: Any = self.loader.dataset
        while isinstance(dataset, (Subset, ConcatDataset)):
            parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset.dataset]
            dataset = parts[0]
        names = [str(name) for name in getattr(dataset, "classes", ())]
        return names if numbers is not None and len(names) >= len(numbers) else numbers

    def for_fold(self, fold: int, num_folds: int | None, *, repeat: int = 0) -> Self:
        _ = self.columns  # loaded once for all folds
        return super().for_fold(fold, num_folds, repeat=repeat)

    # Lightning

    def prepare_data(self) -> None:
        if isinstance(self.data, pl.LightningDataModule):
            self.data.prepare_data()

    def setup(self, stage: str) -> None:
        if isinstance(self.data, pl.LightningDataModule):
            self.data.trainer = self.trainer
        if not self._rows:
            self._rows = self._split_rows()
        if stage == "fit":
            self._describe_to_model()

    def check_test_set(self) -> None:
        if not len(self.rows_of("test")):
            check_has_test(self.data)

    def test_dataloader(self) -> Any:
        return self._loader("test") if len(self.rows_of("test")) else self._their_test_loaders

    @cached_property
    def _their_test_loaders(self) -> Any:
        """Test loaders of the wrapped datamodule.

        They are created once, because another setup might draw other samples.
        """
        check_has_test(self.data)
        _ = self.loader  # before setup("test"), which may also draw the training data set
        return test_loaders(self.data)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return batches of the part named by `predict_on`.

        Without test rows, ``"test"`` means ``"val"``.
        """
        return self._loader(self.predicted_part())

    def _loader(self, part: str, *, training: bool = False) -> DataLoader[Any]:
        given = self.loader
        whole = given.dataset if training or self.eval_dataset is None else self.eval_dataset
        dataset = Subset(whole, self.rows_of(part).tolist())
        drop_last = training and given.drop_last
        sampler = self._sampler(
            dataset,
            training=training,
            kind=LoadedSampler if given.num_workers else EpochSampler,
            avoid_single=self.batch_size if training and not drop_last else None,
        )
        own = {"batch_size": self.batch_size, "generator": self._generator()}
        return loader_like(given, dataset, **own, sampler=sampler, drop_last=drop_last)
