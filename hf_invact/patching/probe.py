"""Runs a block on a few tokens, leaving no trace, and counts what it keeps for the backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..memory import SavedActivations
from .pending import NotAGateError, PendingActivation

TOKENS = 4
SEED = 0
HIDDEN_STATES = ("hidden", "residual", "input", "states")  # in names of arguments


@dataclass(frozen=True)
class Scope:
    """What is run: a block, or the layer around it that also holds the activation's consumer.

    Attributes:
        module: whose parameters and buffers do not count.
        call: a method of it, which takes hidden states, shape (1, tokens, width).
    """

    module: nn.Module
    call: Callable[..., Any]
    width: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Measurement:
    """What a run keeps, beyond its input, and its result.

    Attributes:
        bytes_per_token: what one more token adds, so that copies of weights do not count.
        output: the first tensor that the scope returns.
    """

    bytes_per_token: int
    output: Tensor


def measure(scope: Scope, autocast_dtype: torch.dtype | None) -> Measurement:
    """Run forward in training mode, for `TOKENS` and for twice as many."""
    few, _ = run(scope, TOKENS, autocast_dtype)
    many, output = run(scope, 2 * TOKENS, autocast_dtype)
    return Measurement((many - few) // TOKENS, output)


def run(scope: Scope, tokens: int, autocast_dtype: torch.dtype | None) -> tuple[int, Tensor]:
    """Run forward in training mode. Returns the bytes that are kept, beyond the input, and the result."""
    with undisturbed(scope.module, scope.device):
        torch.manual_seed(SEED)
        x = torch.randn(1, tokens, scope.width).to(device=scope.device, dtype=scope.dtype).requires_grad_()
        autocast = torch.autocast(scope.device.type, autocast_dtype, enabled=autocast_dtype is not None)
        with SavedActivations(scope.module, ignore=[x]) as saved, autocast:
            output = first_tensor(call(scope.call, x))
        return saved.total_bytes, output


def call(function: Callable[..., Any], x: Tensor) -> Any:
    """Call a forward method with hidden states alone, a mask that hides nothing, and None for what else it requires."""
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
    required = [p.name for p in positional if p.default is p.empty]
    return function(x, *(_stand_in(name, x) for name in required[1:]))


def _stand_in(name: str, x: Tensor) -> Tensor | None:
    if "mask" in name:
        return x.new_ones(1, 1, x.shape[1], x.shape[1])
    return x if any(word in name for word in HIDDEN_STATES) else None


def first_tensor(output: Any) -> Tensor:
    """A tensor that a module returned, by itself or first of several."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if isinstance(output, PendingActivation):
        raise NotAGateError("the block returns the activation itself")
    if not isinstance(output, Tensor):
        raise TypeError(f"returned {type(output).__name__}, no tensor")
    return output


@contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Training mode and gradients inside; outside, random states, buffers and attributes are as they were."""
    modules = list(module.modules())
    attributes = [dict(vars(each)) for each in modules]
    registered = [dict(each._buffers) for each in modules]
    values = [(buffer, buffer._version, buffer.detach().clone()) for buffer in module.buffers()]
    devices = [] if device.type in ("cpu", "meta") else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"), torch.enable_grad():
        try:
            for each in modules:
                each.training = True
            yield
        finally:
            for each, before, buffers in zip(modules, attributes, registered, strict=True):
                vars(each).clear()
                vars(each).update(before)
                each._buffers.clear()
                each._buffers.update(buffers)
            with torch.no_grad():
                for buffer, version, value in values:
                    if buffer._version != version:
                        buffer.copy_(value)
