"""Scaled dot-product attention with the kernels that PyTorch chooses for CUDA tensors.

The choice is that for GPUs of compute capability 8.0 and above. On some newer GPUs PyTorch chooses cuDNN's kernel,
which saves tensors of the same sizes as flash attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

HALF = (torch.bfloat16, torch.float16)
FLASH_MAX_HEAD, FLASH_HEAD_STEP = 256, 8
MASK_STEP = 16
ALIGNMENT = 16  # bytes


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, with CUDA's kernels."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        attn_mask = attn_mask.to(dtype) if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
    if _can_use_flash(query, key, value, attn_mask, is_causal):
        return flash(query, key, value, dropout_p, is_causal, scale)
    if _can_use_efficient(query, key, value):
        return _efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)
    attended: Tensor = aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]
    return attended


def _can_use_flash(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool) -> bool:
    return (
        query.dim() == 4
        and query.dtype in HALF
        and mask is None
        and query.shape[-1] == key.shape[-1] == value.shape[-1] <= FLASH_MAX_HEAD
        and query.shape[1] % key.shape[1] == 0
        and not (is_causal and query.shape[2] != key.shape[2])
    )


def flash(query: Tensor, key: Tensor, value: Tensor, dropout_p: float, is_causal: bool, scale: float | None) -> Tensor:
    """Saves query, key and value (padded to the next head size with a kernel), the output and a float32 per row."""
    width = query.shape[-1]
    if missing := -width % FLASH_HEAD_STEP:
        query, key, value = (F.pad(tensor, (0, missing)) for tensor in (query, key, value))
    scale = width**-0.5 if scale is None else scale
    output: Tensor = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    return output[..., :width] if missing else output


def _can_use_efficient(query: Tensor, key: Tensor, value: Tensor) -> bool:
    return (
        query.dim() == 4
        and query.shape[1] == key.shape[1] == value.shape[1]
        and all(tensor.shape[-1] * tensor.element_size() % ALIGNMENT == 0 for tensor in (query, value))
    )


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """Saves query, key, value, the mask in their dtype, the output and a float32 per row.

    Each call converts a boolean mask anew, and pads rows that are not aligned.
    """
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), -torch.inf)
        if missing := -mask.shape[-1] % MASK_STEP:
            mask = F.pad(mask, (0, missing))[..., : mask.shape[-1]]
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    output: Tensor = aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, True, dropout_p, is_causal, scale=scale
    )[0]
    return output
