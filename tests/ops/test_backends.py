"""Backends by name and by device, and the errors for tensors that a backend does not support."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_invact.ops import AUTO, BACKENDS, backends, check_backend, check_device
from hf_invact.ops.backends import choose_backend
from hf_invact.ops.operators.activation import implementation


def test_names_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_triton_is_installed", lambda: True)
    for name in (AUTO, *BACKENDS):
        check_backend(name)


@pytest.mark.parametrize(("name", "folder"), [("eager", "eager"), ("compile", "inductor"), ("triton", "triton")])
def test_a_backend_is_the_module_in_its_folder(name: str, folder: str) -> None:
    if name == "triton":
        pytest.importorskip("triton")
    assert implementation(name) is importlib.import_module(f"hf_invact.ops.{folder}.activation")


def test_chooses_by_name_and_by_device() -> None:
    assert choose_backend("eager", torch.ones(1)) == "eager"
    assert choose_backend("compile", torch.ones(1)) == "compile"
    assert choose_backend(AUTO, torch.ones(1)) == "eager"


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_auto_takes_triton_for_the_gpus_that_it_knows(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    like = SimpleNamespace(device=torch.device(device), dtype=torch.bfloat16)
    monkeypatch.setattr(backends, "_triton_is_installed", lambda: True)
    assert choose_backend(AUTO, like) == "triton"
    assert choose_backend("eager", like) == "eager"
    assert choose_backend(AUTO, SimpleNamespace(device=torch.device(device), dtype=torch.float64)) == "eager"
    assert choose_backend(AUTO, SimpleNamespace(device=torch.device("mps"), dtype=torch.bfloat16)) == "eager"
    monkeypatch.setattr(backends, "_triton_is_installed", lambda: False)
    assert choose_backend(AUTO, like) == "eager"


def test_triton_by_name_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_triton_is_installed", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="'triton' was chosen, but it has no kernels for cpu tensors"):
        choose_backend("triton", torch.ones(1))
    on_a_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float64)
    with pytest.raises(RuntimeError, match="the tensor is float64"):
        choose_backend("triton", on_a_gpu)
    monkeypatch.setattr(backends, "_triton_is_installed", lambda: False)
    for refuse in (check_backend, lambda name: choose_backend(name, on_a_gpu)):
        with pytest.raises(RuntimeError, match="'triton' was chosen, but the package triton is not installed"):
            refuse("triton")


def test_auto_stands_for_what_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_INVACT_BACKEND", "compile")
    assert choose_backend(AUTO, torch.ones(1)) == "compile"
    assert choose_backend("eager", torch.ones(1)) == "eager"
    monkeypatch.setenv("HF_INVACT_BACKEND", "")
    assert choose_backend(AUTO, torch.ones(1)) == "eager"
    monkeypatch.setenv("HF_INVACT_BACKEND", "cuda")
    with pytest.raises(ValueError, match="variable HF_INVACT_BACKEND is 'cuda'; known: auto, eager, compile, triton"):
        choose_backend(AUTO, torch.ones(1))


@pytest.mark.parametrize("name", ["cuda", "Eager", ""])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    for refuse in (check_backend, lambda name: choose_backend(name, torch.ones(1))):
        with pytest.raises(ValueError, match=f"unknown backend '{name}'.*auto, eager"):
            refuse(name)


class TestCheckDevice:
    @pytest.fixture(autouse=True)
    def compiled_triton(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backends, "_triton_is_installed", lambda: True)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    @pytest.fixture(params=[True, False], ids=["with-a-gpu", "without-a-gpu"])
    def has_gpu(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
        monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
        return request.param

    def test_a_cpu_serves_triton_only_until_the_model_is_moved(self, has_gpu: bool) -> None:
        if has_gpu:
            check_device("triton", [torch.ones(1)])
            return
        with pytest.raises(RuntimeError, match="'triton' was chosen, but it has no kernels for cpu tensors"):
            check_device("triton", [torch.ones(1)])

    def test_a_device_that_triton_does_not_know(self, has_gpu: bool) -> None:
        elsewhere = SimpleNamespace(device=torch.device("mps"), dtype=torch.float32)
        with pytest.raises(RuntimeError, match="it has no kernels for mps tensors"):
            check_device("triton", [elsewhere])
        check_device("triton", [elsewhere, SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)])

    def test_what_needs_no_kernels_of_this_machine(self, has_gpu: bool) -> None:
        for name in (AUTO, "eager", "compile"):
            check_device(name, [torch.ones(1)])
        check_device("triton", [])
        check_device("triton", [torch.ones(1, device="meta")])
        with FakeTensorMode():
            check_device("triton", [torch.ones(1)])

    def test_a_name_from_the_environment(self, has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_INVACT_BACKEND", "triton")
        if not has_gpu:
            with pytest.raises(RuntimeError, match="it has no kernels for cpu tensors"):
                check_device(AUTO, [torch.ones(1)])
        monkeypatch.setenv("HF_INVACT_BACKEND", "cuda")
        with pytest.raises(ValueError, match="variable HF_INVACT_BACKEND is 'cuda'"):
            check_device(AUTO, [])
