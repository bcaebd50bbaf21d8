"""The command as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hf_invact
from hf_invact import cli
from hf_invact.cli import main
from hf_invact.planning import OPTIMIZERS, as_json, compare_memory

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


def test_a_budget_says_which_layers_are_checkpointed(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--lora", "r=4", "--quantize", "8bit", "--budget", "2GiB"]
    assert main(["plan", config, *SIZE, *options]) == 0
    printed = capsys.readouterr().out
    assert "linear layers in 8 bits, LoRA r=4" in printed
    assert "memory budget of 2.00 GiB, of which 563.20 MiB are reserved: 0 of 2 layers checkpointed" in printed
    assert main(["plan", config, *SIZE, *options, "--json"]) == 0
    budget = json.loads(capsys.readouterr().out)["budget"]
    assert (budget["layers"], budget["checkpointed"], budget["config"]["checkpoint_layers"]) == (2, [], 0)
    assert main(["plan", config, *SIZE, "--budget", "512MiB"]) == 2
    assert "are reserved for what is not predicted" in capsys.readouterr().err


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
        (["{config}", "--batch-size", str(10**12), "--seq-len", "8"], "more than any device"),
        (["{config}", "--batch-size", "1"], "--seq-len"),
        (["{config}", *SIZE, "--lora", "rank=8"], "argument --lora: unknown 'rank=8'; expected r=INT"),
        (["{config}", *SIZE, "--lora", "r=many"], "invalid value 'many' for r"),
        (["{config}", *SIZE, "--lora", "r=0"], "at least 1"),
        (["{config}", *SIZE, "--lora", "r=1,r=2"], "r is given twice"),
        (["{config}", *SIZE, "--lora", "r=1" + 17 * "0"], "LoRA cannot be added to LlamaForCausalLM"),
        (["{config}", *SIZE, "--lora", "dropout=2"], "less than 1"),
        (["{config}", *SIZE, "--lora", "targets=q_proj+"], "names of layers such as q_proj"),
        (
            ["{config}", *SIZE, "--lora", "targets=q_proj+kv"],
            "no linear layer with the name 'kv'; LoRA can adapt q_proj",
        ),
        (["{config}", *SIZE, "--fit", "80"], "argument --fit: invalid amount of memory '80'"),
        (["{config}", *SIZE, "--budget", "80%"], "argument --budget: invalid amount of memory '80%'"),
        (["{config}", *SIZE, "--fit", "many"], "80GiB"),
        (["{config}", *SIZE, "--fit", "0GiB"], "80GiB"),
        (["{config}", *SIZE, "--attn", "flash"], "attention must be one of sdpa, eager, flash_attention_2"),
        (["{config}", *SIZE, "--attn", "flash_attention_2", "--dtype", "float32"], "no kernel for float32"),
    ],
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


def test_further_questions_in_words(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "plan.png"
    assert main(["plan", config, *SIZE, "--compare", "--fit", "1KiB", "--plot", str(picture)]) == 0
    printed = capsys.readouterr()
    plan, comparison, fit = (
        printed.out.index(text) for text in ("kept for the backward", "kept, KiB", "fits 1.00 KiB")
    )
    assert plan < comparison < fit
    assert "checkpointing + inverted" in printed.out[comparison:fit]
    assert f"The figure is in {picture}." in printed.out
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
        *("plain", "inverted", "1 layer checkpointed", "checkpointing", "checkpointing + inverted")
    ]
    assert printed["plain"] == printed["comparison"]["variants"][0]["saved"]


def test_progress_is_shown_on_a_terminal(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["plan", config, *SIZE]) == 0
    printed = capsys.readouterr().err
    assert "inverted, 2 x 64" in printed
    assert printed.endswith("\r\033[K")


def test_a_figure_that_cannot_be_written_is_refused_before_any_work(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_invact.planning.command.dry_run", None)
    assert main(["plan", config, *SIZE, "--plot", "nowhere/plan.png"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "hf-invact: 'nowhere/plan.png' cannot be written; choose a file in a folder that exists and is writable"
    ]


def test_run_leaves_every_argument_to_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = tmp_path / "train.py"
    script.write_text("import sys; raise ValueError(sys.argv[1:])")
    with pytest.raises(ValueError, match=r"\['--help', '--json', 'plan'\]"):  # its exceptions pass through, too
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


def run_as_a_process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hf_invact", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["words", "json"])
def test_a_closed_pipe(options: list[str], config: str) -> None:
    with run_as_a_process("plan", config, *SIZE, *options) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_an_interrupt_is_one_line(
    config: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_invact.planning.command.dry_run", lambda *_: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells turn it off for background jobs
    try:
        assert main(["plan", config, *SIZE]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err.splitlines() == ["hf-invact: interrupted"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["plan", "--help"], ["plan", "x", "--nonsense"]])
def test_what_needs_no_model_imports_no_library(arguments: list[str]) -> None:
    code = (
        "import atexit, sys; from hf_invact.cli import main\n"
        "atexit.register(lambda: print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr))\n"
        f"main({arguments!r})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert result.stderr.splitlines()[-1] == "[]"


def test_all_optimizers_can_be_chosen() -> None:
    assert list(cli.OPTIMIZERS) == sorted(OPTIMIZERS)


def test_the_error_in_a_config_is_printed_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, "hidden_size": "many"}), encoding="utf-8")
    assert main(["plan", str(path), *SIZE]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "hidden_size" in line
    assert "int" in line.partition("hidden_size")[2]


@pytest.mark.parametrize(
    ("options", "head"),
    [
        (["--dtype", "bf16"], "bfloat16, sdpa"),
        (["--dtype", "fp32", "--bf16"], "float32 under autocast to bfloat16"),
        (["--bf16"], "bfloat16 under autocast to bfloat16"),
        (["--dtype", "fp16", "--autocast"], "float16 under autocast to float16"),
        (["--dtype", "float32", "--fp16"], "float32 under autocast to float16"),
    ],
)
def test_dtypes_by_the_names_of_the_trainer(
    options: list[str], head: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", config, *SIZE, *options]) == 0
    printed = capsys.readouterr().out
    assert head in printed
    assert ("requires trained weights in float32" in printed) == (options[:2] == ["--dtype", "fp16"])


def test_adapters_by_the_names_of_layers(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    trained = []
    for targets in ("targets=q_proj+v_proj", "targets=q_proj,targets=v_proj", "targets=attention"):
        assert main(["plan", config, *SIZE, "--json", "--lora", f"r=4,{targets}"]) == 0
        trained.append(json.loads(capsys.readouterr().out)["trainable_bytes"])
    assert trained[0] == trained[1] == trained[2] / 2 > 0
