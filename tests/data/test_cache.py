"""The array file of decoded images: the same images, built once, never half a file."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from dlblocks._files import PART
from dlblocks.data import ImageFolderDataModule, image_folder
from dlblocks.models import CNNClassifier

SIZE = (6, 9)


def paint(path, seed, size=(20, 14), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size[::-1] + ((3,) if mode == "RGB" else ())
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """Images of many formats, modes and sizes, with names of all kinds."""
    root = tmp_path / "images"
    for part, count in (("train", 7), ("test", 2)):
        for name in ("a", "naïve ☃"):
            for i in range(count):
                paint(root / part / name / f"{i}.png", (i, len(name), count), (20 + i, 14))
            paint(root / part / name / "grau 日本.jpg", 3, (9, 30), mode="L")
    paint(root / "train" / "a" / os.fsdecode(b"\xff.bmp"), 4)
    return root


def module(root, cache=True, **arguments):
    return ImageFolderDataModule(str(root), **{"size": SIZE, "cache": cache, **arguments})


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def arrays(folder):
    return sorted(folder.glob("*.npy"))


def fail(*arguments, **named):
    raise AssertionError("an image was decoded again")


def assert_same(cached, plain):
    for name in ("inputs", "targets", "test_inputs", "test_targets"):
        ours, theirs = (getattr(data.source, name) for data in (cached, plain))
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs), name
    assert cached.class_names == plain.class_names


# The same images, once


@pytest.mark.parametrize("channels", [1, 3])
def test_cached_images_are_the_decoded_ones(root, channels):
    cached, plain = (module(root, cache, in_channels=channels) for cache in (True, False))
    assert_same(cached, plain)
    cached.setup()
    plain.setup()
    for ours, theirs in zip(cached.train_dataloader(), plain.train_dataloader(), strict=True):
        ours, theirs = (
            data.on_after_batch_transfer(batch, 0)
            for data, batch in ((cached, ours), (plain, theirs))
        )
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_the_file_is_a_plain_array_beside_the_images(root):
    data = module(root)
    data.prepare_data()
    assert [path.name for path in arrays(root)] == [
        "dlblocks-test-3x6x9.npy",
        "dlblocks-train-3x6x9.npy",
    ]
    inputs = np.load(root / "dlblocks-train-3x6x9.npy")
    assert inputs.dtype == np.uint8
    np.testing.assert_array_equal(inputs, module(root, False).source.inputs)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's list of maps")
def test_the_memory_is_mapped_and_read_only(root):
    data = module(root)
    pointer = data.source.inputs.data_ptr()
    with open("/proc/self/maps") as maps:
        (line,) = [line for line in maps if str(root / "dlblocks-train") in line]
    low, high = (int(end, 16) for end in line.split()[0].split("-"))
    assert low <= pointer < high
    assert line.split()[1] == "r--s"


def test_a_built_file_is_reused(root, monkeypatch, make_trainer):
    first = module(root)
    assert_same(first, module(root, False))
    before = [path.stat() for path in arrays(root)]
    monkeypatch.setattr(image_folder, "decode", fail)
    data = module(root, batch_size=4)
    make_trainer().fit(CNNClassifier(3, 2, channels=[4]), datamodule=data)
    assert torch.equal(data.source.inputs, first.source.inputs)
    after = [path.stat() for path in arrays(root)]
    assert [(s.st_ino, s.st_mtime_ns) for s in after] == [(s.st_ino, s.st_mtime_ns) for s in before]
    with pytest.raises(AssertionError, match="decoded again"):
        module(root, False).setup()


def test_settings_and_roots_live_side_by_side(root, tmp_path, monkeypatch):
    other = tmp_path / "other" / "images"
    shutil.copytree(root, other)
    paint(other / "train" / "a" / "0.png", 99)
    makes = [
        lambda: module(root, str(tmp_path / "kept" / "ärrays")),
        lambda: module(other, str(tmp_path / "kept" / "ärrays")),
        lambda: module(root, str(tmp_path / "kept" / "ärrays"), size=(9, 6)),
        lambda: module(root, str(tmp_path / "kept" / "ärrays"), in_channels=1),
    ]
    built = [make().source.inputs for make in makes]
    assert len(arrays(tmp_path / "kept" / "ärrays")) == 8
    assert not arrays(root)
    monkeypatch.setattr(image_folder, "decode", fail)
    for make, inputs in zip(makes, built, strict=True):
        assert torch.equal(make().source.inputs, inputs)
    assert not torch.equal(built[0], built[1])


def test_a_folder_without_parts(root):
    assert_same(module(root / "train"), module(root / "train", False))
    assert [path.name for path in arrays(root / "train")] == ["dlblocks-images-3x6x9.npy"]
    assert_same(module(root / "train"), module(root / "train", False))


def test_folds_share_the_map(root):
    data = module(root)
    pointer = data.source.inputs.data_ptr()
    assert data.for_fold(1, 3).source.inputs.data_ptr() == pointer


# What has changed is built anew, and said


def add(root):
    paint(root / "train" / "a" / "new.png", 8)


def remove(root):
    (root / "train" / "a" / "0.png").unlink()


def touch(root):
    path = root / "train" / "a" / "0.png"
    os.utime(path, ns=(0, 0))


def rename(root):
    (root / "train" / "a" / "0.png").rename(root / "train" / "a" / "9.png")


def move_to_another_class(root):
    (root / "train" / "a" / "0.png").rename(root / "train" / "naïve ☃" / "9.png")


@pytest.mark.parametrize("change", [add, remove, touch, rename, move_to_another_class])
def test_a_changed_source_is_built_anew(root, change):
    old = module(root)
    kept = old.source.inputs.clone()
    change(root)
    why = (
        r"its images have shape \(17, 3, 6, 9\), and now"
        if change in (add, remove)
        else "have changed"
    )
    with pytest.warns(UserWarning, match=rf"dlblocks-train-3x6x9.npy is rebuilt: .*{why}") as said:
        new = module(root)
        assert_same(new, module(root, False))
    assert len(said) == 1
    assert torch.equal(old.source.inputs, kept)  # who has mapped the old file keeps it
    assert len(arrays(root)) == 2
    assert_same(module(root), new)  # without another warning, which would be an error


def test_pixels_changed_in_a_file_of_the_same_size_are_seen(root):
    path = root / "train" / "a" / os.fsdecode(b"\xff.bmp")
    module(root).prepare_data()
    size = path.stat().st_size
    paint(path, 77)
    assert path.stat().st_size == size
    with pytest.warns(UserWarning, match="images have changed since"):
        assert_same(module(root), module(root, False))


def test_another_file_of_the_same_size_and_time_is_seen(root):
    old, new = (root / "train" / "a" / f"{name}.bmp" for name in "xy")
    paint(old, 1)
    os.utime(old, ns=(0, 0))
    module(root).prepare_data()
    old.unlink()
    paint(new, 2)
    os.utime(new, ns=(0, 0))
    with pytest.warns(UserWarning, match="images have changed since"):
        assert_same(module(root), module(root, False))


# What is not a whole file of ours is refused, and left as it is


def cut(keep):
    return lambda whole: whole[:keep]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (cut(0), "it is truncated from 2,882 bytes"),
        (cut(5), "it is truncated from 2,882 bytes"),
        (cut(100), "it is truncated from 2,882 bytes"),
        (cut(128), "it is truncated from 2,882 bytes"),
        (cut(1000), "it is truncated from 2,882 bytes"),
        (cut(-20), "it is truncated from 2,882 bytes"),
        (cut(-1), "it is truncated from 2,882 bytes"),
        (lambda whole: whole[:1000] + whole[1001:], "it is truncated from 2,882 bytes"),
        (lambda whole: whole[:300] + whole[-300:], "it is truncated from 2,882 bytes"),
        (lambda whole: b"minutes of the meeting\n", "or another program wrote it"),
        (lambda whole: whole[-500:], "or another program wrote it"),
        (lambda whole: whole + b"\0", "another program wrote it"),
        (lambda whole: whole * 2, "another program wrote it"),
    ],
)
def test_a_spoiled_or_foreign_file_is_refused(root, monkeypatch, spoil, why):
    module(root).prepare_data()
    path = root / "dlblocks-train-3x6x9.npy"
    spoiled = spoil(path.read_bytes())
    path.write_bytes(spoiled)
    monkeypatch.setattr(image_folder, "decode", fail)
    assert_refused(root, path, why)
    assert path.read_bytes() == spoiled
    assert len(arrays(root)) == 2


def assert_refused(root, path, why):
    for use in (ImageFolderDataModule.prepare_data, ImageFolderDataModule.setup):
        with pytest.raises(FileExistsError, match=rf"{path.stem}\.npy \(.*{why}.*delete it"):
            use(module(root))


@pytest.mark.parametrize(
    "spoil",
    [
        cut(0),
        cut(20),
        cut(-1),
        lambda whole: b"X" + whole,
        lambda whole: b"[1, 2]",
        lambda whole: whole.replace(b"fingerprint", b"fingerprXnt"),
        lambda whole: whole.replace(b'"written"', b'"writen"'),
        lambda whole: whole.replace(b'"version": 4', b'"version": "4"'),
        lambda whole: whole.replace(b'"version"', b'"\xffversion"'),
    ],
)
def test_a_spoiled_description_is_refused(root, monkeypatch, spoil):
    module(root).prepare_data()
    path = root / "dlblocks-train-3x6x9.json"
    spoiled = spoil(path.read_bytes())
    assert spoiled != path.read_bytes()
    path.write_bytes(spoiled)
    monkeypatch.setattr(image_folder, "decode", fail)
    assert_refused(root, path, "dlblocks-train-3x6x9.json is damaged")
    assert path.read_bytes() == spoiled


def test_an_array_without_its_description_is_refused(root, monkeypatch):
    """So is a file of an older version, with a footer; and what a kill between two names leaves."""
    module(root).prepare_data()
    path = root / "dlblocks-train-3x6x9.json"
    path.unlink()
    monkeypatch.setattr(image_folder, "decode", fail)
    assert_refused(root, path, "an older version of dlblocks wrote it, .*json is missing")
    with path.with_suffix(".npy").open("ab") as file:
        file.write(b'{"format": "dlblocks images", "version": 3}dlblocks-images\n')
    assert_refused(root, path, "an older version of dlblocks wrote it, .*json is missing")
    assert not path.exists()


def test_a_description_without_its_array_is_no_cache(root):
    module(root).prepare_data()
    (root / "dlblocks-train-3x6x9.npy").unlink()
    assert_same(module(root), module(root, False))
    assert_same(module(root), module(root, False))


def test_an_array_of_the_same_size_written_over_ours_is_refused(root, monkeypatch):
    module(root).prepare_data()
    path = root / "dlblocks-train-3x6x9.npy"
    np.save(path, np.zeros((17, 3, 6, 9), np.uint8))
    later = path.stat().st_mtime + 60
    os.utime(path, (later, later))
    before = path.read_bytes()
    monkeypatch.setattr(image_folder, "decode", fail)
    assert_refused(root, path, "another program wrote it")
    assert path.read_bytes() == before


def build_and_end(renames):
    """End the process before a rename, after some."""
    real, left = os.replace, [renames]

    def replace(*paths):
        if not left[0]:
            os._exit(9)
        left[0] -= 1
        real(*paths)

    os.replace = replace
    module("images").prepare_data()


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_between_two_names_is_no_wrong_cache(root, tmp_path, renames):
    """The array of new images must not pass for that of the old ones."""
    module(root).prepare_data()
    move_to_another_class(root)
    forked.run(build_and_end, renames, code=9)
    (root / "train" / "naïve ☃" / "9.png").rename(root / "train" / "a" / "0.png")  # as before
    with pytest.raises(FileExistsError, match="json is missing"):
        module(root).setup()


def test_somebodys_own_array_is_refused(root):
    path = root / "dlblocks-train-3x6x9.npy"
    np.save(path, np.zeros((17, 3, 6, 9), np.uint8))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="another program or an older version"):
        module(root).setup()
    assert path.read_bytes() == before


def test_a_cache_among_the_classes_is_refused(root):
    with pytest.raises(ValueError, match=r"where each folder is a class; use\s+cache=True"):
        module(root, str(root / "train" / "kept")).setup()
    assert not (root / "train" / "kept").exists()
    assert_same(module(root, str(root / "kept")), module(root, False))


# What goes wrong while building leaves nothing behind


def test_an_image_that_cannot_be_decoded_is_named(root):
    old = module(root)
    old.prepare_data()
    broken = root / "train" / "a" / "6.png"
    broken.write_bytes(broken.read_bytes()[:60])
    before = {path: path.read_bytes() for path in files(root)}
    for cache in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match=r"a/6\.png cannot be decoded as an image"):
                module(root, cache).setup()
    assert {path: path.read_bytes() for path in files(root)} == before


@contextlib.contextmanager
def small_files(limit):
    """Lets this process write no file beyond a size: the n-th byte is an error."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


ROOM = r"has no room .*: [\d,]{7,} bytes are needed, .*; .*cache='/another.*smaller size"


@pytest.mark.parametrize("reserve", [True, False])
def test_a_full_disk(root, small_disk, monkeypatch, reserve):
    if reserve:
        monkeypatch.setattr(image_folder, "decode", fail)  # it is known before
    else:
        monkeypatch.delattr(os, "posix_fallocate")
    # 17 images of 3 × 200 × 200 bytes.
    with pytest.raises(OSError, match=ROOM) as caught:
        module(root, str(small_disk / "deep"), size=200).setup()
    assert caught.value.errno == errno.ENOSPC
    assert "2,040,000 bytes are needed, 1,048,576 are free" in str(caught.value)
    assert not files(small_disk)


@pytest.mark.parametrize("reserve", [True, False])
def test_a_file_that_may_not_grow(root, monkeypatch, reserve):
    if not reserve:
        monkeypatch.delattr(os, "posix_fallocate")
    before = files(root)
    with small_files(500_000), pytest.raises(OSError, match=ROOM) as caught:
        module(root, size=200).setup()
    assert caught.value.errno == errno.EFBIG
    assert "are needed, but files may not be so large here (see ulimit -f);" in str(caught.value)
    assert files(root) == before
    assert_same(module(root, size=200), module(root, False, size=200))


def test_a_file_system_that_cannot_reserve(root, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert_same(module(root), module(root, False))


@pytest.mark.parametrize("locks", [True, False])
def test_parts_of_builds_that_were_killed_are_removed(root, monkeypatch, locks):
    """Only under a lock: without one, another process may be at work on them."""
    fcntl = pytest.importorskip("fcntl")
    if not locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    parts = [
        root / f".dlblocks-train-3x6x9-x_3k0a9z{PART}.npy",
        root / f".dlblocks-train-3x6x9-x_3k0a9z{PART}.json",
    ]
    others = [
        root / name
        for name in (
            f".dlblocks-train-3x6x99-x_3k0a9z{PART}.npy",
            ".dlblocks-train-3x6x9-x_3k0a9z.npy",  # a name without the mark is not ours
            f".dlblocks-train-3x6x9-x{PART}.npy",
            "x.npy",
        )
    ]
    for path in (*parts, *others):
        path.write_bytes(b"half")
    module(root).setup()
    assert [path.exists() for path in parts] == [not locks] * 2
    assert all(path.exists() for path in others)


def no_locks(*arguments):
    raise OSError(errno.ENOLCK, "no locks available")


def test_a_file_system_without_locks(root, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert_same(module(root), module(root, False))


@pytest.fixture
def read_only_root(root):
    """A folder in which this process, root or not, may not write."""
    folder = Path(tempfile.mkdtemp()) / "images"  # tmp_path is closed to other users
    shutil.copytree(root, folder)
    for path in [folder, folder.parent, *folder.rglob("*")]:
        path.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    yield folder
    if is_root:
        os.seteuid(0)
    for path in [folder.parent, folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder.parent)


def test_a_folder_that_cannot_be_written_to(read_only_root):
    for cache in (True, str(read_only_root.parent / "new")):
        with pytest.raises(PermissionError, match=r"cannot hold .*cache='/another/folder'"):
            module(read_only_root, cache).setup()


def test_a_file_in_a_read_only_folder_is_used(root, monkeypatch):
    module(root).prepare_data()
    monkeypatch.setattr(os, "open", fail)  # neither a lock
    monkeypatch.setattr(tempfile, "mkstemp", fail)
    monkeypatch.setattr(image_folder, "decode", fail)
    assert len(module(root).source.inputs) == 17


def test_a_cache_that_is_a_file(root, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match=r"cannot hold .*cache='/another/folder'"):
        module(root, str(tmp_path / "file")).setup()


# Several processes


def decode_slowly(seconds):
    decode = image_folder.decode

    def slow(file, **settings):
        with open("decoded.txt", "a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return decode(file, **settings)

    image_folder.decode = slow


def build_together():
    decode_slowly(0.1)
    Path(f"ready-{os.getpid()}").touch()
    while len(list(Path().glob("ready-*"))) < 2:
        time.sleep(0.01)
    data = module("images")
    data.prepare_data()
    print(int(data.source.inputs.long().sum()), len(data.source.inputs))


def test_two_processes_decode_once(root, tmp_path):
    forked.run(build_together, environments=[{}, {}])
    said = [(tmp_path / f"said-{i}.txt").read_text() for i in (0, 1)]
    inputs = module(root, False).source.inputs
    assert [out.split()[-2:] for out in said] == [[str(int(inputs.long().sum())), "17"]] * 2
    assert len((tmp_path / "decoded.txt").read_text().split()) == 17 + 6
    assert len(arrays(root)) == 2
    assert not list(root.glob(".*"))


def build():
    # A process that a shell starts in the background ignores Ctrl-C, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    decode_slowly(0.5)
    module("images", size=6).prepare_data()


@pytest.fixture
def building(root, tmp_path):
    """A process in the middle of building."""
    process = forked.start(build)
    while not (tmp_path / "decoded.txt").exists() and process.exitcode is None:
        time.sleep(0.02)
    yield process
    process.kill()
    process.join()
    process.close()


def test_what_a_killed_build_leaves_is_removed_by_the_next(root, building):
    building.kill()
    building.join(60)
    assert len(list(root.glob(".*"))) == 2  # the half file and the empty description
    assert_same(module(root, size=6), module(root, False, size=6))
    assert not list(root.glob(".*"))


def test_ctrl_c_leaves_nothing(root, building, tmp_path):
    assert list(root.glob(".*"))  # the half file
    start = time.monotonic()
    os.kill(building.pid, signal.SIGINT)
    building.join(60)
    assert building.exitcode == 1
    assert "KeyboardInterrupt" in (tmp_path / "said.txt").read_text()
    assert time.monotonic() - start < 20  # not all the 23 images
    assert not [path for path in files(root) if "dlblocks" in path.name]


def fit():
    decode_slowly(0)
    data = module("images", batch_size=4)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(CNNClassifier(3, 2, channels=[4]), datamodule=data)
    Path(f"sum-{trainer.global_rank}").write_text(str(int(data.source.inputs.long().sum())))


@pytest.mark.slow
def test_all_ranks_use_the_file_of_one(root, tmp_path):
    forked.run(fit, environments=forked.ranks(2))
    expected = str(int(module(root, False).source.inputs.long().sum()))
    assert [(tmp_path / f"sum-{rank}").read_text() for rank in (0, 1)] == [expected] * 2
    decoders = (tmp_path / "decoded.txt").read_text().split()
    assert len(decoders) == 17 + 6
    assert len(set(decoders)) == 1
