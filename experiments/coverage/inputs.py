"""Inputs for a small model of any kind."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from .shrink import SPECIAL_TOKENS

SEQUENCES, TOKENS = 2, 16
FIRST_TOKEN = 4  # below are padding and the like
FRAMES, SAMPLES = 64, 4000
SEED = 0


def inputs_of(model: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """Arguments that a model may be run with, the likeliest first: text, images, both, spectra or sound."""
    takes = inspect.signature(model.forward).parameters
    kinds = {"input_ids": _text, "pixel_values": _images, "input_features": _spectra, "input_values": _sound}
    wanted = [name for name in kinds if name in takes]
    wanted.sort(key=lambda name: name != model.main_input_name)
    candidates = [[name] for name in wanted]
    candidates += [[first, second] for first in wanted for second in wanted if first < second]
    for names in candidates:
        for inputs in _variants(model, takes, {name: kinds[name](model.config) for name in names}):
            yield {name: value for name, value in inputs.items() if name in takes}


def _variants(model: PreTrainedModel, takes: Any, inputs: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    ids = _text(model.config)
    extra: dict[str, Any] = {"use_cache": False}
    if "input_ids" in inputs:
        extra["attention_mask"] = torch.ones_like(ids)
    if "decoder_input_ids" in takes:
        extra["decoder_input_ids"] = ids
    yield {**extra, **inputs}
    if "bbox" in takes:
        yield {**extra, **inputs, "bbox": torch.zeros(*ids.shape, 4, dtype=torch.long)}


def _text(config: PretrainedConfig) -> Tensor:
    return torch.randint(FIRST_TOKEN, SPECIAL_TOKENS, (SEQUENCES, TOKENS), generator=_generator())


def _images(config: PretrainedConfig) -> Tensor:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 32
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(SEQUENCES, getattr(vision, "num_channels", 3), height, width, generator=_generator())


def _spectra(config: PretrainedConfig) -> Tensor:
    bins = getattr(config, "num_mel_bins", None) or getattr(config, "input_dim", None) or 80
    frames = 2 * config.max_source_positions if hasattr(config, "max_source_positions") else FRAMES
    return torch.randn(SEQUENCES, bins, frames, generator=_generator())


def _sound(config: PretrainedConfig) -> Tensor:
    return torch.randn(SEQUENCES, SAMPLES, generator=_generator())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)
