"""The arguments of a run, from a YAML file and the command line, and what is invalid in either."""

import json
from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.common.yaml_files import read_yaml
from experiments.finetuning.arguments import first_difference, parse_run
from tests.experiments.small import MODELS, write_config


def test_a_config_sets_all_three_parts(tmp_path):
    run = parse_run([str(write_config(tmp_path, "llama", seed=7, use_inverted_activations=True))])
    assert run.model.model_type == "llama"
    assert run.model.model_config == MODELS["llama"]
    assert run.data.task == "causal-lm"
    assert run.data.max_seq_length == 16
    assert run.training.seed == 7
    assert run.training.use_inverted_activations is True


def test_the_command_line_goes_before_the_config(tmp_path):
    config = write_config(tmp_path, seed=7, max_steps=6)
    run = parse_run([str(config), "--max_steps", "2", "--use_inverted_activations"])
    assert (run.training.max_steps, run.training.seed) == (2, 7)
    assert run.training.use_inverted_activations is True


def test_a_run_needs_no_config():
    run = parse_run(["--task", "causal-lm", "--model_type", "gpt2", "--train_file", "a.txt", "--use_cpu"])
    assert (run.model.model_type, run.data.train_file, run.training.use_cpu) == ("gpt2", "a.txt", True)


@pytest.mark.parametrize("value", ["1e-3", "0.001", 0.001], ids=repr)
def test_numbers_that_yaml_reads_as_text(tmp_path, value):
    run = parse_run([str(write_config(tmp_path, learning_rate=value))])
    assert run.training.learning_rate == 0.001
    assert isinstance(run.training.learning_rate, float)


@pytest.mark.parametrize("number", [1, 3.0], ids=repr)
def test_either_kind_of_number_for_a_float(tmp_path, number):
    assert parse_run([str(write_config(tmp_path, num_train_epochs=number))]).training.num_train_epochs == number


def test_mappings_from_yaml_and_as_json(tmp_path):
    config = write_config(tmp_path, "llama", lora={"r": 2}, inverted_activations_config={"include": ["*.0.mlp"]})
    run = parse_run([str(config)])
    assert run.model.lora == {"r": 2}
    assert run.training.inverted_activations().include == ("*.0.mlp",)
    options = ["--model_config", '{"n_embd": 8}', "--lora", '{"r": 4}', "--inverted_activations_config", "{}"]
    run = parse_run([str(config), *options])
    assert run.model.model_config == {"n_embd": 8}
    assert run.model.lora == {"r": 4}
    assert run.training.inverted_activations_config == {}


def test_mappings_that_are_left_out_are_empty():
    run = parse_run(["--task", "causal-lm", "--model_type", "gpt2", "--train_file", "a.txt", "--use_cpu"])
    assert (run.model.model_config, run.model.lora) == ({}, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_step": 3}, "unknown option 'max_step' in the config .*config.yaml; did you mean 'max_steps'"),
        ({"xyzzy": 3}, "unknown option 'xyzzy' .* --help"),
        ({"task": "translation"}, "task in the config .* must be one of .*'causal-lm'.* got 'translation'"),
        ({"save_strategy": False}, "save_strategy .* must be one of .*'no'.* got False"),  # an unquoted no
        ({"dtype": "int8"}, "dtype .* must be one of .*'float32'.* got 'int8'"),
        ({"max_steps": "many"}, "max_steps.* invalid int value: 'many'"),
        ({"max_steps": 2.5}, "max_steps .* must be of the type int, got 2.5"),
        ({"max_steps": True}, "max_steps .* must be of the type int, got True"),
        ({"max_steps": [3]}, r"max_steps .* must be of the type int, got \[3\]"),
        ({"learning_rate": {"a": 1}}, "learning_rate .* must be of the type float, got {'a': 1}"),
        ({"use_cpu": "maybe"}, "use_cpu.* got maybe"),
        ({"use_cpu": 3}, "use_cpu .* must be of the type bool, got 3"),
        ({"train_file": ["a.txt", "b.txt"]}, "train_file .* must be of the type str.* got \\['a.txt', 'b.txt'\\]"),
        ({"output_dir": 2024}, "output_dir .* must be of the type str.* got 2024"),
        ({"model_config": [1]}, r"model_config .* must be of the type dict.* got \[1\]"),
        ({"model_config": "{"}, "model_config is not valid JSON: .* got '{'"),
        ({"lora": "[1]"}, r"lora must be a mapping .* got list: \[1\]"),
        ({"model_name_or_path": "gpt2"}, "exactly one of model_name_or_path .* and model_type"),
        ({"model_type": None}, "exactly one of model_name_or_path .* and model_type"),
        ({"dataset_name": "stdlib-prose"}, "exactly one of dataset_name and train_file"),
        ({"train_file": None}, "exactly one of dataset_name and train_file"),
        ({"validation_fraction": 1.0}, "validation_fraction must lie between 0 and 1, got 1.0"),
        ({"mlm_probability": 0}, "mlm_probability must lie between 0 and 1, got 0"),
        ({"inverted_activations_config": {"includ": []}}, "'includ'.*did you mean 'include'"),
        ({"inverted_activations_config": "{"}, "inverted_activations_config is not valid JSON"),
        ({"warmup_steps": -1}, "warmup_steps"),
    ],
    ids=lambda value: "-".join(map(str, *value.items())) if isinstance(value, dict) else "",
)
def test_refused_in_a_config(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_run([str(write_config(tmp_path, **changes))])


@pytest.mark.parametrize("key", ["task", "max_steps", "use_cpu", "text_column"])
def test_a_key_without_a_value_is_refused(tmp_path, key):
    config = write_config(tmp_path, **{key: None})
    config.write_text(config.read_text() + f"{key}:\n")
    with pytest.raises(ConfigError, match=rf"{key} in the config .* got None"):
        parse_run([str(config)])


def test_a_key_without_a_value_is_the_default_where_that_is_none(tmp_path):
    config = write_config(tmp_path)
    config.write_text(config.read_text() + "max_train_samples:\nlora:\n")
    run = parse_run([str(config)])
    assert (run.data.max_train_samples, run.model.lora) == (None, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_step", "3"], "unknown option '--max_step' on the command line; did you mean '--max_steps'"),
        (["--xyzzy", "3"], "unknown option '--xyzzy' on the command line"),
        (["other.yaml"], "unknown option 'other.yaml' on the command line"),
        (["--task", "translation"], "task.* invalid choice: 'translation'"),
        (["--max_steps", "many"], "max_steps.* invalid int value: 'many'"),
        (["--max_steps"], "max_steps.* expected one argument"),
        (["--lora", "{"], "lora is not valid JSON"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_refused_on_the_command_line(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        parse_run([str(write_config(tmp_path)), *options])


def test_the_task_must_be_given():
    with pytest.raises(ConfigError, match="required: --task"):
        parse_run(["--model_type", "gpt2", "--train_file", "a.txt"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the config .*bad.yaml: No such file"),
        (b"task: [1", "the config .*bad.yaml is not valid YAML: .*line 1"),
        (b"task: \xff\xfe", "the config .*bad.yaml is not valid YAML: .*utf-8"),
        (b"", "the config .*bad.yaml must hold a mapping of names to values, got NoneType"),
        (b"- task", "the config .*bad.yaml must hold a mapping of names to values, got list"),
    ],
    ids=["missing", "invalid", "binary", "empty", "list"],
)
def test_a_config_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the config .*directory"):
        parse_run([str(tmp_path)])


def test_settings_do_not_say_where_to(tmp_path):
    config = str(write_config(tmp_path))
    here = parse_run([config]).settings()
    there = parse_run([config, "--output_dir", "elsewhere", "--run_name", "x", "--disable_tqdm", "false"]).settings()
    assert here == there
    assert "elsewhere" not in json.dumps(there)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--learning_rate", "0.5"], ("learning_rate", 0.001, 0.5)),
        (["--max_seq_length", "8"], ("max_seq_length", 16, 8)),
        (["--model_type", "bert"], ("model_type", "gpt2", "bert")),
        (["--use_inverted_activations"], ("use_inverted_activations", False, True)),
    ],
    ids=lambda value: value[0],
)
def test_settings_hold_what_decides_the_result(tmp_path, options, difference):
    config = str(write_config(tmp_path))
    before, asked = parse_run([config]).settings(), parse_run([config, *options]).settings()
    assert first_difference(before, before) is None
    assert first_difference(before, asked) == difference


def test_differences_of_some_parts_only(tmp_path):
    config = str(write_config(tmp_path))
    before, asked = parse_run([config]).settings(), parse_run([config, "--seed", "9"]).settings()
    assert first_difference(before, asked, ("model", "data")) is None
    assert first_difference({**before, "data": {}}, asked, ("model", "data")) == ("task", None, "causal-lm")


def test_settings_are_what_their_json_gives_back(tmp_path):
    config = write_config(tmp_path, model_config={"id2label": {0: "no", 1: "yes"}}, optim_target_modules=["a"])
    settings = parse_run([str(config)]).settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["model"]["model_config"] == {"id2label": {"0": "no", "1": "yes"}}


@pytest.mark.parametrize("path", sorted(Path("configs/demo").glob("*.yaml")), ids=lambda path: path.stem)
def test_settings_of_the_demo_are_plain(path):
    settings = parse_run([str(path)]).settings()
    assert json.loads(json.dumps(settings)) == settings


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit) as left:
        parse_run(["--help"])
    assert left.value.code == 0
    assert "--use_inverted_activations" in capsys.readouterr().out
