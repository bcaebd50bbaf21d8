"""Low-rank adapters for a model without weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...memory.parts import part_classifier
from ..errors import PlanningError

ALL = "all"
PARTS = ("attention", "mlp")


@dataclass(frozen=True)
class Lora:
    """LoRA adapters on linear layers, with PEFT's defaults otherwise. All other weights are frozen.

    Attributes:
        r: the rank.
        dropout: on the input of each adapter.
        targets: "all" linear layers except the head, those of "attention" or "mlp", or names of layers such as
            "q_proj"; join several with "+": "q_proj+v_proj".

    Raises:
        ValueError: an invalid value.
    """

    r: int = 16
    dropout: float = 0.0
    targets: str = ALL

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"the rank r of LoRA must be at least 1, got {self.r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"the dropout of LoRA must be at least 0 and less than 1, got {self.dropout}")
        if not all(self.target_names) or (ALL in self.target_names and len(self.target_names) > 1):
            raise ValueError(
                f"the targets of LoRA must be {ALL}, {', '.join(PARTS)} or names of layers such as q_proj, several "
                f"joined by +, got {self.targets!r}"
            )

    @property
    def target_names(self) -> list[str]:
        """The targets as a list."""
        return self.targets.split("+")


def parse_lora(text: str) -> Lora:
    """Parse the text of ``--lora``. Values that it does not name have their defaults.

    Raises:
        ValueError: an unknown name or an invalid value.

    >>> parse_lora("r=8,targets=q_proj+v_proj")
    Lora(r=8, dropout=0.0, targets='q_proj+v_proj')
    """
    kinds: dict[str, Callable[[str], Any]] = {"r": int, "dropout": float, "targets": str}
    values: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in kinds:
            raise ValueError(
                f"unknown {item!r}; expected r=INT, dropout=FLOAT, targets={ALL}|{'|'.join(PARTS)}|q_proj+v_proj"
            )
        if key in values and key != "targets":
            raise ValueError(f"{key} is given twice")
        try:
            parsed = kinds[key](value)
        except ValueError:
            raise ValueError(f"invalid value {value!r} for {key}") from None
        values[key] = f"{values[key]}+{parsed}" if key in values else parsed
    return Lora(**values)


def add_adapters(model: PreTrainedModel, lora: Lora) -> None:
    """Add adapters to a model on the meta device.

    Raises:
        PlanningError: PEFT is not installed, or the model has no such layer.
    """
    try:
        import peft
    except ImportError as error:
        raise PlanningError("LoRA needs the package peft: pip install peft") from error
    targets = (
        "all-linear"
        if lora.targets == ALL
        else [name for target in lora.target_names for name in _layers(model, target)]
    )
    is_transposed = any(isinstance(module, Conv1D) for module in model.modules())
    config = peft.LoraConfig(r=lora.r, lora_dropout=lora.dropout, target_modules=targets, fan_in_fan_out=is_transposed)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT uses deprecated names of Transformers
            peft.get_peft_model(model, config)
    except Exception as error:  # PEFT's own checks, and impossible sizes
        raise PlanningError(f"LoRA cannot be added to {type(model).__name__}: {error}") from error


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether there are LoRA adapters in a model."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


def trained_first_matrices(model: PreTrainedModel) -> list[nn.Parameter]:
    """The matrices A of a model's adapters that are trained; LoRA-FA freezes them."""
    return [weight for name, weight in model.named_parameters() if ".lora_A." in name and weight.requires_grad]


def casting_disabled(model: PreTrainedModel, disabled: bool) -> AbstractContextManager[None]:
    """A context in which PEFT gives adapters their input as it comes, if it is disabled to cast it."""
    if not disabled:
        return nullcontext()
    from peft.helpers import disable_input_dtype_casting

    context: AbstractContextManager[None] = disable_input_dtype_casting(model)
    return context


def adapters_need_casts(model: PreTrainedModel, autocast_dtype: torch.dtype | None) -> str:
    """Why adapters cannot do without PEFT's casts of their input; empty if they can."""
    dtypes = {weight.dtype for name, weight in model.named_parameters() if ".lora_A." in name}
    if autocast_dtype is not None or dtypes <= {model.dtype}:
        return ""
    adapters, weights = (str(dtype).partition(".")[2] for dtype in (*dtypes, model.dtype))
    return f"Only autocast multiplies inputs in {weights} with adapters in {adapters}."


def _layers(model: PreTrainedModel, target: str) -> list[str]:
    """The linear layers of a part of the model, or whose qualified name ends with the target (as in PEFT)."""
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    if target in PARTS:
        part_of = part_classifier(model)
        found = [name for name in layers if part_of(name) == target]
        what = f"of its {target}"
    else:
        found = [name for name in layers if f".{name}".endswith(f".{target}")]
        what = f"with the name {target!r}"
    if not found:
        known = dict.fromkeys(name.rpartition(".")[2] for name in layers)
        raise PlanningError(f"{type(model).__name__} has no linear layer {what}; LoRA can adapt {', '.join(known)}")
    return found
