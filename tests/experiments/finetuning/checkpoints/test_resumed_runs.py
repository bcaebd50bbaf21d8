"""Runs that are interrupted, continued, or would overwrite something."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from experiments.common.errors import ConfigError
from experiments.finetuning.arguments import parse_run
from experiments.finetuning.run import finetune
from tests.experiments.small import MODELS, SENTENCES, contents, losses, write_config, write_records
from tests.helpers import threads


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


class Interrupt(TrainerCallback):
    """Ends the run in the middle of training, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class FirstStep(TrainerCallback):
    """Records the step at which training began; None if it never did."""

    step: int | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.step = state.global_step


class InterruptEvaluation(TrainerCallback):
    """Ends the run after training, before its results are written."""

    def on_evaluate(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def config(folder: Path, model: str = "llama", **changes: Any) -> str:
    return str(write_config(folder, model, **{"save_strategy": "steps", "save_steps": 2, **changes}))


def interrupted(folder: Path, model: str = "llama", step: int = 5, **changes: Any) -> str:
    """The config of a run that was interrupted; it has the checkpoints of steps 2 and 4."""
    path = config(folder, model, **changes)
    with pytest.raises(KeyboardInterrupt):
        finetune(parse_run([path]), [Interrupt(step)])
    assert not (folder / "run/run.json").exists()
    return path


def go_on(path: str, *options: str) -> tuple[dict[str, Any], int | None]:
    """The result, and the step at which training began."""
    began = FirstStep()
    return finetune(parse_run([path, *options]), [began]), began.step


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config of an interrupted run and its output; to be copied."""
    folder = tmp_path_factory.mktemp("cut")
    interrupted(folder)
    return folder


@pytest.fixture
def cut_copy(cut: Path, tmp_path: Path) -> Path:
    """A copy of `cut` for one test. The text, whose path is in the settings, stays in its place."""
    shutil.copytree(cut / "run", tmp_path / "run")
    text = (cut / "config.yaml").read_text().replace(f"output_dir: {cut}", f"output_dir: {tmp_path}")
    (tmp_path / "config.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("gpt2", {}),
        ("llama", {"use_inverted_activations": True}),
        ("llama", {"lora": {"r": 2}}),
        ("bert", {"task": "sequence-classification"}),
        ("bert", {"task": "sequence-classification", "lora": {"r": 2}}),
    ],
    ids=["gpt2", "llama inverted", "llama adapters", "bert classifier", "bert classifier adapters"],
)
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, model, changes):
    if "task" in changes:
        records = [{"text": text, "label": n % 2} for n, text in enumerate(SENTENCES)]
        changes = {**changes, "train_file": write_records(tmp_path / "data.jsonl", records)}
    whole, _ = go_on(config(tmp_path / "whole", model, **changes))
    resumed, began = go_on(interrupted(tmp_path / "cut", model, **changes))
    assert began == 4
    assert losses(resumed) == losses(whole)
    for fact in ("eval", "parameters", "patched", "saved_bytes", "saved_parts", "intermediate_units"):
        assert resumed[fact] == whole[fact]


@pytest.mark.parametrize("state", [None, '{"global_step": 4'], ids=["missing", "cut"])
def test_an_incomplete_checkpoint_is_skipped(cut, cut_copy, state):
    file = cut_copy / "run/checkpoint-4/trainer_state.json"
    file.unlink() if state is None else file.write_text(state)
    result, began = go_on(str(cut_copy / "config.yaml"))
    assert began == 2
    assert len(result["loss"]) == 6


def test_without_a_complete_checkpoint_it_starts_over(cut_copy):
    for file in cut_copy.glob("run/checkpoint-*/trainer_state.json"):
        file.unlink()
    result, began = go_on(str(cut_copy / "config.yaml"))
    assert began == 0
    assert [entry["step"] for entry in result["loss"]] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_can_be_named(cut, tmp_path):
    path = config(tmp_path)
    result, began = go_on(path, "--resume_from_checkpoint", str(cut / "run/checkpoint-2"))
    assert began == 2
    assert len(result["loss"]) == 6
    assert (tmp_path / "run/run.json").exists()


def test_who_names_the_checkpoint_may_train_longer(cut_copy):
    options = ["--resume_from_checkpoint", str(cut_copy / "run/checkpoint-4"), "--max_steps", "8"]
    result, began = go_on(str(cut_copy / "config.yaml"), *options)
    assert (began, len(result["loss"])) == (4, 8)
    assert result["settings"]["training"]["max_steps"] == 8


def test_a_finished_run_is_kept(cut_copy):
    path = str(cut_copy / "config.yaml")
    go_on(path)
    before = contents(cut_copy)
    with pytest.raises(ConfigError, match=f"{cut_copy / 'run'} holds a finished run; .*--output_dir"):
        go_on(path)
    assert contents(cut_copy) == before
    result, began = go_on(path, "--resume_from_checkpoint", str(cut_copy / "run/checkpoint-4"))
    assert (began, len(result["loss"])) == (4, 6)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (
            ["--model_config", json.dumps({**MODELS["llama"], "hidden_size": 64})],
            "model_config is .*32.*, but here it is .*64",
        ),
        (["--max_seq_length", "8"], "max_seq_length is 16, but here it is 8"),
        (["--lora", '{"r": 2}'], "lora is {}, but here it is {'r': 2}"),
        (["--learning_rate", "0.5"], "learning_rate is 0.001, but here it is 0.5"),
        (["--use_inverted_activations"], "use_inverted_activations is False, but here it is True"),
        (["--seed", "9"], "seed is 42, but here it is 9"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_checkpoints_of_another_run_in_the_folder(cut_copy, options, difference):
    before = contents(cut_copy)
    with pytest.raises(ConfigError, match=f"{cut_copy / 'run'} holds checkpoints of another run: its {difference}"):
        go_on(str(cut_copy / "config.yaml"), *options)
    assert contents(cut_copy) == before


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"hidden_size": 64}, r"its .* has the shape \(.*\), but here it is \(.*64.*\)"),
        ({"num_hidden_layers": 1}, r"this one has no parameter model\.layers\.1"),
        ({"num_hidden_layers": 3}, r"it has no parameter model\.layers\.2"),
    ],
    ids=["wider", "fewer layers", "more layers"],
)
def test_a_named_checkpoint_of_another_model(cut, tmp_path, changes, difference):
    before, checkpoint = contents(cut), cut / "run/checkpoint-4"
    path = config(tmp_path, model_config={**MODELS["llama"], **changes})
    with pytest.raises(ConfigError, match=f"{checkpoint} is a checkpoint of another model: {difference}"):
        go_on(path, "--resume_from_checkpoint", str(checkpoint))
    assert contents(cut) == before
    assert not (tmp_path / "run").exists()


def test_a_named_checkpoint_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="nowhere is not a complete checkpoint"):
        go_on(config(tmp_path), "--resume_from_checkpoint", "nowhere")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_somebody_else(tmp_path):
    path = config(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("a year of work")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"{tmp_path / 'run'} is not empty"):
        go_on(path)
    assert contents(tmp_path) == before


def test_interrupted_after_training_it_gives_the_same_result(tmp_path):
    path = config(tmp_path, "llama")
    with pytest.raises(KeyboardInterrupt):
        finetune(parse_run([path]), [InterruptEvaluation()])
    result, began = go_on(path)
    (tmp_path / "uninterrupted").mkdir()
    expected = finetune(parse_run([config(tmp_path / "uninterrupted", "llama")]))
    assert began is None
    assert losses(result) == losses(expected)
    assert result["saved_bytes"] == expected["saved_bytes"]
