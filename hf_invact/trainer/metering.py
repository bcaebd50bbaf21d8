"""Meters the forward passes of the first training step, or says why it cannot."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from ..memory import SavedActivations
from ..memory.compiled import compiled_modules
from ..memory.module_calls import Call, watch, watchers

_NOT_CALLED = (
    "no training forward pass went through the model itself (it is compiled as part of a larger function, or its "
    "parts are called one by one)"
)
_TRANSFORMED = (
    "the model uses torch.func.grad or a similar transform, which PyTorch does not allow together with the meter's "
    "hooks (the first forward pass was repeated without them, with the same random numbers)"
)
_REFUSAL = "saved tensor hooks"  # part of PyTorch's message
_OFFLOADED = "other hooks handle the saved tensors (such as activation offloading)"


def why_not_measured(args: TrainingArguments, model: Any) -> str:
    """Why the first step cannot be measured, as far as it is known before; empty if nothing prevents it."""
    if not isinstance(model, nn.Module):
        return f"the model is a {type(model).__name__}, not an nn.Module"
    if args.torch_compile or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        return "torch.compile is on"
    if compiled := compiled_modules(model):
        more = f" and {len(compiled) - 1} more of its modules are" if len(compiled) > 1 else " is"
        return f"torch.compile is used: {compiled[0] or 'the model'}{more} compiled"
    if args.n_gpu > 1:
        return "nn.DataParallel replicates the model (launch with torchrun instead, and each process is measured)"
    return ""


class StepMeter:
    """Meters the training forward passes of a model until a backward pass has released what they saved.

    It then ends by itself, as it does when a forward pass raises. All callbacks that measure a model share one meter.

    Attributes:
        saved: the measurement; None before the first forward pass.
        why_not: why there is no measurement.
    """

    def __init__(self, model: nn.Module) -> None:
        self.saved: SavedActivations | None = None
        self.why_not = _NOT_CALLED
        self._model = model
        self._thread = threading.get_ident()
        self._is_inside = False
        self._until_end = ExitStack()
        self._until_end.callback(watch(model, self))

    @classmethod
    def of(cls, model: nn.Module) -> StepMeter:
        return next((watcher for watcher in watchers(model) if isinstance(watcher, cls)), None) or cls(model)

    def until_end(self, undo: Callable[[], None]) -> None:
        """Register a function to call when the meter ends."""
        self._until_end.callback(undo)

    def end(self) -> None:
        self._until_end.close()

    def __call__(self, call: Call) -> Any:
        trains = self._model.training and torch.is_grad_enabled()
        if not trains or self._is_inside or threading.get_ident() != self._thread:
            return call()
        if self.saved is not None and self.saved.is_released:
            self.end()
            return call()
        if hooks_are_active():  # only the innermost hooks run: the meter would disable the offloading
            self.end()
            self.why_not = _OFFLOADED
            return call()
        return self._metered(call)

    def _metered(self, call: Call) -> Any:
        self.saved = self.saved or SavedActivations(self._model)
        self._is_inside = True
        random_state = _random_state()
        try:
            with self.saved:
                return call()
        except BaseException as error:
            self.end()
            if not (isinstance(error, RuntimeError) and _REFUSAL in str(error)):
                raise
        finally:
            self._is_inside = False
        self.saved, self.why_not = None, _TRANSFORMED
        _set_random_state(random_state)
        return call()


def _random_state() -> tuple[Tensor, list[Tensor]]:
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return torch.get_rng_state(), on_devices


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    on_cpu, on_devices = state
    torch.set_rng_state(on_cpu)
    for device, on_device in enumerate(on_devices):
        torch.cuda.set_rng_state(on_device, device)


def hooks_are_active() -> bool:
    """Whether saved-tensor hooks (of activation offloading, say) are active."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("checks whether hooks are active"):
            return False
    except RuntimeError:
        return True
