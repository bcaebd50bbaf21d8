"""Small models whose blocks are not registered: their activations are found by the structure around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from tests.versions import has_transformers

_TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "attn_implementation": "eager",
}
_SEQUENCE_TO_SEQUENCE: dict[str, Any] = {"d_model": 32, "init_std": 0.3, "dropout": 0.0, "decoder_start_token_id": 0}
for _side in ("encoder", "decoder"):
    _SEQUENCE_TO_SEQUENCE |= {f"{_side}_layers": 1, f"{_side}_attention_heads": 4, f"{_side}_ffn_dim": 96}


@dataclass(frozen=True)
class Structure:
    """A model.

    Attributes:
        name: its `model_type`.
        sites: the names of those in its first layers.
        plan: the plan of each site.
        saved: how much less each site then keeps per token, in tensors of the intermediate size (float32).
        config: its values besides the common ones.
        is_fused: whether the activation is the same function that replaces it, so that results are bit-identical.
    """

    name: str
    sites: tuple[str, ...]
    plan: str
    saved: float
    config: dict[str, Any] = field(default_factory=dict)
    is_fused: bool = True

    def __str__(self) -> str:
        return self.name

    def model(self, **config: Any) -> PreTrainedModel:
        """In training mode; its weights depend only on the arguments."""
        options = AutoConfig.for_model(self.name, **{**_TEXT, **self.config, **config})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return AutoModel.from_config(options).train()


def inputs_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two examples of 16 tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 64, (2, 16), generator=generator)
    kind = model.main_input_name
    if kind == "input_ids":
        inputs = {"input_ids": ids}
    elif kind == "pixel_values":
        inputs = {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    else:
        inputs = {"input_features": torch.randn(2, 8, 32, generator=generator)}
    return {**inputs, "decoder_input_ids": ids} if model.config.is_encoder_decoder else inputs


def output_and_gradients(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
    """The last hidden states, and the gradients of the weights by name."""
    torch.manual_seed(0)
    model.zero_grad()
    output = model(**inputs_of(model)).last_hidden_state
    output.square().mean().backward()
    return output.detach(), {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


_BIT = 1 / 32  # of a tensor: one bit for each element
_VIT = "layers.0.mlp.activation_fn" if has_transformers("5.9") else "encoder.layer.0.intermediate.intermediate_act_fn"
STRUCTURES = (
    # One projection computes both halves: `up` is copied, so that the other half is freed.
    Structure("phi3", ("layers.0.mlp.activation_fn",), "gate-output", 2 - _BIT),
    # Two of four experts for each token, each of the intermediate size.
    Structure("mixtral", ("layers.0.mlp.experts.act_fn",), "gate-output", 4 - 2 * _BIT, {"num_local_experts": 4}),
    Structure(
        "qwen3_moe",
        ("layers.0.mlp.experts.act_fn",),
        "gate-output",
        4 - 2 * _BIT,
        {"moe_intermediate_size": 96, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    Structure("gemma", ("layers.0.mlp.act_fn",), "gate-output", 2 - _BIT, {"head_dim": 8}),
    Structure(
        "distilbert",
        ("transformer.layer.0.ffn.activation",),
        "output",
        1 - _BIT,
        {"dim": 32, "hidden_dim": 96, "n_layers": 1, "n_heads": 4, "dropout": 0.0, "attention_dropout": 0.0},
    ),
    Structure("deberta-v2", ("encoder.layer.0.intermediate.intermediate_act_fn",), "output", 1 - _BIT),
    Structure("vit", (_VIT,), "output", 1 - _BIT, {"image_size": 16, "patch_size": 4}),
    # Hidden states are images.
    Structure(
        "convnext",
        ("encoder.stages.0.layers.0.act",),
        "output",
        1 - _BIT,
        {"hidden_sizes": [24], "depths": [1], "num_stages": 1, "patch_size": 4},
    ),
    # Its consumer is called through a method of the layer.
    Structure(
        "longformer", ("encoder.layer.0.intermediate.intermediate_act_fn",), "output", 1 - _BIT, {"attention_window": 4}
    ),
    Structure(
        "bart",
        ("encoder.layers.0.activation_fn", "decoder.layers.0.activation_fn"),
        "output",
        1 - _BIT,
        _SEQUENCE_TO_SEQUENCE,
    ),
    Structure(
        "whisper",
        ("encoder.layers.0.activation_fn", "decoder.layers.0.activation_fn"),
        "output",
        1 - _BIT,
        {**_SEQUENCE_TO_SEQUENCE, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
    ),
    # Dropout follows the product, and what it returns is kept anyway: the exact plan keeps no more.
    Structure(
        "t5",
        ("encoder.block.0.layer.1.DenseReluDense.act", "decoder.block.0.layer.2.DenseReluDense.act"),
        "gate-inputs",
        4,
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 96,
            "num_decoder_layers": 1,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
        },
        is_fused=False,
    ),
)
each_structure = pytest.mark.parametrize("structure", STRUCTURES, ids=str)
