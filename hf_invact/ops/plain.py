"""Leaves the caller's modes, for what is made once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def plain_cpu() -> Iterator[None]:
    """Whatever the caller's modes, what is made here are plain tensors on the CPU, of the dtypes that are asked for."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"), torch.autocast("cpu", enabled=False):
        yield
