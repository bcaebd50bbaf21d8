"""Finds the layers of PEFT that hold adapters, and tells which of them can be patched."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..forwards import replaced_forward
from ..patched_class import original_class
from .patched import needs_tensor

# Their forward was read: it casts the input, drops elements of it, and multiplies it with lora_A, in this order.
SUPPORTED = {
    "peft.tuners.lora.layer.Linear": "LoRA",
    "peft.tuners.lora.bnb.Linear8bitLt": "LoRA, 8 bits",
    "peft.tuners.lora.bnb.Linear4bit": "LoRA, 4 bits",
    "peft.tuners.lora.gptq.GPTQLoraLinear": "LoRA, GPTQ",
    "peft.tuners.lora.hqq.HqqLoraLinear": "LoRA, HQQ",
}
# They compute the adapters of a whole block in a kernel, and do not call the layers that hold them.
_KERNELS = {"unsloth": "Unsloth", "axolotl": "Axolotl"}
_REPLACED = ("apply_qkv", "apply_o")  # what both set in an attention, beside its forward


def find_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The layers with adapters that multiply their input with a matrix.

    Yields:
        The qualified name of the module that holds it, that module, and under which name.
    """
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:
        return
    for holder_name, holder in model.named_modules():
        for name, layer in holder.named_children():
            if isinstance(layer, tuners.BaseTunerLayer) and not _is_embedding(layer):
                yield holder_name, holder, name


def describe(layer: nn.Module) -> str:
    """How messages call it."""
    cls = original_class(layer)
    return SUPPORTED.get(_full_name(cls), f"{_tuner(cls)}'s {cls.__name__}")


def obstacle(holder: nn.Module, layer: Any) -> str | None:
    """Why a layer is left alone; None where it can be patched."""
    cls = original_class(layer)
    if _full_name(cls) not in SUPPORTED:
        return "of adapters, only those of LoRA on PEFT's own linear layers can be patched"
    if variants := {type(variant).__name__ for variant in layer.lora_variant.values()}:
        return f"its adapter is a variant of LoRA ({', '.join(sorted(variants))}), which computes with the input itself"
    if library := _kernels_of(holder, layer):
        return f"{library} computes its adapters in a kernel, and does not call it"
    if by := replaced_forward(layer):
        return f"another library has replaced its forward by {by}"
    for name, matrix in layer.lora_A.items():
        if any(hasattr(weight, "ds_id") for weight in matrix.parameters()):
            return "ZeRO-3 gathers its weights by hooks that need the tensor that the adapter is given"
        if why := needs_tensor(matrix, layer.lora_dropout[name]):
            return why
    return None


def _is_embedding(layer: Any) -> bool:
    return isinstance(layer.get_base_layer(), nn.Embedding)


def _kernels_of(holder: nn.Module, layer: nn.Module) -> str | None:
    """The library whose kernels compute the adapters."""
    named = (getattr(vars(holder).get(name), "__module__", "") for name in _REPLACED)
    forwards = (replaced_forward(module) or "" for module in (holder, layer))
    packages = (name.partition(".")[0] for name in (*named, *forwards))
    return next((_KERNELS[package] for package in packages if package in _KERNELS), None)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _tuner(cls: type) -> str:
    """The name that PEFT has for it: ``lora``, ``loha``, ``vera``, ..."""
    parts = cls.__module__.split(".")
    return parts[2] if parts[:2] == ["peft", "tuners"] else parts[0]
