"""Transformers that classify sequences and images."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlblocks._errors import channels_first, check_choice, check_range, checked, is_channels_last
from dlblocks.fields import Padded
from dlblocks.nets._steps import Steps, mean_of_steps
from dlblocks.nets.transformer import STD, Positions, Transformer

Pool = Literal["mean", "token"]
# As large as embedded steps of normalised inputs. The 0.02 of language models, whose tokens are as
# small, would leave little more than a bag of patches.
POSITION_STD = 0.5


class _Pooled(nn.Module):
    """A `Transformer`, pooled into one vector, and a linear layer."""

    def __init__(self, out_features: int, pool: str, **kwargs: Any) -> None:
        super().__init__()
        check_choice("pool", pool, ["mean", "token"])
        context = kwargs.pop("context")
        if context is not None and pool == "token":
            context += 1
        self.transformer = Transformer(context=context, **kwargs)
        width = self.transformer.width
        # As in ViT (Dosovitskiy et al. 2021). The 0.02 of language models is for widths near 1000.
        for module in self.transformer.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        if self.transformer.positions == "learned":
            nn.init.normal_(self.transformer.position_table, std=POSITION_STD)
        self.token = nn.Parameter(STD * torch.randn(width)) if pool == "token" else None
        self.head = nn.Linear(width, out_features)
        nn.init.normal_(self.head.weight, std=STD)
        nn.init.zeros_(self.head.bias)

    def _extended(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Put the learned token, if any, before the others (N, T, D)."""
        if self.token is None:
            return x, lengths
        x = torch.cat([self.token.to(x.dtype).expand(len(x), 1, -1), x], 1)
        return x, None if lengths is None else lengths + 1

    def _outputs(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        x, lengths = self._extended(x, lengths)
        x = self.transformer(x, lengths=lengths)
        pooled = mean_of_steps(x, lengths) if self.token is None else x[:, 0]
        found: Tensor = self.head(pooled)
        return found

    def _maps(self, x: Tensor, lengths: Tensor | None) -> list[Tensor]:
        x, lengths = self._extended(x, lengths)
        known = {} if lengths is None else {"lengths": lengths}
        return self.transformer.attention_maps(x, **known)


class SequenceTransformer(_Pooled):
    """A Transformer over sequences, pooled into one output.

    Each step goes through a linear layer to a token of size D, or is looked up for tokens. The
    blocks are those of `Transformer`; the mean over the tokens goes through a linear layer.
    Sequences of unequal length are `dlblocks.fields.Padded`: padding changes nothing. A row of
    padding alone gives the bias of the last layer.

    Args:
        in_features: Features F of a step. Not used with `num_tokens`.
        out_features: Values of an output.
        width: Size D of a token.
        depth: Number of blocks.
        num_heads: Heads of the attention; they must divide `width`.
        context: Most steps of a sequence. None for any number.
        positions: ``"learned"`` (needs `context`), ``"sinusoidal"``, ``"rotary"``, or None for
            sequences whose order does not matter.
        pool: ``"mean"`` over the steps, or ``"token"`` for a learned token before them, as in BERT
            (Devlin et al. 2019).
        num_tokens: Number of different tokens, if inputs are tokens; None for features.
        **kwargs: Blocks: `num_kv_heads`, `hidden`, `pre_norm`, `norm`, `activation`, `dropout`,
            `bias`; see `Transformer`.

    Shape:
        Input: features (N, T, F), tokens (N, T), or `Padded` ones. Images (N, C, H, W) are read
        row by row, H steps of C · W features. Output (N, out_features).

    Example:
        >>> net = SequenceTransformer(4, 3, width=8, depth=1, num_heads=2)
        >>> net(Padded.of([torch.zeros(2, 4), torch.zeros(5, 4)])).shape
        torch.Size([2, 3])
    """

    takes_padded = True

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        context: int | None = None,
        positions: Positions | None = "sinusoidal",
        pool: Pool = "mean",
        num_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            out_features,
            pool,
            width=width,
            depth=depth,
            num_heads=num_heads,
            context=context,
            positions=positions,
            **kwargs,
        )
        self.steps = Steps(in_features if num_tokens is None else width, num_tokens)
        self.embed = nn.Linear(in_features, width) if num_tokens is None else nn.Identity()

    def forward(self, inputs: Tensor | Padded) -> Tensor:
        x, lengths = self.steps(inputs)  # (N, T, F)
        return self._outputs(self.embed(x), lengths)

    def attention_maps(self, inputs: Tensor | Padded) -> list[Tensor]:
        """Return the attention weights of each block, (N, heads, T, T).

        With ``pool="token"`` the learned token is the first of T + 1.
        """
        x, lengths = self.steps(inputs)
        return self._maps(self.embed(x), lengths)

    def check_input(self, shape: tuple[int | None, ...]) -> None:
        """Raise a `ValueError` unless inputs of a shape (T, F) fit."""
        self.steps.check_input(shape)
        steps = shape[1] if len(shape) == 3 else shape[0]
        context = self.transformer.context
        room = None if context is None else context - (self.token is not None)
        if steps is not None and room is not None and steps > room:
            raise ValueError(
                f"context={room}, but the inputs have {steps} steps; set context={steps}."
            )


class ViT(_Pooled):
    """A vision Transformer over patches (ViT, Dosovitskiy et al. 2021).

    An image is cut into patches of P × P pixels. Each becomes a token of size D by one linear
    layer, and gets a learned position.

    Args:
        in_channels: Channels C of the images.
        out_features: Values of an output.
        image_size: Height and width of the images.
        patch_size: Side P of a patch; it must divide both.
        width: Size D of a token.
        depth: Number of blocks.
        num_heads: Heads of the attention; they must divide `width`.
        positions: ``"learned"``, ``"sinusoidal"``, ``"rotary"`` or None.
        pool: ``"mean"`` over the patches, or ``"token"`` for a learned token before them.
        **kwargs: Blocks: `num_kv_heads`, `hidden`, `pre_norm`, `norm`, `activation`, `dropout`,
            `bias`; see `Transformer`.

    Shape:
        Input (N, C, H, W); output (N, out_features).

    Example:
        >>> ViT(1, 10, image_size=8, patch_size=2, width=8, num_heads=2)(
        ...     torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_features: int,
        *,
        image_size: int | tuple[int, int],
        patch_size: int,
        width: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        positions: Positions | None = "learned",
        pool: Pool = "mean",
        **kwargs: Any,
    ) -> None:
        check_range("patch_size", patch_size, 1)
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if any(side % patch_size for side in size):
            raise ValueError(
                f"patch_size={patch_size} does not divide image_size={size}; give one that divides "
                "height and width."
            )
        self.in_channels, self.image_size = in_channels, size
        grid = size[0] // patch_size, size[1] // patch_size
        super().__init__(
            out_features,
            pool,
            width=width,
            depth=depth,
            num_heads=num_heads,
            context=grid[0] * grid[1],
            positions=positions,
            **kwargs,
        )
        self.grid = grid
        self.embed = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._outputs(self._patches(inputs), None)

    def attention_maps(self, inputs: Tensor) -> list[Tensor]:
        """Return the attention weights of each block, (N, heads, T, T).

        T is the number of patches. With ``pool="token"`` the learned token comes first.
        """
        return self._maps(self._patches(inputs), None)

    def _patches(self, inputs: Tensor) -> Tensor:
        if tuple(inputs.shape[1:]) != (self.in_channels, *self.image_size):
            self.check_input(tuple(inputs.shape[1:]))
        found: Tensor = self.embed(inputs).flatten(2).transpose(1, 2)  # (N, patches, D)
        return found

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise a `ValueError` unless images of a shape (C, H, W) fit."""
        expected = (self.in_channels, *self.image_size)
        if tuple(shape) != expected:
            is_last = is_channels_last(self.in_channels, tuple(shape))
            cure = f", {channels_first()}" if is_last else "."
            raise ValueError(
                f"ViT expects images {expected}, by in_channels={self.in_channels} and "
                f"image_size={self.image_size}, but one image has shape {tuple(shape)}{cure}"
            )
