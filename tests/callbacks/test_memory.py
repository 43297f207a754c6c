"""Batches in memory that is used again: never while anybody holds it."""

import copy
import gc
import pickle
import sys
import threading

import pytest
import torch

from dlblocks._memory import LEAST_BYTES, BatchMemory
from dlblocks.callbacks import Augment, CutMix, Cutout, MixUp, OneOf
from dlblocks.nets import Preprocess

LARGE = torch.zeros(16, 3, 160, 160)  # 4.9 MB
METHODS = [
    MixUp(num_classes=16),
    CutMix(num_classes=16),
    Cutout(0.5),
    Augment(horizontal_flip=0.5, crop_padding=2),
    Augment(rotation=5),
]


def places(memory, count):
    return [memory.like(LARGE).data_ptr() for _ in range(count)]


def test_memory_that_nobody_holds_is_used_again():
    assert LARGE.nbytes >= LEAST_BYTES
    memory = BatchMemory()
    assert len(set(places(memory, 5))) == 1
    kept = memory.like(LARGE)
    others = places(memory, 5)
    assert len(set(others)) == 1
    assert kept.data_ptr() not in others
    half = memory.like(LARGE[:15])  # a last batch that is smaller
    assert half.data_ptr() in others
    assert half.shape == (15, 3, 160, 160)


HOLDERS = {
    "itself": lambda new: new,
    "a view": lambda new: new[3:4, :, ::2],
    "another dtype": lambda new: new.view(torch.int32),
    "detached": lambda new: new.detach(),
    "an array": lambda new: new.numpy(),
    "a graph": lambda new: (new * torch.ones((), requires_grad=True)).grad_fn,
    "its storage": lambda new: new.untyped_storage(),
    "a capsule": lambda new: torch.utils.dlpack.to_dlpack(new),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_whoever_holds_a_batch_keeps_it(holder):
    memory = BatchMemory()
    new = memory.like(LARGE).fill_(7)
    held = [HOLDERS[holder](new), HOLDERS[holder](memory.like(LARGE))]
    place = new.data_ptr()
    del new
    found = [memory.like(LARGE) for _ in range(3)]
    assert place not in [other.data_ptr() for other in found]
    for other in found:
        other.fill_(1)
    del found
    if holder in ("itself", "a view", "detached", "an array"):
        assert (held[0] == 7).all()
    held.clear()
    gc.collect()
    assert place in [memory.like(LARGE).data_ptr() for _ in range(1)] + [
        entry.ctypes.data for entry, _ in memory._buffers
    ]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_list_of_batches_is_as_from_a_callback_each(method):
    images, labels = torch.rand(16, 3, 160, 160), torch.arange(16)
    kept = [method.apply([images, labels], epoch=0, step=step, rank=0) for step in range(5)]
    for step, (x, y) in enumerate(kept):
        fresh = copy.deepcopy(method)
        again_x, again_y = fresh.apply([images, labels], epoch=0, step=step, rank=0)
        assert torch.equal(x, again_x)
        assert torch.equal(y, again_y)
    assert len({x.data_ptr() for x, _ in kept}) == 5


def test_shapes_dtypes_and_memory_formats():
    memory = BatchMemory()
    for tensor in (
        LARGE.contiguous(memory_format=torch.channels_last),
        LARGE.to(torch.bfloat16).repeat(2, 1, 1, 1),
        LARGE.to(torch.uint8).repeat(4, 1, 1, 1),
        LARGE.transpose(0, 3),
        LARGE[:, :1].expand(16, 3, 160, 160),
        torch.zeros(8, 3, 160, 320)[..., ::2].repeat(2, 1, 1, 1),
        torch.zeros(2_000_000, dtype=torch.complex64),
    ):
        assert tensor.nbytes >= LEAST_BYTES
        plain, new = torch.empty_like(tensor), memory.like(tensor)
        assert (new.shape, new.dtype, new.stride()) == (plain.shape, plain.dtype, plain.stride())
        assert torch.equal(new.copy_(tensor), tensor)
    assert memory.like(LARGE[:1]).untyped_storage().nbytes() == LARGE[:1].nbytes
    assert memory.like(LARGE.to("meta")).device.type == "meta"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalised_batches_in_memory_are_the_same(layout):
    images = torch.randint(256, LARGE.shape, dtype=torch.uint8).to(memory_format=layout)
    normalise, memory = Preprocess(mean=[100, 120, 140], std=[50, 60, 70]), BatchMemory()
    expected = (images.double() - torch.tensor([100, 120, 140])[:, None, None]) / torch.tensor(
        [50, 60, 70]
    )[:, None, None]
    kept = normalise(images, memory)
    place = normalise(images.flip(0), memory).data_ptr()
    assert normalise(images[:15], memory).data_ptr() == place != kept.data_ptr()
    torch.testing.assert_close(kept, expected.float(), atol=1e-5, rtol=0)
    assert torch.equal(kept, normalise(images))
    assert kept.stride() == images.stride()


def test_a_copy_has_memory_of_its_own():
    memory = BatchMemory()
    new = memory.like(LARGE)
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert other.like(LARGE).data_ptr() != new.data_ptr()


def test_the_end_of_training_gives_it_back(make_trainer, plain_module):
    images, labels = torch.rand(32, 3, 160, 160), torch.arange(32) % 3
    loader = torch.utils.data.DataLoader(list(zip(images, labels, strict=True)), batch_size=16)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 160 * 160, 3))
    method, member, module = CutMix(), CutMix(), plain_module(net)
    make_trainer(callbacks=[method, OneOf([member])]).fit(module, loader)
    assert method.memory._buffers == member.memory._buffers == []
    assert len(module.seen) == 2


def test_threads_get_different_memory(monkeypatch):
    """Without the lock, several of these batches are those of another thread."""
    monkeypatch.setattr("dlblocks._memory.LEAST_BYTES", 1)
    interval = sys.getswitchinterval()
    memory, tensor, wrong = BatchMemory(), torch.zeros(64), []

    def work(number):
        for step in range(300):
            batch = memory.like(tensor).fill_(number * 1000 + step)
            if not bool((batch == number * 1000 + step).all()):
                wrong.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    try:
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
