import copy
import pickle
import random
import sys

import commands
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from dlblocks.data.transforms import SampleTransform  # before albumentations: no network

A = pytest.importorskip("albumentations")

IMAGES = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0))
IMAGES = IMAGES.to(torch.uint8)
ROWS = torch.arange(100, 112)


def flips_and_noise():
    """Each kind of randomness: p, parameters, choices, nested choices, noise by pixel."""
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(rotate=(-20, 20), translate_px=(-2, 2), p=0.8),
            A.GaussNoise(p=0.7),
            A.OneOf(
                [
                    A.Sequential([A.VerticalFlip(p=0.5), A.ISONoise(p=0.5)], p=1),
                    A.SomeOf([A.RandomBrightnessContrast(p=1), A.CoarseDropout(p=1)], n=1),
                    A.Lambda(image=add_global_noise, p=1),
                ],
                p=0.9,
            ),
        ]
    )


def add_global_noise(image, **_):
    return (image + np.random.randint(0, 9) + random.randrange(9)).astype(image.dtype)


def crop_flip_jitter():
    return v2.Compose(
        [v2.RandomCrop(16, padding=4), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4)]
    )


def all_generators(image):
    """Uses torch's, numpy's and Python's global generators."""
    noise = torch.randint(0, 50, image.shape, dtype=torch.uint8)
    return image // 4 + noise + np.random.randint(0, 50) + random.randrange(50)


def in_place(image, **_):
    """Writes into what it gets, tensor or array; -1 so that no image stays as it is."""
    image[:] = 255 - image
    return image


TRANSFORMS = {
    "albumentations": flips_and_noise,
    "torchvision": crop_flip_jitter,
    "callable": lambda: all_generators,
}
every_kind = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)


def one_by_one(transform, epoch=0, order=range(12)):
    found = {i: transform(IMAGES[i], epoch=epoch, index=int(ROWS[i])) for i in order}
    return torch.stack([found[i] for i in range(12)])


# The same everywhere


@every_kind
def test_result_depends_on_no_earlier_call(make):
    transform = SampleTransform(make(), seed=3)
    expected = transform.batch(IMAGES, ROWS, epoch=2)
    assert expected.shape == IMAGES.shape and expected.dtype == torch.uint8
    assert type(expected) is torch.Tensor
    transform.batch(IMAGES[:5], ROWS[:5], epoch=1)
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        order = random.sample(range(12), 12)
        assert one_by_one(transform, epoch=2, order=order).equal(expected)
    assert one_by_one(SampleTransform(make(), seed=3), epoch=2).equal(expected)
    back = transform.batch(IMAGES.flip(0), ROWS.flip(0), epoch=2).flip(0)
    assert back.equal(expected)
    # Another layout of the same images, as of a data set of (N, H, W, C)
    permuted = IMAGES.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert transform.batch(permuted, ROWS, epoch=2).equal(expected)


class Augmented(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return len(IMAGES)

    def __getitems__(self, rows):
        rows = torch.tensor(rows)
        return list(zip(rows, self.transform.batch(IMAGES[rows], ROWS[rows], 1), strict=True))


@every_kind
def test_workers_make_no_difference(make):
    transform = SampleTransform(make())
    expected = transform.batch(IMAGES, ROWS, 1)
    for num_workers, batch_size in ((0, 5), (2, 5), (2, 3)):
        torch.manual_seed(num_workers)
        loader = DataLoader(Augmented(transform), batch_size, shuffle=True, num_workers=num_workers)
        rows, images = map(torch.cat, zip(*loader, strict=True))
        assert images[rows.argsort()].equal(expected), (num_workers, batch_size)


@every_kind
def test_epoch_index_and_seed_each_change_the_result(make):
    def differ(one, other):
        return (one != other).flatten(1).any(1).float().mean() > 0.6

    transform, same = SampleTransform(make()), IMAGES[:1].expand(12, -1, -1, -1)
    first = transform.batch(same, ROWS, 0)
    assert differ(first, transform.batch(same, ROWS, 1))
    assert differ(first, transform.batch(same, ROWS + 12, 0))
    assert differ(first, SampleTransform(make(), seed=1).batch(same, ROWS, 0))
    assert len({image.numpy().tobytes() for image in first}) > 8
    # (seed, epoch, index) are not added up
    assert differ(transform.batch(same, ROWS, 1), transform.batch(same, ROWS + 1, 0))


@every_kind
@pytest.mark.parametrize("fails", [False, True])
def test_global_generators_stay_as_they_are(make, fails):
    def failing(image):
        torch.rand(1), np.random.rand(), random.random()
        raise RuntimeError

    transform = SampleTransform(failing if fails else make())
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    np.random.randn()  # leaves a second normal number waiting
    torch_state, numpy_state, state = (
        torch.get_rng_state(),
        np.random.get_state(),
        random.getstate(),
    )
    if fails:
        with pytest.raises(ValueError):
            transform.batch(IMAGES, ROWS, 0)
    else:
        transform.batch(IMAGES, ROWS, 0)
    assert torch.get_rng_state().equal(torch_state)
    assert random.getstate() == state
    for now, before in zip(np.random.get_state(), numpy_state, strict=True):
        assert np.array_equal(now, before)


@every_kind
def test_copies_and_pickles_are_the_same_transform(make):
    transform = SampleTransform(make(), seed=4)
    expected = transform.batch(IMAGES, ROWS, 0)
    for other in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
        assert other.batch(IMAGES, ROWS, 0).equal(expected)


# Against the transform used by hand


def words(seed, epoch, row):
    """The seeds in Python's integers: streams of SplitMix64 that start at random places."""
    found = []
    for state in np.random.SeedSequence((seed, epoch)).generate_state(6, np.uint64):
        state = (int(state) + row * 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        found.append(state ^ (state >> 31))
    return found


@pytest.mark.parametrize("make", [crop_flip_jitter, lambda: all_generators])
def test_equals_the_transform_called_by_hand(make):
    result = SampleTransform(make(), seed=7).batch(IMAGES, ROWS, 3)
    transform = make()
    for image, row, found in zip(IMAGES, ROWS.tolist(), result, strict=True):
        torch_seed, numpy_seed, python_seed = words(7, 3, row)[:3]
        torch.manual_seed(torch_seed)
        np.random.seed(numpy_seed % 2**32)
        random.seed(python_seed)
        assert found.equal(transform(image.clone()))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_equals_albumentations_called_by_hand(channels, dtype):
    images = IMAGES[:, :channels].to(dtype) / (1 if dtype == torch.uint8 else 255)
    images = images.to(dtype)

    def make():
        return A.Compose(
            [
                A.HorizontalFlip(),
                A.Affine(rotate=(-20, 20), p=1),
                A.OneOf([A.GaussNoise(), A.SomeOf([A.Blur(p=1), A.RandomGamma(p=1)], n=1)], p=1),
            ]
        )

    result = SampleTransform(make(), seed=7).batch(images, ROWS, 3)
    for image, row, found in zip(images, ROWS.tolist(), result, strict=True):
        *_, python_seed, high, low = words(7, 3, row)
        generator = np.random.PCG64(0)
        generator.state = {
            **generator.state,
            "state": {"state": high * 2**64 + low, "inc": generator.state["state"]["inc"]},
        }
        transform = make()
        transform.set_random_state(np.random.Generator(generator), random.Random(python_seed))
        expected = transform(image=np.moveaxis(image.numpy(), 0, 2).copy())["image"]
        assert np.array_equal(np.moveaxis(found.numpy(), 0, 2), expected)


def test_transforms_of_albumentations_are_independent_of_each_other():
    """set_random_seed(s) gives every transform the same numbers: both flips or none."""
    image = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2).expand(800, 1, 2, 2)
    both = SampleTransform(A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]))
    result = both.batch(image, torch.arange(800), 0)
    kinds, counts = result.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 4
    assert counts.min() > 150  # 200 ± 12 each


@pytest.mark.parametrize("library", ["albumentations", "torchvision"])
def test_probability_is_kept_over_rows_and_over_epochs(library):
    flip = {"albumentations": A.HorizontalFlip, "torchvision": v2.RandomHorizontalFlip}[library]
    transform = SampleTransform(flip(p=0.3))
    image = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2)
    over_rows = transform.batch(image.expand(2000, 1, 2, 2), torch.arange(2000), 0)
    over_epochs = torch.cat([transform.batch(image, ROWS[:1], epoch) for epoch in range(2000)])
    for result in (over_rows, over_epochs):
        share = (result != image).flatten(1).any(1).float().mean()
        assert 0.25 < share < 0.35  # standard error 0.01


def test_result_of_to_tensor_is_taken():
    transform = SampleTransform(A.Compose([A.VerticalFlip(p=1), A.ToTensorV2()]))
    assert transform.batch(IMAGES, ROWS, 0).equal(IMAGES.flip(2))


def test_type_of_torchvision_does_not_leave():
    result = SampleTransform(v2.Compose([v2.ToImage(), v2.RandomVerticalFlip(p=1)]))(
        IMAGES[0], epoch=0, index=0
    )
    assert type(result) is torch.Tensor and result.equal(IMAGES[0].flip(1))


# The data stay as they are


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    "transform",
    [in_place, A.Lambda(image=in_place, p=1)],
    ids=["tensor", "array"],
)
def test_transform_in_place_does_not_write_into_the_data(transform, channels):
    data = IMAGES[:, :channels].contiguous()
    before = data.clone()
    transform = SampleTransform(transform)
    assert transform.batch(data, ROWS, 0).equal(255 - before)
    assert transform(data[0], epoch=0, index=0).equal(255 - before[0])
    assert data.equal(before)


def test_result_is_new_memory_even_if_nothing_happens():
    for transform in (lambda image: image, A.NoOp(), v2.Identity()):
        result = SampleTransform(transform).batch(IMAGES, ROWS, 0)
        assert result.equal(IMAGES) and result.data_ptr() != IMAGES.data_ptr()


def test_result_that_overlaps_its_input():
    result = SampleTransform(lambda image: image.mT).batch(IMAGES, ROWS, 0)
    assert result.equal(IMAGES.mT)


def test_result_needs_no_gradient():
    convolution = torch.nn.Conv2d(3, 3, 3, padding=1)
    assert not SampleTransform(convolution).batch(IMAGES / 255, ROWS, 0).requires_grad


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: A.CoarseDropout(max_holes=8, max_height=4), "max_holes, max_height.*num_holes_r"),
        (lambda: A.GaussNoise(per_chanel=True), "per_chanel.*did you mean 'per_channel'"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_ignored_arguments_of_albumentations_are_refused(make, message, nested):
    with pytest.warns(UserWarning, match="not valid"):
        transform = make()
    if nested:
        transform = A.Compose([A.OneOf([A.Sequential([A.HorizontalFlip(), transform])])])
    with pytest.raises(ValueError, match=message):
        SampleTransform(transform)


def test_boxes_and_keypoints_are_refused():
    boxes = {"bbox_params": A.BboxParams("coco", label_fields=["labels"])}
    for arguments in (boxes, {"keypoint_params": A.KeypointParams("xy")}):
        transform = A.Compose([A.HorizontalFlip()], **arguments)
        with pytest.raises(ValueError, match=r"expects .* images only; remove bbox_params="):
            SampleTransform(transform)


@pytest.mark.parametrize(
    "transform",
    [
        A.Compose([A.Normalize()]),
        v2.Compose([v2.RandomApply([v2.Normalize([0.5], [0.5])])]),
        torch.nn.Sequential(v2.Identity(), torch.nn.Sequential(v2.Normalize([0.5], [0.5]))),
    ],
    ids=["albumentations", "torchvision", "sequential"],
)
def test_normalisation_is_refused(transform):
    with pytest.raises(ValueError, match=r"Normalize.*leave normalisation to the datamodule"):
        SampleTransform(transform)


@pytest.mark.parametrize("transform", [None, [v2.Identity()], v2.RandomHorizontalFlip, A.Rotate])
def test_what_cannot_be_called_is_refused(transform):
    with pytest.raises(TypeError, match=r"train_transform=.* give an instance .* Compose"):
        SampleTransform(transform)


def test_seed_is_checked():
    with pytest.raises(ValueError, match="seed=-1"):
        SampleTransform(in_place, seed=-1)


@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [
        (v2.RandomCrop(12), ValueError, r"\(3, 16, 16\) to \(3, 12, 12\).*size="),
        (A.RandomCrop(12, 12), ValueError, r"\(3, 16, 16\) to \(3, 12, 12\).*size="),
        (lambda image: image[:1], ValueError, r"to \(1, 16, 16\).*validation images keep"),
        (v2.ToDtype(torch.float32, scale=True), ValueError, "uint8 to torch.float32.*remove ToD"),
        (A.ToFloat(), ValueError, "uint8 to torch.float32.*leave conversion and normalisation"),
        (lambda image: None, TypeError, "returned NoneType for row 100 in epoch 0"),
        (lambda image: image.numpy(), TypeError, "returned ndarray"),
        (v2.ToPILImage(), TypeError, "ToPILImage returned Image .* remove ToPILImage"),
        (lambda image: image.rotate(10), ValueError, "AttributeError.*PIL images"),
        (A.MaskDropout(p=1), ValueError, "MaskDropout failed on row 100 in epoch 0.*mask"),
    ],
)
def test_errors_say_what_happened_and_the_cure(transform, error, message):
    with pytest.raises(error, match="^train_transform=.*" + message):
        SampleTransform(transform).batch(IMAGES, ROWS, 0)


def test_transform_of_pil_images_is_refused_with_a_clear_message():
    from torchvision import transforms as v1

    transform = v1.Compose([v1.ToTensor()])
    with pytest.raises(ValueError, match=r"failed on row 100.*tensor \(C, H, W\).*torchvision.*v2"):
        SampleTransform(transform).batch(IMAGES, ROWS, 0)


def test_other_data_than_images_are_refused():
    with pytest.raises(ValueError, match=r"needs images .* got shape \(5, 4\)"):
        SampleTransform(in_place).batch(torch.zeros(5, 4), torch.arange(5), 0)


def test_rows_must_match_the_images():
    with pytest.raises(ValueError, match="zip"):
        SampleTransform(in_place).batch(IMAGES, ROWS[:5], 0)


def test_module_imports_neither_library_and_silences_the_network():
    # By its path, because the package imports Lightning, which imports torchvision.
    code = (
        "import os, runpy, sys; os.environ.pop('NO_ALBUMENTATIONS_UPDATE', None);"
        f"found = runpy.run_path({sys.modules[SampleTransform.__module__].__file__!r});"
        "import torch; x = torch.zeros(1, 2, 2); add = found['SampleTransform'](lambda x: x + 1);"
        "assert add(x, epoch=0, index=0).equal(x + 1);"
        "loaded = {'albumentations', 'torchvision', 'cv2', 'lightning'} & set(sys.modules);"
        "assert not loaded, loaded; assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1';"
        "import dlblocks.data.transforms; assert 'albumentations' not in sys.modules"
    )
    commands.run("python", "-c", code)
