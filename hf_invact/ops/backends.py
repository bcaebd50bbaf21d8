"""The backends by name, and which of them serves a tensor."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from ..curves import Curve

AUTO = "auto"
ENVIRONMENT_VARIABLE = "HF_INVACT_BACKEND"  # what "auto" stands for
TRITON_DEVICES = ("cuda", "xpu")  # ROCm calls its devices cuda too
NOT_INSTALLED = "the package triton is not installed"


@dataclass(frozen=True)
class Backend:
    """How activations, gates and their gradients are computed. See `eager` for the arguments."""

    name: str
    forward: Callable[[Tensor, Curve], tuple[Tensor, Tensor | None]]
    backward: Callable[[Tensor, Tensor, Tensor | None, Curve], Tensor]
    gate_forward: Callable[[Tensor, Tensor, Curve], tuple[Tensor, Tensor | None]]
    gate_backward: Callable[[Tensor, Tensor, Tensor, Tensor | None, Curve], tuple[Tensor, Tensor]]
    exact_backward: Callable[[Tensor, Tensor, Curve], Tensor]
    exact_gate_backward: Callable[[Tensor, Tensor, Tensor, Curve], tuple[Tensor, Tensor]]


@cache
def _imported(module: str) -> ModuleType:
    return importlib.import_module(f".{module}", __package__)


def _backend(name: str, module: str) -> Backend:
    """The functions of a module of this package, which is imported when the first of them is called."""

    def operation(attribute: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            return getattr(_imported(module), attribute)(*arguments)

        return call

    return Backend(name, **{field.name: operation(field.name) for field in fields(Backend) if field.name != "name"})


_MODULES = {"eager": "eager.activation", "compile": "inductor.activation", "triton": "triton.activation"}
BACKENDS = MappingProxyType({name: _backend(name, module) for name, module in _MODULES.items()})


def check_backend(name: str) -> None:
    """Check the name of a backend, or "auto".

    Raises:
        ValueError: unknown name.
        RuntimeError: what it needs is not installed.
    """
    if name != AUTO and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; known: {', '.join([AUTO, *BACKENDS])}")
    if name == "triton" and not _triton_is_installed():
        raise _refusal(NOT_INSTALLED)


def choose_backend(name: str, like: Tensor) -> Backend:
    """The backend of this name for tensors such as this one.

    "auto" stands for the environment variable HF_INVACT_BACKEND; where that is not set, for Triton on the GPUs that it
    knows (CUDA, ROCm, XPU) if it is installed, and for the plain backend elsewhere.

    Raises:
        ValueError: unknown name.
        RuntimeError: a backend that was chosen by name cannot serve this tensor.
    """
    check_backend(name)
    chosen = _from_environment() if name == AUTO else name
    if chosen == AUTO:
        has_kernels = like.device.type in TRITON_DEVICES and why_not_triton(like) is None
        return BACKENDS["triton" if has_kernels else "eager"]
    reason = why_not_triton(like) if chosen == "triton" else None
    if reason is not None:
        raise _refusal(reason)
    return BACKENDS[chosen]


def check_device(name: str, parameters: Iterable[Tensor]) -> None:
    """Check that a backend can serve a model with these parameters, as they are or once they are moved.

    Where the machine has a GPU that Triton knows, parameters on the CPU may be moved there yet; ones without values
    (on the meta device, or fake) belong to no machine.

    Raises:
        ValueError: unknown name.
        RuntimeError: a backend that was chosen by name can serve none of the parameters.
    """
    check_backend(name)
    if (_from_environment() if name == AUTO else name) != "triton":
        return
    has_gpu = any(getattr(torch, device).is_available() for device in TRITON_DEVICES)
    elsewhere = ("meta", "cpu") if has_gpu else ("meta",)
    reasons = []
    for parameter in parameters:
        reason = why_not_triton(parameter)
        if reason is None or isinstance(parameter, FakeTensor) or parameter.device.type in elsewhere:
            return
        reasons.append(reason)
    if reasons:
        raise _refusal(reasons[0])


def why_not_triton(like: Tensor) -> str | None:
    """Why Triton cannot serve tensors such as this one; None where it can."""
    if not _triton_is_installed():
        return NOT_INSTALLED
    if like.dtype == torch.float64:
        return "its kernels compute in float32, and the tensor is float64"
    if like.device.type not in TRITON_DEVICES and not _triton_interprets():
        return f"it has no kernels for {like.device.type} tensors"
    return None


def _refusal(reason: str) -> RuntimeError:
    return RuntimeError(f"the backend 'triton' was chosen, but {reason}. Choose 'auto', 'compile' or 'eager'")


def _from_environment() -> str:
    name = os.environ.get(ENVIRONMENT_VARIABLE) or AUTO
    if name != AUTO and name not in BACKENDS:
        known = ", ".join([AUTO, *BACKENDS])
        raise ValueError(f"the environment variable {ENVIRONMENT_VARIABLE} is {name!r}; known: {known}")
    return name


@cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton_interprets() -> bool:
    """Whether kernels run in Python, which Triton decides when they are imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"
