"""The classes that layers with adapters, and their dropouts, have while they are patched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from ...ops.inputs import records_gradients
from .. import hooks
from ..kind import SETTINGS
from .deferred import DeferredInput, PendingInput

Settings: TypeAlias = dict[str, Any]
# Their layers do not cast what their dropout gets under autocast. What the others cast passes through it.
_WITHOUT_CAST = ("peft.tuners.lora.bnb", "peft.tuners.lora.hqq")


class _Patched(nn.Module):
    """Base of these classes. The instance stays: optimizers, wrappers and state dicts know its parameters.

    Attributes:
        original_class: the class in the unpatched model.
    """

    original_class: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled with the class in the unpatched model, since no module holds the one that is made from it."""
        reduced: Any = super().__reduce_ex__(4)
        return _new, (self.original_class,), *reduced[2:]


class PatchedDropout(_Patched):
    """Returns what stands for its result, until that is multiplied with the adapter's first matrix."""

    def forward(self, input: Any) -> Any:
        matrices, name = (vars(self)[SETTINGS][key] for key in ("matrices", "adapter"))
        if isinstance(input, Tensor) and name in matrices and not needs_tensor(matrices[name], self):
            input = _deferred(self, input, input.dtype)
        return super().forward(input)


class PatchedLayer(_Patched):
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
    _set_class(layer, PatchedLayer, {"backend": backend})
    patch_dropouts(layer, backend)


def patch_dropouts(layer: Any, backend: str) -> None:
    """The part of `patch_layer` that is done for each adapter."""
    if original_class(layer).__module__ not in _WITHOUT_CAST:
        return
    for name, dropout in layer.lora_dropout.items():
        if type(dropout) in (nn.Dropout, nn.Identity):
            settings = {"backend": backend, "matrices": layer.lora_A, "adapter": name}
            _set_class(dropout, PatchedDropout, settings)


def restore_layer(layer: Any) -> None:
    """Undo `patch_layer`. Does nothing where it is not patched."""
    for module in (layer, *getattr(layer, "lora_dropout", {}).values()):
        if isinstance(module, _Patched):
            module.__class__ = module.original_class  # type: ignore[assignment]
            del vars(module)[SETTINGS]


@contextmanager
def suspended_layer(layer: Any) -> Iterator[None]:
    """Inside, the original classes; afterwards what was there before, whatever was installed."""
    before = [
        (module, type(module), vars(module)[SETTINGS])
        for module in (layer, *getattr(layer, "lora_dropout", {}).values())
        if isinstance(module, _Patched)
    ]
    restore_layer(layer)
    try:
        yield
    finally:
        restore_layer(layer)
        for module, cls, settings in before:
            module.__class__ = cls
            vars(module)[SETTINGS] = settings


@contextmanager
def observed_layer(layer: nn.Module, note: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Inside, pass the input and the result of each call of an unpatched layer to a function."""
    original: Any = type(layer)

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = original.forward(self, x, *args, **kwargs)
        note(x, result)
        return result

    layer.__class__ = type(original.__name__, (original,), {"forward": forward})
    try:
        yield
    finally:
        layer.__class__ = original


def settings_of(layer: nn.Module) -> Settings | None:
    """What was installed, by name; None where it is not patched."""
    return vars(layer)[SETTINGS] if isinstance(layer, PatchedLayer) else None


def needs_tensor(matrix: nn.Module, dropout: nn.Module) -> str | None:
    """Why an adapter has to get its input as a tensor; None where it may be deferred."""
    if not isinstance(matrix, nn.Linear):
        return f"its adapter is wrapped in {type(matrix).__name__}, which needs the tensor that the adapter is given"
    if hook := hooks.hook_of_others(matrix) or hooks.hook_of_others(dropout):
        return f"other code has a hook on its adapter ({hook}), which gets what the unpatched one would get"
    if hook := hooks.own_hook(matrix) or hooks.own_hook(dropout):
        return f"its adapter has a hook that needs the tensor that it is given ({hook})"
    return None


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class in the unpatched model."""
    return module.original_class if isinstance(module, _Patched) else type(module)


def _deferred(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Any:
    if not x.is_floating_point() or not records_gradients(x):
        return x.to(dtype)
    return DeferredInput(PendingInput(x, dtype, vars(module)[SETTINGS]["backend"]))


def _need_tensors(layer: Any) -> Iterator[str]:
    """Why the active adapters need tensors."""
    for name in layer.active_adapters:
        if name in layer.lora_A and (why := needs_tensor(layer.lora_A[name], layer.lora_dropout[name])):
            yield why


def _set_class(module: nn.Module, base: Any, settings: Settings) -> None:
    original: Any = original_class(module)
    module.__class__ = _class(base, original)
    vars(module)[SETTINGS] = settings


@cache
def _class(base: Any, original: Any) -> Any:
    names = {"original_class": original, "__module__": original.__module__, "__qualname__": original.__qualname__}
    return type(original.__name__, (base, original), names)


def _new(original: Any) -> Any:
    base: Any = PatchedDropout if issubclass(original, (nn.Dropout, nn.Identity)) else PatchedLayer
    patched = _class(base, original)
    return patched.__new__(patched)
