"""The tensors of a small batch, by the name of the argument that takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import PretrainedConfig, PreTrainedModel

from .sizes import channels, image_shape, longest_sequence, setting, special_ids, spectrum_shape

Batch: TypeAlias = dict[str, Any]

FIRST_TOKEN, TOKENS_END = 4, 100  # of the ids that are drawn: most models have their special ones outside
IMAGE_SIDE = 64  # pixels, where a model takes images of any size
VIDEO_FRAMES = 2
SOUND = 4000  # samples, a quarter of a second: models that mask spans of sound need several of its frames
SEED = 0


@dataclass(frozen=True)
class Wanted:
    """What to make a batch for.

    Attributes:
        model: the model.
        takes: names of the arguments that it takes.
        samples: how many sequences, images or recordings.
        tokens: in a sequence.
    """

    model: PreTrainedModel
    takes: frozenset[str]
    samples: int
    tokens: int

    @property
    def config(self) -> PretrainedConfig:
        """The model's."""
        config: PretrainedConfig = self.model.config
        return config

    @property
    def device(self) -> torch.device:
        """Where the model's first weights are; the CPU where they are missing."""
        weight = next(self.model.parameters(), None)
        return torch.device("cpu") if weight is None or weight.is_meta else weight.device

    def numbers(self, *shape: int) -> Tensor:
        """Random numbers of the dtype that the model computes in, the same every time."""
        generator = torch.Generator("cpu").manual_seed(SEED)
        dtypes = (weight.dtype for weight in self.model.parameters() if weight.is_floating_point())
        dtype = next((dtype for dtype in dtypes if dtype.itemsize > 1), torch.float32)  # in one byte they are stored
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(self.device, dtype)

    def integers(self, values: Any) -> Tensor:
        """Real integers, also where tensors are fake."""
        with unset_fake_temporarily():
            return torch.tensor(values, dtype=torch.long, device="cpu").to(self.device)

    def ones(self, *shape: int) -> Tensor:
        """A real mask that hides nothing."""
        with unset_fake_temporarily():
            return torch.ones(shape, dtype=torch.long, device=self.device)


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


def _images(wanted: Wanted) -> list[Tensor]:
    """One image each, also as a list of one, and as a video; patches where a grid says how they lie."""
    if _is_patched(wanted):
        return [_patches(wanted)]
    shape = image_shape(wanted.config) or (channels(wanted.config), IMAGE_SIDE, IMAGE_SIDE)
    image = wanted.numbers(wanted.samples, *shape)
    return [image, image[:, None], _video(wanted, image)]


def _videos(wanted: Wanted) -> list[Tensor]:
    if _is_patched(wanted):
        return [_patches(wanted)]
    return [_video(wanted, _images(wanted)[0])]


def _video(wanted: Wanted, image: Tensor) -> Tensor:
    frames = setting(wanted.config, "num_frames", "frames_per_clip") or VIDEO_FRAMES
    return image[:, None].repeat(1, frames, 1, 1, 1)


def _is_patched(wanted: Wanted) -> bool:
    return any(name.endswith("grid_thw") for name in wanted.takes)


def _grid_side(wanted: Wanted) -> int:
    return 2 * (setting(wanted.config, "spatial_merge_size") or 1)


def _patches(wanted: Wanted) -> Tensor:
    """Flat patches of all images, shape (patches, numbers)."""
    side = setting(wanted.config, "patch_size") or 14
    size = channels(wanted.config) * (setting(wanted.config, "temporal_patch_size") or 1) * side**2
    return wanted.numbers(wanted.samples * _grid_side(wanted) ** 2, size)


def _grid(wanted: Wanted, batch: Batch) -> Tensor:
    side = _grid_side(wanted)
    return wanted.integers([[1, side, side]] * wanted.samples)


def _image_grid(wanted: Wanted, batch: Batch) -> Tensor | None:
    return _grid(wanted, batch) if "pixel_values" in batch else None


def _video_grid(wanted: Wanted, batch: Batch) -> Tensor | None:
    return _grid(wanted, batch) if "pixel_values_videos" in batch else None


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


def _states(wanted: Wanted) -> list[Tensor]:
    width = setting(wanted.config, "hidden_size", "d_model", "embed_dim") or 1
    return [wanted.numbers(wanted.samples, wanted.tokens, width)]


def _encoder_states(wanted: Wanted, batch: Batch) -> Tensor | None:
    width = setting(wanted.config, "encoder_hidden_size", "cross_hidden_size")
    return None if width is None else wanted.numbers(wanted.samples, wanted.tokens, width)


def _hidden_states(wanted: Wanted) -> list[Tensor]:
    return [_patches(wanted)] if _is_patched(wanted) else _states(wanted)


MAIN: Mapping[str, Callable[[Wanted], Sequence[Tensor]]] = {
    "input_ids": _ids,
    "pixel_values": _images,
    "input_features": _spectra,
    "input_values": _sound,
    "pixel_values_videos": _videos,
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


def _sizes(wanted: Wanted, batch: Batch) -> Tensor | None:
    return (
        wanted.integers([list(batch["pixel_values"].shape[-2:])] * wanted.samples) if "pixel_values" in batch else None
    )


def _no_cache(wanted: Wanted, batch: Batch) -> bool:
    return False


Companion: TypeAlias = Callable[[Wanted, Batch], Any]
COMPANIONS: Mapping[str, Companion] = {
    "attention_mask": _mask,
    "decoder_input_ids": _decoder_ids,
    "grid_thw": _grid,
    "image_grid_thw": _image_grid,
    "video_grid_thw": _video_grid,
    "use_cache": _no_cache,
}
"""What comes with it, if it is taken: None where there is none for this batch."""

FURTHER: Mapping[str, Companion] = {
    "bbox": _boxes,
    "encoder_hidden_states": _encoder_states,
    "image_sizes": _sizes,
    "input_features_mask": _mask_of_frames,
    "feature_attention_mask": _mask_of_frames,
    "qformer_input_ids": _decoder_ids,
}
"""What is tried in addition, and comes along where it is required."""
