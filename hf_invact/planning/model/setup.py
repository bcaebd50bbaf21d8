"""The options of a plan: what is trained, and how."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import torch
from transformers import PretrainedConfig

from ...patching import InvActConfig
from ...patching.config import AUTOCAST_DTYPES, SHORT_NAMES
from ..fake.flash_attention import FLASH_ATTENTION, check_flash_attention
from ..fake.tensors import DEVICES
from .build import ATTENTION, DTYPES
from .lora import Lora


class Options(TypedDict, total=False):
    """The fields of a `Setup` except the model, as keyword arguments."""

    dtype: str
    autocast: bool | str
    lora: Lora | None
    attention: str
    config: InvActConfig
    device: str


@dataclass(frozen=True)
class Setup:
    """A model and how it is trained, except for the batches and for checkpointing.

    Attributes:
        model: a name on the hub, a local folder, a ``config.json``, or a config of Transformers.
        dtype: of the weights: "float32", "bfloat16" or "float16" (or "fp32", "bf16", "fp16").
        autocast: whether it runs under autocast, as for `hf_invact.plan_memory`.
        lora: adapters; None trains all weights.
        attention: implementation, as for `hf_invact.plan_memory`.
        config: what to patch, and how, if the model is patched.
        device: "cuda", or "cpu" to predict a run on a CPU.

    Raises:
        ValueError: an unknown option.
        PlanningError: flash attention has no kernel for this dtype or device.
    """

    model: str | Path | PretrainedConfig
    dtype: str = "bfloat16"
    autocast: bool | str = False
    lora: Lora | None = None
    attention: str = "sdpa"
    config: InvActConfig = field(default_factory=InvActConfig)
    device: str = "cuda"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", SHORT_NAMES.get(self.dtype, self.dtype))
        check_choice("dtype", self.dtype, DTYPES)
        if isinstance(self.autocast, str):
            check_choice("autocast", SHORT_NAMES.get(self.autocast, self.autocast), AUTOCAST_DTYPES)
        check_choice("attention", self.attention, ATTENTION)
        check_choice("device", self.device, DEVICES)
        if self.attention == FLASH_ATTENTION:
            check_flash_attention(self.dtype, bool(self.autocast), self.device)

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype of autocast in the forward pass; None for no autocast."""
        if not self.autocast:
            return None
        if self.autocast is True:
            return torch.float16 if self.dtype == "float16" else torch.bfloat16
        return AUTOCAST_DTYPES[SHORT_NAMES.get(self.autocast, self.autocast)]


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise ValueError for an unknown value."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
