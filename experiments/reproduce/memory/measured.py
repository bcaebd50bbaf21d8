"""Measures on a GPU what a case saves for backward: by how much the allocated memory grows in a forward pass."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .cases import MemoryCase, MemoryVariant
from .counting import LORA_RANK, autocast_dtype, batch_of, patch, source_of

OUT_OF_MEMORY = "out of memory"
EMULATED = "not measured: the weights are emulated"


def measure_kept(
    case: MemoryCase,
    variant: MemoryVariant,
    device: torch.device,
    allocated: Callable[[], int] = torch.cuda.memory_allocated,
) -> dict[str, Any]:
    """Run a forward pass with random weights, and measure the memory that it leaves allocated.

    Args:
        allocated: returns the bytes that tensors currently hold on the device.

    Returns:
        ``measured_bytes``, or None with the reason in ``measured_note``.
    """
    if case.quantized:
        return {"measured_bytes": None, "measured_note": EMULATED}
    try:
        return {"measured_bytes": _difference(case, variant, device, allocated), "measured_note": None}
    except torch.OutOfMemoryError:
        return {"measured_bytes": None, "measured_note": OUT_OF_MEMORY}
    finally:
        gc.collect()  # outputs and graphs refer to each other
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _difference(case: MemoryCase, variant: MemoryVariant, device: torch.device, allocated: Callable[[], int]) -> int:
    model = _real_model(case, variant, device)
    patch(case, variant, model)
    batch = {name: tensor.to(device) for name, tensor in batch_of(case, model).items()}
    with torch.no_grad():
        _forward(case, model, batch)  # libraries allocate workspaces in their first call
    before = allocated()
    result = _forward(case, model, batch)
    after = allocated()
    assert result.requires_grad  # its graph holds the memory
    return after - before


def _real_model(case: MemoryCase, variant: MemoryVariant, device: torch.device) -> PreTrainedModel:
    source = source_of(case, variant)
    source.config.use_cache = False
    torch.manual_seed(0)
    with device:
        model: PreTrainedModel = source.model_class._from_config(
            source.config, dtype=getattr(torch, case.dtype), attn_implementation="sdpa"
        )
    if case.adapters is not None:
        import peft

        adapters = peft.LoraConfig(r=LORA_RANK, lora_dropout=case.dropout, target_modules="all-linear")
        peft.get_peft_model(model, adapters, autocast_adapter_dtype=case.adapters == "float32")
    return model.to(device).train()


def _forward(case: MemoryCase, model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    dtype = autocast_dtype(case)
    with torch.autocast(model.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        outputs = model(**batch)
    result: Tensor = outputs[0]  # the loss, or the last hidden states
    return result
