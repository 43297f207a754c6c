"""Read inputs as sequences of steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlblocks._ragged import check_lengths
from dlblocks.fields import Padded


class Steps(nn.Module):
    """Turn inputs into steps (B, T, F) and lengths.

    The lengths are None if they are equal. Inputs are features (B, T, F), or `Padded` ones. With
    `num_tokens` they are whole numbers (B, T), or `Padded`, whose vectors are learned. Images
    (B, C, H, W) are read row by row: H steps of C · W features.

    Args:
        in_features: Features F of a step.
        num_tokens: Number of different tokens; None for features.
    """

    def __init__(self, in_features: int, num_tokens: int | None = None) -> None:
        super().__init__()
        self.in_features, self.num_tokens = in_features, num_tokens
        self.embed = None if num_tokens is None else nn.Embedding(num_tokens, in_features)

    def forward(self, inputs: Tensor | Padded) -> tuple[Tensor, Tensor | None]:
        values, lengths = inputs if isinstance(inputs, Padded) else (inputs, None)
        is_traced = torch.compiler.is_compiling() or torch.compiler.is_exporting()
        if lengths is not None and lengths.device.type == "cpu" and not is_traced:
            check_lengths("inputs", Padded(values, lengths))
        if values.ndim != self._axes + 1 or (self.embed is None and values.ndim > 2):
            self.check_input(tuple(values.shape[1:]))
        if self.embed is not None:
            if values.device.type == "cpu" and not is_traced:
                self._check_tokens(values)
            return self.embed(values), lengths
        if values.ndim == 4:
            values = values.transpose(1, 2).flatten(2)  # (B, H, C * W)
        return values, lengths

    @property
    def _axes(self) -> int:
        return 1 if self.embed is not None else 2

    def check_input(self, shape: tuple[int | None, ...]) -> None:
        """Raise a `ValueError` unless inputs of a shape (…) are such steps.

        The first entry is None for sequences of unequal length.
        """
        if self.embed is not None:
            if len(shape) != 1:
                raise ValueError(
                    f"num_tokens={self.num_tokens} is for tokens (N, T), but one input has shape "
                    f"{shape}; leave num_tokens out for features."
                )
            return
        if len(shape) == 3 and None not in shape:
            found = int(shape[0] or 0) * int(shape[2] or 0)
            what = f"a row of an image of shape {shape}"
        elif len(shape) == 2:
            found, what = int(shape[1] or 0), f"a step of inputs of shape {shape}"
        else:
            raise ValueError(
                f"one input has shape {shape}, but sequences are (T, F), or images (C, H, W), "
                "which are read row by row; set num_tokens= for tokens (T,)."
            )
        if found != self.in_features:
            raise ValueError(
                f"in_features={self.in_features}, but {what} has {found} values; set "
                f"in_features={found}."
            )

    def _check_tokens(self, tokens: Tensor) -> None:
        wrong = (tokens < 0) | (tokens >= int(self.num_tokens or 0))
        if wrong.any():
            row, step = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"inputs has token {int(tokens[row, step])} in row {row}, step {step}, but "
                f"num_tokens={self.num_tokens}; tokens are 0 … {int(self.num_tokens or 0) - 1}."
            )


def mean_of_steps(steps: Tensor, lengths: Tensor | None) -> Tensor:
    """Average the steps (B, T, D) of each sequence.

    The result (B, D) is 0 for a sequence without steps.
    """
    if lengths is None:
        return steps.mean(1)
    total = Padded(steps, lengths).masked(steps).values.sum(1)
    return total / lengths.clamp(min=1)[:, None]
