"""Peak memory of the CUDA devices that this process uses."""

from __future__ import annotations

import torch


def reset_peak() -> None:
    """Start a new measurement. Does nothing without CUDA."""
    for device in range(_device_count()):
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes() -> dict[str, int]:
    """Peak bytes since `reset_peak`, the largest over the devices; empty without CUDA.

    Keys: ``peak_cuda_allocated_bytes`` (tensors) and ``peak_cuda_reserved_bytes`` (held by the caching allocator).
    """
    devices = range(_device_count())
    if not devices:
        return {}
    return {
        "peak_cuda_allocated_bytes": max(torch.cuda.max_memory_allocated(device) for device in devices),
        "peak_cuda_reserved_bytes": max(torch.cuda.max_memory_reserved(device) for device in devices),
    }


def _device_count() -> int:
    # Reading a device's statistics would initialise CUDA.
    return torch.cuda.device_count() if torch.cuda.is_available() and torch.cuda.is_initialized() else 0
