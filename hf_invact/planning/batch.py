"""A batch of a model's inputs, with labels."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..inputs.integers import mask_of_ones, padding_mask, tokens
from ..inputs.sizes import image_shape, longest_sequence, positions_name, spectrum_shape, takes_text, token_id
from .errors import PlanningError

TOKEN = 1
MOST_TOKENS = 1 << 30
"""In a batch. What a model keeps of so many is beyond any device, and sizes in bytes stay within 64 bits."""


def make_batch(model: PreTrainedModel, batch_size: int, seq_len: int | None, *, padded: bool = False) -> dict[str, Any]:
    """Keyword arguments with which the Trainer has a model compute its loss.

    Integers are real tensors (of large batches: masks alone), numbers (pixels, spectra) are fake where tensors are, of
    the model's dtype.

    Args:
        model: a model of language, of images, of both (CLIP), or of speech.
        batch_size: sequences or images.
        seq_len: tokens in a sequence, of its labels in speech; None for models of images alone (see `length_of`).
        padded: whether tokens are padding, so that attention keeps a mask. Else sequences are full.

    Raises:
        PlanningError: it takes other inputs, or not that many tokens or images.
    """
    takes = inspect.signature(type(model).forward).parameters
    config = model.config
    seq_len = length_of(model, seq_len)
    _check_size(batch_size, seq_len)
    batch = _item_count(model, batch_size * (seq_len or 1))
    mask = padding_mask if padded else mask_of_ones
    if seq_len is None:
        return {**batch, "pixel_values": _pixels(model, batch_size), "labels": tokens(0, batch_size)}
    if "decoder_attention_mask" in takes:
        batch["decoder_attention_mask"] = mask(batch_size, seq_len)
    _check_length(model, seq_len)
    if "input_ids" not in takes:
        features = torch.zeros(batch_size, *spectrum_shape(config), dtype=model.dtype)
        return {**batch, "input_features": features, "labels": tokens(TOKEN, batch_size, seq_len)}
    batch["input_ids"] = tokens(token_id(config), batch_size, seq_len)
    batch["attention_mask"] = mask(batch_size, seq_len)
    if "return_loss" in takes:
        return {**batch, "pixel_values": _pixels(model, batch_size), "return_loss": True}
    if "start_positions" in takes:
        return {**batch, "start_positions": tokens(0, batch_size), "end_positions": tokens(0, batch_size)}
    is_of_sequences = type(model).__name__.endswith("ForSequenceClassification")
    return {**batch, "labels": tokens(0, batch_size, *([] if is_of_sequences else [seq_len]))}


def _item_count(model: PreTrainedModel, count: int) -> dict[str, Any]:
    """What the Trainer has models divide the loss by that take it: a number of tokens, as a tensor."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    takes_it = getattr(model, "accepts_loss_kwargs", inspect.Parameter.VAR_KEYWORD in kinds)
    return {"num_items_in_batch": torch.full((), float(count))} if takes_it else {}


def _pixels(model: PreTrainedModel, batch_size: int) -> Tensor:
    shape = image_shape(model.config)
    if shape is None:
        raise PlanningError(f"{type(model).__name__} takes images of any size; plan one by an image_size in its config")
    return torch.zeros(batch_size, *shape, dtype=model.dtype)


def length_of(model: PreTrainedModel, seq_len: int | None) -> int | None:
    """The length that a model's batches have, where a user asks for `seq_len`: None for models of images alone.

    Raises:
        PlanningError: its batches have a length and none is given, or it takes other inputs.
    """
    takes = inspect.signature(type(model).forward).parameters
    if not {"input_ids", "input_features", "pixel_values"}.intersection(takes):
        raise PlanningError(
            f"{type(model).__name__} takes {', '.join(list(takes)[1:5])}, ...: only models of text, images and log-mel "
            "spectra can be planned; measure this one with hf_invact.memory.SavedActivations"
        )
    if not takes_text(model):
        return None
    if seq_len is None:
        raise PlanningError(
            f"{type(model).__name__} takes sequences, so how many tokens each has must be said: --seq-len, or seq_len "
            "in Python"
        )
    return seq_len


def batch_in_words(batch_size: int, seq_len: int | None) -> str:
    """What is in a batch.

    >>> batch_in_words(2, 4096), batch_in_words(1, None)
    ('2 x 4,096', '1 image')
    """
    if seq_len is None:
        return f"{batch_size:,} image{'s' if batch_size > 1 else ''}"
    return f"{batch_size:,} x {seq_len:,}"


def _check_length(model: PreTrainedModel, seq_len: int) -> None:
    longest = longest_sequence(model)
    if longest is not None and seq_len > longest:
        raise PlanningError(
            f"seq_len={seq_len} is more than the {longest} positions that this model has; lower it, or raise "
            f"{positions_name(model)} in its config.json"
        )


def _check_size(batch_size: int, seq_len: int | None) -> None:
    """Check that a batch can be: `seq_len` is None for images.

    Raises:
        PlanningError: it is empty, or larger than any device can train on.
    """
    sizes = {"batch_size": batch_size} if seq_len is None else {"batch_size": batch_size, "seq_len": seq_len}
    for name, number in sizes.items():
        if number < 1:
            raise PlanningError(f"{name} must be at least 1, got {number:,}")
    count = math.prod(sizes.values())
    if count > MOST_TOKENS:
        raise PlanningError(
            f"{' x '.join(f'{number:,}' for number in sizes.values())} is {count:,} "
            f"{'tokens' if len(sizes) > 1 else 'images'} in a batch, more than any device can train on "
            f"(at most {MOST_TOKENS:,} can be planned); lower {' or '.join(sizes)}"
        )
