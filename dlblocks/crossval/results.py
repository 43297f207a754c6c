"""The result of `cross_validate`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm
from typing_extensions import Self

from dlblocks._files import AGAIN, atomic_write, is_rank_zero, read_rows, reading, write_rows
from dlblocks._quiet import isolated
from dlblocks.crossval import _refit, _report
from dlblocks.crossval._fold_config import fold_folder
from dlblocks.crossval._fold_scores import FoldScores
from dlblocks.crossval.held_out import check_data_of, score_once
from dlblocks.crossval.importance import Importance, named_columns, permutation_importance
from dlblocks.data import DataModule, SplitDataModule
from dlblocks.models import Model
from dlblocks.nets.preprocess import preprocess_of
from dlblocks.runs._figures import drawing, save_figures
from dlblocks.runs.intervals import HeldOutScores
from dlblocks.tasks import PredictionTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CrossValidationResult(FoldScores):
    """The result of `cross_validate`.

    Attributes:
        run_dir: Where everything lies.
        folds: One row a fit: repeat, fold, epochs run, best epoch (from 1), samples, seconds,
            checkpoint, and the validation metrics of the best epoch's weights; `group` too, the
            name of what is left out, where the data name their folds.
        oof: Out-of-fold predictions, or None if the model gives none; `notes` says why.
        histories: One list of rows a fit, one row an epoch, of all that was logged.
        info: Monitor, seconds, configuration and versions, as in ``summary.json``.
    """

    def show_results(
        self,
        table: PredictionTable | None = None,
        *,
        count: int = 12,
        datamodule: SplitDataModule | None = None,
    ) -> Figure:
        """Draw images with their targets and out-of-fold predictions.

        ``result.show_results(result.worst(12))`` draws the worst samples.

        Args:
            table: Rows of `oof`, of which the first `count` are drawn. None: some of all samples,
                at equal distances.
            count: Number of images.
            datamodule: The data; not needed on the result that `cross_validate` returned.

        Raises:
            AttributeError: Inputs are no images.
            ValueError: There are no out-of-fold predictions, or the data are not known.
        """
        data = self._datamodule(datamodule, "images")
        title = ""
        if table is None:
            oof = self._predictions()
            table = oof[np.unique(np.linspace(0, len(oof) - 1, count).astype(int))]
            title = "Out-of-fold predictions"
        return data.show_results(table, count=count, title=title)

    def _datamodule(self, given: Any, what: str) -> DataModule:
        """Return data that know their images or columns."""
        data = given or (self.given or {}).get("datamodule")
        if data is None:
            raise ValueError("a result that was loaded does not know datamodule; give datamodule=.")
        if not isinstance(data, DataModule):
            raise ValueError(
                f"a {type(data).__name__} does not say what its {what} are; use a DataModule, such "
                "as ArrayDataModule."
            )
        return data

    def write(self) -> None:
        """Write ``oof.npz``, ``folds.csv`` and, last, ``summary.json``."""
        self.write_parts()
        self.write_summary()

    def write_parts(self) -> None:
        """Write ``oof.npz`` and ``folds.csv``."""
        if self.oof is not None:
            self.oof = self.oof.write(self.run_dir / "oof.npz")
        write_rows(self.run_dir / "folds.csv", self.folds)

    @classmethod
    def load(cls, run_dir: str | PathLike[str]) -> Self:
        """Load a result from its run folder.

        Raises:
            FileNotFoundError: `run_dir` holds no finished cross-validation.
        """
        path = Path(run_dir)
        info, files = cls.read_summary(path, "cross-validation")
        if "num_folds" not in info and not (path / "folds.csv").exists():
            raise FileNotFoundError(
                f"run_dir='{run_dir}' holds a run that is not a cross-validation; dlblocks.load "
                "opens its model."
            )
        with reading(path / "folds.csv", AGAIN):
            rows = read_rows(path / "folds.csv", texts=["group"])
            folders = [path / fold_folder(row) for row in rows]
        oof = None
        if "oof.npz" in files or (path / "oof.npz").is_file():
            oof = PredictionTable.read(path / "oof.npz", AGAIN, info.get("task"))
        histories = []
        for folder in folders:
            cure = f"delete {folder / 'fold.json'}, and the same call runs {folder.name} again"
            with reading(folder / "history.csv", cure):
                histories.append(read_rows(folder / "history.csv"))
        return cls(path, rows, oof, histories, info)

    def report(self) -> Path:
        """Write ``report.html`` into `run_dir` and return its path.

        One page that needs no other file and no network: scores with their intervals, those of
        the test set if it was looked at, the folds, the figures that the run has drawn,
        configuration, versions and seeds.
        """
        path = self.run_dir / "report.html"
        num_predicted = 0 if self.oof is None else len(self.oof)
        page = _report.page(self.run_dir, self.folds, self.summary(), num_predicted)
        with atomic_write(path) as part:
            part.write_text(page, encoding="utf-8")
        return path

    def ensemble(
        self,
        classes: Iterable[type[Model]] = (),
        *,
        make_model: Callable[[], pl.LightningModule] | None = None,
        fit_temperature: bool = False,
    ) -> Model:
        """Average the fold models into one model.

        It returns probabilities for classes, else values. It takes raw inputs, in the units of the
        data's source: each member prepares them as in its own fold. It is saved by
        ``ensemble.save("model.ckpt")``, or by a Trainer, and loaded by `dlblocks.models.load`.
        Folds that have failed are no members. It holds the out-of-fold scores, so that
        ``dlblocks.load(…).predict(data, coverage=0.9)`` has prediction intervals or sets.

        Modules of your own that are no subclasses of ours are averaged by what their `predict_step`
        returns, or their `forward` if they have none. Such an ensemble is scored by metrics of its
        predictions, not by those of the module; see `dlblocks.models.VotingModule`.

        Args:
            classes: Your own subclasses of our models, if the folds have such.
            make_model: As for `cross_validate`: makes what the checkpoints cannot say, as a
                `Classifier` over a net of your own, or a LightningModule of your own; not needed
                on the result that `cross_validate` returned. Saved, such an ensemble is loaded by
                ``dlblocks.models.load(path, overrides={"members": [make_model() for _ in
                result.folds]})``, one of your own subclasses of our models by ``load(path,
                classes=[YourModel])``.

            fit_temperature: Divide the logits by the temperature that is best for the out-of-fold
                predictions (Guo et al. 2017), so that probabilities are less over-confident. It is
                ``ensemble.temperature``.

        Raises:
            ValueError: The fold models cannot predict, or predict classes, which have no average;
                there are no checkpoints; or the result was loaded and `make_model` or `classes` is
                missing.
        """
        load_member = partial(
            _refit.load_fold,
            classes=list(classes),
            make_model=make_model,
            given=(self.given or {}).get("make_model"),
        )
        with isolated():  # making a model draws its weights
            return _refit.average(
                self.run_dir,
                self.folds,
                load_member,
                self.info.get("task"),
                self.oof,
                fit_temperature=fit_temperature,
            )

    def refit(
        self,
        make_model: Callable[[], pl.LightningModule] | None = None,
        datamodule: SplitDataModule | None = None,
        *,
        make_callbacks: Callable[[], Sequence[Callback]] | None = None,
        trainer: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> pl.LightningModule:
        """Train one new model on all development data.

        It is saved as ``refit/model.ckpt``. It is trained for the median of the epochs that the
        folds selected, under the learning-rate schedule that the folds had, without early stopping.
        Nothing is validated. The scores of this result describe the models of the folds, which had
        fewer samples: this one is likely to be a little better, and has no score of its own but on
        the test set.

        Args:
            make_model: As for `cross_validate`, like all that follow; not needed on the result
                that `cross_validate` returned.
            datamodule: The data.
            make_callbacks: Callbacks; early stopping is left out.
            trainer: Arguments of the Trainer.
            seed: The seed.

        Raises:
            ValueError: The result was loaded, and `make_model` or `datamodule` is missing; or the
                schedule is ``"plateau"``, which waits for validation.
        """
        given = self.given or {}
        arguments: dict[str, Any] = {
            "make_model": make_model or given.get("make_model"),
            "datamodule": datamodule or given.get("datamodule"),
            "make_callbacks": make_callbacks or given.get("make_callbacks"),
            "trainer": trainer or given.get("trainer"),
            "seed": given.get("seed", 0) if seed is None else seed,
        }
        for name in ("make_model", "datamodule"):
            if arguments[name] is None:
                raise ValueError(f"a result that was loaded does not know {name}; give {name}=.")
        return _refit.refit(self.run_dir / "refit", self.refit_epochs, **arguments)

    @property
    def refit_epochs(self) -> int:
        """Number of epochs of `refit`, the median of the folds' best epochs."""
        found: int = max(1, round(statistics.median(row["best_epoch"] for row in self.folds)))
        return found

    def importance(
        self,
        datamodule: SplitDataModule | None = None,
        *,
        metric: str | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        repeats: int = 5,
        seed: int = 0,
        classes: Iterable[type[Model]] = (),
        make_model: Callable[[], pl.LightningModule] | None = None,
        progress_bar: bool = True,
    ) -> Importance:
        """Measure how much the fold models need each column of a table.

        Each model predicts its validation samples again, with the values of one column in another
        order. See `dlblocks.crossval.importance`. ``importance.csv`` and a figure are left in the
        run folder, and shown in the report.

        Args:
            datamodule: The data; not needed on the result that `cross_validate` returned.
            metric: A name of `pooled`, such as ``"accuracy"``; None for the loss: ``"log_loss"`` of
                classes, ``"rmse"`` of values.
            groups: Columns whose values change places together, such as ``{"place": ["city",
                "zip"]}``. The features of one column always do.
            repeats: Permutations of each column.
            seed: Seed of the permutations.
            classes: As for `ensemble`.
            make_model: As for `ensemble`.
            progress_bar: Show one after a second.

        Raises:
            ValueError: The inputs are no table, there are no out-of-fold predictions, or a name is
                not known.
        """
        data = self._datamodule(datamodule, "columns")
        check_data_of(self.run_dir, data)
        columns = named_columns(data.column_features, groups)
        oof = self._predictions()
        model: Any = self.ensemble(classes, make_model=make_model)
        fits = [
            (
                member,
                preprocess_of(member) or model.own[k],
                oof[(oof.repeat == row["repeat"]) & (oof.fold == row["fold"])],
            )
            for k, (member, row) in enumerate(zip(model.net.members, self.folds, strict=True))
        ]
        total = len(fits) * len(columns)
        with tqdm(
            total=total, desc="importance", unit="column", disable=not progress_bar, delay=1
        ) as bar:
            found = permutation_importance(
                fits,
                data.raw_inputs("train"),
                columns,
                metric=metric,
                repeats=repeats,
                seed=seed,
                test_to_train=self.test_to_train,
                num_folds=self._num_folds,
                step=bar.update,
            )
        write_rows(self.run_dir / "importance.csv", found.rows())
        with drawing("importance") as figures:
            figures["importance"] = found.figure()
        save_figures(self.run_dir / "figures", figures)
        self._update_report()
        return found

    def test(
        self,
        model: pl.LightningModule,
        datamodule: SplitDataModule | None = None,
        *,
        trainer: Mapping[str, Any] | None = None,
        allow_shared: bool = False,
    ) -> HeldOutScores:
        """Test a model on the test set, which no fold has seen.

        Do it last, and once: a second call is refused.

        ``test.json`` holds the metrics and ``shared_with_training``: how many test samples are in
        the development set, too; null if that cannot be found out. A test set of somebody else's
        datamodule that has such samples is refused. Copies in the official test set of one of our
        datamodules are counted, and no more: it is the benchmark's.

        Args:
            model: `ensemble` or `refit`.
            datamodule: The data; not needed on the result that `cross_validate` returned.
            trainer: Arguments of the Trainer.
            allow_shared: Test in spite of samples that are in the development set, where the data
                really hold duplicates.

        Returns:
            Metric → value, with ``.interval("test/accuracy")`` from the test samples; ``print`` it
            for a table. Metrics of several test loaders are told apart by their names.

        Raises:
            FileExistsError: The test set was looked at before.
            ValueError: There is no test set, nothing is logged, `datamodule` is missing or not that
                of the run, or test samples are in the development set.
        """
        given = self.given or {}
        data = datamodule or given.get("datamodule")
        if data is None:
            raise ValueError("a result that was loaded does not know datamodule; give datamodule=.")
        scores = score_once(
            self.run_dir,
            model,
            data,
            trainer=trainer or given.get("trainer"),
            allow_shared=allow_shared,
            task=self.info.get("task"),
        )
        self._update_report()
        return scores

    def _update_report(self) -> None:
        """Write the page again if there is one."""
        if is_rank_zero() and (self.run_dir / "report.html").is_file():
            self.report()
