"""A batch of a model's inputs, with labels."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from .errors import PlanningError
from .tokens import check_size, mask_of_ones, tokens

TOKEN = 1


def make_batch(model: PreTrainedModel, batch_size: int, seq_len: int | None) -> dict[str, Any]:
    """Keyword arguments with which the Trainer has a model compute its loss.

    Sequences are full: no token is padding, so attention needs no mask beyond the model's own. Integers are real
    tensors (of large batches: masks alone), numbers (pixels, spectra) are fake where tensors are, of the model's dtype.

    Args:
        model: a model of language, of images, of both (CLIP), or of speech.
        batch_size: sequences or images.
        seq_len: tokens in a sequence, of its labels in speech; None for models of images alone (see `length_of`).

    Raises:
        PlanningError: it takes other inputs, or not that many tokens or images.
    """
    takes = inspect.signature(type(model).forward).parameters
    config = model.config
    seq_len = length_of(model, seq_len)
    check_size(batch_size, seq_len)
    batch = _item_count(model, batch_size * (seq_len or 1))
    if seq_len is None:
        return {**batch, "pixel_values": _pixels(model, batch_size), "labels": tokens(0, batch_size)}
    if "decoder_attention_mask" in takes:
        batch["decoder_attention_mask"] = mask_of_ones(batch_size, seq_len)
    _check_length(model, seq_len)
    if "input_ids" not in takes:
        features = torch.zeros(batch_size, config.num_mel_bins, 2 * config.max_source_positions, dtype=model.dtype)
        return {**batch, "input_features": features, "labels": tokens(TOKEN, batch_size, seq_len)}
    batch["input_ids"] = _token_ids(config, batch_size, seq_len)
    batch["attention_mask"] = mask_of_ones(batch_size, seq_len)
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


def _token_ids(config: PretrainedConfig, batch_size: int, seq_len: int) -> Tensor:
    """A token that is no padding, which some models look for."""
    pad = config.get_text_config().pad_token_id
    return tokens(TOKEN if pad != TOKEN else TOKEN + 1, batch_size, seq_len)


def _pixels(model: PreTrainedModel, batch_size: int) -> Tensor:
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", None)
    if size is None:
        raise PlanningError(f"{type(model).__name__} takes images of any size; plan one by an image_size in its config")
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(batch_size, config.num_channels, height, width, dtype=model.dtype)


def longest_sequence(model: PreTrainedModel) -> int | None:
    """How many tokens a sequence may have; None where nothing ends it.

    Only a table of positions has an end. (Rotary and relative positions go on beyond what a model has seen.)
    """
    name = _positions_name(model)
    longest = getattr(model.config.get_text_config(), name, None)
    tables = [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and ("position" in path or path.endswith("wpe"))
    ]
    if not isinstance(longest, int) or not any(table.num_embeddings >= longest for table in tables):
        return None
    # RoBERTa counts its positions from after its padding token's.
    return longest - max((table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0)


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


def takes_text(model: PreTrainedModel) -> bool:
    """Whether its batches have a length: those of images alone do not."""
    takes = inspect.signature(type(model).forward).parameters
    return "input_ids" in takes or "input_features" in takes


def _positions_name(model: PreTrainedModel) -> str:
    is_of_speech = "input_ids" not in inspect.signature(type(model).forward).parameters
    return "max_target_positions" if is_of_speech else "max_position_embeddings"


def _check_length(model: PreTrainedModel, seq_len: int) -> None:
    longest = longest_sequence(model)
    if longest is not None and seq_len > longest:
        raise PlanningError(
            f"seq_len={seq_len} is more than the {longest} positions that this model has; lower it, or raise "
            f"{_positions_name(model)} in its config.json"
        )
