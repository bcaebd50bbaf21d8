"""Inverted activations: fine-tune Hugging Face models with much less activation memory, and the same training.

An activation ``y = f(x)`` usually saves its input for the backward pass, although the next layer saves its output
anyway. An inverted one saves only the output and one bit per element (arXiv 2407.15545).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import functional, memory, nn
    from .patching import (
        InvActConfig,
        PatchingError,
        PatchReport,
        RegisteredActivation,
        inverted_activations,
        patch_model,
        register_activation,
        register_block,
        register_norm,
        unpatch_model,
    )
    from .planning import BudgetPlan, Lora, MemoryPlan, PlanningError, plan_budget, plan_memory
    from .trainer import (
        InvActArgumentsMixin,
        InvActTrainerMixin,
        InvActTrainingArguments,
        InvertedActivationsCallback,
        MemoryCallback,
    )

__version__ = "0.1.0"

__all__ = [
    "BudgetPlan",
    "InvActArgumentsMixin",
    "InvActConfig",
    "InvActTrainerMixin",
    "InvActTrainingArguments",
    "InvertedActivationsCallback",
    "Lora",
    "MemoryCallback",
    "MemoryPlan",
    "PatchReport",
    "PatchingError",
    "PlanningError",
    "RegisteredActivation",
    "functional",
    "inverted_activations",
    "memory",
    "nn",
    "patch_model",
    "plan_budget",
    "plan_memory",
    "register_activation",
    "register_block",
    "register_norm",
    "unpatch_model",
]

_PARTS = ("curves", "functional", "memory", "nn", "ops", "patching", "planning", "trainer")
_WITH_PUBLIC_NAMES = ("patching", "planning", "trainer")


def __getattr__(name: str) -> Any:
    """Imports a part at its first use: `hf-invact run` must not import torch before the script does."""
    if name in _PARTS:
        return import_module(f".{name}", __name__)
    if name in __all__:
        for part in map(__getattr__, _WITH_PUBLIC_NAMES):
            if name in part.__all__:
                globals()[name] = value = getattr(part, name)
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})
