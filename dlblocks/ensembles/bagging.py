"""Bagging of models of one architecture."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
from lightning.pytorch.callbacks import Callback

from dlblocks import tracking
from dlblocks._errors import check_function, check_range, checked
from dlblocks._files import SUMMARY, atomic_write, is_json, is_rank_zero, is_whole
from dlblocks._quiet import isolated
from dlblocks.data import DataModule, SplitDataModule
from dlblocks.data.splitting import is_in_time
from dlblocks.engine.run_fits import STATE, engine_for, run_fits
from dlblocks.ensembles._bootstrap import Rows, combine, draw_all, missing_classes, score
from dlblocks.ensembles._member_config import MemberConfig, MemberSpec
from dlblocks.ensembles.results import ENSEMBLE, SAMPLES, BaggingResult, result_figures
from dlblocks.ensembles.voting import Voting
from dlblocks.models._checkpoints import restore, write_checkpoint
from dlblocks.runs._figures import save_figures
from dlblocks.runs._fits import FitResult, read_fits
from dlblocks.runs._monitor import resolve_mode
from dlblocks.runs._plan import begin_run, describe
from dlblocks.runs._trainer import CALLBACKS, check_trainer_arguments, new_datamodule, shows_bar
from dlblocks.runs.folder import in_run_dir, know_rank, say
from dlblocks.runs.predict_part import add_weights


class Bagging:
    """Train members of one architecture on bootstrap samples (Breiman 1996).

    Member k is a new model, seeded with ``seed + k``, trained on N of the N samples of the training
    part of `datamodule`, drawn with replacement by (seed, k) alone, in an order of its own. What is
    fitted to training data, such as the normalisation, is fitted to its own sample. Validation is
    the datamodule's: by it each member keeps the weights of its best epoch and may stop early.
    Where the data have groups, whole groups are drawn.

    About 37 % of the training part are out of a member's bag. What it predicts for those it has
    not seen: averaged, they score the ensemble without a sample more, somewhat pessimistically,
    since only about a third of the members vote on each. The validation part is in no bag.

    `fit` gives the ensemble as one model, by soft or hard voting or averaged values, whose
    prediction says how far the members are apart. Its run folder holds ``summary.json``,
    ``samples.npz`` (the rows of every member, with repeats), ``oob.npz``, ``ensemble.ckpt``,
    ``figures/*.png``, and for each member ``member-0/checkpoints/best.ckpt``,
    ``member-0/history.csv`` and what its logger writes. After a kill, the same code
    resumes the run: finished members are loaded, unfinished ones resume from their last checkpoint.

    Args:
        make_model: Returns a new `Classifier` or `Regressor`; called for every member.
        datamodule: A `DataModule`, or anybody's data in a `FoldedDataModule`; or a function that
            returns one. It must have a validation part.
        num_members: Number of members M >= 1.
        voting: ``"soft"``, the average of probabilities; or ``"hard"``, the share of the votes.
            Values are averaged.
        max_samples: Size of a sample over that of the training part, in (0, 1].
        bootstrap: Draw with replacement. False with `max_samples` < 1 is pasting (Breiman 1999).
        stratify: Draw from each class by itself, as many as it has: no sample misses a class.
        samples: The rows of each member's sample, drawn elsewhere; `max_samples`, `bootstrap` and
            `stratify` have no effect then.
        make_callbacks: Returns new callbacks; called for every member.
        trainer: Arguments of the Lightning `Trainer`, such as ``{"max_epochs": 30}``.
        monitor: The logged metric by which each member's best epoch is chosen.
        mode: Whether ``"min"`` or ``"max"`` of `monitor` is best; None for the metric's own
            direction, where its name or a torchmetrics object of the model says it.
        engine: ``"sequential"``: one fit after another. ``"vectorized"``: all as one, many times
            faster for small nets; needs a `DataModule` over arrays, one device, and no callbacks
            but `EarlyStopping` and those that change batches. Losses and weights agree within
            rounding, save that dropout draws other numbers. ``"auto"``: vectorized if it can be and
            a few measured steps say that it is faster.
        logger: Where each member logs. W&B runs share a group named after `run_dir`, with a summary
            run.
        run_dir: A folder that is empty or does not exist, or holds a run to resume. A finished
            run is loaded. Both are reported on stderr. None: ``runs/bagging``,
            numbered: the first that is empty, or holds an unfinished run of the same configuration.
        resume: Resume the run in `run_dir`; False refuses a folder that holds something.
        seed: Seed of the samples, of initialisation, dropout and the order of the data.
        progress_bar: Show one bar over all members, as for `cross_validate`.
        figures: Draw ``figures/*.png``: learning curves, and what is out of the bag.

    Raises:
        ValueError: An argument is wrong.

    Example:
        >>> import tempfile
        >>> from dlblocks.data import DigitsDataModule
        >>> from dlblocks.models import MLPClassifier
        >>> bagging = Bagging(
        ...     lambda: MLPClassifier(64, 10), DigitsDataModule(), num_members=3,
        ...     engine="vectorized", trainer={"max_epochs": 2, "accelerator": "cpu"},
        ...     progress_bar=False, figures=False, run_dir=tempfile.mkdtemp(),
        ... )
        >>> result = bagging.fit()
        >>> len(result.oob), type(result.model).__name__
        (1150, 'VotingEnsemble')
    """

    kind = "bagging"
    base = "runs/bagging"  # the run folder, where none is given

    @checked
    def __init__(
        self,
        make_model: Callable[[], pl.LightningModule],
        datamodule: SplitDataModule | Callable[[], SplitDataModule],
        *,
        num_members: int = 10,
        voting: Literal["soft", "hard"] = "soft",
        max_samples: float = 1.0,
        bootstrap: bool = True,
        stratify: bool = False,
        samples: Sequence[npt.ArrayLike] | None = None,
        make_callbacks: Callable[[], Sequence[Callback]] | None = None,
        trainer: Mapping[str, Any] | None = None,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] | None = None,
        engine: Literal["sequential", "vectorized", "auto"] = "sequential",
        logger: Literal["csv", "wandb", "tensorboard", "none"] | None = "csv",
        run_dir: str | PathLike[str] | None = None,
        resume: bool = True,
        seed: int = 0,
        progress_bar: bool = True,
        figures: bool = True,
    ) -> None:
        check_function("make_model", make_model, "lambda: MLPClassifier(64, 10)")
        if make_callbacks is not None:
            check_function("make_callbacks", make_callbacks, CALLBACKS)
        check_range("num_members", num_members, 1)
        check_range("max_samples", max_samples, 0, 1, low_open=True)
        mode = resolve_mode(monitor, mode, make_model)
        if samples is not None and len(samples) != num_members:
            raise ValueError(
                f"samples has {len(samples)} entries and num_members={num_members}; give the rows "
                "of each member."
            )
        self.trainer = check_trainer_arguments(trainer, monitor)
        if self.trainer.get("fast_dev_run"):
            raise ValueError(
                "trainer={'fast_dev_run': …} keeps no weights to make an ensemble of; use "
                "{'max_epochs': 1, 'limit_train_batches': 1}."
            )
        self.make_model, self.datamodule = make_model, datamodule
        self.num_members, self.voting = num_members, voting
        self.max_samples, self.bootstrap, self.stratify = max_samples, bootstrap, stratify
        self.samples = samples
        self.make_callbacks = make_callbacks or list
        self.monitor, self.mode, self.engine = monitor, mode, engine
        self.logger, self.resume = logger, resume
        self.run_dir, self._is_numbered = Path(run_dir or self.base), not run_dir
        self.seed, self.figures = seed, figures
        self.progress_bar = shows_bar(progress_bar, trainer)

    def fit(self) -> BaggingResult:
        """Train the members, and combine them into one model.

        Finished members of a killed run are loaded. The global state of the caller is as before
        afterwards; see `cross_validate`.

        Raises:
            ValueError: The data have no validation part, models are of different architectures or
                one and the same, or the loss of one is not finite.
            NotVectorizable: They must be vectorized and cannot be.
            FileExistsError: `run_dir` holds something else, or a run of another kind.
            BlockingIOError: Another process works in `run_dir`.
        """
        know_rank(self.trainer.get("num_nodes", 1))
        run_dir = None if self._is_numbered else self.run_dir
        result = in_run_dir(run_dir, self.base, self._fit, resume=self.resume)
        self._is_numbered = False  # a further fit is one of this run
        return result

    def _fit(self, run_dir: Path) -> BaggingResult:
        """Run `fit` in a folder that it or its rank 0 holds."""
        started = time.monotonic()
        self.run_dir = run_dir
        with isolated():
            data = self._data()
            samples = self._samples(data)
            config = MemberConfig(
                self.make_model,
                self.make_callbacks,
                self.trainer,
                monitor=self.monitor,
                mode=self.mode,
                logger=self.logger,
                run_dir=run_dir,
                seed=self.seed,
                resume=self.resume,
                num_members=self.num_members,
            )
            lacking = missing_classes(data, samples)
            described = self._check(config, data, samples, lacking)
            specs = [MemberSpec(k) for k in range(self.num_members)]
            # Read by every rank before any fit, so that all run the same members.
            found = read_fits(config, specs)
            todo = [spec for spec in specs if spec not in found]

            def make_data(spec: MemberSpec) -> SplitDataModule:
                seed = getattr(data, "shuffle_seed", 0) + self.seed + spec.number
                return data.with_train_indices(samples[spec.number], shuffle_seed=seed)

            engine, why, ready = engine_for(self.engine, config, make_data, todo)
            if engine == "vectorized":  # which draws other random numbers
                described["engine"] = engine
            if is_rank_zero():
                config.run_id = begin_run(
                    run_dir,
                    described,
                    (len(found), len(specs), "members"),
                    resume=self.resume,
                )
                if not is_whole(run_dir / SAMPLES):  # a kill may have come between the two
                    arrays: dict[str, Any] = {str(k): rows for k, rows in enumerate(samples)}
                    with atomic_write(run_dir / SAMPLES) as part:
                        np.savez_compressed(part, **arrays)
            if todo and self.progress_bar:
                say(data.description(), *data.notes())
            if todo and self.engine == "auto":
                say(f"engine: {engine}; {why}")
            if lacking and todo:
                self._warn(lacking)
            fitted, _ = run_fits(
                config,
                make_data,
                todo,
                len(specs),
                engine=engine,
                ready=ready,
                progress_bar=self.progress_bar,
            )
            found |= fitted
            result = self._result(config, data, samples, [found[spec] for spec in specs])
            result.info = {
                "kind": self.kind,
                "num_members": self.num_members,
                "voting": self.voting,
                "monitor": self.monitor,
                "mode": self.mode,
                "engine": engine,
                **({"engine_reason": why} if self.engine == "auto" else {}),
                **({"missing_classes": lacking} if lacking else {}),
                "class_names": data.class_names,
                "seconds": time.monotonic() - started,
                "config": {"logger": self.logger, **described},
                "versions": tracking.versions(),
            }
            if is_rank_zero() and (todo or not is_json(run_dir / SUMMARY)):
                self._write(config, data, result)
        return result

    def _data(self) -> SplitDataModule:
        """Return a new datamodule over the given data."""
        data = new_datamodule(self.datamodule, self.seed)
        new = data.for_fold(data.fold, data.num_folds, repeat=data.repeat)
        if data.whole or not len(new.indices("val")):
            raise ValueError(
                "the data have no validation part, by which each member's best epoch is chosen; "
                "set val_fraction or num_folds."
            )
        if self._leaves_out and new.split == "blocks":
            raise ValueError(
                "split='blocks' keeps neighbouring tiles apart, and what is out of the bag would "
                "be scored by models that know the tiles beside it; use DeepEnsemble."
            )
        if self._leaves_out and not _has_targets(new):
            raise ValueError(
                "the targets of the data cannot be read, and out-of-bag predictions are held "
                "against them; give targets= to FoldedDataModule."
            )
        if self._leaves_out and is_in_time(new.split):
            raise ValueError(
                "split='time_series' holds past against future, and what is out of the bag would "
                "be scored by models that know what came after it; use DeepEnsemble."
            )
        return new

    @property
    def _leaves_out(self) -> bool:
        """True if there may be samples out of the bag."""
        return self.bootstrap or self.max_samples < 1

    def _samples(self, data: SplitDataModule) -> list[Rows]:
        if self.samples is not None:
            for rows in self.samples:
                data.with_train_indices(rows)  # checks them
            return [np.asarray(rows, dtype=np.int64) for rows in self.samples]
        return draw_all(
            data,
            self.num_members,
            seed=self.seed,
            share=self.max_samples,
            replace=self.bootstrap,
            stratify=self.stratify,
        )

    def _check(
        self,
        config: MemberConfig,
        data: SplitDataModule,
        samples: Sequence[Rows],
        lacking: Mapping[int, list[int]],
    ) -> dict[str, Any]:
        """Check models, callbacks and samples, and describe the run."""
        model, callbacks = config.new_model(), config.new_callbacks()
        config.new_model(), config.new_callbacks()  # to see that they are others
        model.check_data(data)
        if self.voting == "hard" and not (model.task and model.task.votes):
            raise ValueError("voting='hard' counts votes for classes, and values have none.")
        if lacking and getattr(model, "class_weights", None) == "balanced":
            member, classes = next(iter(lacking.items()))
            raise ValueError(
                f"class_weights='balanced', but the sample of member {member} has none of class "
                f"{classes[0]}; use stratify=True."
            )
        settings = ("kind", "num_members", "voting", "trainer", "monitor", "mode", "seed")
        return describe(
            model,
            callbacks,
            data,
            fingerprint=data.fingerprint(),
            samples=hashlib.sha256(b"|".join(rows.tobytes() for rows in samples)).hexdigest(),
            **{name: getattr(self, name) for name in settings},
        )

    def _warn(self, lacking: Mapping[int, list[int]]) -> None:
        member, classes = next(iter(lacking.items()))
        warnings.warn(
            f"the samples of {len(lacking)} of {self.num_members} members miss a class, first that "
            f"of member {member} class {classes[0]}: these members will hardly ever predict it. "
            "stratify=True draws from each class by itself.",
            stacklevel=3,
        )

    def _result(
        self,
        config: MemberConfig,
        data: SplitDataModule,
        samples: list[Rows],
        done: Sequence[FitResult],
    ) -> BaggingResult:
        models = [
            restore(config.new_model(), self.run_dir / fitted.row["checkpoint"]) for fitted in done
        ]
        model = Voting(models, voting=self.voting)
        oob = None
        parts = [fitted.predicted for fitted in done if fitted.predicted is not None]
        if parts and _has_targets(data):
            index = np.sort(data.indices("train").numpy())
            known = data.columns.targets
            targets = None if known is None else known[index]  # those of masks are in the parts
            oob = combine(index, targets, parts, voting=self.voting, folder=self.run_dir)
            oob = None if oob is None else add_weights(oob, data, "train")
        return BaggingResult(
            run_dir=self.run_dir,
            model=model,
            members=[fitted.row for fitted in done],
            samples=samples,
            oob=oob,
            oob_score={} if oob is None else score(model, oob),
            histories=[fitted.history for fitted in done],
        )

    def _write(self, config: MemberConfig, data: SplitDataModule, result: BaggingResult) -> None:
        write_checkpoint(self.run_dir / ENSEMBLE, result.model, epoch=0, global_step=0)
        result.write_parts()
        figures = result_figures(result, data) if self.figures else {}
        figures = save_figures(self.run_dir / "figures", figures)
        means = {f"{metric}/mean": result.mean(metric) for metric in result.metrics}
        values = {**means, **result.oob_score}
        config.log_summary(result.info["config"], values, result.members, figures)
        (self.run_dir / STATE).unlink(missing_ok=True)  # after a kill
        # Last, so that after a kill the next call writes what is missing.
        result.write_summary()


def _has_targets(data: SplitDataModule) -> bool:
    """Tell whether targets are a column, or kept with the predictions."""
    is_structured = isinstance(data, DataModule) and data.kinds["targets"].is_structured
    return is_structured or data.columns.targets is not None
