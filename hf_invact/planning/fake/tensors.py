"""Tensors without memory: where a model is built, patched and run for a plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import _get_current_function_mode_stack

from ...inputs.integers import RealIntegers
from .flash_attention import flash_attention_registered
from .kernels import CudaFunctions, Kernels

DEVICES = ("cuda", "cpu")


@contextmanager
def fake_tensors(device: str) -> Iterator[None]:
    """Tensors that are made inside have shapes and no memory, and keep for the backward pass what a device's would.

    All are CPU tensors: for "cuda", the operations that save something else there are replaced (see `kernels`).
    """
    with ExitStack() as stack:
        stack.enter_context(_cache_left_as_it_was())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Kernels(device))
        if device == "cuda":
            stack.enter_context(CudaFunctions())
            stack.enter_context(flash_attention_registered())
        stack.enter_context(RealIntegers())
        yield


@contextmanager
def _cache_left_as_it_was() -> Iterator[None]:
    """PyTorch remembers what each fake operation returned until the process ends: hundreds of entries for each config.

    It has to remember while a model runs, whose layers are alike: without, a plan takes twice as long.
    """
    before = set(FakeTensorMode.cache)
    try:
        yield
    finally:
        for key in set(FakeTensorMode.cache) - before:
            FakeTensorMode.cache.pop(key, None)


def recomputation() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For checkpoints: layers that are computed again keep what they kept. (Autograd runs them outside such modes.)"""
    modes = _get_current_function_mode_stack()

    @contextmanager
    def as_before() -> Iterator[None]:
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            yield

    return nullcontext(), as_before()


def make_fake(model: nn.Module) -> None:
    """Give a model on the meta device weights and buffers of the fake tensors that are active, tied as they were."""
    made: dict[Tensor, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if tensor not in made:
            empty = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
            is_weight = isinstance(tensor, nn.Parameter)
            made[tensor] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
        return made[tensor]

    for module in model.modules():
        holders: list[dict[str, Any]] = [vars(module)["_parameters"], vars(module)["_buffers"], vars(module)]
        for tensors in holders:
            for name, value in tensors.items():
                if isinstance(value, Tensor):
                    tensors[name] = fake(value)
