"""Models that know how often each pixel has each level."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import Self

from dlblocks.models.generative import GenerativeModel


class LevelModel(GenerativeModel):
    """A generative model whose net need not learn what independent pixels explain.

    The buffer ``log_prior``, shape (C, H, W, L), has the logarithm of the share of each level at
    each pixel of the training part; until a fit, all levels are equally likely.

    Args:
        *args: See `GenerativeModel`.
        **kwargs: See `GenerativeModel`.
    """

    log_prior: Tensor
    is_fitted: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shape = (*self.image_shape, self.levels)
        self.register_buffer("log_prior", torch.full(shape, -math.log(self.levels)))
        self.register_buffer("is_fitted", torch.tensor(False))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # A model that was trained before keeps its statistics.
        if stage != "fit" or bool(self.is_fitted):
            return
        arrays = getattr(self.datamodule, "arrays", None)
        if callable(arrays):
            images = arrays("train")[0]
            self.learn_levels(self.to_levels(self.preprocess(images.to(self.device))))
            self.is_fitted.fill_(True)
            return
        rank_zero_warn(
            f"{type(self).__name__} got loaders instead of a datamodule over arrays, so it does "
            "not know which levels each pixel has, and its likelihood will be worse; use "
            "ArrayDataModule or another datamodule of this package."
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # "bf16-true" would round the statistics and the noise of each step: they only move.
        exact = {name: x for name, x in self._buffers.items() if x is not None and not x.is_meta}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, x in exact.items():
            self._buffers[name] = x.to(getattr(self, name).device)
        return self

    def learn_levels(self, levels: Tensor) -> None:
        """Set the statistics to those of training images.

        Levels are int64 of shape (N, C, H, W). Weights of samples are not used.
        """
        self.log_prior.copy_(level_shares(levels, self.levels).log())


def level_shares(levels: Tensor, num_levels: int) -> Tensor:
    """Return the share of each level at each place.

    Each level counts 1 / L more than it occurs, so that none has the share 0. For images
    (N, C, H, W) the result has shape (C, H, W, L).
    """
    flat = levels.flatten(1).T  # (D, N)
    counts = torch.zeros(len(flat), num_levels, dtype=torch.float64, device=levels.device)
    counts.scatter_add_(1, flat, counts.new_ones(()).expand_as(flat))
    counts += 1 / num_levels
    return (counts / counts.sum(1, keepdim=True)).reshape(*levels.shape[1:], num_levels)
