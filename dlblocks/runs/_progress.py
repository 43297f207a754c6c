"""One progress bar over all fits of a run."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from dlblocks._files import is_rank_zero
from dlblocks.runs._history import VALIDATION, name_of_selection

SHOW_EVERY_SECONDS = 0.2  # by a fit, on the bar or in its note
WATCH_EVERY_SECONDS = 0.5  # the notes of other processes
DRAW_AFTER_SECONDS = 1e-3  # not before the first update


def make_bar(total: float, **settings: Any) -> tqdm:
    """Make a bar of tqdm in the style of this package."""
    return tqdm(
        total=total,
        bar_format="{desc} {bar} {percentage:3.0f}% | {elapsed} elapsed, {remaining} left",
        file=sys.stderr,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
        **settings,
    )


class FitProgress:
    """The bar over all fits of a run.

    Its `callback` goes into the Trainer of each fit.

    The total is an estimate: a fit that stops early makes the fits still to come as long as the
    mean of those that have ended.

    Args:
        num_fits: Number of fits.
        kind: How the bar calls a fit: ``"fold"``.
        show: Show the bar.
    """

    def __init__(self, num_fits: int, kind: str = "fold", *, show: bool = True) -> None:
        self.num_fits, self.kind = num_fits, kind
        self.ended: list[float] = []
        self.bar: tqdm | None = None
        if show and is_rank_zero():
            # Drawn at the first update: a bar among the callbacks may take its place.
            self.bar = make_bar(float(num_fits), smoothing=0.05, delay=DRAW_AFTER_SECONDS)

    def callback(self, fit: int) -> ProgressBar:
        """Return the callback of fit number `fit`, 0 … num_fits - 1."""
        return FitBar(self, fit)

    def update(self, fit: int, share: float, text: str) -> None:
        """Show that a fit has done `share` of its epochs."""
        if self.bar is None:
            return
        whole = sum(self.ended) / len(self.ended) if self.ended else 1.0
        self.bar.total = sum(self.ended) + max(share, whole) + whole * (self.num_fits - fit - 1)
        self.bar.set_description_str(
            f"{self.kind} {fit + 1}/{self.num_fits} | {text}", refresh=False
        )
        self.bar.update(sum(self.ended) + share - self.bar.n)

    def end_fit(self, share: float) -> None:
        self.ended.append(share)

    def update_stacked(self, count: int, share: float, text: str) -> None:
        """Show that `count` stacked fits have done `share` of their epochs."""
        if self.bar is not None:
            self.bar.set_description_str(f"{count} {self.kind}s at once | {text}", refresh=False)
            self.bar.update(sum(self.ended) + count * share - self.bar.n)

    def count_finished(self, count: int) -> None:
        """Count fits that need no bar any more."""
        self.ended += [1.0] * count

    @contextlib.contextmanager
    def watching(self, notes: Path) -> Iterator[None]:
        """Show the notes of fits in other processes, while inside."""
        before, over = len(self.ended), threading.Event()

        def show() -> None:
            while not over.wait(WATCH_EVERY_SECONDS):
                found = {int(path.stem): path.read_text() for path in notes.glob("[0-9]*.json")}
                running = []
                shares = 0.0
                for fit, note in sorted(found.items()):
                    share, text = json.loads(note)
                    shares += 1.0 if text is None else share
                    if text is not None:
                        running.append(f"{fit + 1}: {text}")
                if self.bar is not None:
                    said = f"{self.kind}s "
                    said += f"of {self.num_fits}, {before} before | " if before else ""
                    self.bar.set_description_str(said + " | ".join(running), refresh=False)
                    self.bar.update(before + shares - self.bar.n)

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def close(self) -> None:
        if self.bar is not None:
            if self.bar.n:
                self.bar.total = self.bar.n  # what early stopping saved is done, not missing
                self.bar.refresh()
            self.bar.close()


class Notes:
    """Stand in for `FitProgress` in another process.

    It writes a note that `FitProgress.watching` reads.

    Args:
        folder: The folder of the notes, one a fit.
        fit: Number of the fit.
    """

    def __init__(self, folder: Path, fit: int) -> None:
        self.path = folder / f"{fit}.json"

    def update(self, fit: int, share: float, text: str | None) -> None:
        self._write([share, text])

    def end_fit(self, share: float) -> None:
        self._write([share, None])

    def _write(self, note: list[Any]) -> None:
        part = self.path.with_suffix(".part")  # not by `write_json`, which waits for the disk
        part.write_text(json.dumps(note))
        os.replace(part, self.path)


class FitBar(ProgressBar):
    """Report one Trainer's progress to the bar over all fits."""

    def __init__(self, progress: FitProgress | Notes, fit: int) -> None:
        super().__init__()
        self.progress, self.fit = progress, fit
        self._shown = 0.0
        self._share = 0.0

    def disable(self) -> None:
        """Do nothing, since only rank 0 has a bar."""

    def enable(self) -> None:
        """Do nothing, as `disable`."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        if now - self._shown > SHOW_EVERY_SECONDS:
            self._shown = now
            self._show(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show(trainer)
        self.progress.end_fit(self._share)

    def _show(self, trainer: pl.Trainer) -> None:
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        if epochs is None and trainer.max_steps > 0:
            self._share = trainer.global_step / trainer.max_steps
        elif epochs is not None:
            progress: Any = trainer.fit_loop.epoch_progress.current
            batches = trainer.num_training_batches
            # In mid-epoch the epoch counts as far as it has come.
            part = 0.0
            if progress.ready > progress.processed and batches not in (0, float("inf")):
                part = min(1.0, (trainer.fit_loop.batch_idx + 1) / batches)
            self._share = min(1.0, (progress.processed + part) / epochs)
        started = min(trainer.current_epoch + 1, epochs or sys.maxsize)
        epoch = f"epoch {started}" + (f"/{epochs}" if epochs else "")
        metrics = self.get_metrics(trainer, trainer.lightning_module)
        if getattr(trainer.datamodule, "validate_on", None) == "selection":  # type: ignore[attr-defined]
            metrics = {
                name_of_selection(name) if VALIDATION.match(name) else name: value
                for name, value in metrics.items()
            }
        shown = [f"{k} {v:.4g}" for k, v in metrics.items() if isinstance(v, float)][:2]
        self.progress.update(self.fit, self._share, " | ".join([epoch, *shown]))
