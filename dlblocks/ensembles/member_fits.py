"""The fits of the members of an ensemble, by either engine, and the files that they leave.

A member is finished when its ``member.json`` is there, which is written last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger
from torch.nn.parameter import is_lazy
from tqdm import tqdm

from dlblocks import tracking
from dlblocks.data import SplitDataModule
from dlblocks.ensembles.engine import choose_engine, in_halves
from dlblocks.ensembles.errors import is_out_of_memory, naming
from dlblocks.ensembles.member import Member
from dlblocks.ensembles.support import check_vectorizable
from dlblocks.ensembles.vectorized import Together
from dlblocks.errors import named
from dlblocks.files import (
    check_files,
    is_rank_zero,
    read_arrays,
    read_record,
    read_rows,
    reading,
    whole_file,
    write_record,
    write_rows,
)
from dlblocks.fitting import drop_training_state, fit, new_callbacks
from dlblocks.models import Classifier, Model, Regressor
from dlblocks.models.checkpoints import write_checkpoint
from dlblocks.predictions import predict_part

FINISHED = "member.json"
STATE = "together.ckpt"
LATER = 1e-3  # seconds


@dataclass
class Fitted:
    """What the fit of a member leaves.

    Attributes:
        row: Its row among the members.
        oob: ``index`` and ``prediction`` of its out-of-bag samples; empty if it has none.
        history: One row an epoch.
        normalisation: Scale and shift of its inputs, as plain numbers, or None.
    """

    row: dict[str, Any]
    oob: dict[str, np.ndarray]
    history: list[dict[str, float]]
    normalisation: Any


@dataclass
class Fits:
    """What is the same for every member; see `Bagging`.

    `make_data` returns a new datamodule set to the sample of a member.
    """

    make_model: Callable[[], pl.LightningModule]
    make_callbacks: Callable[[], Sequence[Callback]]
    make_data: Callable[[int], SplitDataModule]
    num_members: int
    trainer: dict[str, Any]
    monitor: str
    mode: str
    logger: str | None
    run_dir: Path
    seed: int
    resume: bool
    run_id: str = ""
    shapes: dict[str, list[int]] | None = None

    def new_model(self) -> Model:
        """A model, of the architecture that the first had.

        Raises:
            ValueError: It is no model that can vote, or of another architecture.
        """
        model = self.make_model()
        if not isinstance(model, (Classifier, Regressor)):
            raise ValueError(
                f"make_model returned a {type(model).__name__}; members of an ensemble are "
                "Classifiers or Regressors of dlblocks.models, such as Classifier(net, num_classes)"
                " over a net of your own."
            )
        state = model.state_dict()
        shapes = {name: list(x.shape) for name, x in state.items() if not is_lazy(x)}
        if self.shapes is None:
            self.shapes = shapes
        elif shapes != self.shapes:
            names = [n for n in {**self.shapes, **shapes} if self.shapes.get(n) != shapes.get(n)]
            raise ValueError(
                f"make_model returned models of different architectures, first in {names[0]}: "
                f"{self.shapes.get(names[0])} and {shapes.get(names[0])}; make them alike, or "
                "train them one by one and combine them by Voting."
            )
        return model

    def folder(self, k: int) -> Path:
        """Where member k leaves its files."""
        return self.run_dir / f"member-{k}"

    def new_logger(self, k: int) -> Logger | None:
        """Member k's logger, its W&B run one of the group that is named after the run folder."""
        return tracking.make_logger(
            self.logger,
            self.folder(k),
            run_name=f"{self.run_dir.name}-member-{k}",
            group=self.run_dir.name,
            job_type="member",
            run_id=f"{self.run_id}-{k}",
            is_part=True,
            config={"member": k, "num_members": self.num_members, "seed": self.seed + k},
        )

    # Engines

    def choose(self, engine: str, members: Sequence[int]) -> tuple[str, str, Together | None]:
        """Which engine fits these members, and why; see `choose_engine`."""
        return choose_engine(engine, self._together, members, "members")

    def run(
        self, engine: str, members: Sequence[int], together: Together | None, *, show: bool
    ) -> Iterator[tuple[int, Fitted]]:
        """Fits some members; yields each when it is finished.

        Args:
            engine: The engine.
            members: The members.
            together: They, ready to be run as one, if they are.
            show: Show a bar over all members.
        """
        ready = [] if together is None else [together]
        del together  # which nothing may hold if its memory is short

        def run(part: Sequence[int]) -> Sequence[tuple[int, Fitted]]:
            return self._fit_together(part, ready.pop() if ready else self._together(part), bar)

        with _bar(self.num_members, self.num_members - len(members), show=show) as bar:
            if engine == "vectorized":
                yield from in_halves(run, members, "members")
                (self.run_dir / STATE).unlink(missing_ok=True)
                return
            for k in members:
                try:
                    yield k, self._fit_one(k, bar)
                except Exception as error:
                    raise named(error, f"member {k}") from error

    def _fit_one(self, k: int, bar: tqdm | None) -> Fitted:
        started = time.monotonic()
        pl.seed_everything(self.seed + k, workers=True, verbose=False)
        model, data = self.new_model(), self.make_data(k)
        logger = self.new_logger(k)
        with tracking.finishing(logger):
            done = fit(
                model,
                data,
                self.folder(k),
                callbacks=new_callbacks(self.make_callbacks),
                trainer=self.trainer,
                monitor=self.monitor,
                mode=self.mode,
                logger=logger,
                bar=False if bar is None else _Bar(bar, 1),
                resume=self.resume,
                name=f"member {k}",
            )
            predicted = None
            if len(data.indices("oob")):
                predicted = predict_part(done.trainer, model, data, "oob")
        if done.trainer.is_global_zero:
            drop_training_state(done.checkpoint)
        return self._finish(
            k,
            data,
            predicted,
            epochs=done.epochs,
            best_epoch=done.best_epoch,
            metrics=done.metrics,
            seconds=time.monotonic() - started,
            history=done.history,
        )

    def _together(self, numbers: Sequence[int]) -> Together:
        """Members ready to be fitted as one, each begun as `_fit_one` would."""
        members = []
        for i, k in enumerate(numbers):
            pl.seed_everything(self.seed + k, workers=True, verbose=False)
            with naming(f"member {k}" if i else None):
                model, callbacks = self.new_model(), self.make_callbacks()
                data: Any = self.make_data(k)
            if i == 0:
                check_vectorizable(model, data, list(callbacks), self.trainer)
            members.append(Member(f"member {k}", model, data, callbacks))
        # What all share is drawn as the first fit would.
        pl.seed_everything(self.seed + numbers[0], workers=True, verbose=False)
        return Together(
            members,
            trainer=self.trainer,
            monitor=self.monitor,
            mode=self.mode,
            folder=self.run_dir,
        )

    def _fit_together(
        self, numbers: Sequence[int], together: Together, bar: tqdm | None
    ) -> Sequence[tuple[int, Fitted]]:
        started = time.monotonic()
        together.save_to = self.run_dir / STATE if self.resume else None
        if bar is not None:
            together.show(_Bar(bar, len(numbers)))
        loggers = [self.new_logger(k) for k in numbers]
        try:
            for member, logger in zip(together.members, loggers, strict=True):
                member.log_to([] if logger is None else [logger])
            try:
                together.fit()
            except Exception as error:
                for member in together.members:
                    if member.error is error:
                        raise named(error, member.name) from error
                if is_out_of_memory(error):
                    raise
                raise named(error, "all members") from error
        finally:
            for logger in loggers:
                tracking.finish_logger(logger)
        seconds = (time.monotonic() - started) / len(numbers)
        found = []
        for k, member in zip(numbers, together.members, strict=True):
            best, data = member.best, member.datamodule
            assert best is not None  # for the type checker: every member that did not fail has one
            path = self._checkpoint(k)
            write_checkpoint(path, member.model, epoch=best.epoch, global_step=best.step)
            write_rows(self.folder(k) / "history.csv", member.history.rows)
            out = len(data.indices("oob"))
            fitted = self._finish(
                k,
                data,
                together.predict(member, "oob") if out else None,
                epochs=member.epochs,
                best_epoch=best.epoch + 1,
                metrics=best.metrics,
                seconds=seconds,
                history=member.history.rows,
            )
            found.append((k, fitted))
        return found

    # Files

    def _checkpoint(self, k: int) -> Path:
        return self.folder(k) / "checkpoints" / "best.ckpt"

    def _finish(
        self,
        k: int,
        data: SplitDataModule,
        predicted: Mapping[str, np.ndarray] | None,
        *,
        epochs: int,
        best_epoch: int,
        metrics: Mapping[str, float],
        seconds: float,
        history: list[dict[str, float]],
    ) -> Fitted:
        rows, folder = data.indices("train"), self.folder(k)
        row: dict[str, Any] = {
            "member": k,
            "epochs": epochs,
            "best_epoch": best_epoch,
            "num_train": len(rows),
            "num_different": len(rows.unique()),
            "num_oob": len(data.indices("oob")),
            **metrics,
            "seconds": round(seconds, 3),
            "checkpoint": str(self._checkpoint(k).relative_to(self.run_dir)),
        }
        oob: dict[str, Any] = {}
        if predicted is not None:
            oob = {name: predicted[name] for name in ("index", "prediction")}
        pair = getattr(data, "normalisation", None)
        plain = None if pair is None else [tensor.tolist() for tensor in pair]
        if is_rank_zero():
            if oob:
                with whole_file(folder / "oob.npz") as part:
                    np.savez_compressed(part, **oob)
            files = [folder / "oob.npz", folder / "history.csv", self._checkpoint(k)]
            write_record(folder / FINISHED, {"row": row, "normalisation": plain}, files)
            (folder / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
        return Fitted(row, oob, history, plain)

    def read(self, k: int) -> Fitted | None:
        """What a finished member has left, or None if it is not finished."""
        return read_member(self.folder(k))


def read_member(folder: Path) -> Fitted | None:
    """What a finished member has left in its folder, or None if it is not finished."""
    path = folder / FINISHED
    if not path.exists():
        return None
    cure = f"delete {path}, and the same call trains {folder.name} again"
    found = read_record(path, cure)
    check_files(path, found, cure)
    with reading(path, cure):
        # JSON has no numbers that are not finite.
        row = {key: math.nan if value is None else value for key, value in found["row"].items()}
    oob = read_arrays(folder / "oob.npz", cure) if row["num_oob"] else {}
    with reading(folder / "history.csv", cure):
        return Fitted(row, oob, read_rows(folder / "history.csv"), found["normalisation"])


@contextmanager
def _bar(total: int, done: int, *, show: bool) -> Iterator[tqdm | None]:
    if not (show and is_rank_zero()):
        yield None
        return
    # Drawn at the first update: a bar among the callbacks may take its place.
    with tqdm(
        total=float(total), initial=done, desc="members", dynamic_ncols=True, delay=LATER
    ) as bar:
        bar.bar_format = "{desc} {bar} {percentage:3.0f}% | {elapsed} elapsed, {remaining} left"
        yield bar


class _Bar(ProgressBar):
    """Reports one fit, of a member or of several, to the bar over all members."""

    def __init__(self, bar: tqdm, count: int) -> None:
        super().__init__()
        self.bar, self.count, self.start = bar, count, bar.n

    def disable(self) -> None:
        """Nothing to disable: only rank 0 has a bar."""

    def enable(self) -> None:
        """Nothing to enable: see `disable`."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, Together):
            share, text = pl_module.progress()
        else:
            epochs = max(trainer.max_epochs or 1, 1)
            share, text = (trainer.current_epoch + 1) / epochs, ""
            text = f"member {int(self.start) + 1} | epoch {trainer.current_epoch + 1}/{epochs}"
        self.bar.set_description_str(text, refresh=False)
        self.bar.update(self.start + self.count * min(share, 1.0) - self.bar.n)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar.update(self.start + self.count - self.bar.n)
