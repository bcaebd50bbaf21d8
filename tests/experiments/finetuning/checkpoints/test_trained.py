"""Runs that were stopped after their last step: the training is neither lost nor repeated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from experiments.common.errors import ConfigError
from experiments.common.files import read_json
from experiments.finetuning.arguments import parse_run
from experiments.finetuning.run import finetune
from tests.experiments.small import contents, losses, write_config
from tests.helpers import threads

TIMES = {"train_seconds", "step_seconds", "settings"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


class StopEvaluation(TrainerCallback):
    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps and args.eval_strategy == "no":
            raise KeyboardInterrupt

    def on_train_end(self, args, state, control, **kwargs):
        if args.eval_strategy != "no":
            raise KeyboardInterrupt


class Steps(TrainerCallback):
    """Counts what is trained."""

    count = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.count += 1


def config(folder: Path, model: str = "llama", **changes: Any) -> str:
    once = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "max_steps": 4}
    return str(write_config(folder, model, **{**once, **changes}))


def stopped(folder: Path, model: str = "llama", **changes: Any) -> str:
    """The config of a run that was stopped in its evaluation."""
    path = config(folder, model, **changes)
    with pytest.raises(KeyboardInterrupt):
        finetune(parse_run([path]), [StopEvaluation()])
    assert not (folder / "run/run.json").exists()
    return path


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in TIMES}


@pytest.mark.parametrize(
    "changes",
    [
        {"use_inverted_activations": True},
        {"lora": {"r": 2}},
        {"gradient_checks": 2},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 2},
        {"max_steps": -1, "num_train_epochs": 0.1},
    ],
    ids=["inverted", "adapters", "gradients", "best", "epochs"],
)
def test_it_is_evaluated_and_not_trained_again(tmp_path, changes):
    path = stopped(tmp_path, **changes)
    name = "adapter_model.safetensors" if "lora" in changes else "model.safetensors"
    steps = Steps()
    result = finetune(parse_run([path]), [steps])
    whole = finetune(parse_run([path, "--output_dir", str(tmp_path / "whole")]))
    assert steps.count == 0
    assert without_times(result) == without_times(whole)
    assert result["train_seconds"] > 0
    weights, expected = (load_file(tmp_path / folder / name) for folder in ("run", "whole"))
    assert all((weights[name] == expected[name]).all() for name in expected)
    assert contents(tmp_path / "run").keys() == contents(tmp_path / "whole").keys()
    assert read_json(tmp_path / "run/trainer_state.json")["global_step"] == len(losses(result)) == 4


def test_other_settings_do_not_replace_what_is_trained(tmp_path):
    path = stopped(tmp_path)
    assert [folder.name for folder in tmp_path.glob("run/checkpoint-*")] == ["checkpoint-4"]
    before = contents(tmp_path)
    with pytest.raises(
        ConfigError, match=r"holds checkpoints of another run: its learning_rate is 0\.001, but here it is"
    ):
        finetune(parse_run([path, "--learning_rate", "0.5"]))
    assert contents(tmp_path) == before


def test_other_settings_do_not_replace_weights_without_a_checkpoint(tmp_path):
    path = config(tmp_path)
    finetune(parse_run([path]))
    (tmp_path / "run/run.json").unlink()
    for checkpoint in list(tmp_path.glob("run/checkpoint-*")):
        checkpoint.rename(tmp_path / checkpoint.name)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"of another run: its learning_rate is 0\.001, but here it is 0\.5"):
        finetune(parse_run([path, "--learning_rate", "0.5"]))
    assert contents(tmp_path) == before


def test_a_named_checkpoint_of_the_last_step_is_not_trained_further(tmp_path):
    path = stopped(tmp_path)
    options = ["--output_dir", str(tmp_path / "other"), "--resume_from_checkpoint", str(tmp_path / "run/checkpoint-4")]
    steps = Steps()
    assert len(losses(finetune(parse_run([path, *options]), [steps]))) == 4
    assert steps.count == 0


def test_checkpoints_without_measurements_are_taken(tmp_path):
    path = stopped(tmp_path)
    file = tmp_path / "run/checkpoint-4/trainer_state.json"
    file.write_text(file.read_text().replace('"hf_invact"', '"another"'))
    result = finetune(parse_run([path]))
    assert len(losses(result)) == 4
    assert (result["saved_bytes"], result["saved_parts"], result["step_seconds"]) == (None, None, None)
