"""Builds a model without weights, ready to be trained."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from ...patching.config import AUTOCAST_DTYPES
from ..errors import PlanningError
from ..fake.flash_attention import FLASH_ATTENTION, use_flash_attention
from ..fake.tensors import make_fake, recompute_contexts
from .lora import Lora, add_adapters
from .source import Source

DTYPES = {"float32": torch.float32, **AUTOCAST_DTYPES}
ATTENTION = ("sdpa", "eager", FLASH_ATTENTION)


def build_model(
    source: Source,
    *,
    dtype: str = "bfloat16",
    attention: str = "sdpa",
    lora: Lora | None = None,
) -> PreTrainedModel:
    """Build the model on the active fake tensors (see `fake_tensors`), in training mode, without a cache.

    It is first built on the meta device, where every initialization runs and PEFT can add adapters.

    Args:
        source: its config and class.
        dtype: of its weights, one of `DTYPES` (adapters are float32, as with PEFT).
        attention: implementation, one of `ATTENTION`. A model without sdpa falls back to eager; one without flash
            attention is refused.
        lora: adapters; None trains all weights.

    Raises:
        PlanningError: it cannot be built without weights, or not with these options.
    """
    model = _on_meta(source, DTYPES[dtype], attention)
    if lora is not None:
        add_adapters(model, lora)
    make_fake(model)
    return model.train()


def _on_meta(source: Source, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    model_class = source.model_class
    config = copy.deepcopy(source.config)
    config.get_text_config().use_cache = config.use_cache = False  # as the Trainer does
    has_sdpa = getattr(model_class, "_supports_sdpa", False)
    implementation = "sdpa" if has_sdpa and attention != "eager" else "eager"
    try:
        with torch.device("meta"):
            model: PreTrainedModel = model_class._from_config(config, dtype=dtype, attn_implementation=implementation)
            model.tie_weights()  # Transformers 5.0 does not tie them on the meta device
    except Exception as error:  # a model class may raise anything
        raise PlanningError(
            f"{model_class.__name__} of {source.name!r} cannot be built without weights "
            f"({type(error).__name__}: {error}); check its config, or name another class in its architectures"
        ) from error
    if attention == FLASH_ATTENTION:
        use_flash_attention(model)
    return model


def set_checkpointing(model: PreTrainedModel, enabled: bool) -> None:
    """Switch gradient checkpointing of a model from `build_model` on or off.

    Raises:
        PlanningError: the model has no gradient checkpointing.
    """
    # Transformers before 5.23 has the second name.
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if enabled == getattr(model, f"is_{word}_checkpointing"):
        return
    if not enabled:
        getattr(model, f"{word}_checkpointing_disable")()
        if hasattr(model, "_require_grads_hook"):  # added when enabling it, for adapters
            model.disable_input_require_grads()
        return
    try:
        getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": False, "context_fn": recompute_contexts})
    except ValueError as error:
        raise PlanningError(f"{error} Plan without gradient checkpointing") from error
