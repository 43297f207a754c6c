"""Read new series for a forecaster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dlblocks.data._clock import Clock
from dlblocks.data._series import read_panel
from dlblocks.data._windows import naive_errors, window_inputs
from dlblocks.data.encoders import ENCODERS, Encoder, Samples


@dataclass
class SeriesEncoder(Encoder):
    """Read series as `dlblocks.data.ForecastDataModule` does, for the steps after their last value.

    Tables have the columns of training. Known inputs of the horizon are rows without a value.

    Args:
        names: Names of the series in training. Others are numbered -1.
        context: Past steps of a window.
        horizon: Steps to forecast.
        season: Steps of a season.
        calendar: Calendar features.
        clock: Values of the `dlblocks.data._series.Clock`.
        reading: Arguments of `dlblocks.data._series.read_panel`.
    """

    kind: ClassVar[str] = "series"

    names: list[str] = field(default_factory=list)
    context: int = 1
    horizon: int = 1
    season: int = 1
    calendar: list[str] = field(default_factory=list)
    clock: dict[str, Any] = field(default_factory=dict)
    reading: dict[str, Any] = field(default_factory=dict)

    @property
    def input_shape(self) -> list[int]:
        known = len(self.reading["covariates"]) + 2 * len(self.calendar)
        return [self.context + self.horizon, known + 3]

    @property
    def input_dtype(self) -> str:
        return "float32"

    def read(self, data: Any, rows: int, **options: Any) -> Samples:
        is_table = isinstance(data, (str, os.PathLike)) or hasattr(data, "iloc")
        if not is_table and (self.reading["covariates"] or self.calendar):
            inputs_known = [*self.reading["covariates"], *self.calendar]
            raise ValueError(
                f"data is a {type(data).__name__}, and the model knows {', '.join(inputs_known)} "
                "of each step; give a table with the columns of training."
            )
        panel = read_panel(data, clock=Clock(**self.clock), **self._arguments(data))
        inputs = []
        for i, (name, values) in enumerate(zip(panel.names, panel.values, strict=True)):
            if len(values) < self.context:
                raise ValueError(
                    f"series {name!r} has {len(values)} values, and the model needs the last "
                    f"{self.context} (context)."
                )
            needed = len(values) + self.horizon
            covariates = panel.covariates[i][:needed]
            steps = panel.starts[i] + np.arange(needed)
            if covariates.shape[1] and len(covariates) < needed:
                raise ValueError(
                    f"series {name!r} lacks covariates of {needed - len(covariates)} steps after "
                    f"{panel.clock.name(int(steps[len(values) - 1]))}; add rows with "
                    f"{', '.join(self.reading['covariates'])} and an empty value."
                )
            if not covariates.shape[1]:
                covariates = np.empty((needed, 0))
            known = np.concatenate([covariates, panel.clock.calendar(steps, self.calendar)], 1)
            number = self.names.index(name) if name in self.names else -1
            errors = naive_errors(values, self.season)
            last = np.array([len(values) - 1])
            inputs.append(
                window_inputs(values, known, last, number, errors, self.context, self.horizon)
            )
        made = torch.from_numpy(np.concatenate(inputs)).to(torch.get_default_dtype())

        def chunks() -> Iterator[tuple[Tensor, list[str]]]:
            for start in range(0, len(made), rows):
                yield made[start : start + rows], panel.names[start : start + rows]

        return Samples(chunks(), "series", lambda: len(made))

    def _arguments(self, data: Any) -> dict[str, Any]:
        if isinstance(data, (str, os.PathLike)) or hasattr(data, "iloc"):
            return self.reading
        return {"regular": True}


ENCODERS[SeriesEncoder.kind] = SeriesEncoder
