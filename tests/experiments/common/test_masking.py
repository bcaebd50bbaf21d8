"""Tokens and passwords must not be in any file that a script writes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.common.masking import is_secret, masked, masked_command, masked_text
from experiments.compare.command import main as compare
from experiments.finetuning.arguments import parse_run
from experiments.finetuning.run import main as finetune
from tests.experiments.small import MODELS, write_config

SECRET = "s3cr3tValue0123456789"


@pytest.mark.parametrize(
    "name",
    [
        "hub_token",
        "--hub-token",
        "push_to_hub_token",
        "HF_TOKEN",
        "apiKey",
        "api_key",
        "APIKey",
        "accessKey",
        "key",
        "wandb_api_key",
        "password",
        "db_password_file",
        "client_secret",
        "secrets",
        "authtoken",
        "credentials",
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "--",
        *[
            "tokenizer_name",
            "tokenizer_vocab_size",
            "max_new_tokens",
            "num_key_value_heads",
            "pad_token_id",
            "eos_token",
            "include_num_input_tokens_seen",
            "label_column",
            "keyboard",
            "num_train_epochs",
        ],
    ],
)
def test_names_of_something_else(name):
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--hub_token", SECRET, "--seed", "1"], "--hub_token '***' --seed 1"),
        ([f"--hub-token={SECRET}", "a.yaml"], "'--hub-token=***' a.yaml"),
        (["--train_file", f"https://me:{SECRET}@host/a.csv"], "--train_file 'https://***@host/a.csv'"),
        (
            ["--train_file", f"https://host/a.csv?api_key={SECRET}&b=1"],
            "--train_file 'https://host/a.csv?api_key=***&b=1'",
        ),
        (
            ["--model_config", f'{{"a": {{"token": "{SECRET}"}}, "b": 1}}'],
            '--model_config \'{"a": {"token": "***"}, "b": 1}\'',
        ),
        (["--title", f"my hf_{SECRET}"], "--title 'my ***'"),
        (["--hub_token"], "--hub_token"),
        (["--hub_token", "--seed", "1"], "--hub_token --seed 1"),
        (["--tokenizer_name", "gpt2", "--lora", '{"r":4}'], "--tokenizer_name gpt2 --lora '{\"r\":4}'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_command_lines(arguments, expected):
    assert masked_command(["python", "a.py", *arguments]) == f"python a.py {expected}"
    assert shlex.split(masked_command(arguments))


def test_nested_values_and_numbers():
    values = {"hub_token": "<HUB_TOKEN>", "key": 3, "a": [{"password": SECRET}], "b": f"token={SECRET}", "c": None}
    expected = {"hub_token": "<HUB_TOKEN>", "key": 3, "a": [{"password": "***"}], "b": "token=***", "c": None}
    assert masked(values) == expected
    assert masked_text("key: {key}, {input}\n") == "key: {key}, {input}\n"


def files_with(folder: Path, secret: str) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if secret.encode() in path.read_bytes()]


def test_a_comparison_writes_none(tmp_path):
    config = write_config(tmp_path, "llama", max_steps=1, save_strategy="steps")
    options = ["--hub_token", SECRET]
    folder = tmp_path / "out"
    assert compare([str(config), "--output_dir", str(folder), "--seeds", "0", *options]) == 0
    assert files_with(folder, SECRET) == []
    for name in ("plan.json", "comparison.json", "report.html", "report.md"):
        assert "--hub_token" in (folder / name).read_text().replace("\\", "")


def test_a_refusal_shows_none(tmp_path, capsys):
    config = str(write_config(tmp_path, model_config={**MODELS["gpt2"], "token": SECRET}))
    url = f"https://me:{SECRET}@host/a.txt"
    for options in ([f"--hub_tokn={SECRET}"], ["--train_file", url], ["--dataset_name", url]):
        assert finetune([config, *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert SECRET not in error
    with pytest.raises(ConfigError, match=re.escape("https://***@host")):
        parse_run([config, "--dataset_name", url])
    assert SECRET not in str(parse_run([config]).settings())
