"""Numbers that no training can use are refused in one line, before anything is loaded."""

from __future__ import annotations

import pytest

from experiments.common.errors import ConfigError
from experiments.finetuning.arguments import parse_run
from tests.experiments.small import write_config

LIMITS = {
    "at least 1": "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps max_seq_length "
    "tokenizer_vocab_size max_train_samples max_eval_samples eval_accumulation_steps",
    "at least 0": "learning_rate weight_decay max_grad_norm dataloader_num_workers seed data_seed adam_beta1",
    "more than 0": "adam_epsilon save_steps eval_steps num_train_epochs",
}
REFUSED = {"at least 1": "0 -1", "at least 0": "-1", "more than 0": "0 -1"}


@pytest.mark.parametrize("limit", LIMITS)
def test_numbers_that_are_too_small(tmp_path, limit):
    config = str(write_config(tmp_path, max_steps=None))
    for name in LIMITS[limit].split():
        for value in REFUSED[limit].split():
            with pytest.raises(ConfigError, match=f"{name} must be {limit}.*, got {value}"):
                parse_run([config, f"--{name}={value}"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seed=4294967296", "seed must be less than 4294967296, got 4294967296"),
        ("--data_seed=5000000000", "data_seed must be less than 4294967296, got 5000000000"),
        ("--adam_beta2=1", r"adam_beta2 must be less than 1, got 1\.0"),
        ("--learning_rate=nan", "learning_rate must be a finite number, got nan"),
        ("--learning_rate=inf", "learning_rate must be a finite number, got inf"),
        ("--max_grad_norm=nan", "max_grad_norm must be a finite number, got nan"),
        ("--warmup_steps=nan", "warmup_steps must be a finite number, got nan"),
        ("--max_steps=0", r"max_steps must be at least 1, or -1 to train for num_train_epochs \(3\) instead, got 0"),
        ("--max_steps=-5", "max_steps must be at least 1, .* got -5"),
        ("--output_dir=", "output_dir must not be empty"),
        ("--train_file= ", "train_file must not be empty"),
    ],
)
def test_refused_on_the_command_line(tmp_path, option, message):
    with pytest.raises(ConfigError, match=message):
        parse_run([str(write_config(tmp_path)), option])


@pytest.mark.parametrize("value", [-1, 0, float("nan"), float("inf")])
def test_refused_in_a_config(tmp_path, value):
    name = "per_device_train_batch_size" if isinstance(value, int) else "weight_decay"
    with pytest.raises(ConfigError, match=f"{name} must be .* got {value}"):
        parse_run([str(write_config(tmp_path, **{name: value}))])


def test_the_ends_of_the_limits_are_allowed(tmp_path):
    options = ["--seed=4294967295", "--learning_rate=0", "--max_grad_norm=inf", "--max_steps=-1", "--adam_beta1=0"]
    training = parse_run([str(write_config(tmp_path)), *options]).training
    assert (training.seed, training.learning_rate, training.max_steps) == (2**32 - 1, 0.0, -1)
