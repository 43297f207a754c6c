"""`DataModule`, the base class of datamodules over arrays.

A subclass (digits, a table, MNIST, …) only defines `load()`, which returns its arrays. Splits,
folds, normalisation and loaders are implemented here for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from dlblocks._boxes import are_boxes, box_rows
from dlblocks._errors import check_range, whole
from dlblocks._memory import BatchMemory
from dlblocks.data._described_data import BatchSize
from dlblocks.data._normalization import needs_float64, standardisation
from dlblocks.data._preview import first_batch
from dlblocks.data._resident import ResidentArrays
from dlblocks.data._source_data import SourceData
from dlblocks.data.dataset import ArrayDataset, collate, collate_with_index
from dlblocks.data.source import check_arrays
from dlblocks.data.split_datamodule import SplitDataModule
from dlblocks.data.transforms import SampleTransform
from dlblocks.fields import Boxes, Mask, Padded, Ragged
from dlblocks.nets import Preprocess
from dlblocks.nets.preprocess import Inputs, complete, preprocess_of
from dlblocks.tasks import Predictions, PredictionTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class DataModule(SourceData):
    """A LightningDataModule over arrays in memory, with K-fold splitting.

    The test set is the official one, or the share `test_fraction` that is held out first. It is
    outside every fold. The rest is the development set. It is split into `num_folds` folds, of
    which `fold` validates, or without folds by `val_fraction`; see `SplitDataModule` for the kinds
    of `split`. Splits depend on `split_seed` alone, and not on the global seed, the rank or the
    fold.

    Batches are ``[inputs, targets]``, and for prediction ``[inputs, targets, index]``, where
    `index` is the sample's row in the source. If samples have weights, batches for training,
    validation and test are ``[inputs, targets, weights]``. Weights are divided by their mean over
    the training part, so that the learning rate keeps its meaning.

    Inputs are converted to floating point once per batch, on the batch's device. uint8 images are
    scaled to [0, 1]. With `normalize`, each channel of images (each column of a table) gets mean 0
    and standard deviation 1 over the training part of this fold. Other kinds of inputs, such as
    tokens, stay as they are; see `kinds`. Tables that float32 would round too much, such as times,
    stay float64 until they are normalised. A fit gives these statistics to a
    `dlblocks.models.Model`. From then on the model uses its own, with any datamodule.

    To add a source, subclass and define `load() -> Source` (and `prepare_data` for a download).

    Args:
        batch_size: Samples per batch (of each rank), or ``"full"`` for one batch with all samples
            of a part. With 1 it is stochastic gradient descent, with ``"full"`` full-batch descent.
        num_workers: Worker processes per loader. Arrays in memory are usually fastest with 0.
        normalize: Standardise inputs by the training part's mean and standard deviation.
        train_transform: A transform of albumentations or torchvision.transforms.v2, or any
            callable, for single training images, in the worker processes; see
            `dlblocks.data.transforms.SampleTransform`. `dlblocks.callbacks.Augment` has fewer
            transforms but is many times faster. It also moves masks, so masks need it.
        device_resident: Keep the arrays on the accelerator, so that no batch is copied to it. Needs
            ``num_workers=0``. With ``"auto"`` this is done where possible, if the arrays take at
            most half of the free memory.
        **kwargs: How to split, shuffle and balance the data; see `SplitDataModule`.
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
                f"device_resident=True does not work with num_workers={num_workers} and "
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
        self._memory = BatchMemory()  # of normalised batches

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
            # Before callbacks are set up, because weight averaging copies the model then.
            preprocess = self._preprocess_of_model()
            if preprocess is not None and not preprocess.is_set:
                preprocess.set(**self._preprocess.statistics())
            self._describe_to_model()

    def _split(self) -> None:
        source = self.source
        if source.test_inputs is not None and self.test_fraction:
            raise ValueError(
                f"{type(self).__name__} has an official test set; use test_fraction=0."
            )
        if self.train_transform is not None:
            if isinstance(source.inputs, Ragged):
                raise ValueError(
                    f"train_transform={self.train_transform.name} changes single images, but the "
                    "inputs are sequences of unequal length; leave it out."
                )
            self.train_transform.check_images(source.inputs)
            if self.kinds["targets"].moves:
                raise ValueError(
                    f"train_transform={self.train_transform.name} changes single images, but not "
                    f"their targets of kind {self.kinds['targets'].name!r}; use "
                    "dlblocks.callbacks.Augment, which moves both, or target_kind='values' if "
                    "the targets must not move."
                )
        self._rows = self._split_rows()
        if source.test_inputs is not None:
            self._rows["test"] = torch.arange(len(source.test_inputs))

    def _fit_statistics(self) -> None:
        """Compute the statistics of `preprocess` from the training part."""
        source, rows = self.source, self._rows["train"]
        inputs = source.inputs
        found = self._preprocess = Preprocess()
        if source.completion is not None:
            assert isinstance(inputs, Tensor)  # for the type checker
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

    def _reseed(self, shuffle_seed: int) -> None:
        super()._reseed(shuffle_seed)
        if self.train_transform is not None:
            self.train_transform = SampleTransform(self.train_transform.transform, shuffle_seed)

    @property
    def preprocess(self) -> Preprocess:
        """The module behind `transform`, with statistics of the training part."""
        self.setup()
        return self._preprocess

    def _preprocess_of_model(self) -> Preprocess | None:
        """Return the `preprocess` of the Trainer's model, if it has one."""
        return preprocess_of(getattr(self.trainer, "lightning_module", None))

    def _used(self, device: torch.device) -> Preprocess:
        """Return the model's statistics, if any, else those of this fold."""
        found = self._preprocess_of_model()
        if found is None or not found.is_set:
            found = self.preprocess
        return found if found.scale.device == device else found.to(device)

    def arrays(self, part: str) -> tuple[Any, Any, Tensor]:
        """Return the raw (inputs, targets, index) of ``"train"``, ``"val"`` or ``"test"``.

        Sequences of unequal length are `dlblocks.fields.Padded`.

        They are not normalised and in the order of the source. Use them to look at samples, not for
        training.
        """
        self.setup()
        inputs, targets = self._part_arrays(part)
        rows = self._rows[part]
        kinds = self.kinds
        made = kinds["inputs"].gather(inputs, rows), kinds["targets"].gather(targets, rows)
        return *made, rows

    # Batches

    def check_test_set(self) -> None:
        if not len(self.rows_of("test")):
            raise ValueError(
                f"{type(self).__name__} has no test set; hold one out with test_fraction=0.2."
            )

    def test_dataloader(self) -> DataLoader[Any]:
        self.check_test_set()
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return batches, with indices, of the part named by `predict_on`.

        Without a test set, ``"test"`` means the validation part.
        """
        return self._loader(self.predicted_part(), with_index=self.predict_index)

    def _loaded_arrays(self, part: str, training: bool) -> tuple[Tensor, Any]:
        """Return the arrays of a loader.

        A subclass may train on other targets than it validates on.
        """
        return self._part_arrays(part)

    def _scaled(self, weights: Tensor | None) -> Tensor | None:
        """Divide weights by their mean over the training part."""
        if weights is None:
            return None
        mean = self._weights("train")[self._rows["train"]].double().mean()  # type: ignore[index]
        if not mean > 0:
            raise ValueError("the weights of all training samples are 0; at least one must count.")
        return (weights / mean).to(torch.get_default_dtype())

    def _loader(
        self, part: str, *, training: bool = False, with_index: bool = False
    ) -> DataLoader[Any]:
        inputs, targets = self._loaded_arrays(part, training)
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
        """Convert inputs to floating point and normalise them on their device.

        The statistics are those of the Trainer's model if it has some, else those of this fold.
        """
        if not isinstance(batch, (list, tuple)) or isinstance(batch, Padded):
            return batch  # an `example_input_array`, not a batch of ours
        inputs, *rest = batch
        used = self._used(inputs.device)
        inputs = used(inputs, self._memory)
        if self.trainer is not None and used is self._preprocess:
            # Converts to the model's dtype under "16-true", "bf16-true", "64-true".
            inputs = self.trainer.precision_plugin.convert_input(inputs)
        return [inputs, *rest]

    def teardown(self, stage: str) -> None:
        self._memory.clear()

    def transform(self, inputs: Inputs) -> Inputs:
        """Convert raw inputs (N, ...), or `Padded`, to normalised floating point.

        The result has torch's default dtype. float64 is rounded to it only after it is normalised.
        A `dlblocks.models.Model` takes raw inputs and does the same to them.
        """
        made: Inputs = self.preprocess.to(inputs.device, torch.get_default_dtype())(inputs)
        return made

    def inverse_transform(self, inputs: Inputs) -> Inputs:
        """Convert results of `transform` back to the source's units, floating point."""
        return self.preprocess.to(inputs.device).inverse(inputs)

    def show_batch(
        self, callbacks: pl.Callback | Sequence[pl.Callback] = (), *, count: int = 16
    ) -> Figure:
        """Draw the first training images as a model sees them.

        The batch comes from a real fit with the given callbacks, such as
        ``[Augment(rotation=10), MixUp()]``. Normalisation is undone for the picture.

        Args:
            callbacks: Callbacks that change batches, or one of them. Copies are used.
            count: Number of images, at most those of one batch.

        Raises:
            ValueError: Inputs are no images, or targets have no picture.
        """
        from dlblocks.plots import batch, boxes

        self._image_shape()
        kind = self.kinds["targets"]
        if kind.is_structured and not isinstance(kind, (Boxes, Mask)):
            raise ValueError(f"there is no picture of targets of kind {kind.name!r}.")
        new = self.for_fold(self.fold, self.num_folds, repeat=self.repeat)
        if isinstance(callbacks, pl.Callback):
            callbacks = [callbacks]
        images, targets = (x[:count] for x in first_batch(new, callbacks))
        if are_boxes(targets):
            shown = new.as_images(images).numpy()
            return boxes(shown, box_rows(targets), class_names=new.class_names or [])
        return batch(
            new.as_images(images).numpy(),
            targets.numpy(),
            self.class_names,
            values=not self.is_classification,
            ignore_index=getattr(kind, "ignore_index", 255),
        )

    def show_results(
        self, table: PredictionTable, *, part: str = "val", count: int = 12, title: str = ""
    ) -> Figure:
        """Draw images with their targets and predictions.

        ``data.show_results(result.worst(12))`` draws the worst samples of a cross-validation.

        Args:
            table: Predictions, of which the first `count` rows are drawn in their order.
            part: The part that was predicted, ``"train"``, ``"val"`` or ``"test"``.
            count: Number of images.
            title: Put above.

        Raises:
            AttributeError: Inputs are no images.
            ValueError: The task is not known, or has no picture.
        """
        self._image_shape()
        shown = self.with_inputs(table[: whole(count)], part)
        figure: Figure = shown.of_task().show(shown, title=title or None)
        return figure

    def with_inputs(self, table: PredictionTable, part: str, *, repeats: int = 1) -> Predictions:
        """Return predictions with the raw inputs of their samples, for figures.

        Args:
            table: The predictions.
            part: Which arrays their index counts in.
            repeats: How often each sample is among them.
        """
        shown = Predictions(table, class_names=self.class_names or [], repeats=repeats)
        if None not in self.input_shape:  # lengths are equal
            shown.inputs = lambda rows: self.raw_inputs(part)[rows].numpy()
            shown.input_shape = self.input_shape
        return shown

    def as_images(self, inputs: Tensor) -> Tensor:
        """Convert results of `transform` to uint8 images, or floats like the source."""
        inputs = inputs.float()
        raw = self._used(inputs.device).inverse(inputs).cpu()
        if self.source.inputs.is_floating_point():
            return raw
        return raw.round_().clamp_(0, 255).to(torch.uint8)
