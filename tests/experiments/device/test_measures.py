"""What the stages measure, on a CPU."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.benchmark.operators.measure import OPERATORS
from experiments.benchmark.steps import measure as step_times
from experiments.device.case import Conditions
from experiments.device.measures import budget, counted, gpu_tests, operators, smoke, steps
from experiments.device.stages import STAGES
from hf_invact import functional
from hf_invact.ops import BACKENDS
from tests.helpers import threads

CPU = torch.device("cpu")
CONDITIONS = Conditions(CPU, seed=0, deadline=math.inf)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_stage_has_cases_of_different_names(stage: Any, kind: str) -> None:
    names = [case.name for case in import_module(stage.module).cases(kind)]
    assert names
    assert len(set(names)) == len(names)


def test_the_smoke_stage_has_every_backend() -> None:
    names = [case.name for case in smoke.cases("cuda")]
    assert all(any(f", {backend}, " in name for name in names) for backend in BACKENDS)


@pytest.mark.parametrize("check", smoke.CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("dtype", smoke.TOLERANCES)
def test_a_backend_that_agrees(check: smoke.Check, dtype: str) -> None:
    found = smoke.measure(check, "eager", dtype, CONDITIONS)
    assert list(found) == ["errors"]
    assert list(found["errors"]) == ["output", "gradient 1", "gradient 2"][: 1 + check.inputs]
    assert 0 < max(found["errors"].values()) < smoke.TOLERANCES[dtype]


def twice_the_gradient(x: Tensor, backend: str) -> Tensor:
    y = functional.gelu(x, backend=backend)
    return y + (y - y.detach())


def infinite(x: Tensor, backend: str) -> Tensor:
    return functional.gelu(x, backend=backend) * math.nan


@pytest.mark.parametrize(
    ("broken", "message"),
    [(twice_the_gradient, "off gradient 1 by 1, more than 1e-05"), (infinite, "off output by nan, gradient 1 by nan")],
)
def test_a_backend_that_does_not_agree(broken: Any, message: str) -> None:
    found = smoke.measure(replace(smoke.CHECKS[0], inverted=broken), "eager", "fp32", CONDITIONS)
    assert found["failed"].startswith(message)


def test_a_backend_that_this_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, parameters: Any) -> None:
        raise RuntimeError(f"{name} has no kernels")

    monkeypatch.setattr(smoke, "check_device", refuse)
    found = smoke.measure(smoke.CHECKS[0], "triton", "fp32", CONDITIONS)
    assert found == {"unavailable": "triton has no kernels"}


@pytest.mark.slow
def test_triton_agrees_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    assert all(smoke.measure(check, "triton", "bf16", CONDITIONS).keys() == {"errors"} for check in smoke.CHECKS)


@pytest.mark.parametrize("kind", steps.MODELS)
def test_the_steps_are_of_the_four_models_and_one_with_adapters(kind: str) -> None:
    models = steps.MODELS[kind]
    assert sorted(trained.model.architecture for trained in models if not trained.lora) == [
        *("bert", "gpt2", "llama", "mistral")
    ]
    (lora,) = (trained.lora for trained in models if trained.lora)
    assert lora == {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT
@pytest.mark.parametrize("trained", steps.MODELS["cpu"][-2:], ids=lambda trained: trained.model.model)
def test_the_steps_of_a_model(trained: steps.Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_times, "LEAST_ROUNDS", 1)
    found = steps.measure(trained, Conditions(CPU, seed=0, deadline=time.monotonic()))
    assert (found["rounds"], list(found["variants"])) == (1, ["plain", "inverted", "checkpointing"])
    kept = {name: facts["kept_bytes"] for name, facts in found["variants"].items()}
    assert kept["checkpointing"] < kept["inverted"] < kept["plain"]
    assert all(facts["equal_loss"] and facts["step_ms"] > 0 for facts in found["variants"].values())
    plans = dict(found["patching"]["plans"])
    assert plans.pop("adapter-input", 0) == (2 * 7 if trained.lora else 0)  # of each layer's seven projections
    norms = {"norm-output": 4, "norm-input": 1} if trained.lora else {"norm-output": 5}  # a frozen head keeps no input
    assert plans == {"gate-output": 2, **norms}
    assert (found["trained_parameters"] < found["parameters"]) == bool(trained.lora)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT
@pytest.mark.parametrize("trained", steps.MODELS["cpu"][-2:], ids=lambda trained: trained.model.model)
def test_a_step_within_a_budget_takes_what_is_predicted(trained: steps.Trained) -> None:
    with threads(1):
        found = budget.measure(trained, CONDITIONS)
    assert 0 < found["checkpointed"] <= found["layers"]
    assert found["predicted_bytes"] <= found["budget_bytes"]
    assert found["measured_bytes"] == pytest.approx(found["predicted_bytes"], rel=0.05)


def test_a_loss_that_differs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 1.5, 1.0])
    facts = {name: {"first_loss": next(losses)} for name in steps.VARIANTS} | {"late": {"failed": "no"}}
    monkeypatch.setattr(steps, "compare_variants", lambda *_: (3, facts))
    found = steps.measure(steps.MODELS["cpu"][0], CONDITIONS)["variants"]
    assert [found[name].get("equal_loss") for name in found] == [True, False, True, None]


def test_what_the_reproduction_counts_is_measured_beside_it() -> None:
    names = [case.name for case in counted.cases("cuda")]
    assert {"mistral-7b, ours", "mistral-lora, plain", "gpt2-autocast, activation inverted"} <= set(names)
    assert not any("published" in name for name in names)  # whose weights are emulated
    (case,) = (case for case in counted.cases("cpu") if case.name == "bert-base, ours")
    found = case.measure(CONDITIONS)
    assert (found["measured_bytes"], found["measured_note"]) == (None, counted.NO_METER)
    assert found["counted"]["kept_bytes"] > 0
    assert found["counted"]["plans"] == {"output": 4, "norm-output": 7, "left alone": 2}


def test_a_count_that_fails_does_not_cost_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such tensor")

    monkeypatch.setattr("experiments.reproduce.memory.counting.count", fail)
    monkeypatch.setattr("experiments.reproduce.memory.measured.measure_kept", lambda *_: {"measured_note": "ran"})
    found = counted.cases("cpu")[0].measure(CONDITIONS)
    assert (found["counted"], found["measured_note"]) == ({"failed": "RuntimeError: no such tensor"}, "ran")


def test_all_operators_are_measured_and_few_are_compiled() -> None:
    names = [case.name for case in operators.cases("cuda")]
    assert names[: len(OPERATORS)] == [f"{name}, bf16, 67,108,864" for name in OPERATORS]
    settings = operators.settings_of("cuda", seed=0)
    assert [settings.compares(dtype, size) for dtype in settings.dtypes for size in settings.sizes] == [True, False]
    (case,) = (case for case in operators.cases("cpu") if case.name == "gate_silu, bf16, 16,384")
    assert "inverted-eager" in case.measure(CONDITIONS)["forward"]["implementations"]


def run_tests(folder: Path, source: str, seconds: float = 60.0) -> dict[str, Any]:
    """What is found of a file of tests that are all marked."""
    path = folder / "test_some.py"
    path.write_text(f"import pytest, time\npytestmark = getattr(pytest.mark, 'gpu')\n{source}")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: here")
    return gpu_tests.measure(path, Conditions(CPU, seed=0, deadline=time.monotonic() + seconds))


def test_the_files_with_gpu_tests_are_found() -> None:
    names = [case.name for case in gpu_tests.cases("cuda")]
    assert "tests/ops/triton/test_activation.py" in names
    assert not {"tests/ops/test_gate.py", Path(__file__).relative_to(gpu_tests.ROOT).as_posix()} & set(names)


@pytest.mark.parametrize(
    ("source", "counts", "outcome"),
    [
        ("def test_a(): pass\ndef test_b(): pytest.skip('x')", {"passed": 1, "skipped": 1}, None),
        ("def test_a(): assert 0\ndef test_b(): pass", {"passed": 1, "failed": 1}, "failed"),
        ("import no_such_package", {}, "unavailable"),
        ("import tests.no_such_module", {}, "failed"),
        ("def test_a(): pytest.skip('no GPU')", {"skipped": 1}, "unavailable"),
        ("", {}, "unavailable"),
    ],
    ids=["passes", "fails", "lacks a package", "cannot be imported", "skipped", "none"],
)
def test_what_pytest_says(tmp_path: Path, source: str, counts: dict[str, int], outcome: str | None) -> None:
    found = run_tests(tmp_path, source)
    assert found["counts"] == counts
    assert {"failed", "unavailable", "cut"} & found.keys() == ({outcome} if outcome else set())
    assert found["lines"][-1].startswith("===")


@pytest.mark.slow
def test_tests_that_take_too_long_keep_their_counts(tmp_path: Path) -> None:
    found = run_tests(tmp_path, "def test_a(): pass\ndef test_b(): time.sleep(600)", seconds=15.0)
    assert found["cut"] == "stopped after 1 tests, since its time was over"
    assert found["counts"] == {"passed": 1}


def test_without_pytest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tests, "find_spec", lambda name: None)
    assert gpu_tests.cases("cuda")[0].measure(CONDITIONS) == {"unavailable": "pytest is not installed"}


WITHOUT = ("datasets", "evaluate", "matplotlib", "scipy", "rich", "jinja2", "bitsandbytes", "pandas", "liger_kernel")
BARE = f"""
import importlib.machinery, sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {WITHOUT} else super().find_spec(name, path, target)

sys.meta_path[:] = [Without if each is importlib.machinery.PathFinder else each for each in sys.meta_path]
import experiments.device.command, experiments.device.worker
from experiments.device.stages import STAGES
assert "torch" in sys.modules
for stage in STAGES:
    importlib.import_module(stage.module).cases("cuda")
import peft
"""


@pytest.mark.slow
def test_a_bare_machine_has_all_that_is_imported() -> None:
    root = Path(__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", BARE], cwd=root, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    light = "import sys, experiments.device.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], cwd=root).returncode == 0
