"""Finds the modules that nothing calls, since a copy takes their place."""

from __future__ import annotations

from torch import nn


def replaced_by_copies(model: nn.Module) -> set[nn.Module]:
    """The modules that PEFT replaces by a trained copy (``modules_to_save``), and all modules in them."""
    found: set[nn.Module] = set()
    for module in model.modules():
        if not ("original_module" in module._modules and "modules_to_save" in module._modules):
            continue
        original, copies = module.get_submodule("original_module"), module.get_submodule("modules_to_save")
        active = () if getattr(module, "disable_adapters", False) else getattr(module, "active_adapters", ())
        if any(adapter in copies._modules for adapter in active):
            found.update(original.modules())
    return found
