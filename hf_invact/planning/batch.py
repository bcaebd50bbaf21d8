"""A batch of a model's inputs, with labels."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from .errors import PlanningError
from .fake import real_tokens

TOKEN = 1


def make_batch(model: PreTrainedModel, batch_size: int, seq_len: int) -> dict[str, Any]:
    """Keyword arguments with which the Trainer has a model compute its loss.

    Sequences are full: no token is padding, so attention needs no mask beyond the model's own. Integers are real
    tensors, numbers (pixels, spectra) are fake where tensors are, of the model's dtype.

    Args:
        model: a model of language, of images, of both (CLIP), or of speech.
        batch_size: sequences or images.
        seq_len: tokens in a sequence, of its labels in speech. Models of images alone have no use for it.

    Raises:
        PlanningError: it takes other inputs, or not that many tokens.
    """
    takes = inspect.signature(type(model).forward).parameters
    config = model.config
    batch = _item_count(model, batch_size * seq_len)
    if "decoder_attention_mask" in takes:
        batch["decoder_attention_mask"] = real_tokens(1, batch_size, seq_len)
    if "pixel_values" in takes and "input_ids" not in takes:
        return {**batch, "pixel_values": _pixels(model, batch_size), "labels": real_tokens(0, batch_size)}
    if "input_features" in takes and "input_ids" not in takes:
        _check_length(model, seq_len)
        features = torch.zeros(batch_size, config.num_mel_bins, 2 * config.max_source_positions, dtype=model.dtype)
        return {**batch, "input_features": features, "labels": real_tokens(TOKEN, batch_size, seq_len)}
    if "input_ids" not in takes:
        raise PlanningError(
            f"{type(model).__name__} takes {', '.join(list(takes)[1:5])}, ...: only models of text, images and log-mel "
            "spectra can be planned; measure this one with hf_invact.memory.SavedActivations"
        )
    _check_length(model, seq_len)
    batch["input_ids"] = _token_ids(config, batch_size, seq_len)
    batch["attention_mask"] = real_tokens(1, batch_size, seq_len)
    if "return_loss" in takes:
        return {**batch, "pixel_values": _pixels(model, batch_size), "return_loss": True}
    if "start_positions" in takes:
        return {**batch, "start_positions": real_tokens(0, batch_size), "end_positions": real_tokens(0, batch_size)}
    is_of_sequences = type(model).__name__.endswith("ForSequenceClassification")
    return {**batch, "labels": real_tokens(0, batch_size, *([] if is_of_sequences else [seq_len]))}


def _item_count(model: PreTrainedModel, count: int) -> dict[str, Any]:
    """What the Trainer has models divide the loss by that take it: a number of tokens, as a tensor."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    takes_it = getattr(model, "accepts_loss_kwargs", inspect.Parameter.VAR_KEYWORD in kinds)
    return {"num_items_in_batch": torch.full((), float(count))} if takes_it else {}


def _token_ids(config: PretrainedConfig, batch_size: int, seq_len: int) -> Tensor:
    """A token that is no padding, which some models look for."""
    pad = config.get_text_config().pad_token_id
    return real_tokens(TOKEN if pad != TOKEN else TOKEN + 1, batch_size, seq_len)


def _pixels(model: PreTrainedModel, batch_size: int) -> Tensor:
    config = getattr(model.config, "vision_config", model.config)
    size = config.image_size
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
