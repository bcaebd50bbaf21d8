"""Builds a model that has no weights, ready to be trained."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from ..errors import PlanningError
from ..fake.flash_attention import FLASH_ATTENTION, use_flash_attention
from ..fake.tensors import make_fake, recomputation
from .lora import Lora, add_adapters
from .source import Source

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = ("sdpa", "eager", FLASH_ATTENTION)


def build_model(
    source: Source,
    *,
    dtype: str = "bfloat16",
    attention: str = "sdpa",
    lora: Lora | None = None,
    gradient_checkpointing: bool = False,
) -> PreTrainedModel:
    """The model on the fake tensors that are active (see `fake_tensors`), in training mode, without a cache.

    It is initialised on the meta device first, where every initialisation runs, and adapters can be put in.

    Args:
        source: its config and class.
        dtype: of its weights (adapters are float32, as PEFT has them): one of `DTYPES`.
        attention: implementation, one of `ATTENTION`. A model that has no sdpa takes eager; one that has no flash
            attention is refused.
        lora: adapters; None trains all weights.
        gradient_checkpointing: whether layers keep only their input, and are computed again.

    Raises:
        PlanningError: it cannot be built without weights, or not as asked.
    """
    model = _on_meta(source, DTYPES[dtype], attention)
    if lora is not None:
        add_adapters(model, lora)
    make_fake(model)
    if gradient_checkpointing:
        set_checkpointing(model, True)
    return model.train()


def _on_meta(source: Source, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    model_class = source.model_class
    config = copy.deepcopy(source.config)
    config.get_text_config().use_cache = config.use_cache = False  # as the Trainer has it
    has_sdpa = getattr(model_class, "_supports_sdpa", False)
    implementation = "sdpa" if has_sdpa and attention != "eager" else "eager"
    try:
        with torch.device("meta"):
            model: PreTrainedModel = model_class._from_config(config, dtype=dtype, attn_implementation=implementation)
            model.tie_weights()  # which Transformers 5.0 leaves out on the meta device
    except Exception as error:  # whatever a foreign class raises
        raise PlanningError(
            f"{model_class.__name__} of {source.name!r} cannot be built without weights "
            f"({type(error).__name__}: {error}); check its config, or name another class in its architectures"
        ) from error
    if attention == FLASH_ATTENTION:
        use_flash_attention(model)
    return model


def set_checkpointing(model: PreTrainedModel, enabled: bool) -> None:
    """Have a model that was built here checkpoint its layers, or not.

    Raises:
        PlanningError: it cannot.
    """
    # The second is the name before Transformers 5.23.
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if enabled == getattr(model, f"is_{word}_checkpointing"):
        return
    if not enabled:
        getattr(model, f"{word}_checkpointing_disable")()
        if hasattr(model, "_require_grads_hook"):  # enabling has the embeddings' output require gradients, for adapters
            model.disable_input_require_grads()
        return
    try:
        getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": False, "context_fn": recomputation})
    except ValueError as error:
        raise PlanningError(f"{error} Plan without gradient checkpointing") from error
