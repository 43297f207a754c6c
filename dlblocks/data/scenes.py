"""Scenes of real handwritten digits on cluttered canvases: masks, boxes and counts, no download."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from dlblocks._errors import check_choice, check_range, whole
from dlblocks.data.datamodule import DataModule
from dlblocks.data.source import Source
from dlblocks.fields import Boxes, Mask, Ragged, Values

Array = npt.NDArray[Any]
INK = 0.45  # what has more belongs to the digit; the ground has less
STREAMS = {"train": 0, "test": 1}


class DigitScenesDataModule(DataModule):
    """Grey images with several digits each, real ones of scikit-learn, among clutter.

    A scene has digits of `DigitsDataModule`, enlarged to 13 … 18 pixels, at random places that do
    not overlap. Around them are a smooth ground and scraps of other digits. A pixel belongs to a
    digit where the digit's own ink is at least 0.45, which is more than the ground has.

    A fifth of the 1,797 digits appears in test scenes only, the official test set here. The others
    are dealt to `num_groups` groups, and a scene has digits of one group, so that folds and
    validation parts, which keep groups whole, share no digit either. All depends on `seed` alone.

    Args:
        num_scenes: Scenes of the development set.
        num_test_scenes: Scenes of the test set.
        size: Height and width of a scene, at least 20.
        digits_per_scene: Most digits of a scene; each has 1 to so many.
        classes: ``"digits"``: masks have 11 classes, 0 for the background and 1 + d for digit d;
            boxes have 10, one a digit. ``"digit"``: background and digit; boxes have one class.
        target: ``"mask"`` (N, H, W); ``"boxes"``, `Ragged` with rows (x0, y0, x1, y1, class), shape
            (T, 5), see `dlblocks.fields.Boxes`; or ``"count"``, the number of digits as a value.
        clutter: Scraps of other digits in a scene.
        num_groups: Groups of the digits of the development set.
        seed: Of everything.
        **kwargs: Batches, splits and normalisation; see `DataModule`.

    Example:
        >>> data = DigitScenesDataModule(num_scenes=40, num_test_scenes=8, size=48)
        >>> data.input_shape, data.num_classes, data.masks.shape
        ((1, 48, 48), 11, torch.Size([40, 48, 48]))
    """

    def __init__(
        self,
        *,
        num_scenes: int = 1600,
        num_test_scenes: int = 300,
        size: int = 40,
        digits_per_scene: int = 4,
        classes: Literal["digits", "digit"] = "digits",
        target: Literal["mask", "boxes", "count"] = "mask",
        clutter: int = 5,
        num_groups: int = 20,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_range("size", size, CELL)
        check_range("num_scenes", num_scenes, 2)
        check_range("num_test_scenes", num_test_scenes, 1)
        check_range("clutter", clutter, 0)
        check_range("num_groups", num_groups, 2, 100)
        check_choice("classes", classes, ["digits", "digit"])
        check_choice("target", target, ["mask", "boxes", "count"])
        places = (size // CELL) ** 2
        if not 1 <= digits_per_scene <= places:
            raise ValueError(
                f"digits_per_scene={digits_per_scene} must be 1 … {places}, as many as scenes of "
                f"size={size} have room for; use a larger size."
            )
        self.num_scenes, self.num_test_scenes = whole(num_scenes), whole(num_test_scenes)
        self.size, self.digits_per_scene = whole(size), whole(digits_per_scene)
        self.classes, self.target = classes, target
        self.clutter, self.num_groups, self.seed = whole(clutter), whole(num_groups), whole(seed)
        self.save_hyperparameters()

    def load(self) -> Source:
        parts = self._parts
        targets, test_targets = (self._targets(part) for part in parts.values())
        kinds = {"mask": Mask(), "boxes": Boxes(), "count": Values()}
        names = list(map(str, range(10))) if self.classes == "digits" else ["digit"]
        of_target = {"mask": ["background", *names], "boxes": names, "count": None}
        return Source(
            parts["train"]["images"],
            targets,
            test_inputs=parts["test"]["images"],
            test_targets=test_targets,
            class_names=of_target[self.target],
            groups=parts["train"]["groups"],
            target_kind=kinds[self.target],
        )

    def _targets(self, part: dict[str, Any]) -> Any:
        if self.target == "count":
            return torch.tensor([float(len(row)) for row in _rows(part["boxes"])])
        if self.target == "mask":
            return part["masks"]
        boxes, labels = part["boxes"], part["labels"].values
        known = labels if self.classes == "digits" else torch.zeros_like(labels)
        return Ragged(torch.cat([boxes.values, known[:, None].float()], 1), boxes.offsets)

    @cached_property
    def _parts(self) -> dict[str, dict[str, Any]]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        order = np.random.default_rng(self.seed).permutation(len(bunch.images))
        held_out, rest = np.split(order, [len(order) // 5])
        pools = {"train": np.array_split(rest, self.num_groups), "test": [held_out]}
        counts = {"train": self.num_scenes, "test": self.num_test_scenes}
        images = torch.from_numpy(bunch.images).float() / 16
        return {
            part: draw_scenes(
                images,
                torch.from_numpy(bunch.target).long(),
                pools[part],
                counts[part],
                size=self.size,
                most=self.digits_per_scene,
                clutter=self.clutter,
                one_class=self.classes == "digit",
                rng=np.random.default_rng([self.seed, STREAMS[part]]),
            )
            for part in pools
        }

    # Of the development set, in the order of the source

    @property
    def masks(self) -> Tensor:
        """The class of each pixel, uint8 of shape (N, H, W)."""
        masks: Tensor = self._parts["train"]["masks"]
        return masks

    @property
    def boxes(self) -> Ragged:
        """The box of each digit's mask: x0, y0, x1, y1, the last two excluded, float32 (T, 4)."""
        boxes: Ragged = self._parts["train"]["boxes"]
        return boxes

    @property
    def labels(self) -> Ragged:
        """The digit in each box, int64 (T,)."""
        labels: Ragged = self._parts["train"]["labels"]
        return labels

    @property
    def counts(self) -> Tensor:
        """How many digits each scene has, int64 of shape (N,)."""
        return self.boxes.offsets.diff()

    def part(self, name: Literal["train", "test"]) -> dict[str, Any]:
        """Return images, masks, boxes and labels of the development or of the test scenes."""
        check_choice("name", name, list(STREAMS))
        return dict(self._parts[name])


def _rows(values: Ragged) -> list[Tensor]:
    return [values[i] for i in range(len(values))]


CELL = 20  # the side of a place for a digit, with a free pixel
SIDES = (13, 18)  # of enlarged digits
SCRAP = (4, 7)  # sides of scraps
SCRAPPED = 15  # side of the digits that they are cut from
CHUNK = 256  # scenes at a time


def draw_scenes(
    digits: Tensor,
    labels: Tensor,
    pools: list[Array],
    count: int,
    *,
    size: int,
    most: int,
    clutter: int,
    one_class: bool,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Draw scenes of digits; each takes its digits from one of the pools.

    Args:
        digits: Ink in [0, 1], shape (M, 8, 8).
        labels: Their digits, int64 of shape (M,).
        pools: Which digits belong to each pool.
        count: Number of scenes N.
        size: Height and width.
        most: Digits of a scene at most.
        clutter: Scraps in a scene.
        one_class: Whether all digits are of class 1.
        rng: Where chance comes from.

    Returns:
        ``images`` uint8 (N, 1, H, W), ``masks`` uint8 (N, H, W), ``boxes`` and ``labels`` as
        `Ragged`, ``digits``, which digits they are, int64 (T,), and ``groups``, the pool of each
        scene, (N,).
    """
    images = torch.empty(count, 1, size, size, dtype=torch.uint8)
    grounds = torch.empty(count, size, size, dtype=torch.uint8)  # without scraps
    masks = torch.zeros(count, size, size, dtype=torch.uint8)
    groups = np.arange(count) % len(pools)
    numbers = rng.integers(1, most + 1, count)
    owner = np.repeat(np.arange(count), numbers)  # the scene of each digit
    chosen = np.empty(len(owner), np.int64)
    for g, pool in enumerate(pools):
        mine = groups[owner] == g
        chosen[mine] = rng.choice(pool, int(mine.sum()))
    # A place for each: the first of a random order of cells.
    across = size // CELL
    order = rng.permuted(np.tile(np.arange(across**2), (count, 1)), axis=1)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    cell = order[owner, nth]
    sides = rng.integers(SIDES[0], SIDES[1] + 1, len(owner))
    spare = size - across * CELL
    shift = rng.integers(0, spare + 1, (count, 2))[owner] if spare else 0
    corner = np.stack([cell // across, cell % across], 1) * CELL + shift
    corner += (rng.random((len(owner), 2)) * (CELL - sides[:, None])).astype(np.int64)
    strength = rng.uniform(0.75, 1.0, len(owner)).astype(np.float32)
    boxes = torch.zeros(len(owner), 4)
    for start in range(0, count, CHUNK):
        some = slice(start, min(start + CHUNK, count))
        canvas = _ground(some.stop - some.start, size, rng)
        grounds[some] = (255 * canvas).round().to(torch.uint8)
        _scatter_scraps(canvas, digits, pools, groups[some], clutter, rng)
        images[some] = (255 * canvas).round().to(torch.uint8)[:, None]
    # Digits of one side are enlarged together.
    for side in range(SIDES[0], SIDES[1] + 1):
        mine = np.flatnonzero(sides == side)
        if not len(mine):
            continue
        ink = _enlarged(digits[torch.from_numpy(chosen[mine])], side)  # (T', side, side)
        ink *= torch.from_numpy(strength[mine])[:, None, None]
        inside = ink >= INK
        value = (255 * ink).round()
        rows = torch.from_numpy(corner[mine, 0])[:, None, None] + torch.arange(side)[:, None]
        columns = torch.from_numpy(corner[mine, 1])[:, None, None] + torch.arange(side)
        scene = torch.from_numpy(owner[mine])[:, None, None].expand_as(ink)
        place = scene, rows.expand_as(ink), columns.expand_as(ink)
        below = grounds[place].float()  # a digit's square covers scraps
        images[:, 0][place] = torch.where(inside, value, below.maximum(value)).to(torch.uint8)
        own = 1 if one_class else 1 + labels[torch.from_numpy(chosen[mine])][:, None, None]
        masks[place] = torch.where(inside, own, masks[place].long()).to(torch.uint8)
        boxes[torch.from_numpy(mine)] = _boxes(inside, torch.from_numpy(corner[mine]))
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(numbers)]))
    return {
        "images": images,
        "masks": masks,
        "boxes": Ragged(boxes, offsets),
        "labels": Ragged(labels[torch.from_numpy(chosen)], offsets),
        "digits": torch.from_numpy(chosen),
        "groups": groups,
    }


def _enlarged(digits: Tensor, side: int) -> Tensor:
    """Digits (T, 8, 8) with a free edge, enlarged to (T, side, side), the darkest pixel 1."""
    large = F.interpolate(
        F.pad(digits, (1, 1, 1, 1))[:, None], size=(side, side), mode="bicubic", align_corners=False
    )[:, 0].clamp_(0)
    return large / large.amax((1, 2), keepdim=True)


def _ground(count: int, size: int, rng: np.random.Generator) -> Tensor:
    """Smooth grey grounds with fine noise, in 0 … 0.35: (count, size, size)."""
    coarse = torch.from_numpy(rng.random((count, 1, 4, 4), dtype=np.float32))
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)[:, 0]
    noise = torch.from_numpy(rng.random((count, size, size), dtype=np.float32))
    return (0.28 * smooth + 0.07 * noise).clamp_(0, 0.35)


def _scatter_scraps(
    canvas: Tensor,
    digits: Tensor,
    pools: list[Array],
    groups: Array,
    clutter: int,
    rng: np.random.Generator,
) -> None:
    """Put scraps of other digits onto the canvases (n, H, W), in place."""
    count, size = canvas.shape[:2]
    for _ in range(clutter):
        chosen = np.empty(count, np.int64)
        for g in np.unique(groups):
            chosen[groups == g] = rng.choice(pools[g], int((groups == g).sum()))
        large = _enlarged(digits[torch.from_numpy(chosen)], SCRAPPED)
        side = int(rng.integers(SCRAP[0], SCRAP[1] + 1))
        of, to = (
            rng.integers(0, SCRAPPED - side + 1, (2, count)),
            rng.integers(0, size - side, (2, count)),
        )
        step = torch.arange(side)
        scene = torch.arange(count)[:, None, None]
        cut, put = (
            (scene, torch.from_numpy(at[0])[:, None, None] + step[:, None],
             torch.from_numpy(at[1])[:, None, None] + step)
            for at in (of, to)
        )  # fmt: skip
        strength = torch.from_numpy(rng.uniform(0.4, 0.9, (count, 1, 1)).astype(np.float32))
        canvas[put] = canvas[put].maximum(large[cut] * strength)


def _boxes(inside: Tensor, corner: Tensor) -> Tensor:
    """The boxes x0, y0, x1, y1 of masks (T, side, side) whose corners lie at (row, column)."""
    side = inside.shape[1]
    found = []
    for axis, dim in ((1, 1), (0, 2)):  # columns, rows
        some = inside.any(dim).long()  # (T, side)
        first = some.argmax(1) + corner[:, axis]
        last = side - some.flip(1).argmax(1) + corner[:, axis]
        found.append((first, last))
    (x0, x1), (y0, y1) = found
    return torch.stack([x0, y0, x1, y1], 1).float()
