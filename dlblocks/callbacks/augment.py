"""Change training images at random in ways that keep their labels true.

Every image has its own draws; the whole batch changes at once, on its device. The order is:

1. flips, crop, scale, shear, rotation and translation, all in one resampling (none, if shifts are
   whole pixels);
2. brightness, contrast, saturation;
3. noise;
4. erasing.

Masks move with their images, by the nearest pixel. Uncovered and erased pixels become the mask's
`ignore_index`, which is 255 unless ``Mask(ignore_index=…)`` says another. Colours and noise do not
change masks. Boxes move with their four corners, and those that leave the image are dropped; see
`dlblocks.fields.Boxes`. Targets that cannot move are refused; see `PixelTransform`.

Suggested, each from its source: for digits a few degrees and pixels and no flip (Simard, Steinkraus
and Platt 2003); for CIFAR ``horizontal_flip=0.5, crop_padding=4`` (He et al. 2016); for photographs
``brightness=contrast=saturation=0.4`` too (Howard 2013); ``erase=0.5`` where a class shows in more
than one place (Zhong et al., "Random Erasing Data Augmentation", 2020); ``noise=0.05`` (Bishop,
"Training with Noise is Equivalent to Tikhonov Regularization", 1995).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dlblocks._errors import check_range, checked
from dlblocks._geometry import Geometry, Padding
from dlblocks.callbacks._batch_transform import check_images, per_sample
from dlblocks.callbacks._pixel_transform import PixelTransform
from dlblocks.callbacks.cutout import cutout
from dlblocks.callbacks.input_noise import gaussian_noise


class Augment(PixelTransform):
    """Changes each training image at random.

    All changes are off by default. The docstring of the module has their order and suggestions.

    Images are (N, C, H, W), uint8 or floating point of any precision, on any device. Shape and
    dtype stay. The datamodule's own `on_after_batch_transfer` acts afterwards, so images are raw
    here, and zeros are black.

    Args:
        horizontal_flip: Probability of mirroring left and right.
        vertical_flip: Probability of mirroring top and bottom.
        crop_padding: Crop at a random place after padding by this many pixels on each side: a
            shift, uniform in ± this many whole pixels.
        translation: Shift uniform in ± this share of width and height.
        rotation: Uniform in ± this many degrees.
        scale: Uniform between these two factors of size.
        shear: Uniform in ± this many degrees, along x.
        padding: Values beyond the edges: ``"zeros"``, ``"border"`` or ``"reflection"``.
        brightness: Factor uniform in 1 ± this, at least 0. The next two are alike.
        contrast: See `adjust_color`.
        saturation: Needs three channels.
        noise: Standard deviation of Gaussian noise, as a share of the range of pixels: of 255 for
            uint8 (where results are clipped to 0 … 255), of 1 for floating point.
        erase: Probability that a rectangle is set to 0.
        erase_area: Its share of the image, uniform between these two.
        erase_ratio: Its height over its width, log-uniform between these two. A side longer than
            the image is cut.
        **kwargs: The kind of targets, and when and where it acts; see `PixelTransform` and
            `BatchTransform`.

    Raises:
        ValueError: An argument out of range; inputs that are not images; colours of floating-point
            images that are not in [0, 1]; targets that cannot move with the images.

    Example:
        >>> augment = Augment(rotation=10, translation=0.1, scale=(0.9, 1.1))
        >>> images, generator = torch.rand(4, 1, 8, 8), torch.Generator().manual_seed(0)
        >>> augment.transform(images, torch.zeros(4), generator)[0].shape
        torch.Size([4, 1, 8, 8])
    """

    before_hook = True

    @checked
    def __init__(
        self,
        *,
        horizontal_flip: float = 0.0,
        vertical_flip: float = 0.0,
        crop_padding: int = 0,
        translation: float = 0.0,
        rotation: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float = 0.0,
        padding: Padding = "zeros",
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        noise: float = 0.0,
        erase: float = 0.0,
        erase_area: tuple[float, float] = (0.02, 0.33),
        erase_ratio: tuple[float, float] = (0.3, 3.3),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_range("horizontal_flip", horizontal_flip, 0, 1)
        check_range("vertical_flip", vertical_flip, 0, 1)
        check_range("crop_padding", crop_padding, 0)
        check_range("translation", translation, 0, 1)
        check_range("rotation", rotation, 0, 180)
        check_range("shear", shear, 0, 90, high_open=True)
        check_range("erase", erase, 0, 1)
        self.horizontal_flip = horizontal_flip
        self.vertical_flip = vertical_flip
        self.crop_padding = crop_padding
        self.translation = translation
        self.rotation = rotation
        self.scale = _two_factors("scale", scale)
        self.shear = shear
        self.padding = padding
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.noise = noise
        self.erase = erase
        self.erase_area = _two_factors("erase_area", erase_area)
        check_range("erase_area", self.erase_area[1], 0, 1)
        self.erase_ratio = _two_factors("erase_ratio", erase_ratio)
        for name in ("brightness", "contrast", "saturation", "noise"):
            check_range(name, getattr(self, name), 0)
        self._range_checked = False

    def changes_place(self) -> bool:
        return self._moves() or bool(self.erase)

    def check_boxes(self) -> None:
        if self.padding == "reflection" and self._moves():
            raise ValueError(
                "padding='reflection' mirrors objects at the edges of the image, and they would "
                "have no boxes; use padding='border' or 'zeros'."
            )

    def _moves(self) -> bool:
        return bool(
            self.horizontal_flip or self.vertical_flip or self.crop_padding or self._resamples()
        )

    def _resamples(self) -> bool:
        """Return True if pixels must be interpolated."""
        return bool(self.translation or self.rotation or self.shear or self.scale != (1, 1))

    def transform(
        self, inputs: Tensor, targets: Any, generator: torch.Generator
    ) -> tuple[Tensor, Any]:
        check_images(inputs, "Augment", "use MixUp for tabular data")
        if not (inputs.is_floating_point() or inputs.dtype == torch.uint8):
            raise ValueError(
                f"Augment expects images that are uint8 or floating point, got {inputs.dtype}; "
                "convert them, values in 0 … 255 by .to(torch.uint8), others by .float()."
            )
        # Make all draws, so that switching one part on does not change another.
        draws = torch.rand(17, len(inputs), generator=generator)
        noise_seed = int(torch.randint(1 << 62, (), generator=generator))
        changes_values = self.brightness or self.contrast or self.saturation or self.noise
        images = inputs
        bound = 1.0 if inputs.is_floating_point() else 255.0
        if changes_values and not inputs.is_floating_point():
            images = inputs.float()  # rounded once, at the end
        if self._moves():
            geometry = self._geometry(draws[:9], *images.shape[2:])
            images = geometry.moved(images, memory=self.memory.like)
            targets = self.changed(targets, inputs, lambda kind, y: kind.move(y, geometry))
        if self.brightness or self.contrast or self.saturation:
            self._check_range(inputs)
            factors = {
                name: (1 + getattr(self, name) * (2 * draw - 1)).clamp_(min=0)
                for name, draw in zip(
                    ("brightness", "contrast", "saturation"), draws[9:12], strict=True
                )
                if getattr(self, name)
            }
            images = adjust_color(images, bound=bound, **factors)
        if self.noise:
            # Draw on the device of the images, because copying takes longer.
            own = torch.Generator(images.device).manual_seed(noise_seed)
            images = gaussian_noise(images, self.noise * bound, own)
        if images.dtype != inputs.dtype:
            images = images.clamp(0, bound).round_().to(inputs.dtype)
        if self.erase:
            box = self._erased(draws[12:], *images.shape[2:])
            images = cutout(images, box)
            targets = self.changed(targets, inputs, lambda kind, y: kind.erase(y, box))
        return images, targets

    def _geometry(self, draws: Tensor, height: int, width: int) -> Geometry:
        flip = torch.stack([draws[0] < self.horizontal_flip, draws[1] < self.vertical_flip], dim=1)
        sides = 2 * self.crop_padding + 1
        shift = (draws[2:4] * sides).long().clamp_(max=sides - 1).T - self.crop_padding
        signed = 2 * draws - 1
        moves = torch.stack([signed[4] * width, signed[5] * height], dim=1) * self.translation
        low, high = self.scale
        return Geometry(
            size=(height, width),
            flip=flip,
            shift=moves + shift,
            rotation=signed[6] * self.rotation,
            scale=low + draws[7] * (high - low),
            shear=signed[8] * self.shear,
            padding=self.padding,
            whole_pixels=not self._resamples(),
        )

    def _erased(self, draws: Tensor, height: int, width: int) -> Tensor:
        """Draw the box of each image to erase, often empty, int64 (N, 4)."""
        (small, large), (flat, tall) = self.erase_area, self.erase_ratio
        area = (small + draws[1] * (large - small)) * height * width
        ratio = (math.log(flat) + draws[2] * (math.log(tall) - math.log(flat))).exp()
        sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).round()
        limit = torch.tensor([height, width])
        sides = torch.minimum(sides.long().clamp_(min=1), limit)
        free = limit - sides
        start = torch.minimum((draws[3:5].T * (free + 1)).long(), free)
        return torch.cat([start, start + sides * (draws[0] < self.erase)[:, None]], dim=1)

    def _check_range(self, images: Tensor) -> None:
        """Check the first batch only, because an accelerator has to wait."""
        if self._range_checked:
            return
        self._range_checked = True
        if not images.is_floating_point():
            return
        low, high = images.min().item(), images.max().item()
        if low < 0 or high > 1:
            raise ValueError(
                "Augment changes brightness, contrast and saturation of raw images, uint8 or in "
                f"[0, 1], and got values from {low:.3g} to {high:.3g}; normalise afterwards, in "
                "on_after_batch_transfer."
            )


def _two_factors(argument: str, values: tuple[float, float]) -> tuple[float, float]:
    low, high = values if isinstance(values, tuple) and len(values) == 2 else (0, 0)
    if not 0 < low <= high:
        raise ValueError(
            f"{argument}={values!r} must be two factors (low, high) with 0 < low <= high."
        )
    return low, high


# Luma of ITU-R BT.601, which PIL and torchvision use.
LUMA = (0.2989, 0.587, 0.114)


def adjust_color(
    images: Tensor,
    *,
    brightness: Tensor | None = None,
    contrast: Tensor | None = None,
    saturation: Tensor | None = None,
    bound: float | None = None,
) -> Tensor:
    """Change brightness, then contrast, then saturation.

    Each is ``x ← clip(f x + (1 - f) y)`` with the factor f of the image. y is 0 for brightness, the
    mean of the image's grey for contrast, and its grey for saturation. f = 1 changes nothing. The
    definitions are those of torchvision's `ColorJitter`, in this fixed order.

    Args:
        images: Shape (N, C, H, W): uint8, or floating point in [0, 1].
        brightness: Factors, at least 0, shape (N,); None leaves it.
        contrast: Factors, as for brightness.
        saturation: Factors, as for brightness; needs C = 3.
        bound: The largest value of a pixel; None for 255 of uint8 and 1 of floating point.

    Returns:
        New images, of the same shape and dtype. uint8 is rounded once, at the end.

    Raises:
        ValueError: Saturation of images that have no colours.

    Example:
        >>> image = torch.tensor([0.2, 0.6]).view(1, 1, 1, 2)
        >>> adjust_color(image, contrast=torch.tensor([0.5])).flatten()
        tensor([0.3000, 0.5000])
    """
    if saturation is not None and images.shape[1] != 3:
        raise ValueError(
            f"saturation needs colour images (N, 3, H, W), got shape {tuple(images.shape)}; "
            "leave it out."
        )
    if bound is None:
        bound = 1.0 if images.is_floating_point() else 255.0
    dtype = images.dtype if images.dtype in (torch.float32, torch.float64) else torch.float32
    x = images.to(dtype)
    if brightness is not None:
        x = (x * per_sample(brightness, x)).clamp_(0, bound)
    if contrast is not None:
        mean = _grey(x).mean((1, 2, 3), keepdim=True)
        x = torch.lerp(mean, x, per_sample(contrast, x)).clamp_(0, bound)
    if saturation is not None:
        x = torch.lerp(_grey(x), x, per_sample(saturation, x)).clamp_(0, bound)
    return x.to(images.dtype) if images.is_floating_point() else x.round().to(images.dtype)


def _grey(x: Tensor) -> Tensor:
    """Return the grey of each pixel, shape (N, 1, H, W).

    It is luma, or the mean of the channels if there are not three.
    """
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]
