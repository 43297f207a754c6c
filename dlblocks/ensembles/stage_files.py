"""What a fit of stages leaves on its way, from which a fit that was killed goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dlblocks.files import PLAN, SUMMARY, check_new_run_dir, is_whole, remove_parts, whole_file
from dlblocks.models import Model
from dlblocks.plan import check_same_run, new_run, run_id_of


class StageFiles:
    """``plan.json``, and the weights of each learner.

    Whatever else a stage needs of those before it follows from what their learners put out. So a
    fit goes on by running the learners that it has, in place of training them, and is then the fit
    that was not killed, bit for bit. One that has ended is read back in the same way.

    Args:
        run_dir: The run folder.
        resume: Go on with a run in it; else no file of a stage is written.

    Raises:
        FileExistsError: The folder holds something else.
    """

    def __init__(self, run_dir: Path, *, resume: bool) -> None:
        self.run_dir, self.resume = run_dir, resume
        self.goes_on = resume and (run_dir / PLAN).is_file()
        if not self.goes_on:
            check_new_run_dir(run_dir)

    def begin(self, config: dict[str, Any]) -> str:
        """Writes the plan, or finds that of the folder the same; returns the run's id.

        Raises:
            FileExistsError: The run in the folder is of another configuration.
        """
        if self.goes_on:
            check_same_run(self.run_dir, config)
            remove_parts(self.run_dir)
            return run_id_of(self.run_dir)
        check_new_run_dir(self.run_dir)  # once more, now that it is locked
        remove_parts(self.run_dir)
        return new_run(self.run_dir, config)

    def finished(self) -> int:
        """How many stages, from the first, the fit that is gone on with had finished."""
        count = 0
        while self.goes_on and self._path(count).is_file():
            count += 1
        return count

    def read(self, stage: int) -> Mapping[str, Any] | None:
        """The weights of the learner of stage 0, 1, …, or None if it was not finished."""
        path = self._path(stage)
        if not (self.goes_on and path.is_file()):
            return None
        if not is_whole(path):
            path.unlink()  # it is trained again
            return None
        found: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return found

    def keep(self, stage: int, learner: Model) -> None:
        """Writes the weights of the learner of a stage, if they are not there."""
        if self.resume and not self._path(stage).is_file():
            with whole_file(self._path(stage)) as part:
                torch.save(learner.state_dict(), part)

    def seconds(self) -> float | None:
        """How long the fit took, if it has ended."""
        path = self.run_dir / SUMMARY
        if not (self.goes_on and path.is_file()):
            return None
        try:
            return float(json.loads(path.read_text())["seconds"])
        except (ValueError, KeyError, TypeError):
            return None  # damaged; it is written again

    def _path(self, stage: int) -> Path:
        return self.run_dir / "checkpoints" / f"stage-{stage + 1}.ckpt"
