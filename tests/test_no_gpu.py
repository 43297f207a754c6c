"""The question for a GPU, at every step of an optimizer."""

import os

import pytest
import torch

from dlblocks._lightning import NVML_CHECK, quick_gpu_check


def test_the_environment_is_as_before(monkeypatch):
    monkeypatch.setenv(NVML_CHECK, "1")
    there = torch.cuda.is_available()
    with pytest.raises(KeyError), quick_gpu_check(), quick_gpu_check():
        assert os.environ[NVML_CHECK] == ("1" if there else "0")
        assert torch.cuda.is_available() == there
        raise KeyError
    assert os.environ[NVML_CHECK] == "1"


def test_a_gpu_is_asked_for_as_before(monkeypatch):
    monkeypatch.setenv(NVML_CHECK, "1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with quick_gpu_check():
        assert os.environ[NVML_CHECK] == "1"
    monkeypatch.delenv(NVML_CHECK)
    with quick_gpu_check():
        assert NVML_CHECK not in os.environ
