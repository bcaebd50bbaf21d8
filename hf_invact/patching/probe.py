"""Runs a block on a few tokens, leaving no trace, and counts what it keeps for the backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..memory import SavedActivations
from .pending import NotAGateError, PendingActivation

TOKENS = 4
SEED = 0
HIDDEN_STATES = ("hidden", "residual", "input", "states")  # in names of arguments


class NoProbeError(Exception):
    """Why a block cannot be run by itself."""


@dataclass(frozen=True)
class Scope:
    """What is run: a block, or the layer around it that also holds the activation's consumer.

    Attributes:
        module: whose parameters and buffers do not count.
        method: of it, which takes hidden states, shape (1, tokens, width).
        has_mask: where it requires an attention mask, it gets one of ones instead of None.
        is_image: its hidden states are of shape (1, width, tokens, 1) instead.
    """

    module: nn.Module
    method: Callable[..., Any]
    width: int
    dtype: torch.dtype
    device: torch.device
    has_mask: bool = False
    is_image: bool = False

    def hidden_states(self, tokens: int) -> Tensor:
        """The same numbers every time, as a leaf."""
        shape = (1, self.width, tokens, 1) if self.is_image else (1, tokens, self.width)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
        return x.to(self.device, self.dtype).requires_grad_()

    def run(self, x: Tensor) -> Tensor:
        """The first tensor that it returns for hidden states."""
        parameters = inspect.signature(self.method).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
        required = [p.name for p in positional if p.default is p.empty]
        return _first_tensor(self.method(x, *(self._argument(name, x) for name in required[1:])))

    def _argument(self, name: str, x: Tensor) -> Tensor | None:
        if any(word in name for word in HIDDEN_STATES):
            return x
        return x.new_ones(1, 1, x.shape[1], x.shape[1]) if self.has_mask and "mask" in name else None


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
    """Run forward in training mode, for `TOKENS` and for twice as many, and backward.

    Args:
        scope: what to run.
        autocast_dtype: what it runs under; None leaves the autocast that is active, if any.

    Raises:
        NotAGateError: a strict `PendingActivation` was used otherwise.
        NoProbeError: anything else was raised.
    """
    try:
        few, _ = _count(scope, TOKENS, autocast_dtype)
        many, output = _count(scope, 2 * TOKENS, autocast_dtype)
        _check_backward(scope, autocast_dtype)
    except NotAGateError:
        raise
    except Exception as error:  # whatever a foreign forward raises
        raise NoProbeError(reason(scope.module, error)) from error
    return Measurement((many - few) // TOKENS, output)


def reason(module: nn.Module, error: Exception) -> str:
    """Why a module cannot be run, in a line."""
    text = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
    return f"{type(module).__name__} cannot be run by itself: {text if len(text) <= 120 else f'{text[:117]}...'}"


def _count(scope: Scope, tokens: int, autocast_dtype: torch.dtype | None) -> tuple[int, Tensor]:
    with undisturbed(scope.module, scope.device):
        x = scope.hidden_states(tokens)
        with SavedActivations(scope.module, ignore=[x]) as saved, _autocast(scope, autocast_dtype):
            output = scope.run(x)
        return saved.total_bytes, output


def _check_backward(scope: Scope, autocast_dtype: torch.dtype | None) -> None:
    """Only here autograd notices that a block overwrites what has been saved (and not while saving is metered)."""
    with undisturbed(scope.module, scope.device):
        x = scope.hidden_states(TOKENS)
        with _autocast(scope, autocast_dtype):
            output = scope.run(x)
        torch.autograd.grad(output, x, torch.zeros_like(output), allow_unused=True)


def _autocast(scope: Scope, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(scope.device.type, dtype)


def _first_tensor(output: Any) -> Tensor:
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
    """Training mode and gradients inside; outside, random states, buffers and attributes are as they were.

    So are parameters whose data a forward pass replaces (bitsandbytes casts biases), though not what it writes to them.
    """
    modules = list(module.modules())
    attributes = [dict(vars(each)) for each in modules]
    registered = [dict(each._buffers) for each in modules]
    weights = [(weight, weight.data) for weight in module.parameters()]
    values = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
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
            for weight, data in weights:
                if weight.untyped_storage()._cdata != data.untyped_storage()._cdata:
                    weight.data = data
            for buffer, value in values:
                buffer.data.copy_(value)  # as data: a graph that has saved the buffer must not take it for changed
