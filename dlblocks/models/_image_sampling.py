"""Samples of generative models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlblocks._errors import check_range, check_whole
from dlblocks._quiet import evaluating
from dlblocks.models._image_checks import check_labels
from dlblocks.models._noise import Noise
from dlblocks.models.model import Model


class Sampler(Model):
    """A model that makes images of levels."""

    num_classes: int | None
    levels: int
    max_value: float

    has_steps = False
    """Whether `sample` takes ``steps``."""
    label_dropout: float = 0.0
    """Share of training labels that are hidden; guidance needs some."""

    def draw(
        self, noise: Noise, labels: Tensor | None, *, steps: int | None, guidance: float | None
    ) -> Tensor:
        """Make images of levels, int64 of shape (N, C, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} must define draw.")

    def to_images(self, levels: Tensor) -> Tensor:
        """Turn levels into raw images.

        They are uint8 if `max_value` is 255, else float32.
        """
        raw = levels.double() * (self.max_value / (self.levels - 1))
        return raw.round().to(torch.uint8) if self.max_value == 255 else raw.float()

    def sample(
        self,
        n: int,
        labels: int | Sequence[int] | Tensor | None = None,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        batch_size: int = 256,
        **options: Any,
    ) -> Tensor:
        """Make new images.

        Sample i depends only on the model, on `seed` and on i. Torch's global generators and the
        mode of the modules stay as they are.

        Args:
            n: Number of images.
            labels: Class of all images, or of each. None: the classes in turn.
            steps: Steps of the sampler. More are slower and more precise.
            guidance: w of classifier-free guidance: 0 ignores the classes, 1 is the model of the
                classes itself, and above 1 images are more typical of their class and less
                diverse.
            seed: Seed.
            batch_size: Images at a time.
            **options: Further arguments of this model's `draw`.

        Returns:
            Raw images (n, C, H, W), on the model's device: uint8 if `max_value` is 255, else
            float32.
        """
        n, seed = _plain("n", n, 1), _plain("seed", seed, 0)
        batch_size = _plain("batch_size", batch_size, 1)
        self._check_sampler(steps, guidance)
        classes = self._classes(n, labels)
        parts = []
        with torch.no_grad(), evaluating(self):
            for start in range(0, n, batch_size):
                rows = range(start, min(n, start + batch_size))
                of_rows = None if classes is None else classes[start : rows.stop]
                noise = Noise(seed, rows, self.device)
                levels = self.draw(noise, of_rows, steps=steps, guidance=guidance, **options)
                parts.append(self.to_images(levels))
        return torch.cat(parts)

    def _check_sampler(self, steps: int | None, guidance: float | None) -> None:
        name = type(self).__name__
        if steps is not None:
            if not self.has_steps:
                raise ValueError(f"steps={steps}, but {name} samples without steps; leave it out.")
            check_whole("steps", steps, 1)
        if guidance is None or guidance == 1:
            return
        check_range("guidance", guidance, 0)
        if self.num_classes is None or not self.label_dropout:
            raise ValueError(
                f"guidance={guidance} compares the model with and without classes, but this {name} "
                f"has num_classes={self.num_classes} and label_dropout={self.label_dropout}; train "
                "one with num_classes and label_dropout=0.1, or leave guidance out."
            )

    def _classes(self, n: int, labels: Any) -> Tensor | None:
        if self.num_classes is None:
            if labels is not None:
                raise ValueError(
                    f"labels={labels!r}, but this {type(self).__name__} was trained without "
                    "classes; set num_classes, or leave labels out."
                )
            return None
        if labels is None:
            found = torch.arange(n) % self.num_classes
        else:
            found = torch.as_tensor(labels)
            found = found.expand(n) if found.ndim == 0 else found
        if len(found) != n:
            raise ValueError(f"labels has {len(found)} entries for n={n} samples; give {n}.")
        return check_labels(found, self.num_classes).to(self.device)


def _plain(argument: str, value: Any, low: int) -> int:
    """Return a checked whole number as Python's, which has no largest value."""
    value = value.item() if isinstance(value, np.integer) else value
    check_whole(argument, value, low)
    return int(value)
