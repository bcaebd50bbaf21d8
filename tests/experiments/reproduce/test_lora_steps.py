"""The step times with LoRA: what is timed is patched, and the results show it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments.reproduce.lora_steps.run import run
from experiments.reproduce.steps.models import FULL_LORA
from experiments.reproduce.steps.tables import section_with_adapters
from tests.helpers import threads


@pytest.mark.slow
def test_a_tiny_model(tmp_path: Path) -> None:
    with threads(1):
        written = run(tmp_path / "out", True, Console(quiet=True), "the command")
    torch._dynamo.reset()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"lora_steps.json", "lora_steps-time.png"}
    (entry,) = json.loads(written.read_text())["entries"]
    variants = entry["variants"]
    assert list(variants) == ["plain", "inverted-eager", "inverted-compile", "checkpointing"]
    # With activations alone, the products of gates are kept by the adapters, as plain.
    assert variants["inverted-eager"]["kept_bytes"] < 0.75 * variants["plain"]["kept_bytes"]
    assert variants["inverted-eager"]["first_loss"] == variants["plain"]["first_loss"]
    assert all("ratio" in facts for name, facts in variants.items() if name != "plain")
    text = section_with_adapters(json.loads(written.read_text()))
    assert "| step time, plain = 1 | Llama, tiny, with LoRA, " in text
    assert "adapters keep their input once" in text


@pytest.mark.parametrize("model", FULL_LORA, ids=lambda model: model.title)
def test_the_configs_are_accepted(model, tmp_path):
    run = model.run(tmp_path)
    assert run.model.lora["lora_dropout"] == 0.05
    assert run.model.lora["r"] == 16
