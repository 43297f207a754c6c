"""Files of other checkpoint callbacks, which a resumed run writes once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class FileExists:
    """Stands in for `ModelCheckpoint.file_exists`: files to be written again are not there yet.

    Otherwise Lightning would put ``best-v1.ckpt`` beside the ``best.ckpt`` of steps that are
    repeated. Nothing is deleted.

    Args:
        checkpoint: The callback.
        stale: Files that were written after the checkpoint from which the run goes on.
    """

    def __init__(self, checkpoint: ModelCheckpoint, stale: set[str]) -> None:
        self.checkpoint, self.stale = checkpoint, stale

    def __call__(self, filepath: Any, trainer: pl.Trainer) -> bool:
        if str(filepath) in self.stale:
            self.stale.remove(str(filepath))  # it is written now
            return False
        return type(self.checkpoint).file_exists(self.checkpoint, filepath, trainer)


def known_files(checkpoint: ModelCheckpoint) -> list[str]:
    """The files in a callback's folder, but those that are still to be written again."""
    stand_in = vars(checkpoint).get("file_exists")
    stale = stand_in.stale if isinstance(stand_in, FileExists) else set()
    folder = Path(checkpoint.dirpath or ".")
    # A metric such as val/loss in the name makes folders.
    found = [path for pattern in ("*.ckpt", "*/*.ckpt") for path in folder.glob(pattern)]
    return sorted(str(path.relative_to(folder)) for path in found if str(path) not in stale)


def write_again(checkpoint: ModelCheckpoint, known: list[str] | None, trainer: pl.Trainer) -> None:
    """Lets a callback write the files again that are not among `known`; with None forgets it."""
    vars(checkpoint).pop("file_exists", None)
    if known is None:
        return
    folder = Path(checkpoint.dirpath or ".")
    new = {str(folder / name) for name in set(known_files(checkpoint)) - set(known)}
    new = trainer.strategy.broadcast(new)  # what rank 0 sees
    if new:
        vars(checkpoint)["file_exists"] = FileExists(checkpoint, new)
