"""The attention of the package flash-attn, on fake tensors.

Transformers refuses it if the package is not installed, and it runs on GPUs only. So a model is built with another
attention and then switched to a function of this module, which is registered under a name of its own while tensors are
fake. Other models never use it.

What it saves follows the source of flash-attn, and was not compared with a measurement: query, key and value as the
model passes them (padded to a head size that is a multiple of 8), the output, a float32 per row and head, and the
random state (counted with the 24 bytes of sdpa's kernel, not 16). There is no mask: windows are an argument of the
kernel, and no sequence is padded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations.flash_attention import get_target_dtype
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..errors import PlanningError
from .attention import FLASH_MAX_HEAD, flash

FLASH_ATTENTION = "flash_attention_2"
_OURS = f"hf_invact_{FLASH_ATTENTION}"  # models look for "flash" in the name
_INSTEAD = "choose the attention 'sdpa' or 'eager'"


@contextmanager
def flash_attention_registered() -> Iterator[None]:
    """Models after `use_flash_attention` can be run inside."""
    ALL_ATTENTION_FUNCTIONS[_OURS] = _attend
    ALL_MASK_ATTENTION_FUNCTIONS[_OURS] = ALL_MASK_ATTENTION_FUNCTIONS[FLASH_ATTENTION]
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[_OURS], ALL_MASK_ATTENTION_FUNCTIONS[_OURS]


def check_flash_attention(dtype: str, autocast: bool, device: str) -> None:
    """Check that flash attention has a kernel for a dtype and a device.

    Raises:
        PlanningError: it has none.
    """
    if dtype == "float32" and not autocast:
        raise PlanningError(
            f"flash attention has no kernel for float32; plan with dtype='bfloat16' or autocast, or {_INSTEAD}"
        )
    if device == "cpu":
        raise PlanningError(f"flash attention has no kernel for the CPU; plan for 'cuda', or {_INSTEAD}")


def use_flash_attention(model: PreTrainedModel) -> None:
    """Switch all layers of a model to it.

    Raises:
        PlanningError: a part of the model does not support it.
    """
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and not _can_use(part):
            raise PlanningError(f"{type(part).__name__} has no {FLASH_ATTENTION} that can be planned; {_INSTEAD}")
    for part in model.modules():  # parts may have configs of their own
        config = getattr(part, "config", None)
        if isinstance(config, PretrainedConfig):
            config._attn_implementation = _OURS


def attention_of(model: PreTrainedModel) -> str:
    """The attention that a model uses, as Transformers calls it."""
    name: str = model.config._attn_implementation
    return FLASH_ATTENTION if name == _OURS else name


def _can_use(model: PreTrainedModel) -> bool:
    # The second name is the older one.
    has_kernel = getattr(model, "_supports_flash_attn", False) or getattr(model, "_supports_flash_attn_2", False)
    compatible = getattr(model, "_compatible_flash_implementations", None)
    # A model with a class of layers per attention already has the wrong layers, and cannot be switched.
    return has_kernel and FLASH_ATTENTION in (compatible or [FLASH_ATTENTION]) and model._can_set_attn_implementation()


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of Transformers: tensors of shape (batch, heads, tokens, size), keys with fewer heads."""
    if attention_mask is not None:
        raise ValueError(f"its layers are given a mask, which flash attention does not support; {_INSTEAD}")
    width, value_width = query.shape[-1], value.shape[-1]
    if max(width, value_width) > FLASH_MAX_HEAD:
        raise ValueError(f"flash attention has no kernel for heads of {width}, above {FLASH_MAX_HEAD}; {_INSTEAD}")
    if (dtype := _kernel_dtype(query, module)) is not None:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if value_width < width:
        value = F.pad(value, (0, width - value_width))
    # The saved sizes do not depend on causality.
    attended = flash(query, key, value, dropout, is_causal=False, scale=scaling).transpose(1, 2)
    return attended[..., :value_width], None


def _kernel_dtype(query: Tensor, module: nn.Module) -> torch.dtype | None:
    """The dtype to cast float32 tensors to, as Transformers does; before 5.10 it ignores autocast on the CPU."""
    if query.dtype == torch.float32 and torch.is_autocast_enabled(query.device.type):
        return torch.get_autocast_dtype(query.device.type)
    dtype: torch.dtype | None = get_target_dtype(query, module)
    return dtype
