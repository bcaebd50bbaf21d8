"""Images and videos, whole or as patches, and what says how the patches lie."""

from __future__ import annotations

from torch import Tensor

from .sizes import channels, image_shape, setting
from .wanted import Batch, Wanted

IMAGE_SIDE = 32  # pixels, where a model takes images of any size
VIDEO_FRAMES = 2
PATCH_SIDE = 14  # pixels, where no config says
ROWS = 2  # of patches, or of what are merged into one; as many columns


def images(wanted: Wanted) -> list[Tensor]:
    """One image for each sample: by itself, as a list of one, as a video, as a list of one image of one tile.

    Or its patches, where the model takes what says how they lie.
    """
    if has_grid(wanted):
        return _patches_of_all(wanted)
    if "spatial_shapes" in wanted.takes:
        return [wanted.numbers(wanted.samples, ROWS**2, _patch_size(wanted))]
    shape = image_shape(wanted.config) or (channels(wanted.config), IMAGE_SIDE, IMAGE_SIDE)
    image = wanted.numbers(wanted.samples, *shape)
    if "aspect_ratio_ids" in wanted.takes:
        return [image[:, None, None].repeat(1, 1, _tiles(wanted), 1, 1, 1)]
    return [image, image[:, None], _video(wanted, image)]


def videos(wanted: Wanted) -> list[Tensor]:
    """One for each sample, or its patches."""
    return _patches_of_all(wanted) if has_grid(wanted) else [_video(wanted, images(wanted)[0])]


def patches_with_places(wanted: Wanted) -> list[Tensor]:
    """Flat patches, shape (samples, patches, numbers). The first two numbers are a row and a column, from 1."""
    size = setting(wanted.config, "patch_embed_hidden_size") or _patch_size(wanted)
    patches = wanted.numbers(wanted.samples, ROWS**2, 2 + size)
    patches[..., :2] = 1
    return [patches]


def grid(wanted: Wanted, batch: Batch) -> Tensor:
    """Frames, rows and columns of patches, shape (samples, 3)."""
    side = _grid_side(wanted)
    return wanted.integers([[1, side, side]] * wanted.samples)


def image_grid(wanted: Wanted, batch: Batch) -> Tensor | None:
    """`grid`, where there are images."""
    return grid(wanted, batch) if "pixel_values" in batch else None


def video_grid(wanted: Wanted, batch: Batch) -> Tensor | None:
    """`grid`, where there are videos."""
    return grid(wanted, batch) if "pixel_values_videos" in batch else None


def rows_and_columns(wanted: Wanted, batch: Batch) -> Tensor | None:
    """Of the patches of each image, shape (samples, 2)."""
    return wanted.integers([[ROWS, ROWS]] * wanted.samples) if "pixel_values" in batch else None


def mask_of_patches(wanted: Wanted, batch: Batch) -> Tensor | None:
    """Hides no patch."""
    if "pixel_values" not in batch or "spatial_shapes" not in wanted.takes:
        return None
    return wanted.ones(wanted.samples, ROWS**2)


def heights_and_widths(wanted: Wanted, batch: Batch) -> Tensor | None:
    """Of images, in pixels, shape (samples, 2)."""
    if "pixel_values" not in batch:
        return None
    return wanted.integers([list(batch["pixel_values"].shape[-2:])] * wanted.samples)


def aspect_ratios(wanted: Wanted, batch: Batch) -> Tensor | None:
    """The number of the first aspect ratio, which is 1, for each image."""
    return wanted.ones(wanted.samples, 1) if "pixel_values" in batch else None


def mask_of_tiles(wanted: Wanted, batch: Batch) -> Tensor | None:
    """Hides no tile."""
    return wanted.ones(wanted.samples, 1, _tiles(wanted)) if "pixel_values" in batch else None


def _video(wanted: Wanted, image: Tensor) -> Tensor:
    frames = setting(wanted.config, "num_frames", "frames_per_clip") or VIDEO_FRAMES
    return image[:, None].repeat(1, frames, 1, 1, 1)


def has_grid(wanted: Wanted) -> bool:
    """Whether the model takes the patches of all samples in a row, and a grid that says how they lie."""
    return any(name.endswith("grid_thw") for name in wanted.takes)


def _patches_of_all(wanted: Wanted) -> list[Tensor]:
    """The patches of all samples, shape (patches, numbers), and as small images."""
    count, side = wanted.samples * _grid_side(wanted) ** 2, _patch_side(wanted)
    frames = setting(wanted.config, "temporal_patch_size") or 1
    return [
        wanted.numbers(count, _patch_size(wanted) * frames),
        wanted.numbers(count, channels(wanted.config), side, side),
    ]


def _grid_side(wanted: Wanted) -> int:
    return ROWS * (setting(wanted.config, "spatial_merge_size") or 1)


def _patch_side(wanted: Wanted) -> int:
    return setting(wanted.config, "patch_size") or PATCH_SIDE


def _patch_size(wanted: Wanted) -> int:
    return channels(wanted.config) * _patch_side(wanted) ** 2


def _tiles(wanted: Wanted) -> int:
    return setting(wanted.config, "max_num_tiles") or 1
