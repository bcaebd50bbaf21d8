"""Checks the values of a run before anything is loaded or written."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from .errors import ConfigError

SEED_LIMIT = 2**32  # seeds are below it: NumPy's limit
_AT_LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("max_seq_length", "tokenizer_vocab_size", "max_train_samples", "max_eval_samples"), 1),
    **dict.fromkeys(("eval_accumulation_steps", "torch_empty_cache_steps"), 1),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "dataloader_num_workers"), 0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor", "eval_delay"), 0),
}
_ABOVE = dict.fromkeys(("adam_epsilon", "logging_steps", "save_steps", "eval_steps"), 0)
_BELOW = {"adam_beta1": 1, "adam_beta2": 1, "label_smoothing_factor": 1, "seed": SEED_LIMIT, "data_seed": SEED_LIMIT}
_HINTS = dict.fromkeys(("max_train_samples", "max_eval_samples"), "; leave it out to use all of them")
_NAMES = (
    *("output_dir", "model_name_or_path", "model_type", "tokenizer_name", "dataset_name", "train_file"),
    *("validation_file", "text_column", "label_column", "resume_from_checkpoint"),
)


def check_limits(*parts: Any) -> None:
    """Refuse the first value that no training can use.

    Args:
        parts: instances of the argument classes.

    Raises:
        ConfigError: the message names the option, what was expected, and what was given.
    """
    values = {field.name: getattr(part, field.name) for part in parts for field in dataclasses.fields(part)}
    for name, value in values.items():
        if isinstance(value, str) and name in _NAMES and not value.strip():
            raise ConfigError(f"{name} must not be empty; leave it out, or give a name")
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(name, value)
    if "max_steps" in values:
        _check_length(values["max_steps"], values["num_train_epochs"])


def _check_number(name: str, value: float) -> None:
    if math.isnan(value) or (math.isinf(value) and name != "max_grad_norm"):
        raise ConfigError(f"{name} must be a finite number, got {value}")
    least = 0 if name in ("seed", "data_seed") else _AT_LEAST.get(name)
    if least is not None and value < least:
        raise ConfigError(f"{name} must be at least {least}, got {value}{_HINTS.get(name, '')}")
    if name in _ABOVE and value <= _ABOVE[name]:
        raise ConfigError(f"{name} must be more than {_ABOVE[name]}, got {value}")
    if name in _BELOW and value >= _BELOW[name]:
        raise ConfigError(f"{name} must be less than {_BELOW[name]}, got {value}")


def _check_length(steps: int, epochs: float) -> None:
    if steps == 0 or steps < -1:
        raise ConfigError(
            f"max_steps must be at least 1, or -1 to train for num_train_epochs ({epochs:g}) instead, got {steps}"
        )
    if steps == -1 and epochs <= 0:
        raise ConfigError(f"num_train_epochs must be more than 0 where max_steps is not given, got {epochs:g}")
