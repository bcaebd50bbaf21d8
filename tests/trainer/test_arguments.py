"""The two fields from every source, and errors while they are parsed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments

from hf_invact import (
    InvActArgumentsMixin,
    InvActConfig,
    InvActTrainingArguments,
    InvertedActivationsCallback,
)
from tests.models import tiny_model
from tests.trainer.helpers import Witness, arguments, make_trainer

OPTIONS = {"include": ["*.mlp"], "exclude": ["*.0.mlp"], "backend": "eager"}
CONFIG = InvActConfig(include=("*.mlp",), exclude=("*.0.mlp",), backend="eager")

# Invalid JSON and the error.
MISTAKES = {
    '{"include": ': "is not valid JSON",
    "": "is not valid JSON",
    '{"includes": ["*"]}': r"unknown option 'includes' .*did you mean 'include'.*known: include, exclude, plan",
    '{"include": "*.mlp"}': "include must be a list of patterns",
    '{"exclude": null}': "exclude must be a list of patterns",
    '{"backend": "cuda"}': r"unknown backend 'cuda'; known: auto, eager",
    "[]": r"must be a mapping, got list: \[\]",
    "0": "must be a mapping, got int: 0",
    '"eager"': "must be a mapping, got str: 'eager'",
}
each_mistake = pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=MISTAKES)


def parse(*argv: str, cls: type = InvActTrainingArguments) -> Any:
    (args,) = HfArgumentParser(cls).parse_args_into_dataclasses(list(argv))
    return args


def test_off_by_default(tmp_path: Path) -> None:
    args = InvActTrainingArguments(output_dir=str(tmp_path))
    assert args.use_inverted_activations is False
    assert args.inverted_activations_config is None
    assert args.inverted_activations() == InvActConfig()


@pytest.mark.parametrize("value", [OPTIONS, json.dumps(OPTIONS)], ids=["mapping", "JSON"])
def test_config_as_a_mapping_or_its_json(value: Any, tmp_path: Path) -> None:
    args = InvActTrainingArguments(output_dir=str(tmp_path), inverted_activations_config=value)
    assert args.inverted_activations_config == OPTIONS
    assert args.inverted_activations() == CONFIG


@pytest.mark.parametrize("value", [None, {}, "{}", "null"], ids=repr)
def test_an_empty_config_is_the_default(value: Any, tmp_path: Path) -> None:
    args = InvActTrainingArguments(output_dir=str(tmp_path), inverted_activations_config=value)
    assert args.inverted_activations() == InvActConfig()


def test_on_the_command_line(tmp_path: Path) -> None:
    output = ("--output_dir", str(tmp_path))
    assert parse(*output).use_inverted_activations is False
    assert parse(*output, "--use_inverted_activations").use_inverted_activations is True
    config = json.dumps(OPTIONS)
    args = parse(*output, "--use_inverted_activations", "true", "--inverted_activations_config", config, "--seed", "7")
    assert (args.use_inverted_activations, args.inverted_activations(), args.seed) == (True, CONFIG, 7)
    assert parse(*output, "--use_inverted_activations", "false").use_inverted_activations is False


def test_in_a_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"output_dir: {tmp_path}\n"
        "use_inverted_activations: true\n"
        "inverted_activations_config:\n"
        "  include: ['*.mlp']\n"
        "  exclude: ['*.0.mlp']\n"
        "  backend: eager\n"
    )
    (args,) = HfArgumentParser(InvActTrainingArguments).parse_yaml_file(path)
    assert args.use_inverted_activations is True
    assert args.inverted_activations() == CONFIG


def test_in_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    values = {"output_dir": str(tmp_path), "use_inverted_activations": True, "inverted_activations_config": OPTIONS}
    path.write_text(json.dumps(values))
    (args,) = HfArgumentParser(InvActTrainingArguments).parse_json_file(path)
    assert args.inverted_activations() == CONFIG


@each_mistake
def test_a_mistake_on_the_command_line_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        parse("--output_dir", str(tmp_path), "--inverted_activations_config", text)


@each_mistake
def test_a_mistake_in_a_yaml_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"output_dir: {tmp_path}\ninverted_activations_config: {json.dumps(text)}\n")
    with pytest.raises(ValueError, match=message):
        HfArgumentParser(InvActTrainingArguments).parse_yaml_file(path)


@pytest.mark.parametrize("value", [["*.mlp"], 3], ids=repr)
def test_a_config_that_is_no_mapping_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"must be a mapping, got {type(value).__name__}"):
        InvActTrainingArguments(output_dir=str(tmp_path), inverted_activations_config=value)


def test_survives_a_round_trip(tmp_path: Path) -> None:
    args = InvActTrainingArguments(
        output_dir=str(tmp_path), use_inverted_activations=True, inverted_activations_config=OPTIONS
    )
    values = json.loads(args.to_json_string())
    assert values["use_inverted_activations"] is True
    assert values["inverted_activations_config"] == OPTIONS


def test_help_shows_both_options() -> None:
    text = HfArgumentParser(InvActTrainingArguments).format_help()
    assert "--use_inverted_activations" in text
    assert "--inverted_activations_config" in text


@dataclass
class OwnArguments(InvActArgumentsMixin, Seq2SeqTrainingArguments):
    """Custom training arguments with the two fields."""

    temperature: float = 1.0


def test_mixed_into_other_training_arguments(tmp_path: Path) -> None:
    args = parse(
        *(
            "--output_dir",
            str(tmp_path),
            "--temperature",
            "0.5",
            "--predict_with_generate",
            "--use_inverted_activations",
        ),
        *("--inverted_activations_config", json.dumps(OPTIONS)),
        cls=OwnArguments,
    )
    assert isinstance(args, TrainingArguments)
    assert (args.temperature, args.predict_with_generate, args.use_inverted_activations) == (0.5, True, True)
    assert args.inverted_activations() == CONFIG
    assert args.device is not None  # TrainingArguments has run its own __post_init__


def test_the_mixed_in_flag_decides(tmp_path: Path) -> None:
    for flag in (False, True):
        callback, witness = InvertedActivationsCallback(), Witness()
        args = arguments(tmp_path, OwnArguments, use_inverted_activations=flag, inverted_activations_config=OPTIONS)
        make_trainer(tiny_model("llama"), args, callback, witness).train()
        assert witness.patched == {"train_begin": [flag], "step": [flag] * 3, "train_end": [False]}
        assert (callback.report.patched if callback.report else 0) == int(flag)


def test_mixed_into_a_dataclass_that_has_no_checks_of_its_own() -> None:
    @dataclass
    class Plain(InvActArgumentsMixin):
        epochs: int = 1

    assert Plain(inverted_activations_config=json.dumps(OPTIONS)).inverted_activations() == CONFIG
