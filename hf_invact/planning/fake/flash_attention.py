"""The kernels of the package flash-attn, on fake tensors.

Transformers refuses them where the package is not installed, and they run on GPUs alone. So a model is built with
another attention and then told to use a function of ours, which is registered while tensors are fake, under a name of
its own: no other model sees it.

What is kept follows flash-attn's source, and was not compared with a run: query, key and value as the model hands them
over (padded to a head size that is a multiple of 8), the output, a float32 for each row of each head, and the state of
the random numbers (for which 24 bytes are counted, as the kernel of sdpa keeps them, and not 16). No mask: windows are
an argument of the kernel, and no sequence is padded.
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
    """Models that `use_flash_attention` can be run inside."""
    ALL_ATTENTION_FUNCTIONS[_OURS] = _attend
    ALL_MASK_ATTENTION_FUNCTIONS[_OURS] = ALL_MASK_ATTENTION_FUNCTIONS[FLASH_ATTENTION]
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[_OURS], ALL_MASK_ATTENTION_FUNCTIONS[_OURS]


def check_flash_attention(dtype: str, autocast: bool, device: str) -> None:
    """Check that flash attention has a kernel.

    Raises:
        PlanningError: it has none for this dtype or device.
    """
    if dtype == "float32" and not autocast:
        raise PlanningError(
            f"flash attention has no kernel for float32; plan with dtype='bfloat16' or autocast, or {_INSTEAD}"
        )
    if device == "cpu":
        raise PlanningError(f"flash attention has no kernel for the CPU; plan for 'cuda', or {_INSTEAD}")


def use_flash_attention(model: PreTrainedModel) -> None:
    """Have all layers of a model attend by it.

    Raises:
        PlanningError: a part of the model cannot.
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
    # The second is the name of old.
    has_kernel = getattr(model, "_supports_flash_attn", False) or getattr(model, "_supports_flash_attn_2", False)
    compatible = getattr(model, "_compatible_flash_implementations", None)
    # Where layers are of another class for each attention, they have been made already.
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
        raise ValueError(f"its layers are given a mask, which flash attention has no argument for; {_INSTEAD}")
    width, value_width = query.shape[-1], value.shape[-1]
    if max(width, value_width) > FLASH_MAX_HEAD:
        raise ValueError(f"flash attention has no kernel for heads of {width}, above {FLASH_MAX_HEAD}; {_INSTEAD}")
    if (dtype := _kernel_dtype(query, module)) is not None:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if value_width < width:
        value = F.pad(value, (0, width - value_width))
    # The sizes that are kept do not depend on which rows attend to which.
    attended = flash(query, key, value, dropout, is_causal=False, scale=scaling).transpose(1, 2)
    return attended[..., :value_width], None


def _kernel_dtype(query: Tensor, module: nn.Module) -> torch.dtype | None:
    """What float32 numbers are cast to, as Transformers does; before 5.10 it knows the autocast of CUDA alone."""
    if query.dtype == torch.float32 and torch.is_autocast_enabled(query.device.type):
        return torch.get_autocast_dtype(query.device.type)
    dtype: torch.dtype | None = get_target_dtype(query, module)
    return dtype
