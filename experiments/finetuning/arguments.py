"""The arguments of one fine-tuning run: the model, the data and the training."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from hf_invact.trainer import InvActTrainingArguments

from ..common.errors import ConfigError
from ..common.limits import check_limits
from ..common.masking import masked
from ..common.yaml_files import check_keys, read_yaml, unknown_key
from .study import StudyArguments


@dataclass
class ModelArguments:
    """Which model is trained: pretrained weights, or fresh ones of a named architecture."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained weights: a hub name, a local folder, or package:NAME for the weights in the installed "
            "Python package NAME. Without it the weights are fresh."
        },
    )
    model_type: str | None = field(
        default=None,
        metadata={"help": "Architecture of fresh weights, as Transformers names it: gpt2, bert, mistral, llama, ..."},
    )
    model_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Values of the model's config to set, as a mapping (JSON on the command line)."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Hub name or local folder of a tokenizer. Default: the model's own, or one trained here."},
    )
    tokenizer_vocab_size: int = field(
        default=4096, metadata={"help": "Vocabulary size of a tokenizer that is trained on the data."}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Dtype of the weights."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention implementation: sdpa, eager, flash_attention_2, ..."}
    )
    lora: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Train LoRA adapters with these peft.LoraConfig values, as a mapping (JSON)."},
    )
    quantization: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Quantize the pretrained weights with these transformers.BitsAndBytesConfig values, as a mapping "
            "(JSON): '{\"load_in_4bit\": true}'. Needs lora, and the package bitsandbytes."
        },
    )

    def __post_init__(self) -> None:
        self.model_config = _as_mapping("model_config", self.model_config)
        self.lora = _as_mapping("lora", self.lora)
        self.quantization = _as_mapping("quantization", self.quantization)
        if (self.model_name_or_path is None) == (self.model_type is None):
            raise ConfigError(
                "give exactly one of model_name_or_path (pretrained weights) and model_type (fresh weights); "
                f"got model_name_or_path={self.model_name_or_path!r} and model_type={self.model_type!r}"
            )
        if self.quantization and not (self.lora and self.model_name_or_path):
            raise ConfigError(
                "quantization is for pretrained weights (model_name_or_path) with adapters (lora): quantized weights "
                f"are not trained; got model_name_or_path={self.model_name_or_path!r} and lora={self.lora!r}"
            )


@dataclass
class DataArguments:
    """Which task is trained, and on which text."""

    task: Literal["causal-lm", "masked-lm", "sequence-classification"] = field(
        metadata={"help": "The training objective."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub name of a data set, or one that needs no network: stdlib-prose (language modelling) or "
            "stdlib-docstrings (classification), both read from Python's own standard library."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_file: str | None = field(
        default=None, metadata={"help": "Local training data (.txt, .csv, .json, .jsonl) instead of dataset_name."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "Local validation data of the same form."})
    text_column: str = field(default="text", metadata={"help": "Column with the text (the first sentence of a pair)."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column with the second sentence of a pair."})
    label_column: str = field(default="label", metadata={"help": "Column with the class, for classification."})
    text_template: str | None = field(
        default=None,
        metadata={
            "help": "Build the text of each record from its columns, e.g. "
            "'### Instruction:\\n{instruction}\\n### Response:\\n{output}'. Replaces text_column."
        },
    )
    validation_fraction: float = field(
        default=0.05, metadata={"help": "Share of the training records held out where there is no validation split."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Tokens in a sequence."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of tokens to mask, for masked-lm."})
    max_train_samples: int | None = field(default=None, metadata={"help": "The largest number of training sequences."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "The largest number of validation sequences."})

    def __post_init__(self) -> None:
        if (self.dataset_name is None) == (self.train_file is None):
            raise ConfigError(
                "give exactly one of dataset_name and train_file; "
                f"got dataset_name={self.dataset_name!r} and train_file={self.train_file!r}"
            )
        if not 0.0 < self.validation_fraction < 1.0:
            raise ConfigError(f"validation_fraction must lie between 0 and 1, got {self.validation_fraction}")
        if not 0.0 < self.mlm_probability < 1.0:
            raise ConfigError(f"mlm_probability must lie between 0 and 1, got {self.mlm_probability}")


@dataclass(frozen=True)
class RunArguments:
    """Everything that defines one run."""

    model: ModelArguments
    data: DataArguments
    training: InvActTrainingArguments
    study: StudyArguments

    def __post_init__(self) -> None:
        if self.training.use_inverted_activations and (self.study.method or self.study.gradient_checks):
            raise ConfigError(
                "method and gradient_checks need a plain training, but use_inverted_activations is on; "
                f"got method={self.study.method!r} and gradient_checks={self.study.gradient_checks}"
            )

    def settings(self) -> dict[str, dict[str, Any]]:
        """The values that decide the result, as JSON returns them, with secrets masked; without output folders."""
        training = {key: value for key, value in self.training.to_dict().items() if key not in _PLACES}
        parts = {"model": dataclasses.asdict(self.model), "data": dataclasses.asdict(self.data), "training": training}
        parts["study"] = dataclasses.asdict(self.study)
        plain: dict[str, dict[str, Any]] = masked(json.loads(json.dumps(parts, default=str)))
        return plain


_PLACES = {"output_dir", "logging_dir", "run_name", "resume_from_checkpoint", "disable_tqdm"}


PARTS = ("model", "data", "training", "study")


def parse_run(argv: Sequence[str]) -> RunArguments:
    """Read ``[CONFIG.yaml] [--key value ...]``; the command line overrides the file.

    Raises:
        ConfigError: a file cannot be read, a key is unknown, or a value is invalid.
    """
    parser = _Parser(_CLASSES, allow_abbrev=False)
    rest = list(argv)
    if rest and not rest[0].startswith("-"):
        _set_defaults(parser, Path(rest.pop(0)))
    try:
        model, data, training, study, unknown = parser.parse_args_into_dataclasses(
            rest, return_remaining_strings=True, look_for_args_file=False
        )
    except ConfigError:
        raise
    except (ValueError, ImportError) as error:  # an argument class rejects a value, or an optional package is missing
        raise ConfigError(str(error)) from error
    if unknown:
        raise ConfigError(unknown_key(unknown[0], "on the command line", [f"--{name}" for name in _names(parser)]))
    check_limits(model, data, training, study)
    return RunArguments(model, data, training, study)


def first_difference(
    before: dict[str, dict[str, Any]],
    asked: dict[str, dict[str, Any]],
    parts: Sequence[str] = PARTS,
) -> tuple[str, Any, Any] | None:
    """The first of `RunArguments.settings` that differs: its key, the earlier and the new value; None if none does."""
    for part in parts:
        for key, value in asked[part].items():
            known = before.get(part, {}).get(key)
            if known != value:
                return key, known, value
    return None


_CLASSES = (ModelArguments, DataArguments, InvActTrainingArguments, StudyArguments)


class _Parser(HfArgumentParser):
    """Raises `ConfigError` instead of printing all options and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _set_defaults(parser: _Parser, path: Path) -> None:
    values = read_yaml(path)
    check_keys(values, _names(parser), f"in the config {path}")
    hints = {name: hint for arguments in _CLASSES for name, hint in get_type_hints(arguments).items()}
    for action in parser._actions:
        if action.dest in values:
            _check_default(action, hints[action.dest], values[action.dest], path)
            action.required = False
    parser.set_defaults(**values)


def _check_default(action: argparse.Action, hint: Any, value: Any, path: Path) -> None:
    """Check a value as argparse does for the command line. It checks a default only if it is a string."""
    if value is None and action.default is None and not action.required:
        return
    if action.choices is not None:
        if value not in action.choices:
            known = list(action.choices)
            raise ConfigError(f"{action.dest} in the config {path} must be one of {known}, got {value!r}")
    elif not isinstance(value, str) and not _is_a(value, hint):
        kind = getattr(hint, "__name__", str(hint))
        raise ConfigError(f"{action.dest} in the config {path} must be of the type {kind}, got {value!r}")


def _is_a(value: Any, hint: Any) -> bool:
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = {get_origin(alternative) or alternative for alternative in alternatives}
    if float in kinds:
        kinds.add(int)
    if isinstance(value, bool):  # which Python takes for an int
        return bool in kinds
    return isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type)))


def _names(parser: _Parser) -> list[str]:
    return [action.dest for action in parser._actions if action.dest != "help"]


def _as_mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{name} is not valid JSON: {error}; got {value!r}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a mapping of names to values, got {type(value).__name__}: {value!r}")
    return value
