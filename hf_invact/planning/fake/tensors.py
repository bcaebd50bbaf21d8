"""The context in which a model is built, patched and run for a plan: its tensors have no memory."""

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
    """Tensors made inside have shapes but no memory, and save for the backward pass what those of the device would.

    All are CPU tensors. For "cuda", operations that save something else on CUDA are replaced (see `kernels`).
    """
    with ExitStack() as stack:
        stack.enter_context(_restored_cache())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Kernels(device))
        if device == "cuda":
            stack.enter_context(CudaFunctions())
            stack.enter_context(flash_attention_registered())
        stack.enter_context(RealIntegers())
        yield


@contextmanager
def _restored_cache() -> Iterator[None]:
    """Removes what PyTorch adds to its cache of fake results, which is hundreds of entries per config.

    The cache stays active inside: layers are alike, and without it a plan takes twice as long.
    """
    before = set(FakeTensorMode.cache)
    try:
        yield
    finally:
        for key in set(FakeTensorMode.cache) - before:
            FakeTensorMode.cache.pop(key, None)


def recompute_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of checkpoints: recomputed layers run in the same modes as before, which autograd does not restore."""
    modes = _get_current_function_mode_stack()

    @contextmanager
    def same_modes() -> Iterator[None]:
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            yield

    return nullcontext(), same_modes()


def make_fake(model: nn.Module) -> None:
    """Replace the weights and buffers of a model on the meta device by active fake tensors, tied as before."""
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
