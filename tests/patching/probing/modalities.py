"""Models with inputs of all kinds, and which of their modules have their calls recorded."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BartConfig,
    CLIPConfig,
    ConvNextConfig,
    DebertaV2Config,
    LlavaConfig,
    MixtralConfig,
    MT5Config,
    PretrainedConfig,
    PreTrainedModel,
    SwinConfig,
    ViTConfig,
    Wav2Vec2Config,
    WhisperConfig,
)
from transformers.models.qwen2_vl import Qwen2VLConfig

from hf_invact.inputs import small_inputs
from hf_invact.patching.probing.signature import signature
from hf_invact.patching.probing.surroundings import surroundings
from hf_invact.sites.activations.blocks import find_activations
from tests.models import MODEL_NAMES, tiny_model

WIDTHS = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
LAYERS = {**WIDTHS, "num_hidden_layers": 3}
TOKENS = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
TEXT = {**LAYERS, **TOKENS, "max_position_embeddings": 16}
IMAGES = {**LAYERS, "image_size": 16, "patch_size": 8}
BOTH = {"d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
ENCODER_DECODER = {**BOTH, **TOKENS, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
SPECTRA = {"num_mel_bins": 5, "max_source_positions": 8, "max_target_positions": 16, "decoder_start_token_id": 1}
STAGES = {"hidden_sizes": [8, 16], "depths": [2, 2]}
GRID = {"depth": 3, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "mlp_ratio": 2}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


def from_config(config: PretrainedConfig, auto_class: Any = AutoModel) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = auto_class.from_config(config)
    return model


def bart(layers: int = 3) -> PreTrainedModel:
    config = BartConfig(**ENCODER_DECODER | {"encoder_layers": layers}, **NO_DROPOUT, max_position_embeddings=16)
    return from_config(config)


CASES: dict[str, Callable[[], PreTrainedModel]] = {
    **{name: partial(tiny_model, name) for name in MODEL_NAMES},
    "bart": bart,
    "mt5": lambda: from_config(
        MT5Config(**TOKENS, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, decoder_start_token_id=1)
    ),
    "whisper": lambda: from_config(WhisperConfig(**ENCODER_DECODER, **NO_DROPOUT, **SPECTRA)),
    "vit": lambda: from_config(ViTConfig(**IMAGES)),
    "swin": lambda: from_config(
        SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    ),
    "convnext": lambda: from_config(ConvNextConfig(**STAGES, num_stages=2, image_size=16)),
    "clip": lambda: from_config(CLIPConfig(text_config=TEXT, vision_config=IMAGES, projection_dim=8)),
    "wav2vec2": lambda: from_config(
        Wav2Vec2Config(**LAYERS, conv_dim=(8,) * 7, num_conv_pos_embedding_groups=2, layerdrop=0.0)
    ),
    "mixtral": lambda: from_config(
        MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=4), AutoModelForCausalLM
    ),
    "deberta-v2": lambda: from_config(DebertaV2Config(**TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"])),
}
PARTS: dict[str, Callable[[], PreTrainedModel]] = {
    "llava": lambda: from_config(
        LlavaConfig(
            text_config={**TEXT, "model_type": "llama"},
            vision_config={**IMAGES, "model_type": "clip_vision_model"},
            image_token_index=60,
        )
    ),
    "qwen2-vl": lambda: from_config(
        Qwen2VLConfig(
            text_config={**TEXT, "num_key_value_heads": 2, "rope_parameters": ROPE},
            vision_config=GRID,
            image_token_id=60,
            video_token_id=61,
            vision_start_token_id=62,
            vision_end_token_id=63,
        )
    ),
}


def kinds_of(model: nn.Module) -> dict[nn.Module, Hashable]:
    """The blocks with an activation, and the modules around them."""
    around = (each.module for name, *_ in find_activations(model) for each in surroundings(model, name))
    return {module: signature(module) for module in around if module is not model}


def named(model: nn.Module, cls: str) -> dict[nn.Module, Hashable]:
    """All modules of the class with this name, as one kind."""
    return {module: cls for module in model.modules() if type(module).__name__ == cls}


class Layer(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.linear, self.act = way, nn.Linear(8, 8), nn.GELU()

    def forward(self, x: Tensor, states: list[Tensor]) -> Tensor:
        if self.way == "appends":
            states.append(x)
        if self.way == "writes":
            x = x.add_(1)
        return self.act(self.linear(x))


class Model(PreTrainedModel):
    """Three layers, and a module that is called with their output."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(64, 8)
        self.layers = nn.ModuleList(Layer(config.way) for _ in range(3))
        self.last = nn.Linear(8, 8)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor) -> Tensor:
        x, states = self.embedding(input_ids), [] if self.config.way == "appends" else None
        x = x * 1
        for layer in self.layers:
            x = layer(x, states)
            if self.config.way == "is written to":
                x += 1
            if self.config.way == "raises":
                raise ValueError("no second layer today")
        y: Tensor = self.last(x + len(states or []))
        return y


def of_a_whole_run(model: PreTrainedModel, kinds: dict[nn.Module, Hashable], samples: int) -> dict[Hashable, Any]:
    """The arguments of each kind's first call in a forward pass that runs all layers."""
    model = model.train()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    found: dict[Hashable, Any] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.setdefault(kinds[module], (args, kwargs))

    for module in kinds:
        module.register_forward_pre_hook(note, with_kwargs=True)
    for batch in small_inputs(model, samples, 4):
        try:
            model(**batch)
        except (AttributeError, ValueError, TypeError):
            found.clear()
        else:
            return found
    raise AssertionError("accepts no batch")


def assert_equal(one: Any, other: Any, *, values: bool = True) -> None:
    """The same structure, shapes, dtypes and settings; also the same numbers, unless `values` is false."""
    ones, structure = tree_flatten(one)
    others, other_structure = tree_flatten(other)
    assert structure == other_structure
    for value, other_value in zip(ones, others, strict=True):
        if isinstance(value, Tensor) and value.is_floating_point() and not values:
            assert (value.shape, value.dtype) == (other_value.shape, other_value.dtype)
        elif isinstance(value, Tensor):
            torch.testing.assert_close(value, other_value, equal_nan=True)
        elif isinstance(value, (bool, int, float, str, type(None))):
            assert value == other_value


def fail(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("must not be run")
