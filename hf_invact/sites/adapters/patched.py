"""The classes that layers with adapters, and their dropouts, have while they are patched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...ops.inputs import records_gradients
from .. import hooks
from ..kind import SETTINGS
from ..patched_class import PatchedClass, original_class, patch_class
from .deferred import DeferredInput, PendingInput

# Their layers do not cast what their dropout gets under autocast. What the others cast passes through it.
_WITHOUT_CAST = ("peft.tuners.lora.bnb", "peft.tuners.lora.hqq")


class PatchedDropout(PatchedClass):
    """Returns what stands for its result, until that is multiplied with the adapter's first matrix."""

    def forward(self, input: Any) -> Any:
        matrices, name = (vars(self)[SETTINGS][key] for key in ("matrices", "adapter"))
        if isinstance(input, Tensor) and name in matrices and not needs_tensor(matrices[name], self):
            input = _deferred(self, input, input.dtype)
        return super().forward(input)


class PatchedLayer(PatchedClass):
    """A layer with adapters, which get its input as it came, in place of a copy in their dtype."""

    def _cast_input_dtype(self, x: Any, dtype: torch.dtype) -> Any:
        """What PEFT calls before the dropout of each active adapter, with the result for the one before."""
        if isinstance(x, DeferredInput):
            if x.pending.dtype == dtype:
                return x
            x = x.pending.x if x.pending.is_lossless() else x.pending.tensor()
        is_cast = getattr(self, "cast_input_dtype_enabled", True)
        if is_cast and isinstance(x, Tensor) and not any(_need_tensors(self)):
            return _deferred(self, x, dtype)
        return super()._cast_input_dtype(x, dtype)  # type: ignore[misc]

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adds an adapter, which is patched as the others are."""
        super().update_layer(adapter_name, *args, **kwargs)  # type: ignore[misc]
        patch_dropouts(self, vars(self)[SETTINGS]["backend"])


def patch_layer(layer: Any, backend: str) -> None:
    """Have the adapters of a layer keep its input as it comes."""
    patch_class(layer, PatchedLayer, {"backend": backend})
    patch_dropouts(layer, backend)


def patch_dropouts(layer: Any, backend: str) -> None:
    """The part of `patch_layer` that is done for each adapter."""
    if original_class(layer).__module__ not in _WITHOUT_CAST:
        return
    for name, dropout in layer.lora_dropout.items():
        if type(dropout) in (nn.Dropout, nn.Identity):
            settings = {"backend": backend, "matrices": layer.lora_A, "adapter": name}
            patch_class(dropout, PatchedDropout, settings)


def parts(layer: Any) -> tuple[nn.Module, ...]:
    """What may be patched: a layer, and the dropouts of its adapters."""
    return layer, *getattr(layer, "lora_dropout", {}).values()


def needs_tensor(matrix: nn.Module, dropout: nn.Module) -> str | None:
    """Why an adapter has to get its input as a tensor; None where it may be deferred."""
    if not isinstance(matrix, nn.Linear):
        return f"its adapter is wrapped in {type(matrix).__name__}, which needs the tensor that the adapter is given"
    if hook := hooks.hook_of_others(matrix) or hooks.hook_of_others(dropout):
        return f"other code has a hook on its adapter ({hook}), which gets what the unpatched one would get"
    if hook := hooks.own_hook(matrix) or hooks.own_hook(dropout):
        return f"its adapter has a hook that needs the tensor that it is given ({hook})"
    return None


def _deferred(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Any:
    if not x.is_floating_point() or not records_gradients(x):
        return x.to(dtype)
    return DeferredInput(PendingInput(x, dtype, vars(module)[SETTINGS]["backend"]))


def _need_tensors(layer: Any) -> Iterator[str]:
    """Why the active adapters need tensors."""
    for name in layer.active_adapters:
        if name in layer.lora_A and (why := needs_tensor(layer.lora_A[name], layer.lora_dropout[name])):
            yield why
