"""Trainings that diverge: this is reported wherever their results are shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from experiments.common.files import read_json
from experiments.compare import command as compare
from experiments.finetuning import run as finetune
from experiments.finetuning.arguments import parse_run
from experiments.finetuning.results import divergence
from experiments.finetuning.trainer import FinetuneTrainer
from tests.experiments.small import losses, write_config
from tests.helpers import threads


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


class Spoil(TrainerCallback):
    """Makes one weight NaN before a step, and restores it after the step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step == self.step:
            self.before = {name: weight.clone() for name, weight in model.state_dict().items()}
            next(model.parameters()).data.fill_(math.nan)

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == self.step + 1:
            model.load_state_dict(self.before)


def trained(folder: Path, *callbacks: TrainerCallback, **changes: Any) -> dict[str, Any]:
    return finetune.finetune(parse_run([str(write_config(folder, "llama", **changes))]), callbacks)


def test_a_comparison_that_diverges_says_so_everywhere(tmp_path, capsys):
    config, folder = write_config(tmp_path, "llama", max_steps=4), tmp_path / "out"
    options = ["--output_dir", str(folder), "--seeds", "0", "--learning_rate", "1e30"]
    for _ in range(2):  # while it runs, and after it is finished
        assert compare.main([str(config), *options]) == 1
        printed = capsys.readouterr()
        assert re.fullmatch("error: .* diverged: .*config, plain, seed 0, diverged.*inverted.*\n", printed.err)
        assert "NaN" in printed.out
    comparison = read_json(folder / "comparison.json")
    (model,) = comparison["models"]
    assert all("not finite" in run["diverged"] for run in model["runs"])
    lines = [f"config, {variant}, seed 0, diverged" for variant in ("plain", "inverted")]
    assert all(line in said for line, said in zip(lines, comparison["diverged"], strict=True))
    for name, mark in (("report.md", "**Warning:** "), ("report.html", "<strong>Warning:</strong> ")):
        text = (folder / name).read_text().replace("\\", "")
        assert all(mark + line in text for line in lines)
        assert "0.0000" not in text


@pytest.mark.parametrize("logging_nan_inf_filter", [True, False])
def test_a_run_that_diverges_says_so(tmp_path, capsys, logging_nan_inf_filter):
    config = write_config(
        tmp_path, "gpt2", learning_rate=1e30, max_steps=3, logging_nan_inf_filter=logging_nan_inf_filter
    )
    assert finetune.main([str(config)]) == 1
    message = (
        f"error: the training diverged: the loss of . steps? is not finite, .*; its results are in {tmp_path}/run\n"
    )
    assert re.search(f"{message}$", capsys.readouterr().err)
    for name in ("train_results", "eval_results", "all_results"):
        values = read_json(tmp_path / f"run/{name}.json")
        assert all(not math.isfinite(value) for key, value in values.items() if key.endswith("loss"))


def test_one_loss_that_is_not_finite_is_shown_and_the_next_ones_too(tmp_path):
    result = trained(tmp_path, Spoil(2), max_steps=5, optim="sgd")
    assert [math.isfinite(loss) for loss in losses(result)] == [True, True, False, True, True]
    assert result["diverged"] == "the loss of 1 step is not finite, first at step 3"
    assert math.isnan(read_json(tmp_path / "run/train_results.json")["train_loss"])


def test_one_between_two_logs_is_not_lost(tmp_path):
    result = trained(tmp_path, Spoil(1), max_steps=5, logging_steps=2, optim="sgd")
    assert [math.isfinite(loss) for loss in losses(result)] == [False, True]


def test_one_in_the_evaluation_alone_is_not_left_out(tmp_path, monkeypatch):
    compute_loss, seen = FinetuneTrainer.compute_loss, []

    def spoilt(self, model, inputs, *args, **kwargs):
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        if model.training:
            return loss
        seen.append(loss)
        return (loss[0] * torch.nan, *loss[1:]) if len(seen) == 1 else loss

    monkeypatch.setattr(FinetuneTrainer, "compute_loss", spoilt)
    result = trained(tmp_path, max_steps=1, per_device_eval_batch_size=1)
    assert len(seen) > 1
    assert result["diverged"] == "eval_loss is not finite"


def test_finite_runs_did_not_diverge(tmp_path):
    assert trained(tmp_path, max_steps=1)["diverged"] is None
    assert divergence({"loss": [], "eval": {"eval_loss": 1.0, "perplexity": math.inf}}) is None
