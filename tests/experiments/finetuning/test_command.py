"""The script as a user sees it: exit codes, and one line for an error that the user can fix."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from experiments.finetuning.run import main
from tests.experiments.small import MODELS, contents, own_lines, write_config

SCRIPT = Path(__file__).parents[3] / "scripts" / "finetune.py"


@pytest.fixture(autouse=True, scope="module")
def no_progress_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def test_a_run_that_succeeds(tmp_path, capsys):
    assert main([str(write_config(tmp_path, "bert", use_inverted_activations=True)), "--max_steps", "1"]) == 0
    assert "error" not in capsys.readouterr().err
    assert (tmp_path / "run/run.json").exists()


FRESH = {"model_type": None, "model_config": None}  # left out of the config


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"max_step": 3}, [], "unknown option 'max_step' in the config .*config.yaml; did you mean 'max_steps'"),
        ({}, ["--max_step", "3"], "unknown option '--max_step' on the command line; did you mean '--max_steps'"),
        ({"max_steps": "many"}, [], "max_steps.* 'many'"),
        ({"train_file": "missing.txt"}, [], r"train_file='missing\.txt' does not exist"),
        ({"train_file": None, "dataset_name": "some/data"}, [], "data set 'some/data' .* configs/demo/gpt2.yaml"),
        ({**FRESH, "model_name_or_path": "some/model"}, [], "'some/model' is neither .* configs/demo/gpt2.yaml"),
        ({"text_column": "txt"}, [], "text_column='txt', .*no such column; it has text"),
        ({"max_seq_length": 5000}, [], "fewer than one sequence of max_seq_length=5000"),
        ({"model_type": "gpt3"}, [], "model_type 'gpt3'"),
        ({"model_config": {**MODELS["gpt2"], "n_embd": 33}}, [], "the model cannot be built"),
        ({"lora": {"target_modules": ["nope"]}}, [], "lora: "),
        ({}, ["--inverted_activations_config", '{"includ": 1}'], "'includ'"),
        ({}, ["--resume_from_checkpoint", "nowhere"], "nowhere is not a complete checkpoint"),
    ],
    ids=lambda value: str(value) if isinstance(value, (dict, list)) else "",
)
def test_an_error_of_the_user_is_one_line_and_leaves_nothing(tmp_path, capsys, changes, options, message):
    config = write_config(tmp_path, **changes)
    before = contents(tmp_path)
    assert main([str(config), *options]) == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert contents(tmp_path) == before


def test_nothing_to_invert(tmp_path, capsys):
    changes = {"model_config": {"activation_function": "relu"}, "use_inverted_activations": True}
    config = write_config(tmp_path, **changes, inverted_activations_config={"sites": ["activation"]})
    assert main([str(config)]) == 2
    assert re.fullmatch("error: .*nothing to invert.*ReLU.*\n", capsys.readouterr().err)
    assert contents(tmp_path / "run") == {}  # the Trainer creates the folder itself


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read the config"), ("task: [1,\n  2", "is not valid YAML"), ("- 1", "must hold a mapping")],
    ids=["missing", "invalid", "list"],
)
def test_a_config_that_cannot_be_read(tmp_path, capsys, content, message):
    config = tmp_path / "config.yaml"
    if content is not None:
        config.write_text(content)
    assert main([str(config)]) == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)


def test_an_output_folder_that_cannot_be_made(tmp_path, capsys):
    config = write_config(tmp_path)
    before = contents(tmp_path)
    folder = config / "below a file"
    assert main([str(config), "--output_dir", str(folder)]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: the output folder {folder} cannot be written .*--output_dir\n", error)
    assert contents(tmp_path) == before


def test_an_output_folder_that_holds_other_things(tmp_path, capsys):
    config = write_config(tmp_path)
    before = contents(tmp_path)
    assert main([str(config), "--output_dir", str(tmp_path)]) == 2
    assert re.fullmatch(f"error: the output folder {tmp_path} is not empty .*\n", capsys.readouterr().err)
    assert contents(tmp_path) == before


def test_an_error_of_the_program_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(run):
        raise ZeroDivisionError

    monkeypatch.setattr("experiments.finetuning.run.build", fail)
    with pytest.raises(ZeroDivisionError):
        main([str(write_config(tmp_path))])


@pytest.mark.slow
def test_the_script_itself(tmp_path):
    config = write_config(tmp_path, max_step=3)
    before = contents(tmp_path)
    command = [sys.executable, str(SCRIPT), str(config), "--output_dir", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert re.fullmatch(f"error: unknown option 'max_step' in the config {config}; .*\n", own_lines(ended.stderr))
    assert ended.stdout == ""
    assert contents(tmp_path) == before
