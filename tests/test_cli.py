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
from hf_invact.planning import as_json, compare_memory

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


def test_further_questions_in_words(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "plan.png"
    assert main(["plan", config, *SIZE, "--compare", "--fit", "1KiB", "--plot", str(picture)]) == 0
    printed = capsys.readouterr()
    plan, comparison, fit = (
        printed.out.index(text) for text in ("kept for the backward", "kept, KiB", "fits 1.00 KiB")
    )
    assert plan < comparison < fit
    assert "checkpointing + inverted" in printed.out[comparison:fit]
    assert f"Drawn in {picture}." in printed.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert max(map(len, printed.out.splitlines())) < 160
    assert printed.err == ""  # progress is for terminals


def test_further_questions_as_json(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config, *SIZE, "--compare", "--fit", "1k", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    comparison = compare_memory(config, 2, 64, optimizer="adamw_fused")
    assert printed["comparison"] == as_json(comparison)
    assert printed["fit"]["memory_bytes"] == 1024
    assert [variant["name"] for variant in printed["fit"]["variants"]] == [
        *("plain", "inverted", "checkpointing", "checkpointing + inverted")
    ]
    assert printed["plain"] == printed["comparison"]["variants"][0]["saved"]


def test_progress_is_told_on_a_terminal(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["plan", config, *SIZE]) == 0
    printed = capsys.readouterr().err
    assert "inverted, 2 x 64" in printed
    assert printed.endswith("\r\033[K")


def test_a_picture_that_cannot_be_drawn_is_known_before_any_work(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_invact.cli.dry_run", None)
    assert main(["plan", config, *SIZE, "--plot", "nowhere/plan.png"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "hf-invact: 'nowhere/plan.png' cannot be written; give a file in a folder that exists and is yours"
    ]


@pytest.mark.parametrize("size", ["80", "many", "0GiB"])
def test_bad_sizes_are_refused(size: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", config, *SIZE, "--fit", size])
    assert stopped.value.code == 2
    assert "80GiB" in capsys.readouterr().err.splitlines()[-1]


def test_run_leaves_every_argument_to_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = tmp_path / "train.py"
    script.write_text("import sys; raise ValueError(sys.argv[1:])")
    with pytest.raises(ValueError, match=r"\['--help', '--json', 'plan'\]"):  # also what it raises
        main(("run", str(script), "--help", "--json", "plan"))


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"\n    {name} " in printed for name in ("plan", "run", "info"))


def test_runs_as_a_process(config: str) -> None:
    command = [sys.executable, "-m", "hf_invact", "plan", config, *SIZE]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "kept for the backward pass" in result.stdout
    assert "Traceback" not in result.stderr
