"""Compute prediction intervals and sets from out-of-fold predictions.

CV+ (Barber, Candès, Ramdas and Tibshirani, "Predictive inference with the jackknife+", 2021). With
the out-of-fold score s_i of sample i, such as |y_i - ŷ_i|, and the model k(i) of its fold, the
interval of a new sample x with coverage 1 - α is, over all n samples i ::

    [ the ⌊α (n + 1)⌋-th smallest of ŷ_k(i)(x) - s_i ,
      the ⌈(1 - α) (n + 1)⌉-th smallest of ŷ_k(i)(x) + s_i ]

The set of classes has those y for which fewer than (1 - α) (n + 1) of the s_i are below the score
of y by model k(i) (Romano, Sesia and Candès, "Classification with valid and adaptive coverage",
2020). If new samples come from the population of the old ones, both contain the true value with
probability 1 - α in practice. The guarantee is at least 1 - 2α, up to a term that vanishes with n.
The probability is an average over all samples: for some kinds of samples it may be lower.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dlblocks._errors import check_range

CHUNK = 2**22  # numbers at a time


class Calibration(nn.Module):
    """Out-of-fold scores of samples, and the member of each score.

    A checkpoint contains them with the weights. They are empty until `set` is called.

    Attributes:
        member: Number of the member, int64 of shape (n,).
        scores: Floating point, shape (n,), or (n, D) for D values per sample.
    """

    def __init__(self) -> None:
        super().__init__()
        self.member, self.scores = torch.empty(0, dtype=torch.int64), torch.empty(0)

    def set(self, member: Tensor, scores: Tensor) -> None:
        """Store the scores of samples."""
        order = member.argsort(stable=True)
        self.member, self.scores = member[order].long(), scores[order].float()

    def check(self, coverage: float) -> None:
        """Raise a `ValueError` unless there are enough samples for `coverage`."""
        check_range("coverage", coverage, 0, 1, low_open=True, high_open=True)
        count = len(self.member)
        if not count:
            raise ValueError(
                f"coverage={coverage} needs the out-of-fold predictions of values or classes that "
                "a fold average has, result.ensemble(). This model has none, its task has no "
                "conformal_scores, or its samples have weights."
            )
        if math.ceil(coverage * (count + 1)) > count:
            raise ValueError(
                f"coverage={coverage} needs at least {math.ceil(1 / (1 - coverage)) - 1} "
                f"out-of-fold samples, and there are {count}; set a lower coverage."
            )

    def interval(self, each: Tensor, coverage: float) -> tuple[Tensor, Tensor]:
        """Return the ends of the interval of each sample, shape (N, ...).

        Args:
            each: Predictions of each member, shape (M, N) or (M, N, D).
            coverage: 1 - α.
        """
        self.check(coverage)
        shape = each.shape[1:]
        values = each.double().reshape(len(each), shape[0], -1)  # (M, N, D)
        member, count = self.member.to(each.device), len(self.member)
        scores = self.scores.to(values).reshape(count, -1)  # (n, D)
        # Rounded first, since (1 - 0.9) * 10 is 0.9999999999999998 in floating point.
        low = math.floor(round((1 - coverage) * (count + 1), 9))
        high = math.ceil(round(coverage * (count + 1), 9))
        ends = []
        for part in torch.split(values, max(1, CHUNK // (count * values.shape[2])), dim=1):
            centre, spread = part[member], scores[:, None]  # (n, N, D) and (n, 1, D)
            lower = (centre - spread).kthvalue(max(low, 1), dim=0).values
            if low < 1:
                lower = torch.full_like(lower, -math.inf)
            ends.append((lower, (centre + spread).kthvalue(high, dim=0).values))
        lower, upper = (torch.cat(column).to(each.dtype) for column in zip(*ends, strict=True))
        return lower.reshape(shape), upper.reshape(shape)

    def classes(self, scores: Tensor, coverage: float) -> Tensor:
        """Return each sample's set of classes, bool of shape (N, C).

        Args:
            scores: Score of each class by each member, shape (M, N, C).
            coverage: 1 - α.
        """
        self.check(coverage)
        below = torch.zeros(scores.shape[1:], dtype=torch.int64, device=scores.device)
        known = self.scores.to(scores.device)
        for k, mine in enumerate(scores):
            own = known[self.member.to(scores.device) == k].sort().values
            below += torch.searchsorted(own, mine.float().contiguous())
        return below < coverage * (len(self.member) + 1) - 1e-9

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if len(self.member):
            destination.update({prefix + "member": self.member, prefix + "scores": self.scores})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = [prefix + name for name in ("member", "scores")]
        if all(name in state_dict for name in names):  # as many as were saved
            self.member, self.scores = (state_dict[name].cpu() for name in names)
