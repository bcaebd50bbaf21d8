"""Predicts the bytes that a model keeps for its backward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ..memory import SavedActivations, by_part
from ..patching import InvActConfig, PatchingError, PatchReport, patch_model
from .batch import make_batch
from .build import ATTENTION, DTYPES, build_model
from .errors import PlanningError
from .fake import DEVICES, fake_tensors
from .flash import FLASH_ATTENTION, attention_of, check_flash_attention
from .lora import Lora
from .peak import OPTIMIZERS, Peak, predict_peak
from .records import MemoryPlan
from .source import find_source

AUTOCAST_DTYPE = {"float32": torch.bfloat16, "bfloat16": torch.bfloat16, "float16": torch.float16}


def plan_memory(
    model: str | Path | PretrainedConfig,
    batch_size: int,
    seq_len: int,
    dtype: str = "bfloat16",
    autocast: bool = False,
    lora: Lora | None = None,
    attention: str = "sdpa",
    gradient_checkpointing: bool = False,
    config: InvActConfig | None = None,
    device: str = "cuda",
    optimizer: str | None = None,
) -> MemoryPlan:
    """Predict what a model keeps for its backward pass, plain and patched, without its weights and without a GPU.

    The model is built, patched and run on tensors that have no memory. It takes seconds, and needs of the hub the
    model's config alone.

    Args:
        model: a name on the hub, a local folder, a ``config.json``, or a config of Transformers.
        batch_size: sequences or images.
        seq_len: tokens in each; models of images alone have no use for it.
        dtype: of the weights: "float32", "bfloat16" or "float16".
        autocast: whether it runs under autocast, to bfloat16 (float16 where that is the weights' dtype).
        lora: adapters; None trains all weights.
        attention: "sdpa", "eager" or "flash_attention_2" (which need not be installed; what it keeps is taken from its
            source, and was not compared with a run).
        gradient_checkpointing: whether layers are computed again in the backward pass.
        config: what to patch, and how.
        device: "cuda", or "cpu" for what a run on a CPU keeps.
        optimizer: predict the peak of a training step with it too (see `OPTIMIZERS`).

    Raises:
        PlanningError: the model is not found, cannot be built, or takes no such batch.
        PatchingError: a pattern of `config` matches nothing.
        ValueError: an unknown option.

    >>> import hf_invact
    >>> from transformers import LlamaConfig
    >>> small = LlamaConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
    >>> plan = hf_invact.plan_memory(small, batch_size=1, seq_len=128)
    >>> plan.plain["activation"], plan.patched["activation"]
    (524288, 270336)
    >>> plan.report.sites[0].plan
    'gate-output'
    """
    _check("dtype", dtype, DTYPES)
    _check("attention", attention, ATTENTION)
    _check("device", device, DEVICES)
    if attention == FLASH_ATTENTION:
        check_flash_attention(dtype, autocast, device)
    if optimizer is not None:
        _check("optimizer", optimizer, OPTIMIZERS)
    for name, number in (("batch_size", batch_size), ("seq_len", seq_len)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    source = find_source(model)
    autocast_dtype = AUTOCAST_DTYPE[dtype] if autocast else None
    with fake_tensors(device):
        built = build_model(
            source, dtype=dtype, attention=attention, lora=lora, gradient_checkpointing=gradient_checkpointing
        )
        batch = make_batch(built, batch_size, seq_len)
        plain = saved_by_part(built, batch, autocast_dtype)
        plain_peak = _peak(built, batch, autocast_dtype, optimizer)
        report, notes = _patch(built, config or InvActConfig(), autocast_dtype)
        patched = saved_by_part(built, batch, autocast_dtype) if report.patched else plain
        patched_peak = _peak(built, batch, autocast_dtype, optimizer) if report.patched else plain_peak
        weights = list(built.parameters())
        return MemoryPlan(
            model=source.name,
            model_class=type(built).__name__,
            batch_size=batch_size,
            seq_len=seq_len,
            dtype=dtype,
            autocast=autocast,
            lora=lora,
            attention=attention_of(built),
            gradient_checkpointing=gradient_checkpointing,
            device=device,
            parameter_bytes=_bytes([*weights, *built.buffers()]),
            trainable_bytes=_bytes(weight for weight in weights if weight.requires_grad),
            plain=MappingProxyType(plain),
            patched=MappingProxyType(patched),
            report=report,
            optimizer=optimizer,
            plain_peak=plain_peak,
            patched_peak=patched_peak,
            notes=(*_notes(built, seq_len, attention), *notes),
        )


def saved_by_part(model: PreTrainedModel, batch: dict[str, Any], autocast_dtype: torch.dtype | None) -> dict[str, int]:
    """Bytes that a model keeps of one forward pass for its backward pass, by part.

    Args:
        model: in training mode.
        batch: its arguments, with labels.
        autocast_dtype: what it runs under; None for none.

    Raises:
        PlanningError: its forward pass fails.
    """
    try:
        with SavedActivations(model) as saved, running_as_trained(autocast_dtype):
            output = model(**batch)
    except Exception as error:  # whatever a foreign forward raises
        raise PlanningError(
            f"{type(model).__name__} cannot be run without weights ({type(error).__name__}: {error}); measure it on "
            "its own device with hf_invact.memory.SavedActivations"
        ) from error
    if output.loss is None:
        raise PlanningError(f"{type(model).__name__} returns no loss; name a class that can be trained")
    return by_part(saved, model)


def _peak(
    model: PreTrainedModel, batch: dict[str, Any], autocast_dtype: torch.dtype | None, optimizer: str | None
) -> Peak | None:
    if optimizer is None:
        return None
    return predict_peak(model, batch, optimizer=optimizer, forward_context=lambda: running_as_trained(autocast_dtype))


@contextmanager
def running_as_trained(autocast_dtype: torch.dtype | None) -> Iterator[None]:
    """Under autocast, where a dtype is given."""
    with torch.autocast("cpu", autocast_dtype or torch.bfloat16, enabled=autocast_dtype is not None):
        yield


def _patch(
    model: PreTrainedModel, config: InvActConfig, autocast_dtype: torch.dtype | None
) -> tuple[PatchReport, tuple[str, ...]]:
    config = dataclasses.replace(config, autocast_dtype=config.autocast_dtype or autocast_dtype)
    try:
        return patch_model(model, config), ()
    except PatchingError as error:
        if config.include != InvActConfig.include or config.exclude:
            raise  # the user can mend the patterns
        return PatchReport(()), (f"Nothing is patched: {str(error).splitlines()[0]}",)


def _notes(model: PreTrainedModel, seq_len: int, attention: str) -> Iterator[str]:
    implementation = attention_of(model)
    if implementation != attention:
        yield f"{type(model).__name__} has no {attention} attention, so {implementation} is planned."
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    has_window = layer_types is None or "sliding_attention" in layer_types
    if implementation == "sdpa" and isinstance(window, int) and window <= seq_len and has_window:
        yield (
            f"Sequences of {seq_len} tokens reach the sliding window of {window}, so sdpa attention is given a mask, "
            "which layers keep; flash_attention_2 needs none."
        )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _check(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
