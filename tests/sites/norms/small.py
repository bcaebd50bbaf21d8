"""Small models of Transformers, and which plan each of their norms gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedModel

from hf_invact import InvActConfig

VOCABULARY, LAYERS = 64, 2
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
OUTPUT, INPUT = "norm-output", "norm-input"
NORMS = InvActConfig(sites=("norm",))
ALL = InvActConfig(sites=("adapter", "activation", "norm"))


@dataclass(frozen=True)
class Normed:
    """A model and the plans of its norms.

    Attributes:
        plans: by the end of the norm's name, in float32 and bfloat16; None where it is left alone.
        under_autocast: those that differ, with float32 weights.
    """

    model_type: str
    plans: Mapping[str, str | None]
    under_autocast: Mapping[str, str | None] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        sizes = _SIZES | dict(self.sizes)
        config = AutoConfig.for_model(self.model_type, **sizes)
        auto: Any = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}.get(
            self.model_type, AutoModelForCausalLM
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: PreTrainedModel = auto.from_config(config)
            for name, weight in model.named_parameters():  # else they are all 1, or all 0
                if "norm" in name.lower() or "ln_" in name:
                    weight.data += 0.2 * torch.randn_like(weight)
        return model.to(dtype).train()

    def plan(self, name: str, is_autocast: bool) -> str | None:
        """The one that a norm gets."""
        plans = {**self.plans, **(self.under_autocast if is_autocast else {})}
        return next(plan for end, plan in plans.items() if name.endswith(f".{end}"))

    def batch(self, sequences: int = 2, tokens: int = 8) -> dict[str, Tensor]:
        ids = torch.randint(3, VOCABULARY, (sequences, tokens), generator=torch.Generator().manual_seed(0))
        return {"input_ids": ids, "labels": ids}

    def __str__(self) -> str:
        return self.model_type


# Under autocast a norm with float32 weights returns float32, of which the next layers keep copies in half precision.
_LLAMA = {"input_layernorm": OUTPUT, "post_attention_layernorm": OUTPUT, "norm": OUTPUT}
_COPIED = {"input_layernorm": INPUT, "post_attention_layernorm": INPUT, "norm": INPUT}
NORMED = (
    Normed("llama", _LLAMA, _COPIED),
    Normed("mistral", _LLAMA, _COPIED),
    # What attention keeps of a query is what has been rotated.
    Normed("qwen3", _LLAMA | {"q_norm": INPUT, "k_norm": INPUT}, _COPIED),
    # The result of the second and the fourth norm is added to something.
    Normed(
        "gemma2",
        {"input_layernorm": OUTPUT, "post_attention_layernorm": INPUT, "norm": OUTPUT}
        | {"pre_feedforward_layernorm": OUTPUT, "post_feedforward_layernorm": INPUT},
        _COPIED | {"pre_feedforward_layernorm": INPUT, "post_feedforward_layernorm": INPUT},
    ),
    Normed(
        "olmo2",
        {"post_attention_layernorm": INPUT, "post_feedforward_layernorm": INPUT, "norm": OUTPUT}
        | {"q_norm": INPUT, "k_norm": INPUT},
        {"norm": INPUT},
    ),
    # `nn.LayerNorm` keeps nothing but its input, which costs as much as its output where nobody else keeps that.
    Normed(
        "gpt2",
        {"ln_1": OUTPUT, "ln_2": OUTPUT, "ln_f": OUTPUT},
        {"ln_1": None, "ln_2": None, "ln_f": None},
        {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_inner": 96},
    ),
    # Dropout follows on the first one.
    Normed(
        "bert",
        {"embeddings.LayerNorm": None, "transform.LayerNorm": OUTPUT, "output.LayerNorm": OUTPUT},
        {"output.LayerNorm": None},
    ),
    # Two norms of one tensor.
    Normed(
        "gpt_neox",
        {"input_layernorm": OUTPUT, "post_attention_layernorm": OUTPUT, "final_layer_norm": OUTPUT},
        {"input_layernorm": None, "post_attention_layernorm": None, "final_layer_norm": None},
    ),
    Normed(
        "t5",
        {"layer_norm": OUTPUT, "final_layer_norm": INPUT},
        {"layer_norm": INPUT},
        {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": LAYERS, "num_heads": 4, "decoder_start_token_id": 0},
    ),
    Normed("cohere", {"input_layernorm": OUTPUT, "norm": OUTPUT}, {"input_layernorm": INPUT, "norm": INPUT}),
)
each_normed = pytest.mark.parametrize("normed", NORMED, ids=str)
PRECISIONS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "autocast": (torch.float32, torch.bfloat16),
}
each_precision = pytest.mark.parametrize("precision", PRECISIONS)
