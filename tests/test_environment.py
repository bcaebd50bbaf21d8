"""The output of ``hf-invact info``."""

from __future__ import annotations

import json
import platform
from typing import Any

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode

import hf_invact
from hf_invact import environment
from hf_invact.cli import main
from hf_invact.curves import CURVES
from hf_invact.environment import WIDTH, describe_installation, render_installation
from hf_invact.ops import backends

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with a GPU (whose tensors have no memory), and no backend chosen."""
    monkeypatch.setattr(environment, "_devices", lambda: [CPU, GPU])
    monkeypatch.setattr(environment, "_name_and_memory", lambda device: (f"a {device.type}", 3 << 30))
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    return monkeypatch


def chosen() -> list[tuple[str | None, str]]:
    with FakeTensorMode():
        return [(device["backend"], device["reason"]) for device in describe_installation()["devices"]]


@pytest.mark.parametrize(
    ("has_triton", "choice", "cpu", "gpu"),
    [
        (
            *(True, ""),
            ("eager", "triton has no kernels for cpu tensors"),
            ("triton", "triton is installed; float64 tensors use eager"),
        ),
        (
            *(False, "auto"),
            ("eager", "triton has no kernels for cpu tensors"),
            ("eager", "the package triton is not installed"),
        ),
        (True, "compile", ("compile", "HF_INVACT_BACKEND is set"), ("compile", "HF_INVACT_BACKEND is set")),
        (True, "triton", (None, "it has no kernels for cpu tensors"), ("triton", "HF_INVACT_BACKEND is set")),
        (
            True,
            "fast",
            (None, "HF_INVACT_BACKEND is 'fast'; known: auto"),
            (None, "HF_INVACT_BACKEND is 'fast'; known"),
        ),
    ],
    ids=["triton", "no triton", "compile is chosen", "triton is chosen", "a wrong choice"],
)
def test_the_backend_that_each_device_gets_and_why(
    has_triton: bool, choice: str, cpu: tuple[str | None, str], gpu: tuple[str | None, str], machine: pytest.MonkeyPatch
) -> None:
    machine.setattr(backends, "_triton_is_installed", lambda: has_triton)
    machine.setattr(backends, "_triton_interprets", lambda: False)
    machine.setenv(backends.ENVIRONMENT_VARIABLE, choice)
    for (backend, reason), expected in zip(chosen(), (cpu, gpu), strict=True):
        assert backend == expected[0]
        assert expected[1] in reason


def test_a_device_that_fails_is_reported(machine: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> Any:
        raise RuntimeError("CUDA error: out of memory\nand many lines more")

    machine.setattr(environment, "_name_and_memory", fail)
    facts = describe_installation()
    assert {device["reason"] for device in facts["devices"]} == {"CUDA error: out of memory"}
    assert "CUDA error: out of memory" in render_installation(facts)


def test_the_devices_of_this_machine() -> None:
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    devices = describe_installation()["devices"]
    assert [device["device"].partition(":")[0] for device in devices][:1] == ["cpu"]
    assert len(devices) == 1 + count
    assert f"{torch.get_num_threads()} threads" in devices[0]["name"]
    assert all(device["name"] and device["backend"] in backends.BACKENDS for device in devices)


def test_each_activation_is_listed_once_by_how_it_is_inverted() -> None:
    groups = describe_installation()["activations"]
    assert groups["exact formula, one bit per element"] == ["hardswish"]
    assert {"gelu", "silu"} < set(groups["fitted formula, one bit per element"])
    assert {"softplus", "relu2"} < set(groups["exact formula, no bit"])
    assert groups.pop("with learned parameters") == ["PReLU", "XIELUActivation"]
    assert sorted(name for names in groups.values() for name in names) == sorted(CURVES)


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == describe_installation()
    versions = printed["versions"]
    assert (versions["hf_invact"], versions["python"]) == (hf_invact.__version__, platform.python_version())
    assert (versions["torch"], versions["transformers"]) == (torch.__version__, transformers.__version__)
    assert "transformers.models.llama.modeling_llama.LlamaMLP" in printed["blocks"]


def test_in_words_that_fit_a_terminal(machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine.setattr(environment, "installed_version", lambda name: "3.2" if name == "pytorch-triton-rocm" else None)
    with FakeTensorMode():
        assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    rows = [line.split() for line in lines]
    assert ["liger-kernel", "not", "installed"] in rows
    assert ["triton", "3.2"] in rows
    assert ["device", "name", "auto", "uses", "why"] in rows
    assert any(row[:5] == ["cuda:0", "a", "cuda,", "3.00", "GiB"] for row in rows)
    assert any("gelu," in row for row in rows)
    assert any("LlamaMLP" in row for row in rows)
