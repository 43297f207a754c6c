"""Multi-layer perceptron (Rumelhart, Hinton and Williams 1986)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dlblocks._errors import check_range, checked
from dlblocks.nets._layers import Init, init_weights, make_activation


class EmbedCategories(nn.Module):
    """Replaces numbers of categories by learned vectors (Guo and Berkhahn 2016).

    A column of n categories holds whole numbers from 0 to n. 0 is an unknown category, whose vector
    stays 0. Vectors have min(50, ceil(1.6 n^0.56)) values, a rule of thumb of the library fastai,
    drawn from a normal distribution with standard deviation 0.1.

    Args:
        in_features: Values in one input.
        categories: Position and n of each such column, as in ``data.embeddings`` of a
            `TabularDataModule`.

    Shape:
        Input (N, in_features); output (N, out_features): the other columns, then the vectors.

    Example:
        >>> import torch
        >>> embed = EmbedCategories(3, {1: 100})
        >>> embed(torch.tensor([[0.5, 7.0, 0.1]])).shape
        torch.Size([1, 24])
    """

    @checked
    def __init__(self, in_features: int, categories: Mapping[int, int]) -> None:
        super().__init__()
        self.categories = {int(column): int(count) for column, count in categories.items()}
        for column, count in self.categories.items():
            check_range("embeddings: position", column, 0, in_features - 1)
            check_range(f"embeddings[{column}]", count, 1)
        self.others = [i for i in range(in_features) if i not in self.categories]
        self.out_features = len(self.others)
        self.tables = nn.ModuleList()
        for count in self.categories.values():
            width = min(50, math.ceil(1.6 * count**0.56))
            table = nn.Embedding(count + 1, width, padding_idx=0)
            nn.init.normal_(table.weight[1:].detach(), std=0.1)
            self.tables.append(table)
            self.out_features += width

    def forward(self, inputs: Tensor) -> Tensor:
        # torch.vmap honours padding_idx for the first of the stacked tables only, hence the mask.
        vectors = [
            table(inputs[:, column].long()) * (inputs[:, column] >= 1).unsqueeze(1)
            for column, table in zip(self.categories, self.tables, strict=True)
        ]
        return torch.cat([inputs[:, self.others], *vectors], dim=1)


class MLP(nn.Module):
    """Linear layers with norm, activation and dropout, then the output.

    Args:
        in_features: Values in one input; everything after the first axis is flattened.
        out_features: Values in one output.
        hidden: Widths of the hidden layers; empty for a linear model.
        activation: Name of the activation; see `dlblocks.nets._layers.ACTIVATIONS`.
        norm: ``"batch"`` (Ioffe and Szegedy 2015), ``"layer"`` (Ba et al. 2016) or None.
        dropout: Probability in [0, 1) that a hidden unit is zeroed in training (Srivastava et al.
            2014).
        init: ``"kaiming"``, ``"xavier"`` or None; see `dlblocks.nets._layers.init_weights`.
        embeddings: Position and number of categories of each column to embed; see
            `EmbedCategories`.

    Shape:
        Input (N, ...) with `in_features` values after the first axis; output (N, out_features).

    Raises:
        ValueError: An argument is out of range, or an input has another number of values.

    Example:
        >>> import torch
        >>> MLP(64, 10, hidden=[128, 128])(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: Sequence[int] = (256,),
        activation: str = "relu",
        norm: Literal["batch", "layer"] | None = None,
        dropout: float = 0.0,
        init: Init | None = "kaiming",
        embeddings: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_range("in_features", in_features, 1)
        check_range("out_features", out_features, 1)
        check_range("dropout", dropout, 0, 1, high_open=True)
        for width in hidden:
            check_range("hidden", width, 1)
        self.in_features = in_features
        self.embed = EmbedCategories(in_features, embeddings) if embeddings else None
        self.embeddings = self.embed.categories if self.embed else {}
        widths = [self.embed.out_features if self.embed else in_features, *hidden]
        layers: list[nn.Module] = []
        for fan_in, width in itertools.pairwise(widths):
            # Batch norm subtracts the mean, so a bias before it has no effect.
            layers.append(nn.Linear(fan_in, width, bias=norm != "batch"))
            if norm is not None:
                layers.append(nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width))
            layers.append(make_activation(activation))
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(widths[-1], out_features))
        self.layers = nn.Sequential(*layers)
        init_weights(self, init, activation)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.flatten(1)  # (N, in_features)
        if not torch.jit.is_scripting() and x.shape[1] != self.in_features:
            self.check_input(tuple(inputs.shape[1:]))
        if self.embed is not None:
            x = self.embed(x)
        found: Tensor = self.layers(x)
        return found

    def check_embeddings(self, found: Mapping[int, int], source: str) -> None:
        """Raise a `ValueError` unless the embedded columns are those that `source` numbers."""
        if found != self.embeddings:
            raise ValueError(
                f"embeddings={self.embeddings}, but {source} numbers the categories of {found}; "
                "set embeddings=data.embeddings."
            )

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise a `ValueError` unless inputs of a shape (…) fit."""
        found = math.prod(shape)
        if found != self.in_features:
            raise ValueError(
                f"in_features={self.in_features}, but one input has shape {shape}, that is "
                f"{found} values; set in_features={found}."
            )
