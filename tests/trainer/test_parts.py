"""The callback reports the same parts as the plan, to the byte and to the letter."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, TrainerControl, TrainerState

from hf_invact import InvertedActivationsCallback, Lora, MemoryCallback, plan_memory
from hf_invact.display.tables import saved_bytes_table
from hf_invact.planning import MemoryPlan, render
from tests.helpers import normal
from tests.models import each_model, tiny_model
from tests.trainer.helpers import FailAt, arguments, make_trainer, records
from tests.versions import since_transformers

LOGGER = "hf_invact.trainer.memory"
to_the_byte = since_transformers("5.23", "the loss is divided by a float32, as it is planned, and by no int64")
DATA = [{**record, "attention_mask": torch.ones_like(record["input_ids"])} for record in records()]


def planned(name: str, **options: Any) -> MemoryPlan:
    return plan_of(tiny_model(name), **options)


def plan_of(model: PreTrainedModel, **options: Any) -> MemoryPlan:
    return plan_memory(model.config, 2, 16, dtype="float32", device="cpu", **options)


def cells(row: str) -> list[str]:
    return re.split(r"\s{2,}", row)


def measure(model: PreTrainedModel, callback: MemoryCallback, folder: Path, **options: Any) -> dict[str, int]:
    args = arguments(folder, use_inverted_activations=True, max_steps=2, **options)
    make_trainer(model, args, callback, data=DATA).train()
    return callback.saved_by_part


@to_the_byte
@each_model
def test_equals_the_plan(name: str, tmp_path: Path) -> None:
    plan = planned(name)
    assert measure(tiny_model(name), InvertedActivationsCallback(), tmp_path) == plan.patched
    assert measure(tiny_model(name), MemoryCallback(), tmp_path) == plan.plain


@to_the_byte
def test_under_autocast_accelerate_wraps_the_forward(tmp_path: Path) -> None:
    plan = planned("llama", autocast=True)
    assert measure(tiny_model("llama"), InvertedActivationsCallback(), tmp_path, bf16=True) == plan.patched


@to_the_byte
@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT
def test_within_adapters_names_are_longer_and_parts_the_same(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    base = tiny_model("llama", num_hidden_layers=1)
    plan = plan_of(base, lora=Lora(r=4, dropout=0.1))
    model = peft.get_peft_model(base, config)
    assert "other" not in plan.patched
    assert measure(model, InvertedActivationsCallback(), tmp_path) == plan.patched


@to_the_byte
def test_logs_the_rows_of_the_plan_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=LOGGER):
        measure(tiny_model("gpt2"), InvertedActivationsCallback(), tmp_path)
    (record,) = (record for record in caplog.records if record.name == LOGGER)
    sentence, *measured = record.getMessage().splitlines()
    assert sentence == "the first step was measured:"
    predicted = render(planned("gpt2")).split("\n\n")[1].splitlines()
    assert [cells(row) for row in measured] == [
        ["kept for the backward pass", "measured"],
        *([name, patched] for name, _, patched, *_ in map(cells, predicted[1:]) if patched != "0 B"),
    ]


@pytest.mark.parametrize("is_main", [True, False])
def test_only_the_main_process_of_a_machine_logs(is_main: bool, caplog: pytest.LogCaptureFixture) -> None:
    args: Any = SimpleNamespace(torch_compile=False, n_gpu=1)
    model, callback = nn.Sequential(nn.Linear(4, 8), nn.GELU()), MemoryCallback()
    events = args, TrainerState(is_local_process_zero=is_main), TrainerControl()
    with caplog.at_level(logging.INFO, logger=LOGGER):
        callback.on_train_begin(*events, model=model)
        callback.on_step_begin(*events, model=model)
        model(normal(2, 4))
        assert callback.saved_by_part == {}
        callback.on_step_end(*events, model=model)
        callback.on_step_end(*events, model=model)
    assert sum(callback.saved_by_part.values()) == 2 * 4 * 4 + 2 * 8 * 4
    logged = f"the first step was measured:\n{saved_bytes_table(measured=callback.saved_by_part)}"
    assert caplog.messages == ([logged] if is_main else [])


def test_each_training_says_it_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = MemoryCallback()
    trainer = make_trainer(tiny_model("llama"), arguments(tmp_path, max_steps=1), callback)
    with caplog.at_level(logging.INFO, logger=LOGGER):
        trainer.train()
        long = callback.saved_by_part
        trainer.train_dataset = records(tokens=8)
        trainer.train()
    assert len(caplog.messages) == 2
    assert callback.saved_by_part["mlp"] == long["mlp"] / 2


def test_a_training_that_measured_nothing_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = MemoryCallback()
    trainer = make_trainer(tiny_model("llama"), arguments(tmp_path), FailAt(0), callback)
    with caplog.at_level(logging.INFO, logger=LOGGER), pytest.raises(RuntimeError, match="the step failed"):
        trainer.train()
    assert (callback.saved_by_part, caplog.messages) == ({}, [])
