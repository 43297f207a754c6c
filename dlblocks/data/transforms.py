"""Random transforms of single images, as pure functions of (seed, epoch, index)."""

from __future__ import annotations

import inspect
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlblocks._errors import check_range, did_you_mean

# Otherwise albumentations searches the network for a newer version when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


class SampleTransform:
    """A random image transform that depends only on seed, epoch and index.

    The result is the same with any number of workers, for any order of samples and after resuming.
    It differs in every epoch. For each sample, the global generators of torch (CPU), NumPy and
    Python and those of albumentations are seeded. Afterwards the global ones are restored. A
    generator of the callable's own cannot be controlled. The images must keep shape and dtype,
    because the datamodule converts and normalises them, just like validation images.

    Args:
        transform: A transform of albumentations, which gets an array (H, W, C) and has its
            generators replaced, or of torchvision.transforms.v2, or any callable, which get a
            tensor (C, H, W). It may work in place, because it gets a copy.
        seed: Another seed gives other augmentations; at least 0.

    Raises:
        TypeError: `transform` cannot be called.
        ValueError: A transform has arguments that albumentations ignores, expects boxes or
            keypoints, or normalises.

    Example:
        >>> from torchvision.transforms import v2
        >>> transform = SampleTransform(v2.RandomCrop(32, padding=4))
        >>> image = torch.arange(32 * 32 * 3, dtype=torch.uint8).view(3, 32, 32)
        >>> transform(image, epoch=0, index=7).equal(transform(image, epoch=1, index=7))
        False
    """

    def __init__(self, transform: Callable[..., Any], seed: int = 0) -> None:
        if not callable(transform) or isinstance(transform, type):
            raise TypeError(
                f"train_transform={transform!r} cannot be called; give an instance of a class, and "
                "join several transforms with Compose([...])."
            )
        check_range("seed", seed, 0)
        self.transform, self.seed = transform, seed
        self.name = getattr(transform, "__name__", type(transform).__name__)
        self.is_albumentations = _is_albumentations(transform)
        _check(transform)

    def __call__(self, image: Tensor, *, epoch: int, index: int) -> Tensor:
        """Transform the image (C, H, W) of row `index` in an epoch."""
        return self.batch(image[None], torch.tensor([index]), epoch)[0]

    def check_images(self, inputs: Tensor) -> None:
        """Raise a `ValueError` unless the inputs have the shape of images."""
        if inputs.ndim != 4:
            raise ValueError(
                f"train_transform={self.name} needs images (N, C, H, W), got shape "
                f"{tuple(inputs.shape)}; use train_transform=None for other data."
            )

    @torch.no_grad()
    def batch(self, images: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Transform the images of some rows in an epoch.

        Args:
            images: Shape (N, C, H, W), uint8 or floating point, on the CPU. They are not changed.
            rows: The index of each image in the whole data set, int64 of shape (N,).
            epoch: Number of the epoch, from 0.

        Returns:
            New images of the same shape and dtype.

        Raises:
            ValueError: The transform fails, or changes shape or dtype.
            TypeError: The transform does not return a tensor.
        """
        self.check_images(images)
        # A copy, so that a transform in place changes neither the data nor the result.
        inputs: Any = images.clone(memory_format=torch.contiguous_format)
        numpy_rng, python_rng = np.random.default_rng(0), random.Random(0)
        pcg64: Any = numpy_rng.bit_generator.state
        if self.is_albumentations:
            inputs = inputs.permute(0, 2, 3, 1).contiguous().numpy()
            # All transforms share one pair of generators, reseeded below (5 µs). set_random_seed()
            # takes 13 µs for each transform, and gives all of them the same numbers: two flips
            # would always happen together.
            self.transform.set_random_state(numpy_rng, python_rng)  # type: ignore[attr-defined]
        result = torch.empty_like(images, memory_format=torch.contiguous_format)
        with _global_generators_restored():
            seeds = _seeds(self.seed, epoch, rows.numpy())
            for image, place, row, words in zip(inputs, result, rows.tolist(), seeds, strict=True):
                # Different seeds, since torch and NumPy use the same Mersenne Twister.
                torch.default_generator.manual_seed(words[0])  # torch.manual_seed takes 100 µs
                np.random.seed(words[1] & 0xFFFFFFFF)
                random.seed(words[2])
                if self.is_albumentations:
                    python_rng.seed(words[3])
                    pcg64["state"]["state"] = words[4] << 64 | words[5]
                    numpy_rng.bit_generator.state = pcg64
                place.copy_(self._apply(image, place, f"row {row} in epoch {epoch}"))
        return result

    def _apply(self, image: Any, like: Tensor, where: str) -> Tensor:
        """Transform an image, and check its shape and dtype against `like`."""
        try:
            if self.is_albumentations:
                new = self.transform(image=image)["image"]
                if isinstance(new, np.ndarray):  # a tensor after ToTensorV2
                    new = torch.from_numpy(np.atleast_3d(new).copy()).permute(2, 0, 1)
            else:
                new = self.transform(image)
        except Exception as error:
            kind = "array (H, W, C)" if self.is_albumentations else "tensor (C, H, W)"
            raise ValueError(
                f"train_transform={self.name} failed on {where}, given as {kind}: {error!r}. "
                "Replace transforms of PIL images by those of torchvision.transforms.v2."
            ) from error
        if not isinstance(new, Tensor):
            raise TypeError(
                f"train_transform={self.name} returned {type(new).__name__} for {where}; return "
                "a tensor (C, H, W), and remove ToPILImage and the like."
            )
        if new.dtype != like.dtype:
            raise ValueError(
                f"train_transform={self.name} changed {where} from {like.dtype} to {new.dtype}; "
                "leave conversion and normalisation to the datamodule: remove ToDtype, ToFloat …"
            )
        if new.shape != like.shape:
            raise ValueError(
                f"train_transform={self.name} changed {where} from {tuple(like.shape)} to "
                f"{tuple(new.shape)}, but validation images keep their shape; crop with padding, "
                "or set size= of ImageFolderDataModule."
            )
        return new


def _is_albumentations(transform: object) -> bool:
    library: Any = sys.modules.get("albumentations")  # imported if there are objects of it
    return bool(library) and isinstance(transform, (library.BasicTransform, library.BaseCompose))


def _tree(transform: object) -> Iterator[Any]:
    """Yield a transform and all transforms inside of it."""
    yield transform
    # Both libraries list them as `transforms`. A module of torch has children.
    parts = getattr(transform, "transforms", ())
    parts = list(parts) if isinstance(parts, Sequence) else []
    if isinstance(transform, torch.nn.Module):
        parts += transform.children()
    for part in parts:
        yield from _tree(part)


def _check(transform: object) -> None:
    """Raise a `ValueError` for a transform that would silently do something else."""
    for part in _tree(transform):
        name = type(part).__name__
        if name == "Normalize" and type(part).__module__.startswith(("torchvision", "albument")):
            raise ValueError(
                f"train_transform holds {part!r}, which validation images would not get; remove "
                "it and leave normalisation to the datamodule."
            )
        if wrong := getattr(part, "invalid_args", None):  # albumentations only warned
            valid = list(inspect.signature(type(part)).parameters)
            hint = "".join(did_you_mean(argument, valid) for argument in wrong) or "."
            raise ValueError(
                f"train_transform: this version of albumentations ignores {', '.join(wrong)} of "
                f"{name}{hint} Its arguments: {', '.join(valid)}."
            )
        if getattr(part, "processors", None):
            raise ValueError(
                f"train_transform: {name} expects {' and '.join(part.processors)}, but gets "
                "images only; remove bbox_params= and keypoint_params=."
            )


def _seeds(seed: int, epoch: int, rows: np.ndarray) -> list[list[int]]:
    """Return six 64-bit words for each row.

    They are drawn by SplitMix64 (Steele et al. 2014). A SeedSequence would take 40 µs per row.
    """
    state: Any = np.random.SeedSequence((seed, epoch)).generate_state(6, np.uint64)
    state = state + rows.astype(np.uint64)[:, None] * 0x9E3779B97F4A7C15
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB
    words: list[list[int]] = (state ^ (state >> 31)).tolist()
    return words


@contextmanager
def _global_generators_restored() -> Iterator[None]:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
