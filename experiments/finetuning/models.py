"""Builds the tokenizer and the model of a run: pretrained, or fresh and small."""

from __future__ import annotations

import difflib
import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..common.errors import ConfigError, first_line
from ..common.yaml_files import check_keys
from .arguments import DataArguments, ModelArguments
from .data.records import OFFLINE_CONFIGS, training_texts
from .data.tasks import PreparedTask
from .data.tokenizer import train_tokenizer
from .pretrained import find_pretrained

TASK_TYPES = {"causal-lm": "CAUSAL_LM", "masked-lm": None, "sequence-classification": "SEQ_CLS"}


def load_tokenizer(
    model: ModelArguments, data: DataArguments, records: datasets.DatasetDict
) -> PreTrainedTokenizerBase:
    """The named tokenizer, the pretrained model's own, or one trained on the training texts.

    Raises:
        ConfigError: it is not found.
    """
    name = model.tokenizer_name or model.model_name_or_path
    if name is None:
        texts = training_texts(data, records)
        return train_tokenizer(texts, str(model.model_type), model.tokenizer_vocab_size, data.max_seq_length)
    pretrained = find_pretrained(name)
    try:
        return AutoTokenizer.from_pretrained(pretrained.location, **pretrained.options)
    except (OSError, ValueError) as error:
        raise _not_found("tokenizer", name, error) from error


def build_model(
    model: ModelArguments, data: DataArguments, task: PreparedTask, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The model with the task's head, and with adapters if the arguments ask for them.

    Raises:
        ConfigError: an unknown architecture or config value, weights that are not found, or a missing package.
    """
    config = _config(model, data, task, tokenizer)
    dtype = config.dtype or torch.float32 if model.dtype == "auto" else getattr(torch, model.dtype)
    options: dict[str, Any] = {"dtype": dtype}
    if model.attn_implementation is not None:
        options["attn_implementation"] = model.attn_implementation
    if model.quantization:
        options["quantization_config"] = _quantization(model)
    try:
        if model.model_name_or_path is None:
            built = task.auto_class.from_config(config, **options)
        else:
            built = _with_pretrained_weights(model.model_name_or_path, config, task, options)
    except OSError as error:
        raise _not_found("model", str(model.model_name_or_path), error) from error
    except (ImportError, KeyError, RuntimeError, SafetensorError, ValueError) as error:
        raise ConfigError(f"the model cannot be built ({type(error).__name__}: {first_line(error)})") from error
    return _with_adapters(built, model, data) if model.lora else built


def _with_pretrained_weights(
    name: str, config: PretrainedConfig, task: PreparedTask, options: dict[str, Any]
) -> PreTrainedModel:
    pretrained = find_pretrained(name)
    loaded = task.auto_class.from_pretrained(pretrained.location, config=config, **options, **pretrained.options)
    if pretrained.gguf_file is None:
        return loaded
    # Transformers regards weights from GGUF as quantized, which the Trainer refuses: copy them into a fresh model.
    fresh = task.auto_class.from_config(config, **options)
    fresh.load_state_dict(loaded.state_dict())
    return fresh


def _config(
    model: ModelArguments, data: DataArguments, task: PreparedTask, tokenizer: PreTrainedTokenizerBase
) -> PretrainedConfig:
    if model.model_name_or_path is not None:
        pretrained = find_pretrained(model.model_name_or_path)
        try:
            config = AutoConfig.from_pretrained(pretrained.location, **pretrained.options)
        except (OSError, ValueError) as error:
            raise _not_found("model", model.model_name_or_path, error) from error
    else:
        try:
            config = AutoConfig.for_model(str(model.model_type), **_token_ids(tokenizer))
        except ValueError as error:
            raise ConfigError(f"model_type {model.model_type!r} is not an architecture of Transformers") from error
    for key, value in _mapping(model.model_config).items():
        if not hasattr(config, key):
            near = difflib.get_close_matches(key, config.to_dict(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"model_config: {type(config).__name__} has no attribute {key!r}{hint}")
        try:
            setattr(config, key, value)
        except StrictDataclassError as error:
            raise ConfigError(f"model_config: {error}") from error
    for key, value in task.model_config_updates.items():
        setattr(config, key, value)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and 0 < positions < data.max_seq_length:
        raise ConfigError(
            f"max_seq_length={data.max_seq_length} is more than this model's max_position_embeddings={positions}; "
            "lower it, or raise max_position_embeddings in model_config"
        )
    return config


def _token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}


def _quantization(model: ModelArguments) -> BitsAndBytesConfig:
    values = _mapping(model.quantization)
    # BitsAndBytesConfig silently accepts any other key.
    check_keys(values, list(inspect.signature(BitsAndBytesConfig.__init__).parameters), "in quantization")
    if find_spec("bitsandbytes") is None:
        raise ConfigError("quantization needs the package bitsandbytes: pip install '.[quantization]'")
    try:
        return BitsAndBytesConfig(**values)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"quantization: {error}") from error


def _with_adapters(built: PreTrainedModel, model: ModelArguments, data: DataArguments) -> PreTrainedModel:
    try:
        import peft
    except ImportError as error:
        raise ConfigError("lora needs the package peft: pip install peft") from error
    try:
        adapters = peft.LoraConfig(task_type=TASK_TYPES[data.task], **_mapping(model.lora))
        if model.quantization:
            built = peft.prepare_model_for_kbit_training(built, use_gradient_checkpointing=False)
        # Without this, no gradient reaches a checkpointed block whose input comes from frozen embeddings.
        built.enable_input_require_grads()
        return peft.get_peft_model(built, adapters)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"lora: {error}") from error


def _mapping(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """An option that `ModelArguments` has converted to a mapping."""
    assert isinstance(value, dict)
    return value


def _not_found(what: str, name: str, error: Exception) -> ConfigError:
    reason = first_line(error)
    if Path(name).is_dir():
        return ConfigError(f"the folder {name!r} holds no readable {what} ({reason})")
    return ConfigError(
        f"the {what} {name!r} is neither a local folder nor in the cache, and the hub could not be reached ({reason}). "
        f"These configs need no network: {', '.join(OFFLINE_CONFIGS)}"
    )
