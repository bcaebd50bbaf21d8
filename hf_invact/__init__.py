"""Inverted activations: much less activation memory for fine-tuning Hugging Face models, and the same training.

An activation ``y = f(x)`` usually keeps its input for the backward pass although the next layer keeps its output
anyway. Here it keeps the output and one bit per element instead (arXiv 2407.15545).
"""

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
    unpatch_model,
)
from .planning import Lora, MemoryPlan, PlanningError, plan_memory
from .trainer import (
    InvActArgumentsMixin,
    InvActTrainerMixin,
    InvActTrainingArguments,
    InvertedActivationsCallback,
    MemoryCallback,
)

__version__ = "0.1.0"

__all__ = [
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
    "plan_memory",
    "register_activation",
    "register_block",
    "unpatch_model",
]
