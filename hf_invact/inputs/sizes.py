"""What a model's config says of the sizes of its inputs."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

TOKEN = 1
FRAMES = 64
"""Of a spectrum, where the config names no number."""

_PARTS_OF_IMAGES = ("vision_config", "backbone_config", "vision_encoder_config", "encoder_config", "encoder")
_PARTS_OF_SOUND = ("audio_config", "audio_encoder_config", "encoder_config", "speech_config")
_IMAGE_SIZES = ("image_size", "img_size", "input_size")
_CHANNELS = ("num_channels", "in_channels", "in_chans", "num_input_channels")
_BINS = (
    *("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "input_feat_size", "mel_bins"),
    *("input_dim", "feature_size", "n_mels", "input_channels"),
)


def image_shape(config: PretrainedConfig) -> tuple[int, int, int] | None:
    """Channels, height and width of a model's images; None where they may have any size."""
    size = _find(config, _PARTS_OF_IMAGES, _IMAGE_SIZES)
    if isinstance(size, dict):
        size = size.get("height"), size.get("width")
    if isinstance(size, int):
        size = size, size
    if not isinstance(size, (tuple, list)) or len(size) < 2 or not all(isinstance(side, int) for side in size):
        return None
    return channels(config), size[-2], size[-1]


def channels(config: PretrainedConfig) -> int:
    """Of a model's images; 3 where its config does not say."""
    found = _find(config, _PARTS_OF_IMAGES, _CHANNELS)
    return found if isinstance(found, int) else 3


def spectrum_shape(config: PretrainedConfig) -> tuple[int, int]:
    """Mel bins and frames of a model's spectra: as many frames as its positions need, or `FRAMES`."""
    bins = _find(config, _PARTS_OF_SOUND, _BINS)
    positions = _find(config, _PARTS_OF_SOUND, ("max_source_positions",))
    return bins if isinstance(bins, int) else 80, 2 * positions if isinstance(positions, int) else FRAMES


def setting(config: PretrainedConfig, *names: str) -> int | None:
    """The first number that a config, or that of its images or sound, has under one of these names."""
    found = _find(config, (*_PARTS_OF_IMAGES, *_PARTS_OF_SOUND), names)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    return found if isinstance(found, int) else None


def token_id(config: PretrainedConfig) -> int:
    """A token that is no padding, which some models look for."""
    return TOKEN if config.get_text_config().pad_token_id != TOKEN else TOKEN + 1


def special_ids(config: PretrainedConfig) -> set[int]:
    """The tokens that a config, or one within it, names for a purpose: padding, places of images, and the like."""
    found: set[int] = set()
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            found |= special_ids(value)
        elif name.endswith(("token_id", "token_index", "token_ids")):
            found.update(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))
    return found


def longest_sequence(model: PreTrainedModel) -> int | None:
    """How many tokens a sequence may have; None where there is no limit.

    Only a table of positions sets one. (Rotary and relative positions go on beyond what a model has seen.)
    """
    longest = getattr(model.config.get_text_config(), positions_name(model), None)
    tables = [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and ("position" in path or path.endswith("wpe"))
    ]
    if not isinstance(longest, int) or not any(table.num_embeddings >= longest for table in tables):
        return None
    # RoBERTa counts its positions from after its padding token's.
    return longest - max((table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0)


def positions_name(model: PreTrainedModel) -> str:
    """Which attribute of its config says how many positions a model has."""
    is_of_speech = "input_ids" not in inspect.signature(type(model).forward).parameters
    return "max_target_positions" if is_of_speech else "max_position_embeddings"


def takes_text(model: PreTrainedModel) -> bool:
    """Whether its batches have a length: those of images alone do not."""
    takes = inspect.signature(type(model).forward).parameters
    return "input_ids" in takes or "input_features" in takes


def _find(config: PretrainedConfig, parts: tuple[str, ...], names: tuple[str, ...]) -> Any:
    """The first value that is not None of these attributes: of the configs within a config, then of itself."""
    for part in parts:
        inner = getattr(config, part, None)
        if isinstance(inner, PretrainedConfig) and (found := _find(inner, parts, names)) is not None:
            return found
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)
