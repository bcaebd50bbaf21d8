"""Builds a model without weights, ready to be trained."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from ..errors import PlanningError
from ..fake.flash_attention import FLASH_ATTENTION, use_flash_attention
from ..fake.tensors import make_fake, recompute_contexts
from .lora import add_adapters
from .quantized import quantize, use_fake_kernels
from .setup import DTYPES, Setup
from .source import Source


def build_model(source: Source, setup: Setup) -> PreTrainedModel:
    """Build the model on the active fake tensors (see `fake_tensors`), in training mode, without a cache.

    It is first built on the meta device, where every initialization runs and PEFT can add adapters.

    Args:
        source: its config and class.
        setup: how it is trained. Adapters are float32, as with PEFT. A model without sdpa attention falls back to
            eager; one without flash attention is refused.

    Raises:
        PlanningError: it cannot be built without weights, or not with these options.
    """
    model = _on_meta(source, DTYPES[setup.facts.dtype], setup.facts.attention)
    if setup.quantize is not None:
        quantize(model, setup.quantize)
    if setup.lora is not None:
        add_adapters(model, setup.lora)
    make_fake(model)
    use_fake_kernels(model, setup.facts.device)
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


def is_checkpointed(model: PreTrainedModel) -> bool:
    """Whether gradient checkpointing is on somewhere in a model."""
    return bool(getattr(model, f"is_{_word(model)}_checkpointing"))


def set_checkpointing(model: PreTrainedModel, enabled: bool, *, input_grads: bool = False) -> None:
    """Switch gradient checkpointing on in all layers of a model on fake tensors, or off.

    Args:
        input_grads: also without checkpointing let the outputs of embeddings require gradients, as Transformers has
            them do once checkpointing is enabled.

    Raises:
        PlanningError: the model has no gradient checkpointing.
    """
    word = _word(model)
    if is_checkpointed(model):
        getattr(model, f"{word}_checkpointing_disable")()
    if hasattr(model, "_require_grads_hook"):
        model.disable_input_require_grads()
    if not enabled:
        if input_grads:
            model.enable_input_require_grads()
        return
    try:
        getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": False, "context_fn": recompute_contexts})
    except ValueError as error:
        raise PlanningError(f"{error} Plan without gradient checkpointing") from error


def _word(model: PreTrainedModel) -> str:
    """What Transformers calls it; before 5.23 it has the second name."""
    return "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
