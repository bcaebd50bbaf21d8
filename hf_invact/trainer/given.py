"""What a Trainer hands to its callbacks, where that is another object than the Trainer of Transformers hands over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import TrainingArguments

from ..patching import PatchingError


def arguments_of(args: Any, others: Mapping[str, Any]) -> Any:
    """The training arguments: what is called so, or (SetFit) what it has beside it."""
    if isinstance(args, TrainingArguments):
        return args
    return next((value for value in others.values() if isinstance(value, TrainingArguments)), args)


def module_of(model: Any) -> nn.Module | None:
    """What can be patched of a model.

    Args:
        model: a module; or an object that holds some (as SetFit's model holds its body) and is no module itself.

    Returns:
        The module; of an object the one that it holds, or one that holds all, each under the name of its attribute;
        None where there is none.
    """
    if isinstance(model, nn.Module):
        return model
    parts = {name: value for name, value in getattr(model, "__dict__", {}).items() if isinstance(value, nn.Module)}
    return next(iter(parts.values()), None) if len(parts) < 2 else _Parts(parts)


def patchable_module(model: Any) -> nn.Module:
    """The same, where something has to be patched.

    Raises:
        PatchingError: there is none.
    """
    module = module_of(model)
    if module is None:
        raise PatchingError(
            f"the model that is trained is a {type(model).__name__}, which is no torch.nn.Module and has none among "
            "its attributes. Patch the module that it trains with hf_invact.patch_model"
        )
    return module


class _Parts(nn.Module):
    """Holds the modules of an object that is none."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self._modules.update(parts)  # whatever the attributes are called


def measured_part(module: nn.Module | None) -> nn.Module | None:
    """The module whose forward pass is measured: of several that an object holds, the largest."""
    if not isinstance(module, _Parts):
        return module
    return max(module.children(), key=lambda part: sum(weight.numel() for weight in part.parameters()))
