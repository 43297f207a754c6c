"""Find image files, and decode them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Endings that torchvision does not know must not be skipped silently.
OF_TORCHVISION = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TURNED = (5, 6, 7, 8)  # EXIF orientations that change height and width
ENDINGS = (*OF_TORCHVISION, ".gif", ".jfif", ".avif", ".heic", ".heif")


def is_hidden(name: str) -> bool:
    """Return True for files and folders of the system, not the user."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def images_below(folder: Path) -> list[str]:
    """Return all visible images below a folder, in torchvision's order."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [n for n in folders if not is_hidden(n) and not _leads_up(place, n)]
        found += [
            (place, name)
            for name in files
            if name.lower().endswith(ENDINGS) and not is_hidden(name)
        ]
    return [os.path.join(place, name) for place, name in sorted(found)]


def _leads_up(place: str, name: str) -> bool:
    """Tell whether a folder is a link to one that contains it."""
    path = os.path.join(place, name)
    above = os.path.join(os.path.realpath(path), "")
    return os.path.islink(path) and os.path.join(os.path.realpath(place), "").startswith(above)


def decode(
    file: str, size: Sequence[int], channels: int, background: tuple[int, int, int]
) -> np.ndarray:
    """Decode an image as uint8 (C, H, W).

    The shorter side is resized to fit, and the centre cut out.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            # Pillow's own conversion of these modes clips at 255.
            if image.mode[:4] == "I;16" or (image.mode == "I" and opened.format in ("PNG", "PPM")):
                pixels = (np.asarray(image).astype(np.uint32) + 128) // 257
                image = Image.fromarray(pixels.astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ValueError(f"mode {image.mode}, whose range is unknown: save 8 or 16 bits")
            if image.has_transparency_data:
                ground = Image.new("RGBA", image.size, (*background, 255))
                image = Image.alpha_composite(ground, image.convert("RGBA"))
            image = image.convert("L" if channels == 1 else "RGB")
    except Exception as error:
        cure = "repair or remove it"
        if file.lower().endswith((".heic", ".heif")):
            cure = "save it as JPEG, or call pillow_heif.register_heif_opener() first"
        raise ValueError(f"{file} cannot be decoded as an image ({error}); {cure}.") from error
    height, width = size
    fitted = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
    pixels = np.asarray(fitted)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def size_of(file: str) -> tuple[int, int]:
    """Return height and width of an image file, upright, without decoding."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(274) in TURNED
    except Exception as error:
        raise ValueError(f"{file} cannot be read ({error}); mend it, or remove it.") from error
    return (width, height) if turned else (height, width)


def one_size(files: Sequence[str]) -> tuple[int, int]:
    """Return the height and width of all image files.

    Raises:
        ValueError: They have different sizes.
    """
    first = size_of(files[0])
    for file in files[1:]:
        size = size_of(file)
        if size != first:
            raise ValueError(
                f"{file} has {size[0]}×{size[1]} pixels and {files[0]} {first[0]}×{first[1]}; "
                "predict images of one size at a time."
            )
    return first
