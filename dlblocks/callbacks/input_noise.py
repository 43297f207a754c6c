"""Add Gaussian noise to any input, or salt and pepper to images.

::

    Gaussian          x̃ = x + σ ε,  ε ~ N(0, 1)
    salt and pepper   a share `amount` of the pixels is set to the highest value or, as often, to
                      the lowest value

Source: Sietsma and Dow, "Creating Artificial Neural Networks That Generalize", 1991; Bishop,
"Training with Noise is Equivalent to Tikhonov Regularization", 1995: for small σ, Gaussian noise is
a penalty on the squared gradient of the outputs by the inputs. Vincent et al., "Stacked Denoising
Autoencoders", 2010, use masking, Gaussian and salt-and-pepper noise, σ in 0.05 … 0.5 and shares of
0.1 … 0.5.

The noise acts after normalisation, so σ = 0.1 is a tenth of a standard deviation of the input. Use
it for tables, signals and small images, with 0.05 … 0.3. Do not use it for token numbers, or if
small differences distinguish the classes. `Augment` has Gaussian noise for raw images (``noise=``):
use one of them. Put it after `MixUp`, which would average the noise.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dlblocks._errors import check_range, checked
from dlblocks.callbacks._batch_transform import EntriesTransform, check_images


def gaussian_noise(inputs: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Add Gaussian noise of standard deviation `std`.

    Args:
        inputs: Floating point, any shape.
        std: σ, in the units of the inputs.
        generator: Source of the draws, on the device of `inputs`.

    Returns:
        New inputs, of the same shape and dtype.
    """
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    noise = torch.randn(inputs.shape, generator=generator, device=inputs.device, dtype=dtype)
    return noise.mul_(std).add_(inputs).to(inputs.dtype)


def salt_and_pepper(
    images: Tensor,
    amount: float,
    *,
    low: float | None = None,
    high: float | None = None,
    per_channel: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Set random pixels to the lowest or the highest value.

    Args:
        images: Shape (N, C, H, W), floating point.
        amount: Expected share of pixels that are changed, in [0, 1].
        low: Value of pepper; None for the lowest of each channel in the batch.
        high: Value of salt; None for the highest.
        per_channel: Draw for each channel of a pixel rather than for the pixel.
        generator: Source of the draws, on the device of `images`.

    Returns:
        New images, of the same shape and dtype.

    Example:
        >>> images, generator = torch.full((1, 1, 8, 8), 0.5), torch.Generator().manual_seed(0)
        >>> salt_and_pepper(images, 1.0, low=0, high=1, generator=generator).unique().tolist()
        [0.0, 1.0]
    """
    n, channels, height, width = images.shape
    shape = (n, channels if per_channel else 1, height, width)
    # One draw a pixel: [0, amount/2) is pepper, [amount/2, amount) salt.
    draw = torch.rand(shape, generator=generator, device=images.device)
    axes = (0, 2, 3)
    pepper = images.amin(axes, keepdim=True) if low is None else images.new_full((), low)
    salt = images.amax(axes, keepdim=True) if high is None else images.new_full((), high)
    noisy = torch.where(draw < amount / 2, pepper, salt)
    return torch.where(draw < amount, noisy, images)


class InputNoise(EntriesTransform):
    """Adds noise to the inputs of training batches.

    The docstring of the module says when to use it.

    Args:
        std: σ of Gaussian noise, in the units of the (normalised) inputs.
        kind: ``"gaussian"``, for inputs of any shape, or ``"salt_and_pepper"``, for images.
        amount: Share of the pixels that become salt or pepper.
        low: Value of pepper; None for the lowest of each channel in the batch.
        high: Value of salt; None for the highest.
        per_channel: Draw salt and pepper for each channel of a pixel.
        **kwargs: When and where it acts; see `BatchTransform`. Another kind of device draws other
            noise. Further entries of the batch are kept.

    Raises:
        ValueError: ``std < 0``, `amount` outside [0, 1], inputs that are integers,
            salt and pepper for what are no images.
    """

    @checked
    def __init__(
        self,
        std: float | None = None,
        *,
        kind: Literal["gaussian", "salt_and_pepper"] = "gaussian",
        amount: float | None = None,
        low: float | None = None,
        high: float | None = None,
        per_channel: bool = False,
        **kwargs: Any,
    ) -> None:
        # The batch may have no targets, as for an autoencoder.
        super().__init__(target_key=None, data_keys="keep", **kwargs)
        is_gaussian = kind == "gaussian"
        needed, share = ("std", std) if is_gaussian else ("amount", amount)
        if share is None:
            raise ValueError(f"InputNoise(kind={kind!r}) needs {needed}=.")
        check_range(needed, share, 0, float("inf") if is_gaussian else 1, high_open=is_gaussian)
        if low is not None and high is not None and low >= high:
            raise ValueError(f"low={low} is not below high={high}.")
        self.kind = kind
        self.share = share
        self.low = low
        self.high = high
        self.per_channel = per_channel

    def transform_entries(
        self, inputs: list[Tensor], targets: list[Any], generator: torch.Generator
    ) -> tuple[list[Any], list[Any]]:
        return [self._noisy(x, generator) for x in inputs], targets

    def _noisy(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        if self.share == 0:
            return inputs
        if not inputs.is_floating_point():
            raise ValueError(
                f"InputNoise expects floating-point inputs, got {inputs.dtype}; convert images to "
                "float in the datamodule; token numbers cannot have noise."
            )
        # Draw on the device of the inputs, because copying takes longer.
        seed = int(torch.randint(1 << 62, (), generator=generator))
        own = torch.Generator(inputs.device).manual_seed(seed)
        if self.kind == "gaussian":
            return gaussian_noise(inputs, self.share, own)
        check_images(inputs, "InputNoise(kind='salt_and_pepper')", "use kind='gaussian'")
        return salt_and_pepper(
            inputs,
            self.share,
            low=self.low,
            high=self.high,
            per_channel=self.per_channel,
            generator=own,
        )
