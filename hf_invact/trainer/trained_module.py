"""Finds the module and the arguments in what other Trainers (SetFit's, for one) pass to their callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import TrainingArguments

from ..patching import PatchingError


def arguments_of(args: Any, others: Mapping[str, Any]) -> Any:
    """The training arguments: `args`, or (SetFit) another of the callback's arguments."""
    if isinstance(args, TrainingArguments):
        return args
    return next((value for value in others.values() if isinstance(value, TrainingArguments)), args)


def module_of(model: Any) -> nn.Module | None:
    """The module to patch.

    Args:
        model: a module, or an object with modules as attributes (such as SetFit's model).

    Returns:
        The module; of an object, its only module, or one module that holds all of them under the names of the
        attributes; None if it has none.
    """
    if isinstance(model, nn.Module):
        return model
    parts = {name: value for name, value in getattr(model, "__dict__", {}).items() if isinstance(value, nn.Module)}
    return next(iter(parts.values()), None) if len(parts) < 2 else _Parts(parts)


def patchable_module(model: Any) -> nn.Module:
    """As `module_of`, where a module is required.

    Raises:
        PatchingError: the object is not a module and has none.
    """
    module = module_of(model)
    if module is None:
        raise PatchingError(
            f"the trained model is a {type(model).__name__}, which is not a torch.nn.Module and has none among its "
            "attributes. Patch the module that it trains with hf_invact.patch_model"
        )
    return module


class _Parts(nn.Module):
    """Holds the modules of an object that is not a module itself."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self._modules.update(parts)  # `add_module` would refuse some names


def measured_part(module: nn.Module | None) -> nn.Module | None:
    """The module whose forward pass is measured: the largest, if an object holds several."""
    if not isinstance(module, _Parts):
        return module
    return max(module.children(), key=lambda part: sum(weight.numel() for weight in part.parameters()))
