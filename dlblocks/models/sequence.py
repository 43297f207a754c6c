"""Recurrent nets and Transformers as classifiers and regressors."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dlblocks._quiet import evaluating
from dlblocks.fields import Padded
from dlblocks.models.classification import Classifier
from dlblocks.models.model import Model
from dlblocks.models.regression import Regressor
from dlblocks.nets import RNN, SequenceTransformer, ViT


class _RNNModel(Model):
    """A recurrent net, base of `RNNClassifier` and `RNNRegressor`.

    Inputs are sequences (N, T, F), `dlblocks.fields.Padded` ones of unequal length, or images
    (N, C, H, W), which are read row by row; see `dlblocks.nets.RNN`.

    Args:
        in_features: Features of a step, such as 8 for the rows of 8×8 grey images.
        kind: ``"lstm"``, ``"gru"`` or ``"rnn"``.
        hidden: Size of the state, of each direction.
        layers: Number of recurrent layers.
        bidirectional: Read sequences in both directions.
        dropout: Probability that a value between layers, or before the output layer, is dropped.
        readout: ``"last"`` to predict from the last state, ``"mean"`` from the mean over all steps.
        num_tokens: Number of different tokens, if inputs are tokens (N, T).
        **kwargs: Outputs, loss and optimization; see `Classifier` or `Regressor`.
    """

    _num_outputs: int  # set by the subclass before this constructor

    def __init__(
        self,
        in_features: int,
        *,
        kind: Literal["lstm", "gru", "rnn"] = "lstm",
        hidden: int = 128,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        readout: Literal["last", "mean"] = "last",
        num_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        net = RNN(
            in_features,
            self._num_outputs,
            kind=kind,
            hidden=hidden,
            layers=layers,
            bidirectional=bidirectional,
            dropout=dropout,
            readout=readout,
            num_tokens=num_tokens,
        )
        super().__init__(net, **kwargs)


class RNNClassifier(_RNNModel, Classifier):
    """A recurrent net as classifier of sequences.

    Args:
        in_features: Features of a step, such as 8 for the rows of 8×8 grey images.
        num_classes: Number of classes.
        **kwargs: ``kind``, ``hidden``, ``layers``, ``bidirectional``, ``dropout``, ``readout`` and
            ``num_tokens`` of `dlblocks.nets.RNN`; loss and optimization, see `Classifier`.

    Example:
        >>> model = RNNClassifier(4, 3, hidden=8)
        >>> model(Padded.of([torch.zeros(2, 4), torch.zeros(5, 4)])).shape
        torch.Size([2, 3])
    """

    def __init__(self, in_features: int, num_classes: int, **kwargs: Any) -> None:
        self._num_outputs = num_classes
        super().__init__(in_features, num_classes=num_classes, **kwargs)


class RNNRegressor(_RNNModel, Regressor):
    """A recurrent net as regressor of sequences.

    Args:
        in_features: Features of a step.
        out_features: Number of target values.
        **kwargs: ``kind``, ``hidden``, ``layers``, ``bidirectional``, ``dropout``, ``readout`` and
            ``num_tokens`` of `dlblocks.nets.RNN`; loss and optimization, see `Regressor`.

    Example:
        >>> RNNRegressor(4, hidden=8)(torch.zeros(2, 5, 4)).shape
        torch.Size([2, 1])
    """

    def __init__(self, in_features: int, out_features: int = 1, **kwargs: Any) -> None:
        self._num_outputs = out_features
        super().__init__(in_features, out_features=out_features, **kwargs)


class _AttentionClassifier(Classifier):
    """A classifier that shows its attention."""

    @torch.no_grad()
    def attention_maps(self, inputs: Tensor | Padded) -> list[Tensor]:
        """Return the attention weights of each block, (N, heads, T, T).

        Row i of a map holds the weights by which position i attends to all positions. They are
        computed in evaluation mode. With ``pool="token"`` the learned token is the first position.
        `dlblocks.plots.attention` draws them.

        Args:
            inputs: Raw inputs, as for `forward`.
        """
        with evaluating(self):
            net: Any = self.net
            maps: list[Tensor] = net.attention_maps(self.preprocess(inputs))
            return maps


class TransformerClassifier(_AttentionClassifier):
    """A Transformer as classifier of sequences.

    Inputs are sequences (N, T, F), `dlblocks.fields.Padded` ones of unequal length, or images
    (N, C, H, W), which are read row by row; see `dlblocks.nets.SequenceTransformer`.

    Args:
        in_features: Features of a step, such as 8 for the rows of 8×8 grey images.
        num_classes: Number of classes.
        width: Size of a token.
        depth: Number of blocks.
        num_heads: Heads of the attention; they must divide `width`.
        context: Most steps of a sequence. None for any number.
        positions: ``"sinusoidal"``, ``"rotary"``, ``"learned"`` (needs `context`), or None.
        pool: ``"mean"`` over the steps, or ``"token"`` for a learned token.
        num_tokens: Number of different tokens, if inputs are tokens (N, T).
        num_kv_heads: Heads of keys and values (grouped queries); None for `num_heads`.
        pre_norm: Whether the norm comes before attention and feed-forward net.
        norm: ``"layer"`` or ``"rms"``.
        activation: ``"gelu"``, ``"relu"`` or ``"swiglu"``.
        dropout: Probability of dropout in the blocks.
        **kwargs: Loss and optimization; see `Classifier`.

    Example:
        >>> model = TransformerClassifier(4, 3, width=8, depth=1, num_heads=2)
        >>> model(Padded.of([torch.zeros(2, 4), torch.zeros(5, 4)])).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        context: int | None = None,
        positions: Literal["sinusoidal", "rotary", "learned"] | None = "sinusoidal",
        pool: Literal["mean", "token"] = "mean",
        num_tokens: int | None = None,
        num_kv_heads: int | None = None,
        pre_norm: bool = True,
        norm: Literal["layer", "rms"] = "layer",
        activation: Literal["gelu", "relu", "swiglu"] = "gelu",
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        net = SequenceTransformer(
            in_features,
            num_classes,
            width=width,
            depth=depth,
            num_heads=num_heads,
            context=context,
            positions=positions,
            pool=pool,
            num_tokens=num_tokens,
            num_kv_heads=num_kv_heads,
            pre_norm=pre_norm,
            norm=norm,
            activation=activation,
            dropout=dropout,
        )
        super().__init__(net, num_classes, **kwargs)


class ViTClassifier(_AttentionClassifier):
    """A vision Transformer as classifier of images (N, C, H, W).

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        image_size: Height and width of the images.
        patch_size: Side of a patch; it must divide both.
        width: Size of a token.
        depth: Number of blocks.
        num_heads: Heads of the attention; they must divide `width`.
        positions: ``"learned"``, ``"sinusoidal"``, ``"rotary"``, or None.
        pool: ``"mean"`` over the patches, or ``"token"`` for a learned token.
        num_kv_heads: Heads of keys and values (grouped queries); None for `num_heads`.
        pre_norm: Whether the norm comes before attention and feed-forward net.
        norm: ``"layer"`` or ``"rms"``.
        activation: ``"gelu"``, ``"relu"`` or ``"swiglu"``.
        dropout: Probability of dropout in the blocks.
        **kwargs: Loss and optimization; see `Classifier`.

    Example:
        >>> model = ViTClassifier(1, 10, image_size=8, patch_size=2, width=8, num_heads=2)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        image_size: int | tuple[int, int],
        patch_size: int,
        width: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        positions: Literal["learned", "sinusoidal", "rotary"] | None = "learned",
        pool: Literal["mean", "token"] = "mean",
        num_kv_heads: int | None = None,
        pre_norm: bool = True,
        norm: Literal["layer", "rms"] = "layer",
        activation: Literal["gelu", "relu", "swiglu"] = "gelu",
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        net = ViT(
            in_channels,
            num_classes,
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
            positions=positions,
            pool=pool,
            num_kv_heads=num_kv_heads,
            pre_norm=pre_norm,
            norm=norm,
            activation=activation,
            dropout=dropout,
        )
        super().__init__(net, num_classes, **kwargs)
