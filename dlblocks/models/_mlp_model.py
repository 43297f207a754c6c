"""The arguments that perceptrons of all tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from dlblocks.models.model import Model
from dlblocks.nets import MLP


class MLPModel(Model):
    """A multi-layer perceptron, base of `MLPClassifier` and `MLPRegressor`.

    Args:
        in_features: Number of values of one input: 64 for 8×8 grey images.
        hidden: Widths of the hidden layers.
        activation: Name of the activation.
        norm: ``"batch"``, ``"layer"`` or None.
        dropout: Probability with which a hidden unit is dropped.
        init: ``"kaiming"``, ``"xavier"`` or None for torch's default.
        embeddings: Number of categories of each categorical feature, by position, such as
            ``data.embeddings`` of a `TabularDataModule(…, embed=[…])`.
        **kwargs: Outputs, loss and optimization; see `Classifier` or `Regressor`.
    """

    _num_outputs: int  # set by the subclass before this constructor

    def __init__(
        self,
        in_features: int,
        *,
        hidden: Sequence[int] = (256,),
        activation: str = "relu",
        norm: Literal["batch", "layer"] | None = None,
        dropout: float = 0.0,
        init: Literal["kaiming", "xavier"] | None = "kaiming",
        embeddings: dict[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        net = MLP(
            in_features,
            self._num_outputs,
            hidden=hidden,
            activation=activation,
            norm=norm,
            dropout=dropout,
            init=init,
            embeddings=embeddings,
        )
        super().__init__(net, **kwargs)
