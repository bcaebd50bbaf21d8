"""The tensors of a small batch, by the name of the argument that takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from . import images
from .sizes import longest_sequence, setting, special_ids, spectrum_shape
from .wanted import SEED, Batch, Wanted

FIRST_TOKEN, TOKENS_END = 4, 100  # of the ids that are drawn: most models have their special ones outside
SOUND = 4000  # samples, a quarter of a second: models that mask spans of sound need several of its frames


def _ids(wanted: Wanted) -> list[Tensor]:
    """Ordinary tokens, and at the end of each sequence the one that says so, which some models look for."""
    config = wanted.config.get_text_config()
    size = getattr(config, "vocab_size", None)
    end = min(TOKENS_END, size) if isinstance(size, int) else TOKENS_END
    special = special_ids(wanted.config)
    usable = [each for each in range(FIRST_TOKEN, end) if each not in special] or [0]
    length = min(wanted.tokens, longest_sequence(wanted.model) or wanted.tokens)
    generator = torch.Generator("cpu").manual_seed(SEED)
    with unset_fake_temporarily():
        places = torch.randint(len(usable), (wanted.samples, length), generator=generator, device="cpu").tolist()
    eos = getattr(config, "eos_token_id", None)
    last = [eos] if isinstance(eos, int) and isinstance(size, int) and 0 <= eos < size else None
    rows = [[usable[place] for place in row] for row in places]
    return [wanted.integers([row[:-1] + (last or row[-1:]) for row in rows])]


def _spectra(wanted: Wanted) -> list[Tensor]:
    """Bins before frames, as Whisper has them, the other way round, and that as an image."""
    spectrum = wanted.numbers(wanted.samples, *spectrum_shape(wanted.config))
    other = spectrum.mT.contiguous()
    return [spectrum, other, other[:, None]]


def _sound(wanted: Wanted) -> list[Tensor]:
    """A wave, also as a channel; and a spectrum, which a few models call so."""
    wave = wanted.numbers(wanted.samples, SOUND)
    bins, frames = spectrum_shape(wanted.config)
    frames = setting(wanted.config, "max_length", "spec_size") or frames
    return [wave, wave[:, None], wanted.numbers(wanted.samples, frames, bins)]


def _series(wanted: Wanted) -> list[Tensor]:
    length = setting(wanted.config, "context_length") or wanted.tokens
    return [wanted.numbers(wanted.samples, length, setting(wanted.config, "num_input_channels", "input_size") or 1)]


def _visual(wanted: Wanted) -> list[Tensor]:
    return [wanted.numbers(wanted.samples, wanted.tokens, setting(wanted.config, "visual_feat_dim") or 1)]


def _states(wanted: Wanted) -> list[Tensor]:
    width = setting(wanted.config, "hidden_size", "d_model", "embed_dim") or 1
    return [wanted.numbers(wanted.samples, wanted.tokens, width)]


def _encoder_states(wanted: Wanted, batch: Batch) -> Tensor | None:
    width = setting(wanted.config, "encoder_hidden_size", "cross_hidden_size")
    return None if width is None else wanted.numbers(wanted.samples, wanted.tokens, width)


def _hidden_states(wanted: Wanted) -> list[Tensor]:
    """Or what some models of images or sound call so."""
    if images.has_grid(wanted):
        return images.images(wanted)
    return [*_states(wanted), *images.images(wanted), *_spectra(wanted)]


MAIN: Mapping[str, Callable[[Wanted], Sequence[Tensor]]] = {
    "input_ids": _ids,
    "pixel_values": images.images,
    "input_features": _spectra,
    "input_values": _sound,
    "pixel_values_videos": images.videos,
    "flattened_patches": images.patches_with_places,
    "visual_feats": _visual,
    "past_values": _series,
}
"""What a model computes from. For each name what it may mean, the likeliest first."""

STATES: Mapping[str, Callable[[Wanted], Sequence[Tensor]]] = {
    "inputs_embeds": _states,
    "hidden_states": _hidden_states,
    "encoder_hidden_states": _states,
    "query_embeds": _states,
}
"""What a part of a model computes from. Only for a method that requires it: elsewhere token ids are an alternative."""


def _mask(wanted: Wanted, batch: Batch) -> Tensor | None:
    return wanted.ones(*batch["input_ids"].shape) if "input_ids" in batch else None


def _decoder_ids(wanted: Wanted, batch: Batch) -> Tensor:
    return _ids(wanted)[0]


def _boxes(wanted: Wanted, batch: Batch) -> Tensor | None:
    return wanted.integers([[[0] * 4] * wanted.tokens] * wanted.samples) if "input_ids" in batch else None


def _mask_of_frames(wanted: Wanted, batch: Batch) -> Tensor | None:
    spectrum = batch.get("input_features")
    if spectrum is None:
        return None
    bins, _ = spectrum_shape(wanted.config)
    return wanted.ones(wanted.samples, spectrum.shape[2 if spectrum.shape[1] == bins else 1])


def _places(wanted: Wanted, batch: Batch) -> Tensor | None:
    return wanted.numbers(wanted.samples, wanted.tokens, 4) if "visual_feats" in batch else None


def _no_cache(wanted: Wanted, batch: Batch) -> bool:
    return False


Companion: TypeAlias = Callable[[Wanted, Batch], Any]
COMPANIONS: Mapping[str, Companion] = {
    "attention_mask": _mask,
    "decoder_input_ids": _decoder_ids,
    "visual_pos": _places,
    "aspect_ratio_ids": images.aspect_ratios,
    "aspect_ratio_mask": images.mask_of_tiles,
    "spatial_shapes": images.rows_and_columns,
    "pixel_attention_mask": images.mask_of_patches,
    "grid_thw": images.grid,
    "image_grid_thw": images.image_grid,
    "video_grid_thw": images.video_grid,
    "use_cache": _no_cache,
}
"""What comes with it, if it is taken: None where there is none for this batch."""

FURTHER: Mapping[str, Companion] = {
    "bbox": _boxes,
    "encoder_hidden_states": _encoder_states,
    "image_sizes": images.heights_and_widths,
    "input_features_mask": _mask_of_frames,
    "feature_attention_mask": _mask_of_frames,
    "qformer_input_ids": _decoder_ids,
}
"""What is tried in addition, and comes along where it is required."""
