"""Small configs of many architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from hf_invact import Lora
from hf_invact.planning.model.source import find_source
from tests.versions import since_transformers

_COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GROUPED: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8}
_IMAGES: dict[str, Any] = {"image_size": 32, "patch_size": 8}
_SEQUENCE_TO_SEQUENCE: dict[str, Any] = {
    **{"vocab_size": 64, "d_model": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
    **{"decoder_start_token_id": 0, "num_heads": 4, "num_layers": 2, "d_kv": 8, "d_ff": 96},
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {**_COMMON, "n_inner": 96},
    "bert": _COMMON,
    "roberta": _COMMON,
    "distilbert": {**_COMMON, "hidden_dim": 96},
    "deberta-v2": _COMMON,
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "gemma2": _GROUPED,
    "gemma3_text": _GROUPED,
    "phi3": _GROUPED,
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "t5": {**_SEQUENCE_TO_SEQUENCE, "feed_forward_proj": "gated-gelu"},
    "vit": {**_COMMON, **_IMAGES},
    "clip": {"text_config": _COMMON, "vision_config": {**_COMMON, **_IMAGES}, "projection_dim": 32},
    "whisper": {
        **{"vocab_size": 64, "d_model": 32, "num_mel_bins": 8, "max_source_positions": 32, "max_target_positions": 32},
        **{"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
        **{"encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
        **{"decoder_start_token_id": 0, "suppress_tokens": None, "begin_suppress_tokens": None},
    },
}
MODEL_TYPES = tuple(_CONFIGS)
SINCE = {"whisper": since_transformers("5.23", "no layer is dropped by a random number where the probability is 0")}


def each_type_that_runs(*, but: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Each of `MODEL_TYPES` that can be run on fake tensors, but some."""
    names = [name for name in MODEL_TYPES if name not in but]
    return pytest.mark.parametrize("model_type", [pytest.param(name, marks=SINCE.get(name, ())) for name in names])


def small_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """A config of one of `MODEL_TYPES`, of two layers (in an encoder and in a decoder)."""
    return AutoConfig.for_model(model_type, **{**_CONFIGS[model_type], **changes})


def small_model(
    model_type: str, dtype: str = "float32", attention: str = "sdpa", lora: Lora | None = None, **changes: Any
) -> PreTrainedModel:
    """A model with real weights, in training mode, without a cache; with adapters if `lora` is given."""
    source = find_source(small_config(model_type, **changes))
    source.config.get_text_config().use_cache = source.config.use_cache = False
    model: PreTrainedModel = source.model_class._from_config(
        source.config, dtype=getattr(torch, dtype), attn_implementation=attention
    ).train()
    if lora is None:
        return model
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(
        r=lora.r, lora_dropout=lora.dropout, target_modules="all-linear", fan_in_fan_out=model_type == "gpt2"
    )
    adapted: PreTrainedModel = peft.get_peft_model(model, options).get_base_model()
    return adapted
