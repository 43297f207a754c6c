"""`Predictor`, a trained model that predicts new data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dlblocks._boxes import box_rows
from dlblocks._errors import check_choice, check_range
from dlblocks._files import atomic_write, is_rank_zero
from dlblocks._plain import plain, plain_hyperparameters
from dlblocks._quiet import evaluating
from dlblocks.data.encoders import ArrayEncoder, Encoder, Samples, Unseen, encoder_of
from dlblocks.fields import Padded
from dlblocks.loading._batches import by_hand, joined, prepared, split
from dlblocks.loading.predictions import Predictions, Rows
from dlblocks.models import Model
from dlblocks.models._checkpoints import DATA_SPEC, HPARAMS
from dlblocks.models._conformal import Calibration
from dlblocks.models._export import export
from dlblocks.models._predict_batches import NoPredictions, predictor
from dlblocks.nets import Preprocess
from dlblocks.runs.predict_part import columns_of
from dlblocks.tasks import Task

BATCH_SIZE = 64  # where training had no batches


class Predictor:
    """Predict new data with a trained model.

    `load` returns one.

    Args:
        model: A LightningModule.
        data_spec: Plain values that say how samples become inputs; None for those of the model.
        statistics: Normalisation of a module of somebody else.
        preprocess: As for `load`.
        source: Where the model comes from, for messages.

    Attributes:
        model: The LightningModule; one of ours takes raw inputs: ``predictor.model(raw)``.
        encoder: Reads new samples; see `dlblocks.data.encoders`.
    """

    def __init__(
        self,
        model: pl.LightningModule,
        *,
        data_spec: Mapping[str, Any] | None = None,
        statistics: Preprocess | None = None,
        preprocess: Callable[[Any], Any] | None = None,
        source: str = "",
    ) -> None:
        self.model = model
        self.data_spec = getattr(model, DATA_SPEC, None) if data_spec is None else dict(data_spec)
        self.encoder: Encoder = encoder_of(self.data_spec)
        self.preprocess, self.source = preprocess, source
        # A `Model` has its own.
        own = model.preprocess if isinstance(model, Model) else statistics
        self.statistics: Preprocess = own or Preprocess()

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes 0 … C-1, or None if not known."""
        return self.encoder.class_names

    def __repr__(self) -> str:
        of = f" of {self.source}" if self.source else ""
        classes = "" if self.class_names is None else f", {len(self.class_names)} classes"
        return f"Predictor: {type(self.model).__name__}{of}; {self.encoder.kind}{classes}"

    def predict(
        self,
        data: Any,
        *,
        batch_size: int | None = None,
        device: str | torch.device = "auto",
        id_column: str | None = None,
        unseen: Unseen = "refuse",
        coverage: float | None = None,
        progress_bar: bool = True,
    ) -> Predictions:
        """Predict new samples.

        Memory holds some thousand samples at a time, and the predictions, of which columns of more
        than 64 MiB lie in a file.

        Args:
            data: What the model was trained on, in its units. For a table a CSV file, a folder of
                them, a DataFrame, or a list of dictionaries; the target may be left out, further
                columns are ignored. For images a file, a list or folder of files, or an array (N,
                C, H, W), for segmentation and detection of any one size. For arrays an array, a
                tensor, or a ``.npy`` file. For sequences of unequal length a list of arrays (T_i,
                F). A DataLoader or Dataset of batches or samples that begin with raw inputs. With
                `preprocess`, what that takes: lists, arrays and DataFrames come in pieces of
                `batch_size`, CSV files as DataFrames, a ``.npy`` file as arrays, folders and other
                files as lists of files, a DataLoader batch by batch.
            batch_size: Samples of a batch. None: as in training, so that predictions are the same
                to the last bit. Large batches of small nets are faster.
            device: ``"auto"`` for an accelerator if there is one, ``"cpu"``, ``"cuda:1"``, ….
            id_column: A column of the table by which the rows are called. None: their number from
                0, or the index of a DataFrame.
            unseen: What becomes of a category that training had not: ``"refuse"``, or
                ``"missing"``, a missing cell. Columns of `counts` and `embed` have a place for it.
            coverage: For values, such as 0.9: add the ends of an interval that holds the value with
                this probability, ``lower`` and ``upper``; for classes whether each class is in
                the set that holds the true one, ``in_set_<class>``. By CV+ (Barber et al. 2021),
                from the out-of-fold predictions of a cross-validation: for its fold average. The
                probability is one over all new samples, if these are like those of the training.
            progress_bar: Show one after a second.

        Returns:
            A table with one row a sample. ``to_csv`` writes it, ``to_pandas`` returns it.

        Raises:
            FileNotFoundError: There is no such file, or nothing to predict in it.
            ValueError: The data do not fit those of the training; the message names the column,
                row or file.
            TypeError: The data are of a kind that the model was not trained on.
        """
        if batch_size is not None:
            check_range("batch_size", batch_size, 1)
        check_choice("unseen", unseen, ["refuse", "missing"])
        size = batch_size or self.encoder.batch_size or BATCH_SIZE
        if coverage is not None:
            calibration = getattr(self.model, "calibration", Calibration())
            calibration.check(coverage)
        samples = self._open(data, size, id_column, unseen)
        place = _device(device)
        model = self.model.to(place)
        statistics = self.statistics.to(place)
        predict = predictor(model)
        rows, names = Rows(), list[Any]()
        with (
            _progress(progress_bar) as bar,
            evaluating(model),
            _covering(model, coverage),
            torch.inference_mode(),
        ):
            for chunk, called in samples.chunks:
                before = rows.count
                inputs = prepared(move_data_to_device(chunk, place), statistics)
                batches = [inputs] if samples.is_batched else split(inputs, size)
                rows.add(*joined([self._rows(predict, batch) for batch in batches]))
                if called is not None:
                    names.append(called)
                total = samples.total()
                bar.total = None if total is None else max(round(total), rows.count)
                bar.update(rows.count - before)
        if not rows.count:
            raise ValueError("data is empty; there is nothing to predict.")
        columns = rows.finish()
        texts = self.encoder.decoded(columns["prediction"])
        if texts is not None:
            columns["text"] = texts
        return Predictions(
            columns,
            task=self._task_name,
            class_names=self.class_names,
            names=np.concatenate([np.asarray(some) for some in names]) if names else None,
            title=samples.title,
        )

    def generate(self, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        """Continue texts, or find their targets, with the model.

        Args:
            prompts: As for `dlblocks.models.LanguageModel.generate`, or
                `dlblocks.models.Seq2Seq.generate`. The average of fold models continues texts by
                the mean of their probabilities.
            *args: Likewise.
            **kwargs: Likewise.

        Raises:
            TypeError: The model generates nothing.
        """
        model: Any = self.model
        if not hasattr(model, "generate"):
            raise TypeError(
                f"{type(model).__name__} generates nothing; use predict, or for images sample."
            )
        return model.generate(prompts, *args, **kwargs)

    def sample(self, n: int, *args: Any, **kwargs: Any) -> Tensor:
        """Make images with a generative model.

        Args:
            n: Number of images.
            *args: As for `dlblocks.models.GenerativeModel.sample`.
            **kwargs: Likewise.

        Returns:
            Raw images (n, C, H, W), on the model's device.

        Raises:
            TypeError: The model is not a generative model.
        """
        model: Any = self.model
        if not hasattr(model, "sample"):
            raise TypeError(
                f"{type(model).__name__} makes no images; use predict, or train a generative "
                "model, such as dlblocks.models.VAE."
            )
        found: Tensor = model.sample(n, *args, **kwargs)
        return found

    @property
    def _task_name(self) -> str | None:
        task = getattr(self.model, "task", None)
        return task.name if isinstance(task, Task) else getattr(self.model, "task_name", None)

    def _rows(self, predict: Any, batch: Any) -> tuple[dict[str, Any], int]:
        """Predict a batch. Returns its columns, and how many samples it has."""
        name = type(self.model).__name__
        try:
            output = predict(batch, 0)
        except Exception as error:
            size = self._other_size(batch)
            if size:
                raise ValueError(
                    f"{name} was trained on images of {self._trained_size} pixels and fails with "
                    f"{size} ({type(error).__name__}: {error}); resize the images, or cut them "
                    "into tiles by dlblocks.data.cut_tiles."
                ) from error
            # Of batches of somebody else's, only what our models check themselves is clear.
            is_clear = self.encoder.kind != Encoder.kind or isinstance(error, ValueError)
            if isinstance(self.model, Model) and self.preprocess is None and is_clear:
                raise
            raise NoPredictions(
                f"{name} fails with a batch of the new data ({type(error).__name__}: {error}); let "
                "load(…, preprocess=…) return such batches as predict_step takes.",
                failed=True,
            ) from error
        found = dict(output) if isinstance(output, Mapping) else {"prediction": output}
        prediction = found["prediction"] = box_rows(found.get("prediction"))
        is_list = isinstance(prediction, list) and all(isinstance(x, Tensor) for x in prediction)
        if not is_list and not (isinstance(prediction, Tensor) and prediction.ndim):
            raise NoPredictions(
                f"{name} predicts a {type(prediction).__name__}; let predict_step return a tensor "
                "with one row a sample, or a dictionary that has it as 'prediction'."
            )
        size = self._other_size(batch)
        if size and isinstance(prediction, Tensor):
            found_size = "×".join(map(str, prediction.shape[-2:]))
            if found_size != size:
                raise ValueError(
                    f"{name} was trained on images of {self._trained_size} pixels, and makes maps "
                    f"of {found_size} of images of {size}; resize the images, or cut them into "
                    "tiles by dlblocks.data.cut_tiles."
                )
        count = len(prediction)
        task, shape = getattr(self.model, "task", None), self.encoder.target_shape
        columns = {"prediction": prediction, **columns_of(found, torch.arange(count))}
        if isinstance(task, Task) and shape is not None:
            like = torch.empty(count, *shape, device="meta")
            for key, column in columns.items():
                if key in ("prediction", "std", "lower", "upper") and isinstance(column, Tensor):
                    columns[key] = task.shaped(column, like)
        if isinstance(task, Task):
            columns |= task.parts(columns["prediction"])
        return columns, count

    @property
    def _trained_size(self) -> str:
        return "×".join(map(str, (self.encoder.input_shape or [])[1:]))

    def _other_size(self, batch: Any) -> str:
        """Return the size of images if it is not that of training, else ``""``."""
        if not (isinstance(self.encoder, ArrayEncoder) and self.encoder.any_size):
            return ""
        images = batch[0] if isinstance(batch, (list, tuple)) else batch
        if not isinstance(images, Tensor) or images.ndim != 4:
            return ""
        size = "×".join(map(str, images.shape[-2:]))
        return "" if size == self._trained_size else size

    def _open(self, data: Any, size: int, id_column: str | None, unseen: Unseen) -> Samples:
        if isinstance(data, pl.LightningDataModule):
            raise TypeError(
                f"data is a {type(data).__name__}; Trainer.predict(predictor.model, datamodule=…) "
                "takes it, or give one of its loaders."
            )
        if isinstance(data, Dataset):
            data = DataLoader(data, batch_size=size)
        if self.preprocess is not None:
            return by_hand(data, size, self.preprocess)
        if isinstance(data, DataLoader):
            return Samples(((batch, None) for batch in data), is_batched=True)
        return self.encoder.read(data, size, id_column=id_column, unseen=unseen)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model with all that `load` needs into one file.

        It has no optimizer state. `load` takes its path, and once more `module` and `preprocess`
        if they were needed.

        Args:
            path: The file, such as ``"churn.pt"``; written whole or not at all.
        """
        if isinstance(self.model, Model):
            self.model.save(path)
            return
        checkpoint: dict[str, Any] = {
            "pytorch-lightning_version": pl.__version__,
            "state_dict": {
                name: value.detach().cpu() if isinstance(value, Tensor) else value
                for name, value in self.model.state_dict().items()
            },
            HPARAMS: dict(self.model.hparams),
            "data": {
                DATA_SPEC: self.data_spec or {"kind": Encoder.kind},
                "preprocess": self.statistics.to_plain(),
            },
        }
        self.model.on_save_checkpoint(checkpoint)
        plain_hyperparameters(checkpoint)
        with atomic_write(path) as part:
            torch.save(plain(checkpoint), part)

    def export(self, path: str | PathLike[str], *, example: Tensor | Padded | None = None) -> None:
        """Write the model for ONNX Runtime, or for `torch.export.load`, without this package.

        The program takes raw inputs (N, ...), any N, in the dtype of the training data, and
        normalises them itself. For sequences of unequal length it takes padded values (N, T, ...)
        and lengths (N,); recurrent nets over these cannot be exported. Tables are features, in the
        order of ``columns``. It returns ``prediction``, as `predict` does: probabilities (N, C) of
        classes, else values; and of ensembles also ``std``. A detector takes one image of the size
        of training, (1, C, H, W), and returns rows (x0, y0, x1, y1, score, class); ``.onnx`` alone,
        and not of Faster R-CNN.

        Metadata are texts of JSON: ``class_names``, ``columns``, ``task``, ``input_shape``,
        ``input_dtype``, ``outputs``, and ``data_spec``, from which
        `dlblocks.data.encoders.encoder_of` makes what encodes tables. Of ``.onnx`` they are
        properties of the model; of ``.pt2`` the file ``metadata.json``:
        ``torch.export.load(path, extra_files=files)`` with ``files = {"metadata.json": ""}``.

        Args:
            path: A ``.onnx`` file, which needs ``pip install 'dlblocks[export]'``, or ``.pt2``.
            example: Raw inputs (N, ...) of a model that does not know their shape.

        Raises:
            ModuleNotFoundError: onnx or onnxscript is not installed.
            ValueError: The name ends otherwise, or the model computes what a program cannot hold.
        """
        export(
            self.model,
            Path(path),
            statistics=self.statistics,
            data_spec=self.data_spec,
            example=example,
        )


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return torch.device(device)


@contextlib.contextmanager
def _covering(model: Any, coverage: float | None) -> Iterator[None]:
    """Let a model predict with intervals or sets."""
    if coverage is None:
        yield
        return
    before, model.coverage = model.coverage, coverage
    try:
        yield
    finally:
        model.coverage = before


@contextlib.contextmanager
def _progress(shown: bool) -> Iterator[Any]:
    from tqdm import tqdm

    off = not (shown and is_rank_zero())
    with tqdm(desc="predicting", unit=" samples", disable=off, delay=1.0) as bar:
        yield bar
