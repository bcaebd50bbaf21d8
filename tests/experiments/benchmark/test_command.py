"""The script, from its command line to its file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.benchmark import command
from experiments.benchmark import run as run_module
from experiments.benchmark.command import main
from experiments.benchmark.machine import choose_device
from experiments.benchmark.operators.measure import OPERATORS
from experiments.common.errors import ConfigError
from tests.experiments.benchmark.files import cuda_results

ROOT = Path(__file__).parents[3]
# What a bare CUDA machine does not have.
OPTIONAL = ["datasets", "evaluate", "jinja2", "liger_kernel", "matplotlib", "peft", "PIL", "rich"]
BARE = f"""
import sys
sys.modules.update((name, None) for name in {OPTIONAL})
from experiments.benchmark.command import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A quick run without the optional packages: its file and what it printed."""
    path = tmp_path_factory.mktemp("benchmark") / "out" / "benchmark-here.json"
    command = [sys.executable, "-c", BARE, "--quick", "--device", "cpu", "--output", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    return path, result.stdout


def test_a_quick_run_on_a_bare_machine(finished: tuple[Path, str]) -> None:
    path, printed = finished
    content = json.loads(path.read_text())
    assert content["complete"]
    assert len(content["operators"]) == len(OPERATORS) * 4
    assert [entry["model"] for entry in content["steps"]] == ["gpt2-tiny", "bert-tiny", "mistral-tiny", "llama-tiny"]
    assert content["device"]["kind"] == "cpu"
    assert content["environment"].keys() >= {"torch", "transformers", "triton", "liger-kernel", "python"}
    assert content["settings"]["quick"]
    assert printed.count("\n") > len(content["operators"])
    assert (
        "no figures: matplotlib is not installed here. To draw them where it is: python scripts/benchmark.py" in printed
    )
    assert list(path.parent.iterdir()) == [path]


def test_nothing_failed(finished: tuple[Path, str]) -> None:
    content = json.loads(finished[0].read_text())
    assert run_module.failures(content) == []
    liger = {entry["model"]: entry["variants"]["liger"] for entry in content["steps"]}
    assert liger["gpt2-tiny"] == {"unavailable": "Liger has no kernel for this MLP"}
    assert liger["llama-tiny"] == {"unavailable": "Liger's kernels need a GPU"}


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the script with measurements that take no time, and lists them."""
    measured: list[str] = []
    operator, model = cuda_results()["operators"][0], cuda_results()["steps"][0]

    def measure_operator(case: Any, *_: Any) -> dict[str, Any]:
        measured.append(case.operator)
        if fail_at == len(measured):
            raise KeyboardInterrupt
        return {**operator, **case.key}

    def measure_steps(case: Any, *_: Any) -> dict[str, Any]:
        measured.append(case.model)
        return {**model, **case.key}

    fail_at = 0

    def run(*options: str, code: int = 0, interrupted_at: int = 0) -> list[str]:
        nonlocal fail_at
        fail_at = interrupted_at
        measured.clear()
        argv = ["--quick", "--device", "cpu", "--output", str(tmp_path / "b.json"), *options]
        if interrupted_at:
            with pytest.raises(KeyboardInterrupt):
                main(argv)
        else:
            assert main(argv) == code
        return list(measured)

    monkeypatch.setattr(command, "draw", lambda path: [])
    monkeypatch.setattr(run_module, "measure_operator", measure_operator)
    monkeypatch.setattr(run_module, "measure_steps", measure_steps)
    return run


def test_an_interrupted_run_continues_where_it_stopped(
    quick: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(quick(interrupted_at=4)) == 4
    content = json.loads((tmp_path / "b.json").read_text())
    assert len(content["operators"]) == 3
    assert not content["complete"]
    assert len(quick()) == 4 * len(OPERATORS) - 3 + 4
    assert "continuing after 3 operators, 0 models" in capsys.readouterr().out
    assert json.loads((tmp_path / "b.json").read_text())["complete"]
    assert len(quick()) == 4 * len(OPERATORS) + 4  # everything again


def test_what_is_missing_when_the_time_is_up_is_reported(quick: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert quick("--minutes", "1e-9", code=1) == []
    assert "not measured in 1e-09 minutes: gelu fp32 4096" in capsys.readouterr().err


def test_a_case_that_fails_is_reported_and_the_rest_measured(
    quick: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(run_module, "measure_operator", fail)
    assert len(quick(code=1)) == 4
    assert "gelu fp32 4096: RuntimeError: no such kernel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backends", "eager", "none"], "--backends: unknown backend 'none'; known: eager"),
        (["--device", "nothing"], "--device must be cpu, cuda or cuda:N, got 'nothing'"),
        (["--device", "mps"], "--device must be cpu, cuda or cuda:N, got 'mps'"),
        (["--minute", "3"], "unrecognized arguments: --minute 3"),
        (["--plot-only", "missing.json"], "missing.json does not exist"),
        (["--minutes", "nan"], "--minutes must be a number above 0, got nan"),
        (["--minutes", "-1"], "--minutes must be a number above 0, got -1.0"),
        (["--seed", "4294967296"], "--seed must be a whole number from 0 to 4294967295, got 4294967296"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_of_the_user_is_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--device", "cpu", "--quick", "--output", str(tmp_path / "b.json"), *options]) == 2
    assert re.fullmatch(f"error: {re.escape(message)}.*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device(None).type == "cpu"
    with pytest.raises(ConfigError, match="--device cuda does not exist: PyTorch sees 0 CUDA devices"):
        choose_device("cuda")


def test_figures_of_a_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "benchmark-nvidia-h999.json"
    path.write_text(json.dumps(cuda_results()))
    assert main(["--plot-only", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / f"benchmark-nvidia-h999-{kind}.png") for kind in ("operators", "steps")
    ]
