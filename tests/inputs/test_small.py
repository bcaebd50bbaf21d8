"""Batches that models accept, of each kind of input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import (
    BartConfig,
    BartModel,
    CLIPConfig,
    CLIPModel,
    PretrainedConfig,
    PreTrainedModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    VideoMAEConfig,
    VideoMAEModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperModel,
)

from hf_invact.inputs import UnknownInputsError, small_inputs
from tests.models import tiny_model

VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
IMAGES = {**VIT, "image_size": 16, "patch_size": 8}
TEXT = {**VIT, "vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
BOTH = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
TOKENS = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 1}

CASES: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, tuple[int, ...]]]] = {
    "text": (lambda: tiny_model("bert"), {"input_ids": (2, 4), "attention_mask": (2, 4)}),
    "text in and out": (
        lambda: BartModel(BartConfig(**BOTH, **HEADS, **TOKENS, max_position_embeddings=16)),
        {"input_ids": (2, 4), "attention_mask": (2, 4), "decoder_input_ids": (2, 4)},
    ),
    "images": (lambda: ViTModel(ViTConfig(**IMAGES, num_channels=1)), {"pixel_values": (2, 1, 16, 16)}),
    "patches": (
        lambda: Siglip2VisionModel(Siglip2VisionConfig(**VIT, patch_size=8, num_patches=16)),
        {"pixel_values": (2, 4, 192), "pixel_attention_mask": (2, 4), "spatial_shapes": (2, 2)},
    ),
    "videos": (
        lambda: VideoMAEModel(VideoMAEConfig(**IMAGES, num_frames=4, tubelet_size=2)),
        {"pixel_values": (2, 4, 3, 16, 16)},
    ),
    "spectra": (
        lambda: WhisperModel(
            WhisperConfig(**BOTH, **HEADS, **TOKENS, num_mel_bins=5, max_source_positions=8, max_target_positions=16)
        ),
        {"input_features": (2, 5, 16), "decoder_input_ids": (2, 4)},
    ),
    "sound": (
        lambda: Wav2Vec2Model(Wav2Vec2Config(**VIT, conv_dim=(8,) * 7, num_conv_pos_embedding_groups=2)),
        {"input_values": (2, 4000)},
    ),
    "text and images": (
        lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=IMAGES, projection_dim=8)),
        {"input_ids": (2, 4), "attention_mask": (2, 4), "pixel_values": (2, 3, 16, 16)},
    ),
}


def first_that_runs(model: PreTrainedModel) -> dict[str, Any]:
    for batch in small_inputs(model, samples=2, tokens=4):
        try:
            model(**batch)
        except Exception:  # without all their inputs, models raise exceptions of any kind
            continue
        return batch
    raise AssertionError("accepts none")


@pytest.mark.parametrize(("make", "shapes"), CASES.values(), ids=list(CASES))
def test_a_model_accepts_a_batch_of_its_kind(
    make: Callable[[], PreTrainedModel], shapes: dict[str, tuple[int, ...]]
) -> None:
    batch = first_that_runs(make())
    assert {name: tuple(x.shape) for name, x in batch.items() if isinstance(x, Tensor)} == shapes
    assert batch.get("use_cache") in (None, False)


def test_numbers_have_the_dtype_of_the_model_and_are_the_same_every_time() -> None:
    model = ViTModel(ViTConfig(**IMAGES)).bfloat16()
    one, other = (next(small_inputs(model, 2, 4))["pixel_values"] for _ in range(2))
    assert one.dtype is torch.bfloat16
    assert torch.equal(one, other)


def test_one_more_sample_changes_nothing_else() -> None:
    model = ViTModel(ViTConfig(**IMAGES))
    one, two = (next(small_inputs(model, samples, 4))["pixel_values"] for samples in (1, 2))
    assert one.shape[1:] == two.shape[1:]


def test_sequences_end_as_they_should_and_hold_no_token_with_a_meaning() -> None:
    model = tiny_model("bert", pad_token_id=5, image_token_id=6)
    ids = next(small_inputs(model, 3, 16))["input_ids"]
    assert set(ids[:, -1].tolist()) == {1}
    assert not {0, 1, 5, 6} & set(ids[:, :-1].flatten().tolist())


def test_sequences_are_no_longer_than_the_model_has_positions() -> None:
    model = tiny_model("bert")  # with 64 positions
    assert next(small_inputs(model, 1, 1000))["input_ids"].shape == (1, 64)


def test_a_method_takes_its_own_inputs() -> None:
    make, _ = CASES["text and images"]
    assert list(next(small_inputs(make(), 1, 4, "get_image_features"))) == ["pixel_values"]


def test_among_fake_tensors_only_numbers_are_fake() -> None:
    text, images = tiny_model("bert"), ViTModel(ViTConfig(**IMAGES))
    with FakeTensorMode(allow_non_fake_inputs=True):
        ids, pixels = next(small_inputs(text, 1, 4)), next(small_inputs(images, 1, 4))
    assert not any(isinstance(value, FakeTensor) for value in ids.values())
    assert isinstance(pixels["pixel_values"], FakeTensor)


class Scales(PreTrainedModel):
    config_class = PretrainedConfig

    def forward(self, weights_of_fish: Tensor) -> Tensor:
        return weights_of_fish


class Scanners(PreTrainedModel):
    config_class = PretrainedConfig

    def forward(self, input_ids: Tensor, bar_codes: Tensor) -> Tensor:
        return input_ids + bar_codes


@pytest.mark.parametrize(
    ("model_class", "what"),
    [(Scales, "requires weights_of_fish"), (Scanners, "requires bar_codes")],
    ids=["another kind", "one more"],
)
def test_an_unknown_input_is_named(model_class: type[PreTrainedModel], what: str) -> None:
    with pytest.raises(
        UnknownInputsError, match=rf"{model_class.__name__}.forward {what}: only input_ids, .* are known"
    ):
        small_inputs(model_class(PretrainedConfig()), 1, 4)
