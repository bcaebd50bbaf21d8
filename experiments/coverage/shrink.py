"""Makes small configs of any architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from .errors import UncoveredError, brief

MODEL_TYPES = tuple(sorted(CONFIG_MAPPING_NAMES))
VOCABULARY = 128
SPECIAL_TOKENS = 100  # token ids beyond the small vocabulary are moved to this range

_PREFIX = r"(?:\w+_)?"
_COUNTS = {
    rf"{_PREFIX}(?:num_(?:\w+_)?layers|n_layers?|\w+_layers|depths?|layers_per_block|num_blocks)": 2,
    rf"{_PREFIX}(?:num_attention_heads|attention_heads|num_heads|n_heads?|heads|encoder_num_heads)": 4,
    r"(?:num_local_experts|num_experts|n_routed_experts|moe_num_experts|num_moe_experts)": 4,
    r"(?:num_experts_per_tok|num_experts_per_token|moe_topk|moe_k|moe_top_k|top_k_experts)": 2,
    r"(?:n_group|topk_group|n_shared_experts|num_shared_experts)": 1,
    rf"{_PREFIX}vocab_size": VOCABULARY,
    r"(?:max_position_embeddings|n_positions|max_\w+_positions|n_ctx|max_sequence_length|seq_length|max_seq_len)": 64,
    rf"{_PREFIX}image_size": 32,
    rf"{_PREFIX}patch_size": 8,
    r"num_mel_bins": 16,
    r"(?:sliding_window|attention_window_size)": 16,
}
_WIDTHS = {
    rf"{_PREFIX}(?:head_dim|d_kv|kv_channels|attention_head_size)": 8,
    rf"{_PREFIX}(?:lora_rank|rank)": 8,
    r"rotary_dim": 4,
    rf"{_PREFIX}(?:intermediate_size|ffn_dim|hidden_dim|d_ff|n_inner|d_inner|ffn_hidden_size|mlp_dim|ff_dim"
    r"|feed_forward_\w+|intermediate_dim|feedforward_dim)": 96,
    rf"{_PREFIX}(?:hidden_size|d_model|n_embd|dim|embed_dim|embedding_size|emb_dim|projection_dim|embedding_dim|width"
    r"|hidden_dimension|dim_model|hidden_channels)": 32,
}
_KEY_VALUE_HEADS = r"(?:\w*num_key_value_heads|num_kv_heads|n_head_kv|attention_kv_heads|num_kv_groups)"


@dataclass(frozen=True)
class _Recipe:
    """The upper limits of a config's values."""

    sizes: Mapping[str, int]

    def value(self, name: str, value: Any) -> Any:
        """An attribute's value, limited."""
        if isinstance(value, bool):
            return value
        most = next((most for pattern, most in self.sizes.items() if re.fullmatch(pattern, name)), None)
        if most is not None and isinstance(value, int):
            return min(most, value)
        if most is not None and isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
            return type(value)(min(most, item) for item in value)
        if name.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= SPECIAL_TOKENS:
            return SPECIAL_TOKENS + sum(map(ord, name)) % (VOCABULARY - SPECIAL_TOKENS)
        return value

    def values(self, config: PretrainedConfig) -> dict[str, Any]:
        """Only the values that change, so that the config class derives the others from them again."""
        changed: dict[str, Any] = {}
        for name, value in vars(config).items():
            if isinstance(value, PretrainedConfig):
                changed[name] = {**self.values(value), "model_type": value.model_type}
            elif not name.startswith("_") and (small := self.value(name, value)) != value:
                changed[name] = small
        for name in ("pad_token_id", "decoder_start_token_id"):
            if getattr(config, name, None) is None:
                changed.setdefault(name, 0)
        return changed


_WIDE = {rf"{_PREFIX}(?:head_dim|d_kv)": 128, rf"{_PREFIX}(?:hidden_size|d_model|dim|embed_dim)": 512}
# The first is taken whose config its class accepts and whose model can be run.
_RECIPES = (
    _Recipe({_KEY_VALUE_HEADS: 2, **_COUNTS, **_WIDTHS}),
    _Recipe({_KEY_VALUE_HEADS: 4, **_COUNTS, **_WIDTHS}),
    _Recipe({_KEY_VALUE_HEADS: 2, **_COUNTS, **_WIDE, **_WIDTHS}),  # for heads that are divided into sections
    _Recipe(_COUNTS),  # widths that depend on each other stay unchanged
    _Recipe({name: most for name, most in _COUNTS.items() if "layers" not in name}),
)


def small_configs(model_type: str) -> list[PretrainedConfig]:
    """Small configs of a model type, the smallest first. Those that its config class rejects are left out.

    Raises:
        UncoveredError: the class has no defaults, or rejects all of them.
    """
    config_class = CONFIG_MAPPING[model_type]
    configs: list[PretrainedConfig] = []
    refusals: list[str] = []
    for recipe in _RECIPES:
        try:
            configs.append(config_class(**recipe.values(config_class())))
        except Exception as error:  # configs check their values in many ways
            refusals.append(brief(error))
    if not configs:
        raise UncoveredError(f"its config cannot be made small: {refusals[0]}")
    return configs
