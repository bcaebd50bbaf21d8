"""The options of a plan: what is trained, and how."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn
from transformers import PretrainedConfig

from ...patching import InvActConfig
from ...patching.config import AUTOCAST_DTYPES, SHORT_NAMES
from ..errors import PlanningError
from ..fake.flash_attention import FLASH_ATTENTION, check_flash_attention
from ..fake.tensors import DEVICES
from .lora import Lora
from .quantized import QUANTIZATIONS
from .real import Facts, facts_of

DTYPES = {"float32": torch.float32, **AUTOCAST_DTYPES}
ATTENTION = ("sdpa", "eager", FLASH_ATTENTION)


class Options(TypedDict, total=False):
    """The fields of a `Setup` except the model, as keyword arguments."""

    dtype: str | None
    autocast: bool | str
    lora: Lora | None
    quantize: str | None
    attention: str | None
    config: InvActConfig
    device: str | None
    padded: bool


@dataclass(frozen=True)
class Setup:
    """A model and how it is trained, except for the batches and for checkpointing.

    Attributes:
        model: a name on the hub, a local folder, a ``config.json``, a config of Transformers, or a model.
        dtype: of the weights: "float32", "bfloat16" (the default) or "float16" (or "fp32", "bf16", "fp16").
        autocast: whether it runs under autocast, as for `hf_invact.plan_memory`.
        lora: adapters; None trains all weights.
        quantize: "4bit" or "8bit": linear layers but the head as bitsandbytes holds them.
        attention: implementation, as for `hf_invact.plan_memory`.
        config: what to patch, and how, if the model is patched.
        device: "cuda" (the default), or "cpu" to predict a run on a CPU.
        padded: whether sequences are of different lengths, so that some tokens are padding, and attention keeps a mask.
        facts: the dtype, the attention and the device that are planned.

    A model has its own dtype, adapters, quantization, attention and device. Only another device can be given.

    Raises:
        ValueError: an unknown option, or one that a model has itself.
        PlanningError: flash attention has no kernel for this dtype or device; of a model, that it cannot be planned.
    """

    model: str | Path | PretrainedConfig | nn.Module
    dtype: str | None = None
    autocast: bool | str = False
    lora: Lora | None = None
    attention: str | None = None
    config: InvActConfig = field(default_factory=InvActConfig)
    device: str | None = None
    quantize: str | None = None
    padded: bool = False
    facts: Facts = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.model, nn.Module):
            for name in ("dtype", "attention", "lora", "quantize"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(f"{name}={value!r} is for configs; a model is planned with the {name} that it has")
            facts = facts_of(self.model)
        else:
            facts = Facts(
                SHORT_NAMES.get(self.dtype or "", self.dtype) or Facts().dtype, self.attention or Facts().attention
            )
            check_choice("dtype", facts.dtype, DTYPES)
            check_choice("attention", facts.attention, ATTENTION)
        facts = facts._replace(device=self.device or facts.device)
        check_choice("device", facts.device, DEVICES)
        if isinstance(self.autocast, str):
            check_choice("autocast", SHORT_NAMES.get(self.autocast, self.autocast), AUTOCAST_DTYPES)
        if self.quantize is not None:
            check_choice("quantize", self.quantize, QUANTIZATIONS)
        if facts.attention == FLASH_ATTENTION:
            check_flash_attention(facts.dtype, bool(self.autocast), facts.device)
            if self.padded:
                raise PlanningError("flash attention keeps no mask for padding; plan without padded")
        object.__setattr__(self, "facts", facts)

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype of autocast in the forward pass; None for no autocast."""
        if not self.autocast:
            return None
        if self.autocast is True:
            return torch.float16 if self.facts.dtype == "float16" else torch.bfloat16
        return AUTOCAST_DTYPES[SHORT_NAMES.get(self.autocast, self.autocast)]


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise ValueError for an unknown value."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
