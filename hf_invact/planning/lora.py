"""Low-rank adapters for a model that has no weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..memory.parts import part_classifier
from .errors import PlanningError

ALL = "all"
TARGETS = (ALL, "attention", "mlp")


@dataclass(frozen=True)
class Lora:
    """Adapters on linear layers, whose own weights are frozen, with PEFT's defaults otherwise.

    Attributes:
        r: their rank.
        dropout: on their inputs.
        targets: "all" linear layers but the head, or those of "attention" or "mlp".

    Raises:
        ValueError: a value that is out of its range.
    """

    r: int = 16
    dropout: float = 0.0
    targets: str = ALL

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"the rank r of LoRA must be at least 1, got {self.r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"the dropout of LoRA must be at least 0 and less than 1, got {self.dropout}")
        if self.targets not in TARGETS:
            raise ValueError(f"the targets of LoRA must be one of {', '.join(TARGETS)}, got {self.targets!r}")


def add_adapters(model: PreTrainedModel, lora: Lora) -> None:
    """Put adapters into a model on the meta device.

    Raises:
        PlanningError: PEFT is not installed, or there is no layer to adapt.
    """
    try:
        import peft
    except ImportError as error:
        raise PlanningError("LoRA needs the package peft: pip install peft") from error
    targets = "all-linear" if lora.targets == ALL else _layers(model, lora.targets)
    is_transposed = any(isinstance(module, Conv1D) for module in model.modules())
    config = peft.LoraConfig(r=lora.r, lora_dropout=lora.dropout, target_modules=targets, fan_in_fan_out=is_transposed)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT calls Transformers by names of old
            peft.get_peft_model(model, config)
    except ValueError as error:
        raise PlanningError(f"LoRA cannot be put into {type(model).__name__}: {error}") from error


def _layers(model: PreTrainedModel, part: str) -> list[str]:
    part_of = part_classifier(model)
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    targets = [name for name in layers if part_of(name) == part]
    if not targets:
        raise PlanningError(f"{type(model).__name__} has no linear layer of its {part}; plan LoRA with targets='all'")
    return targets
