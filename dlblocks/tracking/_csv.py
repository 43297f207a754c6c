"""Append to ``metrics.csv`` in a resumed run, where Lightning would delete it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from dlblocks._files import atomic_write
from dlblocks._lightning import csv_writer, set_csv_writer


class ContinuedCSV(ExperimentWriter):
    """Lightning's writer of ``metrics.csv``, which appends to an existing file."""

    def _check_log_dir_exists(self) -> None:
        """Read the columns of the file. Lightning calls this to delete it."""
        self.path = Path(self.metrics_file_path)
        self.rows = 0
        if self.path.is_file():
            self._read()

    def _read(self) -> list[dict[str, str]]:
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        self.metrics_keys, self.rows = list(reader.fieldnames or []), len(rows)
        return rows

    def save(self) -> None:
        new = len(self.metrics)
        super().save()
        self.rows += new

    def keep(self, count: int) -> None:
        """Keep the first `count` rows. A resumed run logs the others again."""
        if count == 0 and self.path.is_file():
            self.path.unlink()
            self.metrics_keys, self.rows = [], 0
        elif count < self.rows:
            self._write(self._read()[:count], self.metrics_keys)
            self.rows = count

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(self._read(), fieldnames)
        self.metrics_keys = fieldnames

    def _write(self, rows: Sequence[dict[str, str]], columns: list[str]) -> None:
        with atomic_write(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


def go_on(logger: CSVLogger) -> ContinuedCSV:
    """Make `logger` append to its file. Call it on rank 0."""
    writer = csv_writer(logger)
    if not isinstance(writer, ContinuedCSV):
        logger.finalize("")  # writes buffered rows
        hparams = getattr(writer, "hparams", {})
        writer = ContinuedCSV(logger.log_dir)
        set_csv_writer(logger, writer)
        writer.hparams.update(hparams)
    return writer


def csv_writers(trainer: pl.Trainer) -> list[ContinuedCSV]:
    """Make the Trainer's CSV loggers append, and return their writers.

    The list is empty on ranks other than 0.
    """
    return [
        go_on(logger)
        for logger in trainer.loggers
        if isinstance(logger, CSVLogger) and trainer.is_global_zero
    ]
