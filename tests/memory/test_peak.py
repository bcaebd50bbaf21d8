"""Peak memory of the CUDA devices; empty without CUDA."""

from __future__ import annotations

import pytest
import torch

from hf_invact.memory import peak_bytes, reset_peak

ALLOCATED, RESERVED = "peak_cuda_allocated_bytes", "peak_cuda_reserved_bytes"


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two fake devices; the list records which were reset."""
    reset: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: [100, 300][device])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: [700, 500][device])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    return reset


def test_the_largest_of_the_devices(two_devices: list[int]) -> None:
    assert peak_bytes() == {ALLOCATED: 300, RESERVED: 700}


def test_every_device_is_reset(two_devices: list[int]) -> None:
    reset_peak()
    assert two_devices == [0, 1]


@pytest.mark.parametrize("missing", ["is_available", "is_initialized"])
def test_a_cuda_that_nobody_uses_is_not_touched(
    two_devices: list[int], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(torch.cuda, missing, lambda: False)
    reset_peak()
    assert peak_bytes() == {}
    assert two_devices == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without CUDA")
def test_without_cuda_there_are_no_figures() -> None:
    reset_peak()
    assert peak_bytes() == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device() -> None:
    size = 1 << 24
    kept = torch.zeros(size, dtype=torch.uint8, device="cuda")
    reset_peak()
    before = peak_bytes()[ALLOCATED]
    torch.zeros(3 * size, dtype=torch.uint8, device="cuda")
    assert peak_bytes()[ALLOCATED] - before == 3 * size
    assert peak_bytes()[RESERVED] >= peak_bytes()[ALLOCATED]
    reset_peak()
    assert peak_bytes()[ALLOCATED] == before >= kept.numel()
