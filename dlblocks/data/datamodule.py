"""`DataModule`: splits, folds, normalisation and loaders, the same for every source of data.

A source (digits, a table, MNIST, …) is a subclass that says where its arrays come from, by
`load()`. Everything else is here, once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import Self

from dlblocks._errors import check_range, whole
from dlblocks._quiet import isolated
from dlblocks.data._fingerprint import MAX_SEARCHED_BYTES, fingerprint, first_copies, row_keys
from dlblocks.data._normalization import needs_float64, standardisation
from dlblocks.data.dataset import ArrayDataset, collate, collate_with_index
from dlblocks.data.encoders import ArrayEncoder, Encoder, ImageEncoder
from dlblocks.data.source import Source, check_arrays
from dlblocks.data.split_datamodule import BatchSize, SplitDataModule, SplitMetadata
from dlblocks.data.transforms import SampleTransform
from dlblocks.fields import KINDS, Kind, Ragged
from dlblocks.nets import Preprocess
from dlblocks.nets.preprocess import complete, preprocess_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class DataModule(SplitDataModule):
    """A LightningDataModule over arrays in memory, with K-fold splitting.

    The test set is the official one, or `test_fraction` held out first; it is outside every fold.
    The rest, the development set, is split into `num_folds` folds, of which `fold` validates, or
    without folds by `val_fraction`; see `SplitDataModule` for the kinds of `split`. Splits depend
    on `split_seed` alone: never on the global seed, the rank or the fold.

    Batches are ``[inputs, targets]`` (predict: ``[inputs, targets, index]``, where `index` is the
    sample's row in the source). Where samples have weights, batches for training, validation and
    test are ``[inputs, targets, weights]``; weights are divided by their mean over the training
    part, so that the learning rate keeps its meaning.

    Images leave as floats: uint8 is scaled to [0, 1] and, with `normalize`, each channel (each
    column of a table) gets mean 0 and standard deviation 1 over the training part of this fold.
    Both happen once a batch, on the batch's device. Other kinds of inputs, such as tokens, stay as
    they are; see `kinds`. Tables whose numbers float32 would round
    too much, such as times, stay float64 until they are normalised. A fit gives these statistics to
    a `dlblocks.models.Model`. From then on the model uses its own, with any datamodule.

    To add a source, subclass and define `load() -> Source` (and `prepare_data` for a download).

    Args:
        batch_size: Samples a batch (of each rank), or ``"full"``: one batch of all the samples of
            a part, for full-batch descent. With 1 it is stochastic descent, in between mini-batch.
        num_workers: Worker processes a loader. Arrays in memory are usually fastest with 0.
        normalize: Standardise inputs by the training part's mean and standard deviation.
        train_transform: A transform of albumentations or torchvision.transforms.v2, or any
            callable, for single training images, in the worker processes; see
            `dlblocks.data.transforms.SampleTransform`. `dlblocks.callbacks.Augment` is many times
            faster where it has what you need, and moves masks along; with masks it is needed.
        device_resident: Keep the arrays on the accelerator, so that no batch is copied to it; needs
            ``num_workers=0``. ``"auto"``: if it can be and they take at most half of what is free.
        **kwargs: How the data are split, shuffled and balanced; see `SplitDataModule`.
    """

    prepares_inputs = True  # its batches go through the model's `preprocess`
    _shared = (
        *SplitDataModule._shared, "batch_size", "num_workers", "normalize", "device_resident",
    )  # fmt: skip

    def __init__(
        self,
        *,
        batch_size: BatchSize = 64,
        num_workers: int = 0,
        normalize: bool = True,
        train_transform: Callable[[Any], Any] | None = None,
        device_resident: bool | Literal["auto"] = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if batch_size != "full":
            check_range("batch_size", batch_size, 1)
        check_range("num_workers", num_workers, 0)
        if device_resident is True and (num_workers or train_transform is not None):
            raise ValueError(
                f"device_resident=True cannot go with num_workers={num_workers} and "
                f"train_transform={train_transform!r}; use num_workers=0 and callbacks.Augment."
            )
        self.batch_size = whole(batch_size)
        self.num_workers = whole(num_workers)
        self.normalize = normalize
        self.train_transform: SampleTransform | None = None
        if train_transform is not None:
            self.train_transform = SampleTransform(train_transform, self.shuffle_seed)
        self.device_resident = device_resident
        self._resident = ResidentArrays(device_resident)
        self._preprocess = Preprocess()  # set with the split

    # What a source defines

    def load(self) -> Source:
        """Returns the arrays. Called once, on every rank, after `prepare_data`."""
        raise NotImplementedError(f"{type(self).__name__} must define load() -> Source.")

    # What the source is

    @cached_property
    def source(self) -> Source:
        """The arrays, loaded and checked at first use."""
        source = self.load()
        source.check()
        return source

    @property
    def kinds(self) -> dict[str, Kind]:
        """Kinds of ``"inputs"`` and ``"targets"``, in the order of a batch."""
        return self.source.kinds

    @property
    def _target_kind(self) -> Kind:
        return self.kinds["targets"]

    @property
    def columns(self) -> SplitMetadata:
        """What the arrays are split by; masks, boxes and the like are no targets to split by."""
        source = self.source
        targets = source.targets
        if isinstance(targets, Tensor) and targets.dtype == torch.bfloat16:  # NumPy has none
            targets = targets.float()
        return SplitMetadata(
            len(source.inputs),
            None if self.kinds["targets"].is_structured else targets.numpy(),
            first_copies(source.input_keys) if self._keep_duplicates else source.groups,
            source.folds,
            copies=self._keep_duplicates,
        )

    def input_keys(self) -> np.ndarray | None:
        inputs = self.source.inputs
        if inputs.numel() * inputs.element_size() > MAX_SEARCHED_BYTES:
            return None
        return self.source.input_keys

    def shared_with_test(self) -> int | None:
        """Count the samples of an official test set whose inputs the development set has, too.

        None beyond 4 GiB; 0 without an official test set.
        """
        test, known = self.source.test_inputs, self.input_keys()
        if test is None:
            return 0
        if known is None or test.numel() * test.element_size() > MAX_SEARCHED_BYTES:
            return None
        return int(np.isin(row_keys(test), known).sum())

    def fingerprint(self) -> str:
        """A hash of the arrays but an official test set; see `dlblocks.data._fingerprint`."""
        source = self.source
        targets: dict[str, Any] = {"targets": source.targets}
        if isinstance(source.targets, Ragged):
            targets = {"targets": source.targets.values, "offsets": source.targets.offsets}
        columns = targets | {"groups": source.groups, "folds": source.folds}
        if source.weights is not None:
            columns["weights"] = source.weights
        return fingerprint({"inputs": source.inputs}, columns)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes 0 … C-1, of masks too, or None for values."""
        count = self.source.num_mask_classes
        numbers = super().class_names if count is None else [str(i) for i in range(count)]
        return numbers and (self.source.class_names or numbers)

    @property
    def num_classes(self) -> int | None:
        """Number of classes C, or None for values."""
        names = self.class_names
        return None if names is None else len(names)

    @property
    def feature_names(self) -> list[str] | None:
        """Names of the features, or None."""
        return self.source.feature_names

    @property
    def column_features(self) -> dict[str, list[int]]:
        """For each column of a table its features; of arrays (N, F) each feature by itself."""
        if len(self.input_shape) != 1:
            raise ValueError(
                f"inputs of shape {self.input_shape} are no table (N, F) of columns, such as that "
                "of a TabularDataModule."
            )
        names = self.feature_names or [str(i) for i in range(self.in_features)]
        return {name: [i] for i, name in enumerate(names)}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""
        return tuple(self.source.inputs.shape[1:])

    @property
    def in_features(self) -> int:
        """Number of values in one input, flattened."""
        return int(np.prod(self.input_shape))

    @property
    def out_features(self) -> int:
        """Number of values that a model of this data puts out: classes, or columns of targets."""
        if self.num_classes is not None:
            return self.num_classes
        return int(np.prod(self.source.targets.shape[1:]))

    @property
    def in_channels(self) -> int:
        """Channels of the images, C of (C, H, W)."""
        return self._image_shape()[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self._image_shape()[1:]

    def _image_shape(self) -> tuple[int, int, int]:
        if len(self.input_shape) != 3:
            raise AttributeError(f"inputs of shape {self.input_shape} are not images (C, H, W).")
        channels, height, width = self.input_shape
        return channels, height, width

    def arrays(self, part: str) -> tuple[Tensor, Any, Tensor]:
        """The raw (inputs, targets, index) of ``"train"``, ``"val"`` or ``"test"``.

        Not normalised and in the order of the source: for looking at samples, not for training.
        """
        self.setup()
        inputs, targets = self._part_arrays(part)
        rows = self._rows[part]
        kinds = self.kinds
        made = kinds["inputs"].gather(inputs, rows), kinds["targets"].gather(targets, rows)
        return *made, rows

    def raw_inputs(self, part: str) -> Tensor:
        """The whole input array in which the index of a sample of `part` counts; not normalised."""
        self.setup()
        return self._part_arrays(part)[0]

    # Splits

    def setup(self, stage: str | None = None) -> None:
        if not self._rows:
            self._split()
            self._fit_statistics()
            if stage == "fit" and self.trainer is not None and (said := self.description()):
                rank_zero_info("\n".join([said, *self.notes()]))
        precision = getattr(self.trainer, "precision", None)
        if self.source.categories and precision in ("16-true", "bf16-true"):
            raise ValueError(
                f"precision={precision!r} rounds the numbers of categories; use "
                "precision='bf16-mixed'."
            )
        if stage == "fit":
            # Before callbacks are set up: weight averaging copies the model there.
            preprocess = self._preprocess_of_model()
            if preprocess is not None and not preprocess.is_set:
                preprocess.set(**self._preprocess.statistics())
            self._describe_to_model()

    def _split(self) -> None:
        source = self.source
        if source.test_inputs is not None and self.test_fraction:
            raise ValueError(
                f"{type(self).__name__} has a test set of its own; use test_fraction=0."
            )
        if self.train_transform is not None:
            self.train_transform.check_images(source.inputs)
            if self.kinds["targets"].moves:
                raise ValueError(
                    f"train_transform={self.train_transform.name} changes single images, but not "
                    f"their targets of kind {self.kinds['targets'].name!r}; use "
                    "dlblocks.callbacks.Augment, which moves both, or target_kind='values' of "
                    "targets that stay."
                )
        self._rows = self._split_rows()
        if source.test_inputs is not None:
            self._rows["test"] = torch.arange(len(source.test_inputs))

    def _fit_statistics(self) -> None:
        """Fit to the training part what `preprocess` does."""
        source, rows = self.source, self._rows["train"]
        inputs = source.inputs
        found = self._preprocess = Preprocess()
        if source.completion is not None:
            found.set(**source.completion(inputs, rows))
            inputs = complete(inputs, found.fill, found.coded, found.tables)
            names = source.class_names, source.feature_names
            check_arrays(inputs, source.targets, source.kinds, *names)
        if not self.kinds["inputs"].normalised:
            return  # not set: inputs stay as they are
        if self.normalize:
            scale, shift = standardisation(inputs, rows)
            for column in source.categories:
                scale[column], shift[column] = 1, 0
        else:
            unit = 1.0 if inputs.is_floating_point() else 1 / 255
            scale, shift = torch.tensor(unit), torch.tensor(0.0)
            if torch.get_default_dtype() != torch.float64 and needs_float64(inputs):
                rank_zero_warn(
                    "normalize=False: batches are float32, which rounds some columns, such as "
                    "times in milliseconds; use normalize=True, or subtract an offset from them."
                )
        found.set(scale=scale, shift=shift)

    def for_fold(self, fold: int, num_folds: int | None, *, repeat: int = 0) -> Self:
        _ = self.source  # loaded once for all folds
        return super().for_fold(fold, num_folds, repeat=repeat)

    def _reseed(self, shuffle_seed: int) -> None:
        super()._reseed(shuffle_seed)
        if self.train_transform is not None:
            self.train_transform = SampleTransform(self.train_transform.transform, shuffle_seed)

    @property
    def encoder(self) -> Encoder:
        size = None if self.batch_size == "full" else self.batch_size
        targets = self.source.targets
        shape = None if isinstance(targets, Ragged) else list(targets.shape[1:])
        return self._make_encoder(class_names=self.class_names, batch_size=size, target_shape=shape)

    def _make_encoder(self, **shared: Any) -> Encoder:
        """Make the encoder of the source's inputs."""
        inputs, kind = self.source.inputs, self.kinds["inputs"]
        is_uint8 = inputs.dtype == torch.uint8 and inputs.ndim == 4 and inputs.shape[1] in (1, 3)
        make = ImageEncoder if kind.name == "image" and is_uint8 else ArrayEncoder
        own = "tokens" if kind.is_integer else "features"  # a kind of the user's
        return make(
            **shared,
            shape=list(inputs.shape[1:]),
            dtype=str(inputs.dtype).removeprefix("torch."),
            input_kind=kind.name if kind.name in KINDS else own,
            may_lack=self.source.completion is not None,
        )

    @property
    def preprocess(self) -> Preprocess:
        """What `transform` does to raw inputs, fitted to the training part."""
        self.setup()
        return self._preprocess

    def _preprocess_of_model(self) -> Preprocess | None:
        """The `preprocess` of the Trainer's model, if the model is one of ours."""
        return preprocess_of(getattr(self.trainer, "lightning_module", None))

    def _used(self, device: torch.device) -> Preprocess:
        """The statistics that batches go through: the model's, if it has some, else these."""
        found = self._preprocess_of_model()
        if found is None or not found.is_set:
            found = self.preprocess
        return found if found.scale.device == device else found.to(device)

    # Batches

    def test_dataloader(self) -> DataLoader:
        if not len(self.rows_of("test")):
            raise ValueError(
                f"{type(self).__name__} has no test set; hold one out with test_fraction=0.2."
            )
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Batches with the index of every sample, of the part named by `predict_on`.

        That is the test set or, where there is none, the validation part.
        """
        return self._loader(self.predicted_part(), with_index=self.predict_index)

    def _part_arrays(self, part: str) -> tuple[Tensor, Any]:
        source = self.source
        if part == "test" and source.test_inputs is not None and source.test_targets is not None:
            return source.test_inputs, source.test_targets
        return source.inputs, source.targets

    def weights_of(self, part: str) -> Tensor | None:
        weights = self._weights(part)
        return None if weights is None else weights[self.indices(part)]

    def _weights(self, part: str) -> Tensor | None:
        """The weights of the array in which the rows of `part` count."""
        source = self.source
        if source.weights is None or part != "test" or source.test_inputs is None:
            return source.weights
        return (
            torch.ones(len(source.test_inputs))
            if source.test_weights is None
            else source.test_weights
        )

    def _scaled(self, weights: Tensor | None) -> Tensor | None:
        """Divide weights by their mean over the training part."""
        if weights is None:
            return None
        mean = self._weights("train")[self._rows["train"]].double().mean()  # type: ignore[index]
        if not mean > 0:
            raise ValueError("weights of all training samples are 0; at least one must count.")
        return (weights / mean).to(torch.get_default_dtype())

    def _loader(self, part: str, *, training: bool = False, with_index: bool = False) -> DataLoader:
        inputs, targets = self._part_arrays(part)
        transform = self.train_transform if training else None
        if self.trainer is not None and not self.num_workers and transform is None:
            prefix = "test_" if inputs is self.source.test_inputs else ""
            inputs, targets = self._resident.move(
                {f"{prefix}inputs": inputs, f"{prefix}targets": targets},
                self.trainer.strategy.root_device,
            )
        weights = None if with_index else self._weights(part)
        dataset = ArrayDataset(
            inputs, targets, self.rows_of(part), transform, self.kinds, self._scaled(weights)
        )
        sampler = self._sampler(
            dataset,
            training=training,
            avoid_single=self.batch_size if training and self.batch_size != "full" else None,
            with_epoch=transform is not None,
        )
        return DataLoader(
            dataset,
            batch_size=max(1, len(sampler)) if self.batch_size == "full" else self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate_with_index if with_index else collate,
            pin_memory=torch.cuda.is_available() and inputs.device.type == "cpu",
            generator=self._generator(),
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Makes floats of the inputs and normalises them, on the batch's device.

        By the statistics of the Trainer's model, if it has some, else by those of this fold.
        """
        if not isinstance(batch, (list, tuple)):  # no batch of ours: an `example_input_array`
            return batch
        inputs, *rest = batch
        used = self._used(inputs.device)
        inputs = used(inputs)
        if self.trainer is not None and used is self._preprocess:
            # To the model's dtype under "16-true", "bf16-true", "64-true".
            inputs = self.trainer.precision_plugin.convert_input(inputs)
        return [inputs, *rest]

    def transform(self, inputs: Tensor) -> Tensor:
        """Raw inputs (N, ...) as a net sees them: floating point, scaled, normalised.

        They leave in torch's default dtype. float64 is rounded to it only after it is normalised.
        A `dlblocks.models.Model` takes raw inputs, and does the same to them.
        """
        return self.preprocess.to(inputs.device, torch.get_default_dtype())(inputs)

    def inverse_transform(self, inputs: Tensor) -> Tensor:
        """What `transform` made of raw inputs, back in the units of the source; floating point."""
        return self.preprocess.to(inputs.device).inverse(inputs)

    def show(
        self, callbacks: pl.Callback | Sequence[pl.Callback] = (), *, count: int = 16
    ) -> Figure:
        """Draws images of the first training batch as a model will see them, with their labels.

        The batch goes the way of a real fit, through the given callbacks too, such as
        ``[Augment(rotation=10), MixUp()]``; normalisation is undone for the eye.

        Args:
            callbacks: Those that change batches, or one of them; copies are used.
            count: How many images, at most a batch.
        """
        from dlblocks.plots import batch

        self._image_shape()
        new = self.for_fold(self.fold, self.num_folds, repeat=self.repeat)
        if isinstance(callbacks, pl.Callback):
            callbacks = [callbacks]
        images, targets = (x[:count] for x in _first_batch(new, callbacks))
        return batch(
            new.as_images(images).numpy(),
            targets.numpy(),
            self.class_names,
            values=not self.is_classification,
        )

    def as_images(self, inputs: Tensor) -> Tensor:
        """What `transform` made of images, to be looked at: uint8, or floats as in the source."""
        inputs = inputs.float()
        raw = self._used(inputs.device).inverse(inputs).cpu()
        if self.source.inputs.is_floating_point():
            return raw
        return raw.round_().clamp_(0, 255).to(torch.uint8)


# A model and its activations need the rest.
SHARE_OF_FREE_MEMORY = 0.5


class ResidentArrays:
    """Copies of arrays on an accelerator, made once for all loaders and folds of a datamodule.

    Args:
        wanted: True, False, or ``"auto"``: if they take at most half of the memory that is free.
    """

    def __init__(self, wanted: bool | Literal["auto"]) -> None:
        self.wanted = wanted
        self._copies: dict[str, tuple[Any, Any]] = {}  # name: (array, its copy)

    def move(self, arrays: dict[str, Any], device: torch.device) -> list[Any]:
        """The arrays on `device`, or as they are if they are not to be there.

        Args:
            arrays: By name; a name stands for one array at a time.
            device: Where batches go.
        """
        if not self.wanted or device.type == "cpu":
            return list(arrays.values())
        missing = {n: array for n, array in arrays.items() if not self._has(n, array, device)}
        if self.wanted == "auto" and not _fit(sum(a.nbytes for a in missing.values()), device):
            return list(arrays.values())
        for name, array in missing.items():
            self._copies[name] = array, array.to(device)
        return [self._copies[name][1] for name in arrays]

    def _has(self, name: str, array: Any, device: torch.device) -> bool:
        of, copied = self._copies.get(name, (None, None))
        return of is array and copied is not None and copied.device == device


def _fit(num_bytes: int, device: torch.device) -> bool:
    # Other devices than CUDA's cannot be asked.
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return num_bytes <= SHARE_OF_FREE_MEMORY * free


class _Eye(pl.LightningModule):
    """A model that learns nothing and keeps the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batch: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.batch = batch

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight])


def _first_batch(
    datamodule: pl.LightningDataModule, callbacks: Sequence[pl.Callback]
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the first training batch, on the CPU, as a model gets them.

    Args:
        datamodule: Its training loader is used; it is left attached to the Trainer of this look.
        callbacks: Those that change batches; copied, so that they are left as they are.
    """
    eye = _Eye()
    with isolated():
        trainer = pl.Trainer(
            max_epochs=1,
            limit_train_batches=1,
            limit_val_batches=0,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=copy.deepcopy(list(callbacks)),
        )
        trainer.fit(eye, datamodule=datamodule)
    inputs, targets = eye.batch[:2]
    return inputs, targets
