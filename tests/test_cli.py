"""The command as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hf_invact
from hf_invact.cli import main

ROOT = Path(__file__).parents[1]
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
SIZE = ["--batch-size", "2", "--seq-len", "64"]


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA), encoding="utf-8")
    return str(path)


def test_plan_in_words(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config, *SIZE]) == 0
    printed = capsys.readouterr().out
    assert "(LlamaForCausalLM), batch of 2 x 64, bfloat16, sdpa attention" in printed
    assert "model.layers.0-1.mlp.act_fn (2)" in printed
    assert "gate-output" in printed
    assert "peak of a step (adamw_fused)" in printed
    assert "the peak" in printed.splitlines()[-1]
    assert max(map(len, printed.splitlines())) < 160


def test_plan_as_json_has_what_python_gives(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--dtype", "float32", "--lora", "r=4,dropout=0.1,targets=mlp", "--optimizer", "sgd", "--json"]
    assert main(["plan", config, *SIZE, *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    lora = hf_invact.planning.Lora(r=4, dropout=0.1, targets="mlp")
    plan = hf_invact.plan_memory(config, 2, 64, dtype="float32", lora=lora, optimizer="sgd")
    assert printed["plain"] == dict(plan.plain)
    assert printed["patched"] == dict(plan.patched)
    assert printed["lora"] == {"r": 4, "dropout": 0.1, "targets": "mlp"}
    assert plan.plain_peak is not None
    assert printed["plain_peak"]["total_bytes"] == plan.plain_peak.total_bytes
    assert [site["plan"] for site in printed["sites"]] == [site.plan for site in plan.report.sites]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such-model", *SIZE], "no/such-model"),
        (["{config}", "--batch-size", "0", "--seq-len", "8"], "batch"),
        (["{config}", *SIZE, "--dtype", "int8"], "dtype must be one of"),
        (["{config}", *SIZE, "--attn", "flash"], "attention must be one of sdpa, eager, flash_attention_2"),
        (["{config}", *SIZE, "--attn", "flash_attention_2", "--dtype", "float32"], "no kernel for float32"),
    ],
    ids=["unknown-model", "empty-batch", "unknown-dtype", "unknown-attention", "no-kernel"],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *(argument.format(config=config) for argument in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith("hf-invact: ")
    assert message in printed.err


@pytest.mark.parametrize("lora", ["rank=8", "r=many", "r=0", "dropout=2", "targets=everything"])
def test_bad_adapters_are_refused(lora: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", config, *SIZE, "--lora", lora])
    assert stopped.value.code == 2
    assert "--lora" in capsys.readouterr().err


def test_runs_as_a_process(config: str) -> None:
    command = [sys.executable, "-m", "hf_invact.cli", "plan", config, *SIZE]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "kept for the backward pass" in result.stdout
    assert "Traceback" not in result.stderr
